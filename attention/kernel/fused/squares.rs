//! Sums of squares of many tensors, as norms of gradients are made of.

use burn::tensor::{DType, Tensor};

/// Σ x² of each tensor, in f32, on their device.
///
/// # Shapes
/// any lengths -> `[number of tensors]`
///
/// # Panics
/// For no tensors at all, which are on no device.
pub fn sums_of_squares(tensors: Vec<Tensor<1>>) -> Tensor<1> {
    super::expect(!tensors.is_empty(), "sums_of_squares", || "of no tensors".into());
    #[cfg(feature = "cuda-nvrtc")]
    if let Some(sums) = super::cuda::sums_of_squares(&tensors) {
        return sums;
    }
    #[cfg(feature = "cube")]
    {
        let device = tensors[0].device().inner();
        let here = |x: &Tensor<1>| x.dims()[0] > 0 && x.device().inner() == device;
        if tensors.iter().all(|x| here(x) && crate::card::floats_on_card(x)) {
            return super::cube::sums_of_squares(tensors);
        }
    }
    let one = |x: Tensor<1>| x.inner().cast(DType::F32).square().sum();
    Tensor::cat(tensors.into_iter().map(one).collect(), 0)
}
