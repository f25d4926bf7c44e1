//! `y = w · x / sqrt(mean(x²) + eps)` over the last dimension.

use super::expect;
use burn::tensor::Tensor;

/// Root-mean-square normalisation, in f32 (f64 for f64 input): input of 16 bits is rounded once, behind
/// the weight, which may be in f32.
///
/// # Shapes
/// x `[.., D]`, weight `[D]` -> like x
///
/// # Panics
/// When the weight is of another width.
pub fn rms_norm<const N: usize>(x: Tensor<N>, weight: Tensor<1>, eps: f64) -> Tensor<N> {
    let (width, [of_weight]) = (x.dims()[N - 1], weight.dims());
    expect(width == of_weight, "rms_norm", || {
        format!("x is {:?}, so the weight has {width} channels, not {of_weight}", x.dims())
    });
    if width == 0 {
        return x;
    }
    #[cfg(feature = "flex")]
    if super::on_cpu(&x) && weight.dtype() == x.dtype() {
        return by_op(x, weight, eps);
    }
    if x.shape().num_elements() == 0 {
        return x;
    }
    #[cfg(feature = "cube")]
    if crate::card::floats_on_card(&x) && crate::card::floats_on_card(&weight) {
        return by_op(x, weight, eps);
    }
    let wide = crate::precision::wide(x.dtype());
    if x.dtype() != wide || weight.dtype() != wide {
        let weight = weight.cast(wide);
        return super::widened(x, |x| rms_norm(x, weight, eps));
    }
    let scale = x.clone().square().mean_dim(N - 1).add_scalar(eps).sqrt().recip();
    x * scale * weight.unsqueeze()
}

#[cfg(any(feature = "flex", feature = "cube"))]
fn by_op<const N: usize>(x: Tensor<N>, weight: Tensor<1>, eps: f64) -> Tensor<N> {
    use burn::backend::Dispatch;
    let y = <Dispatch as op::NormOps>::rms_norm_op(x.into_dispatch(), weight.into_dispatch(), eps);
    Tensor::from_dispatch(y)
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
    pub trait NormOps: Backend {
        /// Like x, which on cards may be in 16 bits beside a weight in f32.
        fn rms_norm_op(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            eps: f64,
        ) -> FloatTensor<Self>;

        /// (dx like x, dw like the weight)
        fn rms_norm_gradients(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            dy: FloatTensor<Self>,
            eps: f64,
        ) -> (FloatTensor<Self>, FloatTensor<Self>);
    }

    impl<B: Backend + NormOps, C: CheckpointStrategy> NormOps for Autodiff<B, C> {
        fn rms_norm_op(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            eps: f64,
        ) -> FloatTensor<Self> {
            #[derive(Debug)]
            struct RmsNorm;
            impl<B: Backend + NormOps> Backward<B, 2> for RmsNorm {
                type State = ([FloatTensor<B>; 2], f64);
                fn backward(
                    self,
                    ops: Ops<Self::State, 2>,
                    grads: &mut Gradients,
                    _: &mut Checkpointer,
                ) {
                    let dy = grads.consume::<B>(&ops.node);
                    let ([x, w], eps) = ops.state;
                    let (dx, dw) = B::rms_norm_gradients(x, w, dy, eps);
                    register!(B, grads, ops.parents, [dx, dw]);
                }
            }
            let (xp, wp) = (x.primitive().clone(), weight.primitive().clone());
            let y = B::rms_norm_op(xp.clone(), wp.clone(), eps);
            let node = RmsNorm.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful();
            match node {
                OpsKind::Tracked(prep) => prep.finish(([xp, wp], eps), y),
                OpsKind::UnTracked(prep) => prep.finish(y),
            }
        }

        fn rms_norm_gradients(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            dy: FloatTensor<Self>,
            eps: f64,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            use burn::backend::AutodiffBackend;
            let p = |t: FloatTensor<Self>| t.primitive().clone();
            let (dx, dw) = B::rms_norm_gradients(p(x), p(weight), p(dy), eps);
            (Self::from_inner(dx), Self::from_inner(dw))
        }
    }
}

