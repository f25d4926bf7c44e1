//! One node of the graph for the selective scan, on every device.

use super::{Inputs, Plan, tiled};
use crate::Implementation;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, AutodiffBackend, Backend, ExtensionType};
use burn::backend::{backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;

/// The scan's tensors, or their gradients; see [`Inputs`] for the shapes.
#[derive(Clone, Debug, ExtensionType)]
pub struct ScanTensors<B: Backend> {
    pub u: FloatTensor<B>,
    pub delta: FloatTensor<B>,
    pub a: FloatTensor<B>,
    pub b: FloatTensor<B>,
    pub c: FloatTensor<B>,
    pub d: FloatTensor<B>,
    pub z: FloatTensor<B>,
    pub h0: FloatTensor<B>,
}

impl<B: Backend> ScanTensors<B> {
    pub(super) fn map<C: Backend>(
        self,
        f: impl Fn(FloatTensor<B>) -> FloatTensor<C>,
    ) -> ScanTensors<C> {
        ScanTensors {
            u: f(self.u),
            delta: f(self.delta),
            a: f(self.a),
            b: f(self.b),
            c: f(self.c),
            d: f(self.d),
            z: f(self.z),
            h0: f(self.h0),
        }
    }

    fn into_array(self) -> [FloatTensor<B>; 8] {
        [self.u, self.delta, self.a, self.b, self.c, self.d, self.z, self.h0]
    }
}

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
                let (out, states) = tiled::forward(inputs!($backend, x), &plan);
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
                let g = tiled::gradients(inputs!($backend, x), states, dout, &plan);
                ScanTensors {
                    u: primitive!($backend, g.u),
                    delta: primitive!($backend, g.delta),
                    a: primitive!($backend, g.a),
                    b: primitive!($backend, g.b),
                    c: primitive!($backend, g.c),
                    d: primitive!($backend, g.d),
                    z: primitive!($backend, g.z),
                    h0: primitive!($backend, g.h0),
                }
            }
        }
    };
}

macro_rules! inputs {
    ($backend:ty, $x:expr) => {
        Inputs {
            u: Tensor::from_primitive::<$backend>($x.u),
            delta: Tensor::from_primitive::<$backend>($x.delta),
            a: Tensor::from_primitive::<$backend>($x.a),
            b: Tensor::from_primitive::<$backend>($x.b),
            c: Tensor::from_primitive::<$backend>($x.c),
            d: Tensor::from_primitive::<$backend>($x.d),
            z: Tensor::from_primitive::<$backend>($x.z),
            h0: Tensor::from_primitive::<$backend>($x.h0),
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
