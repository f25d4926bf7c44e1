//! One node of the graph for the fused loss, on every device.

use super::{LossPlan, tiled};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::{
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, TensorMetadata, backend_extension, tensor::FloatTensor,
};
use burn::tensor::Tensor;

/// Loss of x `[N, D]` under the head `[V, D]`.
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    Cube: cfg(any(feature = "wgpu", feature = "cuda"))
)]
pub trait LossOps: Backend {
    /// (loss `[1]`, dx, dw) of a unit upstream gradient.
    fn linear_loss(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        plan: LossPlan,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

macro_rules! through_tiled {
    ($backend:ty, $x:expr, $w:expr, $plan:expr) => {{
        let t = Tensor::<2>::from_primitive::<$backend>;
        let (loss, dx, dw) = tiled::forward(t($x), t($w), &$plan);
        (primitive!($backend, loss), primitive!($backend, dx), primitive!($backend, dw))
    }};
}

#[cfg(feature = "flex")]
impl LossOps for burn::backend::Flex {
    fn linear_loss(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        plan: LossPlan,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if plan.implementation == crate::Implementation::Flex {
            return super::flex::forward(x, w, &plan);
        }
        through_tiled!(burn::backend::Flex, x, w, plan)
    }
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
impl LossOps for burn::backend::Cube {
    fn linear_loss(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        plan: LossPlan,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        #[cfg(feature = "cube")]
        if plan.implementation == crate::Implementation::Cube {
            return super::cube::forward(x, w, &plan);
        }
        through_tiled!(burn::backend::Cube, x, w, plan)
    }
}

/// `x · factor` in the factor's dtype, and back in x's.
fn scaled<B: Backend>(x: FloatTensor<B>, factor: FloatTensor<B>) -> FloatTensor<B> {
    let (from, wide) = (x.dtype(), factor.dtype());
    if from == wide {
        return B::float_mul(x, factor);
    }
    let wide = B::float_cast(x, wide.into());
    B::float_cast(B::float_mul(wide, factor), from.into())
}

impl<B: Backend + LossOps, C: CheckpointStrategy> LossOps for Autodiff<B, C> {
    fn linear_loss(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        plan: LossPlan,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        #[derive(Debug)]
        struct LinearLoss;

        impl<B: Backend + LossOps> Backward<B, 2> for LinearLoss {
            /// dx, dw
            type State = [FloatTensor<B>; 2];

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let upstream = grads.consume::<B>(&ops.node);
                let upstream = B::float_reshape(upstream, [1, 1].into());
                for (parent, grad) in ops.parents.into_iter().zip(ops.state) {
                    if let Some(parent) = parent {
                        grads.register::<B>(parent.id, scaled::<B>(grad, upstream.clone()));
                    }
                }
            }
        }

        let (xp, wp) = (x.primitive().clone(), w.primitive().clone());
        let (loss, dx, dw) = B::linear_loss(xp, wp, plan);
        let node = LinearLoss.prepare::<C>([x.node(), w.node()]).compute_bound().stateful();
        let lift = <Self as AutodiffBackend>::from_inner;
        match node {
            OpsKind::Tracked(prep) => {
                (prep.finish([dx.clone(), dw.clone()], loss), lift(dx), lift(dw))
            }
            OpsKind::UnTracked(prep) => (prep.finish(loss), lift(dx), lift(dw)),
        }
    }
}