#[cfg(feature = "flex")]
mod flex {
    use super::op::NormOps;
    use crate::fused::rows;
    use crate::simd::vectorized;
    use crate::threads;
    use burn::backend::Flex;
    use burn::tensor::TensorData;
    use burn_flex::FlexTensor;

    impl NormOps for Flex {
        fn rms_norm_op(x: FlexTensor, weight: FlexTensor, eps: f64) -> FlexTensor {
            let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
            let (input, w) = (x.storage::<f32>(), weight.storage::<f32>());
            let y = rows(input.len(), w.len(), |first, out| {
                vectorized(
                    #[inline(always)]
                    || {
                        let x = &input[first * w.len()..];
                        for (x, y) in x.chunks(w.len()).zip(out.chunks_mut(w.len())) {
                            let r = inverse_rms(x, eps);
                            for ((x, w), y) in x.iter().zip(w).zip(y) {
                                *y = x * r * w;
                            }
                        }
                    },
                )
            });
            like(y, &x)
        }

        fn rms_norm_gradients(
            x: FlexTensor,
            weight: FlexTensor,
            dy: FlexTensor,
            eps: f64,
        ) -> (FlexTensor, FlexTensor) {
            let (x, weight, dy) = (x.to_contiguous(), weight.to_contiguous(), dy.to_contiguous());
            let (input, w, g) = (x.storage::<f32>(), weight.storage::<f32>(), dy.storage::<f32>());
            let width = w.len();
            let dx = rows(input.len(), width, |first, out| {
                vectorized(
                    #[inline(always)]
                    || {
                        let from = first * width;
                        let pairs = input[from..].chunks(width).zip(g[from..].chunks(width));
                        for ((x, g), dx) in pairs.zip(out.chunks_mut(width)) {
                            let r = inverse_rms(x, eps);
                            let mut dot = 0.0f32;
                            for ((x, g), w) in x.iter().zip(g).zip(w) {
                                dot += x * g * w;
                            }
                            let shrink = r * r * r * dot / width as f32;
                            for (((x, g), w), dx) in x.iter().zip(g).zip(w).zip(dx) {
                                *dx = r * g * w - shrink * x;
                            }
                        }
                    },
                )
            });
            // Parts that the shapes alone decide about, summed up in their order: the result does
            // not depend on the number of threads.
            let parts = threads::map(input.len().div_ceil(PART * width), |n| {
                let here = n * PART * width..input.len().min((n + 1) * PART * width);
                weight_gradient(&input[here.clone()], &g[here], width, eps)
            });
            let mut dw = vec![0.0f32; width];
            for part in parts {
                dw.iter_mut().zip(part).for_each(|(dw, part)| *dw += part);
            }
            (like(dx, &x), like(dw, &weight))
        }
    }

    /// Rows of a part in the gradient of the weight.
    const PART: usize = 256;

    /// Σ x·r·dy over some rows.
    fn weight_gradient(x: &[f32], g: &[f32], width: usize, eps: f64) -> Vec<f32> {
        let mut dw = vec![0.0f32; width];
        vectorized(
            #[inline(always)]
            || {
                for (x, g) in x.chunks(width).zip(g.chunks(width)) {
                    let r = inverse_rms(x, eps);
                    for ((x, g), dw) in x.iter().zip(g).zip(&mut dw) {
                        *dw += x * r * g;
                    }
                }
            },
        );
        dw
    }

    fn like(data: Vec<f32>, of: &FlexTensor) -> FlexTensor {
        FlexTensor::from_data(TensorData::new(data, of.layout().shape().clone()))
    }

    #[inline(always)]
    fn inverse_rms(x: &[f32], eps: f64) -> f32 {
        let mut lanes = [0.0f32; 16];
        let (chunks, rest) = x.as_chunks::<16>();
        for chunk in chunks {
            for (x, lane) in chunk.iter().zip(&mut lanes) {
                *lane += x * x;
            }
        }
        let sum = lanes.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
        1.0 / (sum / x.len() as f32 + eps as f32).sqrt()
    }
}
