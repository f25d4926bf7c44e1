//! One node of the graph for the scan by matrix products, on every device. It keeps its inputs only;
//! states are computed again in the backward pass.

use super::{Plan, tiled};
use crate::Implementation;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, AutodiffBackend, Backend};
use burn::backend::{backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;

tensors!(
    Inputs,
    SsdTensors {
        /// `[B, T, E]`
        x: 3,
        /// `[B, T, H]`
        weight: 3,
        /// `[B, T, H]`
        log_decay: 3,
        /// `[B, T, G·N]`
        b: 3,
        /// `[B, T, G·N]`
        c: 3,
        /// `[E]`
        d: 1,
        /// `[B, N, E]`
        h0: 3,
    }
);

#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    Cube: cfg(any(feature = "wgpu", feature = "cuda"))
)]
pub trait SsdOps: Backend {
    /// y and the state behind it, `[B, T (+ N), E]`.
    fn ssd_forward(#[extension_type] x: SsdTensors<Self>, plan: Plan) -> FloatTensor<Self>;

    /// Gradients, shaped like `x`; `dout` like the output.
    fn ssd_gradients(
        #[extension_type] x: SsdTensors<Self>,
        dout: FloatTensor<Self>,
        plan: Plan,
    ) -> SsdTensors<Self>;
}

/// Implements [`SsdOps`] through the tiled form for a backend that [`Tensor`] knows.
macro_rules! through_tiled {
    ($backend:ty, forward: $forward:expr, gradients: $gradients:expr) => {
        impl SsdOps for $backend {
            fn ssd_forward(x: SsdTensors<Self>, plan: Plan) -> FloatTensor<Self> {
                if plan.implementation != Implementation::Tiled {
                    return $forward(x, &plan);
                }
                primitive!($backend, tiled::forward(Inputs::of(x), &plan))
            }

            fn ssd_gradients(
                x: SsdTensors<Self>,
                dout: FloatTensor<Self>,
                plan: Plan,
            ) -> SsdTensors<Self> {
                if plan.implementation != Implementation::Tiled {
                    return $gradients(x, dout, &plan);
                }
                let dout = Tensor::from_primitive::<$backend>(dout);
                tiled::gradients(Inputs::of(x), dout, &plan).into_primitives()
            }
        }
    };
}

#[cfg(feature = "flex")]
through_tiled!(
    burn::backend::Flex,
    forward: super::flex::forward,
    gradients: super::flex::gradients
);

#[cfg(any(feature = "wgpu", feature = "cuda"))]
through_tiled!(
    burn::backend::Cube,
    forward: |_, _: &Plan| unreachable!("`choose` picks `Tiled` off the CPU"),
    gradients: |_, _, _: &Plan| unreachable!("`choose` picks `Tiled` off the CPU")
);

impl<B: Backend + SsdOps, C: CheckpointStrategy> SsdOps for Autodiff<B, C> {
    fn ssd_forward(x: SsdTensors<Self>, plan: Plan) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Scan;

        impl<B: Backend + SsdOps> Backward<B, 7> for Scan {
            type State = (SsdTensors<B>, Plan);

            fn backward(
                self,
                ops: Ops<Self::State, 7>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let dout = grads.consume::<B>(&ops.node);
                let (x, plan) = ops.state;
                let of = B::ssd_gradients(x, dout, plan).into_array();
                register!(B, grads, ops.parents, of);
            }
        }

        let nodes = x.clone().into_array().map(|x| x.node());
        let inner: SsdTensors<B> = x.map(|x| x.primitive().clone());
        let out = B::ssd_forward(inner.clone(), plan.clone());
        match Scan.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((inner, plan), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    /// Second-order gradients: the result carries no graph.
    fn ssd_gradients(x: SsdTensors<Self>, dout: FloatTensor<Self>, plan: Plan) -> SsdTensors<Self> {
        let p = |x: FloatTensor<Self>| x.primitive().clone();
        B::ssd_gradients(x.map(p), p(dout), plan).map(<Self as AutodiffBackend>::from_inner)
    }
}
