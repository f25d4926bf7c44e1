//! Rotation of the two halves of each head by angles given as cosines and sines.

use super::expect;
#[cfg(feature = "flex")]
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
        use burn::backend::Dispatch;
        let table = |x: Tensor<4>| x.inner().cast(DType::F32).into_dispatch();
        let y = <Dispatch as flex::RotateOps>::rotate_op(x.into_dispatch(), table(cos), table(sin));
        return Tensor::from_dispatch(y);
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

#[cfg(feature = "flex")]
mod flex {
    use crate::fused::rows;
    use crate::simd::vectorized;
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::{Autodiff, Backend, Flex, backend_extension, tensor::FloatTensor};
    use burn::tensor::TensorData;
    use burn_flex::FlexTensor;

    #[backend_extension(Autodiff, Flex)]
    pub trait RotateOps: Backend {
        fn rotate_op(
            x: FloatTensor<Self>,
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
        ) -> FloatTensor<Self>;
    }

    impl RotateOps for Flex {
        fn rotate_op(x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
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

    impl<B: Backend + RotateOps, C: CheckpointStrategy> RotateOps for Autodiff<B, C> {
        fn rotate_op(
            x: FloatTensor<Self>,
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            #[derive(Debug)]
            struct Rotate;
            impl<B: Backend + RotateOps> Backward<B, 1> for Rotate {
                /// cos, sin
                type State = [FloatTensor<B>; 2];
                fn backward(
                    self,
                    ops: Ops<Self::State, 1>,
                    grads: &mut Gradients,
                    _: &mut Checkpointer,
                ) {
                    let dy = grads.consume::<B>(&ops.node);
                    let [cos, sin] = ops.state;
                    let dx = B::rotate_op(dy, cos, B::float_neg(sin));
                    register!(B, grads, ops.parents, [dx]);
                }
            }
            let tables = [cos.primitive().clone(), sin.primitive().clone()];
            let [c, s] = tables.clone();
            let y = B::rotate_op(x.primitive().clone(), c, s);
            match Rotate.prepare::<C>([x.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish(tables, y),
                OpsKind::UnTracked(prep) => prep.finish(y),
            }
        }
    }
}
