//! Loops that must be fast on a CPU, compiled for the best instruction set found at run time.

use pulp::Simd;

/// Runs `work` compiled for the machine's widest vectors; everything inside must inline.
#[inline(always)]
pub(crate) fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        // Detection is cached by the standard library: one load and a test.
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
        {
            // Safe: the features have just been found.
            return unsafe { x86::avx512(work) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return unsafe { x86::avx2(work) };
        }
    }
    work()
}

/// Floats of a cache line.
pub(crate) const LINE: usize = 16;

/// The fold of `x` in four vectors at once, which hides the time that each step takes; `rest` holds
/// what is no whole vector.
#[inline(always)]
pub(crate) fn fold<S: Simd>(
    first: S::f32s,
    x: &[f32],
    op: impl Fn(S::f32s, S::f32s) -> S::f32s,
) -> (S::f32s, &[f32]) {
    let (body, rest) = S::as_simd_f32s(x);
    let mut folds = [first; 4];
    let (fours, few) = body.as_chunks::<4>();
    for four in fours {
        for (fold, x) in folds.iter_mut().zip(four) {
            *fold = op(*x, *fold);
        }
    }
    for x in few {
        folds[0] = op(*x, folds[0]);
    }
    let [a, b, c, d] = folds;
    (op(op(a, b), op(c, d)), rest)
}

/// Σ x
#[inline(always)]
pub(crate) fn sum<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (sum, rest) = fold::<S>(simd.splat_f32s(0.0), x, |a, b| simd.add_f32s(a, b));
    simd.reduce_sum_f32s(sum) + rest.iter().sum::<f32>()
}

/// The largest of `x` that is a number; −inf of nothing.
#[inline(always)]
pub(crate) fn maximum<S: Simd>(simd: S, x: &[f32]) -> f32 {
    // Of a NaN and a number x86 takes the second.
    let least = simd.splat_f32s(f32::NEG_INFINITY);
    let (top, rest) = fold::<S>(least, x, |a, b| simd.max_f32s(a, b));
    rest.iter().fold(simd.reduce_max_f32s(top), |m, x| if *x > m { *x } else { m })
}

/// Asks for the cache line at `at`, which need not be readable.
#[inline(always)]
pub(crate) fn prefetch(at: *const f32) {
    ask_for::<FIRST_LEVEL>(at);
}

/// The same of what is needed later, and would not stay in the first-level cache until then.
#[inline(always)]
pub(crate) fn prefetch_early(at: *const f32) {
    ask_for::<SECOND_LEVEL>(at);
}

/// Levels of the cache, as x86 numbers them.
const FIRST_LEVEL: i32 = 3;
const SECOND_LEVEL: i32 = 2;

#[inline(always)]
fn ask_for<const LEVEL: i32>(at: *const f32) {
    // Safe: a hint that reads nothing.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<LEVEL>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Rows and columns of a block for [`turn`].
pub(crate) const BLOCK: usize = 8;

/// Writes a block of `BLOCK` rows, times `factor`, as columns; both with the distance of their rows.
///
/// # Safety
/// Both must be valid for the block, which must not overlap, and the machine have AVX2 if it is an x86.
#[inline(always)]
pub(crate) unsafe fn turn(from: (*const f32, usize), to: (*mut f32, usize), factor: f32) {
    // Safe: as the caller vouches.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        x86::turn(from, to, factor);
        #[cfg(not(target_arch = "x86_64"))]
        for i in 0..BLOCK * BLOCK {
            let (r, c) = (i / BLOCK, i % BLOCK);
            *to.0.add(c * to.1 + r) = factor * *from.0.add(r * from.1 + c);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::BLOCK;
    use std::arch::x86_64::*;

    /// See the function of this name above.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn turn(
        (from, from_rows): (*const f32, usize),
        (to, to_rows): (*mut f32, usize),
        factor: f32,
    ) {
        // Safe: as the caller vouches.
        unsafe {
            // Loops, not closures, which would be compiled without the features of the caller.
            let factor = _mm256_set1_ps(factor);
            let mut rows = [factor; BLOCK];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm256_mul_ps(_mm256_loadu_ps(from.add(i * from_rows)), factor);
            }
            // Single elements, then pairs, then fours change places.
            let mut pairs = rows;
            for i in (0..BLOCK).step_by(2) {
                pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
                pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
            }
            let mut fours = rows;
            for i in [0, 1, 4, 5] {
                let to = i / 4 * 4 + i % 4 * 2;
                fours[to] = _mm256_shuffle_ps::<0b01_00_01_00>(pairs[i], pairs[i + 2]);
                fours[to + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(pairs[i], pairs[i + 2]);
            }
            for i in 0..BLOCK / 2 {
                let low = _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]);
                let high = _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]);
                _mm256_storeu_ps(to.add(i * to_rows), low);
                _mm256_storeu_ps(to.add((i + 4) * to_rows), high);
            }
        }
    }

    /// # Safety
    /// The machine has AVX-512 F, VL, DQ and BW.
    #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,fma")]
    pub(super) unsafe fn avx512<R>(work: impl FnOnce() -> R) -> R {
        work()
    }

    /// # Safety
    /// The machine has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2<R>(work: impl FnOnce() -> R) -> R {
        work()
    }
}

/// 2^x for x <= 0 to 2 ulp, branch-free so that the compiler vectorizes it; 0 below −126.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    exp2_by(x, |a, b, c| a * b + c)
}

/// The same for code that is compiled for `S`, whose vectors multiply and add at once.
#[inline(always)]
pub(crate) fn exp2_of<S: Simd>(x: f32) -> f32 {
    // Where there are no vectors, a function would be called for it.
    if S::F32_LANES > 1 { exp2_by(x, f32::mul_add) } else { exp2(x) }
}

