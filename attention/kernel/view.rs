//! The first tokens of a buffer that has room for more.

use burn::tensor::Tensor;

/// The first `len` tokens of `x`: on NVIDIA cards where they lie, on other devices as `narrow` gives them, which copies
/// on some. A cache in whose room a token was written costs nothing to look at.
///
/// # Shapes
/// x `[B, K, R, D]` with R at least `len` -> `[B, K, len, D]`
///
/// # Panics
/// For more tokens than there are, as of `narrow`.
pub fn leading(x: Tensor<4>, len: usize) -> Tensor<4> {
    #[cfg(feature = "cuda")]
    if let Some(x) = on_cuda(&x, len) {
        return x;
    }
    x.narrow(2, 0, len)
}

#[cfg(feature = "cuda")]
fn on_cuda(x: &Tensor<4>, len: usize) -> Option<Tensor<4>> {
    use crate::card::OnCard;
    use burn::backend::Cube;

    if x.is_autodiff() || len == 0 {
        return None;
    }
    let mut x = Cube::lower(x.clone().try_into_primitive::<Cube>().ok()?);
    let room = x.meta.shape()[2];
    if x.client.name() != "cuda" || x.qparams.is_some() || room < len {
        return None;
    }
    let behind = (room - len) * x.meta.strides()[2] * x.dtype.size();
    x.meta.shape[2] = len;
    x.handle = x.handle.offset_end(behind as u64);
    Some(Tensor::from_primitive::<Cube>(Cube::lift(x)))
}
