//! Small layers as one op each on the CPU and on graphics cards, where a chain of elementwise tensor
//! operations costs more in memory traffic than the matrix products between them. Elsewhere the
//! same formulas out of tensor operations; linear layers have NVIDIA's library on its cards. Numbers of 16
//! bits are widened to f32, and the result is rounded once.
//!
//! Like the tensor operations that they stand for, they return tensors and no `Result`: shapes that do
//! not fit panic on every device, with the function's name and both shapes. Empty tensors give empty ones.

mod adamw;
mod conv;
#[cfg(feature = "cube")]
mod cube;
#[cfg(any(test, feature = "cuda-nvrtc"))]
#[cfg_attr(not(feature = "cuda-nvrtc"), allow(dead_code))]
mod cuda;
mod embed;
mod gated_norm;
mod many;
mod rms_norm;
mod rotate;
mod squares;
mod swiglu;
#[cfg(test)]
mod tests;

pub use crate::linear::{
    Products, left_to_burn, linear, linear_bias, matmul_detached, products_on,
};
pub use adamw::{AdamWStep, adamw, adamw_scaled};
pub use conv::{causal_conv_silu, conv_tail};
pub use embed::embed;
pub use gated_norm::{GatedNorm, gated_rms_norm};
pub use many::AdamWMany;
pub use rms_norm::rms_norm;
pub use rotate::rotate_half;
pub use squares::sums_of_squares;
pub use swiglu::swiglu;

#[cfg(feature = "flex")]
use burn::tensor::DType;
use burn::tensor::Tensor;

/// `formula` in f32 for an input of 16 bits, and its result rounded once; as it is for others.
///
/// # Shapes
/// Those of `formula`
pub fn widened<const D: usize>(
    x: Tensor<D>,
    formula: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Tensor<D> {
    let dtype = x.dtype();
    formula(x.cast(crate::precision::wide(dtype))).cast(dtype)
}

/// Shapes are the caller's to keep.
#[track_caller]
pub(crate) fn expect(fits: bool, op: &str, found: impl FnOnce() -> String) {
    assert!(fits, "{op}: {}", found());
}

/// Work below this many elements is not worth a thread.
#[cfg(feature = "flex")]
const PARALLEL_FROM: usize = 1 << 16;

/// Whether the op of its own runs for this tensor.
#[cfg(feature = "flex")]
fn on_cpu<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && crate::attention::is_flex(&x.device())
}

/// `len` elements, zeros until `work(first row, its rows)` has written them, on several threads
/// where it pays.
#[cfg(feature = "flex")]
fn rows(len: usize, width: usize, work: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    use crate::room::{filled, zeroed};
    if len < PARALLEL_FROM || width == 0 {
        let mut out = vec![0.0; len];
        work(0, &mut out);
        return out;
    }
    let per_chunk = (PARALLEL_FROM / 4).div_ceil(width);
    let write = |i, part: &mut [_]| work(i * per_chunk, zeroed(part));
    // Safe: every part is cleared.
    unsafe { filled(len, per_chunk * width, true, write) }
}