#[inline(always)]
fn exp2_by(x: f32, mul_add: impl Fn(f32, f32, f32) -> f32) -> f32 {
    // Adding 1.5·2^23 rounds to the nearest integer and leaves it in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    // Not `max`, which would turn NaN into a number.
    let clamped = if x < -126.0 { -126.0 } else { x };
    let shifted = clamped + MAGIC;
    let r = clamped - (shifted - MAGIC);
    // 2^r on [−1/2, 1/2], of least greatest error.
    let mut p = 1.534_581_1e-4_f32;
    p = mul_add(p, r, 1.339_993_1e-3);
    p = mul_add(p, r, 9.618_489e-3);
    p = mul_add(p, r, 5.550_328_6e-2);
    p = mul_add(p, r, 2.402_264_6e-1);
    p = mul_add(p, r, 6.931_472e-1);
    p = mul_add(p, r, 1.0);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -126.0 { 0.0 } else { p * power }
}

/// 2^x for any x, branch-free; 0 below −126, infinite above 127.5.
#[inline(always)]
pub(crate) fn exp2_any(x: f32) -> f32 {
    exp2(if x > 128.0 { 128.0 } else { x })
}

/// 1 / (1 + e^−x), from the exponential of −|x| so that it never overflows.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    let inverse = 1.0 / (1.0 + e);
    if x >= 0.0 { inverse } else { e * inverse }
}

/// ln(1 + e^x), without overflow and exact where it is small.
#[inline(always)]
pub(crate) fn softplus(x: f32) -> f32 {
    let e = exp(-x.abs());
    // ln(1 + e) = 2 artanh(e / (2 + e)) by its series: the square is at most 1/9.
    let s = e / (2.0 + e);
    let q = s * s;
    let mut p = 1.0 / 15.0;
    for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        p = p * q + 1.0 / odd;
    }
    let above = if x > 0.0 { x } else { 0.0 };
    // NaN stays NaN through `e`.
    above + 2.0 * s * p
}

/// e^x for x <= 0 to 2 ulp, branch-free so that the compiler vectorizes it; 0 below −87.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that x − n·ln 2 keeps its low bits.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5·2^23 rounds to the nearest integer and leaves it in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    // Not `max`, which would turn NaN into a number.
    let clamped = if x < -87.3 { -87.3 } else { x };
    let shifted = clamped * LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4_f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e = p * r * r + r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.3 { 0.0 } else { e * power }
}

#[cfg(test)]
mod tests {
    #[test]
    fn blocks_are_turned() {
        use super::{BLOCK, turn};
        #[cfg(target_arch = "x86_64")]
        if !is_x86_feature_detected!("avx2") {
            return;
        }
        let from: Vec<f32> = (0..200).map(|i| i as f32).collect();
        let mut to = [-1.0; 200];
        let mut want = to;
        for (row, column) in (0..BLOCK).flat_map(|r| (0..BLOCK).map(move |c| (r, c))) {
            want[1 + column * 24 + row] = 0.5 * from[3 + row * 21 + column];
        }
        // Safe: both hold eight rows of eight.
        unsafe { turn((from[3..].as_ptr(), 21), (to[1..].as_mut_ptr(), 24), 0.5) };
        assert_eq!(to, want);
    }

    #[test]
    fn exp2_is_exact_to_two_units_and_ends_at_zero() {
        let mut worst = 0.0f64;
        for i in 0..=1_259_999 {
            let x = -(i as f32) * 1e-4;
            let want = (x as f64).exp2();
            for got in [super::exp2(x), super::exp2_by(x, f32::mul_add)] {
                worst = worst.max((got as f64 - want).abs() / want);
            }
        }
        assert!(worst < 2.4e-7, "relative error {worst}");
        assert_eq!(super::exp2(0.0), 1.0);
        assert_eq!(super::exp2(f32::NEG_INFINITY), 0.0);
        assert!(super::exp2(f32::NAN).is_nan());
    }

    #[test]
    fn powers_of_any_sign_softplus_and_sigmoid_are_exact() {
        for i in -1_000_000..=1_000_000 {
            let x = i as f32 * 1e-4;
            let wide = x as f64;
            let near = |got: f32, want: f64| (got as f64 - want).abs() <= 4e-7 * want;
            assert!(near(super::exp2_any(x), wide.exp2()), "2^{x}");
            // Below −87 the exponential is zero.
            if x > -87.0 {
                assert!(near(super::softplus(x), wide.exp().ln_1p().max(wide)), "softplus({x})");
                assert!(near(super::sigmoid(x), 1.0 / (1.0 + (-wide).exp())), "sigmoid({x})");
            }
        }
        assert_eq!(super::exp2_any(1e9), f32::INFINITY);
        assert_eq!((super::exp2_any(f32::NEG_INFINITY), super::softplus(-1e9)), (0.0, 0.0));
        assert!(super::exp2_any(f32::NAN).is_nan() && super::softplus(f32::NAN).is_nan());
    }

    #[test]
    fn exp_is_exact_to_two_units_and_ends_at_zero() {
        let mut worst = 0.0f64;
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let (got, want) = (super::exp(x) as f64, (x as f64).exp());
            worst = worst.max((got - want).abs() / want);
        }
        assert!(worst < 2.4e-7, "relative error {worst}");
        assert_eq!(super::exp(0.0), 1.0);
        assert_eq!(super::exp(f32::NEG_INFINITY), 0.0);
        assert!(super::exp(f32::NAN).is_nan());
    }
}
