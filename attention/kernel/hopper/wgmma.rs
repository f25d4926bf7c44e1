//! Matrix products of a warpgroup as CUDA C++ functions: there is one instruction per size, with every
//! accumulator an operand of its own.

use std::fmt::Write;

/// Where the left side of a product lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// In shared memory, as the right side does. Both sums are over the dimension that is adjacent in
    /// memory, unless both are turned.
    Shared {
        /// Sums over the other dimension.
        turned: bool,
    },
    /// In registers, as accumulators are once packed; the right side is turned.
    Registers,
}

/// `name(x, a, b, add)`: x = a·b, or x += a·b where `add` is not 0; `name(x, a0, a1, a2, a3, b)`: x += a·b.
/// x is `[64, n]` in f32, a `[64, 16]`, b `[16, n]`.
pub(super) fn product(name: &str, n: usize, left: Left, dtype: &str) -> String {
    let numbers = n / 2;
    let places = |from: usize, count: usize| {
        let places: Vec<String> = (from..from + count).map(|i| format!("%{i}")).collect();
        places.join(", ")
    };
    let x: Vec<String> = (0..numbers).map(|i| format!("\"+f\"(x[{i}])")).collect();
    let x = x.join(", ");
    let instruction = format!(
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{dtype}.{dtype} {{{}}}",
        places(0, numbers)
    );
    let mut text = format!("__device__ __forceinline__ void {name}(float (&x)[{numbers}], ");
    // Writing to a string does not fail.
    let _ = match left {
        Left::Shared { turned } => {
            let (a, b, add, turned) = (numbers, numbers + 1, numbers + 2, turned as u8);
            write!(
                text,
                "u64 a, u64 b, int add) {{\n  asm volatile(\"{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{add}, 0;\\n\"\n    \
                 \"{instruction}, %{a}, %{b}, p, 1, 1, {turned}, {turned};\\n}}\\n\"\n    \
                 : {x} : \"l\"(a), \"l\"(b), \"r\"(add));\n}}\n"
            )
        }
        Left::Registers => write!(
            text,
            "u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {{\n  asm volatile(\"{instruction}, {{{}}}, %{}, 1, 1, 1, 1;\\n\"\n    \
             : {x} : \"r\"(a0), \"r\"(a1), \"r\"(a2), \"r\"(a3), \"l\"(b));\n}}\n",
            places(numbers, 4),
            numbers + 4
        ),
    };
    text
}
