//! One node of the graph for the selective scan, on every device.

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
    ScanTensors {
        /// `[B, T, E]`
        u: 3,
        /// Before softplus, `[B, T, E]`
        delta: 3,
        /// `[N, E]`
        a: 2,
        /// `[B, T, G·N]`
        b: 3,
        /// `[B, T, G·N]`
        c: 3,
        /// `[E]`
        d: 1,
        /// `[B, T, E]`
        z: 3,
        /// `[B, N, E]`
        h0: 3,
    }
);

#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube")
)]
pub trait ScanOps: Backend {
    /// (y and the state behind it `[B, T (+ N), E]`, states at the beginnings of spans of tokens
    /// `[B, spans, N, E]` for the backward pass)
    fn scan_forward(
        #[extension_type] x: ScanTensors<Self>,
        plan: Plan,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Gradients, shaped like `x`; `dout` like the first output.
    fn scan_gradients(
        #[extension_type] x: ScanTensors<Self>,
        states: FloatTensor<Self>,
        dout: FloatTensor<Self>,
        plan: Plan,
    ) -> ScanTensors<Self>;
}

/// Implements [`ScanOps`] through the tiled form for a backend that [`Tensor`] knows.
macro_rules! through_tiled {
    ($backend:ty, forward: $forward:expr, gradients: $gradients:expr) => {
        impl ScanOps for $backend {
            fn scan_forward(
                x: ScanTensors<Self>,
                plan: Plan,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                if plan.implementation != Implementation::Tiled {
                    return $forward(x, &plan);
                }
                let (out, states) = tiled::forward(Inputs::of(x), &plan);
                (primitive!($backend, out), primitive!($backend, states))
            }

            fn scan_gradients(
                x: ScanTensors<Self>,
                states: FloatTensor<Self>,
                dout: FloatTensor<Self>,
                plan: Plan,
            ) -> ScanTensors<Self> {
                if plan.implementation != Implementation::Tiled {
                    return $gradients(x, states, dout, &plan);
                }
                let states = Tensor::from_primitive::<$backend>(states);
                let dout = Tensor::from_primitive::<$backend>(dout);
                tiled::gradients(Inputs::of(x), states, dout, &plan).into_primitives()
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

#[cfg(feature = "cube")]
through_tiled!(
    burn::backend::Cube,
    forward: super::cube::forward,
    gradients: super::cube::gradients
);

impl<B: Backend + ScanOps, C: CheckpointStrategy> ScanOps for Autodiff<B, C> {
    fn scan_forward(x: ScanTensors<Self>, plan: Plan) -> (FloatTensor<Self>, FloatTensor<Self>) {
        #[derive(Debug)]
        struct Scan;

        impl<B: Backend + ScanOps> Backward<B, 8> for Scan {
            /// Inputs and states.
            type State = (ScanTensors<B>, FloatTensor<B>, Plan);

            fn backward(
                self,
                ops: Ops<Self::State, 8>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let dout = grads.consume::<B>(&ops.node);
                let (x, states, plan) = ops.state;
                let of = B::scan_gradients(x, states, dout, plan).into_array();
                register!(B, grads, ops.parents, of);
            }
        }

        let nodes = x.clone().into_array().map(|x| x.node());
        let inner: ScanTensors<B> = x.map(|x| x.primitive().clone());
        let (out, states) = B::scan_forward(inner.clone(), plan.clone());
        let lifted = <Self as AutodiffBackend>::from_inner(states.clone());
        let out = match Scan.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((inner, states, plan), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        };
        (out, lifted)
    }

    /// Second-order gradients: the result carries no graph.
    fn scan_gradients(
        x: ScanTensors<Self>,
        states: FloatTensor<Self>,
        dout: FloatTensor<Self>,
        plan: Plan,
    ) -> ScanTensors<Self> {
        let p = |x: FloatTensor<Self>| x.primitive().clone();
        let grads = B::scan_gradients(x.map(p), p(states), p(dout), plan);
        grads.map(<Self as AutodiffBackend>::from_inner)
    }
}
