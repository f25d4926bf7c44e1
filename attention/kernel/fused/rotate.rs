//! Rotation of the two halves of each head by angles given as cosines and sines.

use super::expect;
#[cfg(any(feature = "flex", feature = "cube"))]
use burn::tensor::DType;
use burn::tensor::Tensor;

/// `(x1, x2) -> (x1·cos − x2·sin, x2·cos + x1·sin)`; channels behind the tables' width pass
/// through. The tables carry no gradient, and are never rounded: input of 16 bits is rotated in f32.
///
/// # Shapes
/// x `[B, H, T, >= D]`, cos and sin `[B or 1, 1, T, D/2]` -> like x
///
/// # Panics
/// When the tables are of other rows, tokens or more channels, or differ from each other.
pub fn rotate_half(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let ([batch, _, len, width], [rows, one, of_len, half]) = (x.dims(), cos.dims());
    let fits = (rows == 1 || rows == batch) && one == 1 && of_len == len && 2 * half <= width;
    expect(fits && sin.dims() == cos.dims(), "rotate_half", || {
        format!(
            "x is {:?}, so tables are [{batch} or 1, 1, {len}, up to {}]; cos is {:?}, sin {:?}",
            x.dims(),
            width / 2,
            cos.dims(),
            sin.dims()
        )
    });
    if half == 0 || x.shape().num_elements() == 0 {
        return x;
    }
    #[cfg(feature = "flex")]
    if super::on_cpu(&x) {
        return by_op(x, cos, sin);
    }
    #[cfg(feature = "cube")]
    if [&x, &cos, &sin].into_iter().all(crate::card::floats_on_card) {
        return by_op(x, cos, sin);
    }
    let wide = crate::precision::wide(x.dtype());
    if x.dtype() != wide {
        return super::widened(x, |x| rotate_half(x, cos, sin));
    }
    let x1 = x.clone().narrow(3, 0, half);
    let x2 = x.clone().narrow(3, half, half);
    let (cos, sin) = (cos.cast(wide), sin.cast(wide));
    let y1 = x1.clone() * cos.clone() - x2.clone() * sin.clone();
    let y2 = x2 * cos + x1 * sin;
    let mut parts = vec![y1, y2];
    if width > 2 * half {
        parts.push(x.narrow(3, 2 * half, width - 2 * half));
    }
    Tensor::cat(parts, 3)
}

#[cfg(any(feature = "flex", feature = "cube"))]
fn by_op(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    use burn::backend::Dispatch;
    let table = |x: Tensor<4>| x.inner().cast(DType::F32).into_dispatch();
    let (x, cos, sin) = (x.into_dispatch(), table(cos), table(sin));
    Tensor::from_dispatch(<Dispatch as op::RotateOps>::rotate_op(x, cos, sin, false))
}

#[cfg(any(feature = "flex", feature = "cube"))]
pub(super) mod op {
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::{Autodiff, Backend, backend_extension, tensor::FloatTensor};

    #[backend_extension(
        Autodiff,
        Flex: cfg(feature = "flex"),
        Cube: cfg(feature = "cube")
    )]
    pub trait RotateOps: Backend {
        /// By the angles, or back by them.
        fn rotate_op(
            x: FloatTensor<Self>,
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
            back: bool,
        ) -> FloatTensor<Self>;
    }

    impl<B: Backend + RotateOps, C: CheckpointStrategy> RotateOps for Autodiff<B, C> {
        fn rotate_op(
            x: FloatTensor<Self>,
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
            back: bool,
        ) -> FloatTensor<Self> {
            #[derive(Debug)]
            struct Rotate;
            impl<B: Backend + RotateOps> Backward<B, 1> for Rotate {
                /// cos, sin, and which way the forward pass went.
                type State = ([FloatTensor<B>; 2], bool);
                fn backward(
                    self,
                    ops: Ops<Self::State, 1>,
                    grads: &mut Gradients,
                    _: &mut Checkpointer,
                ) {
                    let dy = grads.consume::<B>(&ops.node);
                    let ([cos, sin], back) = ops.state;
                    let dx = B::rotate_op(dy, cos, sin, !back);
                    register!(B, grads, ops.parents, [dx]);
                }
            }
            let tables = [cos.primitive().clone(), sin.primitive().clone()];
            let [c, s] = tables.clone();
            let y = B::rotate_op(x.primitive().clone(), c, s, back);
            match Rotate.prepare::<C>([x.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish((tables, back), y),
                OpsKind::UnTracked(prep) => prep.finish(y),
            }
        }
    }
}

#[cfg(feature = "flex")]
mod flex {
    use super::op::RotateOps;
    use crate::fused::rows;
    use crate::simd::vectorized;
    use burn::backend::{Flex, ops::FloatTensorOps};
    use burn::tensor::TensorData;
    use burn_flex::FlexTensor;

    impl RotateOps for Flex {
        fn rotate_op(x: FlexTensor, cos: FlexTensor, sin: FlexTensor, back: bool) -> FlexTensor {
            let sin = if back { Self::float_neg(sin) } else { sin };
            // Heads are usually a view of [B, T, H, D]: read through the strides.
            let x = if x.layout().strides()[3] == 1 { x } else { x.to_contiguous() };
            let (cos, sin) = (cos.to_contiguous(), sin.to_contiguous());
            let (shape, strides) = (x.layout().shape().clone(), x.layout().strides().to_vec());
            let [h, t, d] = [shape[1], shape[2], shape[3]];
            let rows_of_table = cos.layout().shape()[0];
            let half = cos.layout().shape()[3];
            let (input, c, s) = (x.storage::<f32>(), cos.storage::<f32>(), sin.storage::<f32>());
            let start = x.layout().start_offset() as isize;
            let y = rows(shape[0] * h * t * d, d, |first, out| {
                vectorized(
                    #[inline(always)]
                    || {
                        for (i, y) in out.chunks_mut(d).enumerate() {
                            let row = first + i;
                            let (b, head, token) = (row / (h * t), row / t % h, row % t);
                            let at = start
                                + b as isize * strides[0]
                                + head as isize * strides[1]
                                + token as isize * strides[2];
                            let x = &input[at as usize..][..d];
                            let of_table = if rows_of_table == 1 { token } else { b * t + token };
                            let (c, s) =
                                (&c[of_table * half..][..half], &s[of_table * half..][..half]);
                            let (x1, x2) = x.split_at(half);
                            let (y1, y2) = y.split_at_mut(half);
                            for j in 0..half {
                                y1[j] = x1[j] * c[j] - x2[j] * s[j];
                                y2[j] = x2[j] * c[j] + x1[j] * s[j];
                            }
                            y2[half..].copy_from_slice(&x2[half..]);
                        }
                    },
                )
            });
            FlexTensor::from_data(TensorData::new(y, shape))
        }
    }
}
