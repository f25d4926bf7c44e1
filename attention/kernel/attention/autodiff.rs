//! One node of the graph for attention, on every device.

use super::{Plan, tiled};
use crate::Implementation;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::{
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{Autodiff, AutodiffBackend, Backend, backend_extension, tensor::FloatTensor};

/// Attention over stacked branches: q `[N·B, H, T, D]`, k `[N·B, K, S, D]`, v `[B, K, S, E]`.
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    Cube: cfg(any(feature = "wgpu", feature = "cuda"))
)]
pub trait AttentionOps: Backend {
    /// (out `[B, H, T, E]`, lse `[B, H, T]`)
    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        plan: Plan,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// (dq, dk, dv), shaped like q, k and v.
    fn attention_gradients(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        dout: FloatTensor<Self>,
        plan: Plan,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// Implements [`AttentionOps`] through the tiled form for a backend that [`Tensor`] knows.
///
/// [`Tensor`]: burn::tensor::Tensor
macro_rules! through_tiled {
    ($backend:ty, forward: $forward:expr, gradients: $gradients:expr) => {
        impl AttentionOps for $backend {
            fn attention_forward(
                q: FloatTensor<Self>,
                k: FloatTensor<Self>,
                v: FloatTensor<Self>,
                plan: Plan,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                if plan.0.implementation != Implementation::Tiled {
                    return $forward(q, k, v, &plan);
                }
                let t = burn::tensor::Tensor::<4>::from_primitive::<$backend>;
                let (out, lse) = tiled::forward(t(q), t(k), t(v), &plan);
                (primitive!($backend, out), primitive!($backend, lse))
            }

            fn attention_gradients(
                q: FloatTensor<Self>,
                k: FloatTensor<Self>,
                v: FloatTensor<Self>,
                out: FloatTensor<Self>,
                lse: FloatTensor<Self>,
                dout: FloatTensor<Self>,
                plan: Plan,
            ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
                if plan.0.implementation != Implementation::Tiled {
                    return $gradients(q, k, v, out, lse, dout, &plan);
                }
                let t = burn::tensor::Tensor::<4>::from_primitive::<$backend>;
                let lse = burn::tensor::Tensor::<3>::from_primitive::<$backend>(lse);
                let (dq, dk, dv) = tiled::backward(t(q), t(k), t(v), t(out), lse, t(dout), &plan);
                (primitive!($backend, dq), primitive!($backend, dk), primitive!($backend, dv))
            }
        }
    };
}

#[cfg(feature = "flex")]
through_tiled!(
    burn::backend::Flex,
    forward: super::flex::forward,
    gradients: super::flex::backward
);

#[cfg(feature = "cuda-nvrtc")]
through_tiled!(
    burn::backend::Cube,
    forward: crate::hopper::forward,
    gradients: crate::hopper::backward
);

#[cfg(all(any(feature = "wgpu", feature = "cuda"), not(feature = "cuda-nvrtc")))]
through_tiled!(
    burn::backend::Cube,
    forward: |_, _, _, _: &Plan| unreachable!("`choose` picks `Tiled` off the CPU"),
    gradients: |_, _, _, _, _, _, _: &Plan| unreachable!("`choose` picks `Tiled` off the CPU")
);

impl<B: Backend + AttentionOps, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        plan: Plan,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        #[derive(Debug)]
        struct Attention;

        impl<B: Backend + AttentionOps> Backward<B, 3> for Attention {
            /// q, k, v, out, lse
            type State = ([FloatTensor<B>; 5], Plan);

            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let dout = grads.consume::<B>(&ops.node);
                let ([q, k, v, out, lse], plan) = ops.state;
                let (dq, dk, dv) = B::attention_gradients(q, k, v, out, lse, dout, plan);
                register!(B, grads, ops.parents, [dq, dk, dv]);
            }
        }

        let inner = [q.primitive().clone(), k.primitive().clone(), v.primitive().clone()];
        let [qp, kp, vp] = inner;
        let (out, lse) = B::attention_forward(qp.clone(), kp.clone(), vp.clone(), plan.clone());
        let node =
            Attention.prepare::<C>([q.node(), k.node(), v.node()]).compute_bound().stateful();
        let tracked = match node {
            OpsKind::Tracked(prep) => {
                prep.finish(([qp, kp, vp, out.clone(), lse.clone()], plan), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        };
        (tracked, <Self as AutodiffBackend>::from_inner(lse))
    }

    /// Second-order gradients: the result carries no graph.
    fn attention_gradients(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        dout: FloatTensor<Self>,
        plan: Plan,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let p = |x: FloatTensor<Self>| x.primitive().clone();
        let (dq, dk, dv) = B::attention_gradients(p(q), p(k), p(v), p(out), p(lse), p(dout), plan);
        let lift = <Self as AutodiffBackend>::from_inner;
        (lift(dq), lift(dk), lift(dv))
    }
}
