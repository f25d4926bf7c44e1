//! `silu(gate) · up`.

use super::expect;
use burn::tensor::{Tensor, activation::silu};

/// The gated activation of SwiGLU (2002.05202).
///
/// # Shapes
/// gate and up of one shape -> the same
///
/// # Panics
/// When shapes differ.
pub fn swiglu<const N: usize>(gate: Tensor<N>, up: Tensor<N>) -> Tensor<N> {
    expect(gate.dims() == up.dims(), "swiglu", || {
        format!("gate is {:?}, up {:?}", gate.dims(), up.dims())
    });
    #[cfg(feature = "flex")]
    if super::on_cpu(&gate) && super::on_cpu(&up) {
        return by_op(gate, up);
    }
    if gate.shape().num_elements() == 0 {
        return gate;
    }
    #[cfg(feature = "cube")]
    if gate.dtype() == up.dtype()
        && crate::card::floats_on_card(&gate)
        && crate::card::floats_on_card(&up)
    {
        return by_op(gate, up);
    }
    let wide = crate::precision::wide(gate.dtype());
    if gate.dtype() != wide {
        let up = up.cast(wide);
        return super::widened(gate, |gate| swiglu(gate, up));
    }
    silu(gate) * up
}

#[cfg(any(feature = "flex", feature = "cube"))]
fn by_op<const N: usize>(gate: Tensor<N>, up: Tensor<N>) -> Tensor<N> {
    use burn::backend::Dispatch;
    let y = <Dispatch as op::SwigluOps>::swiglu_op(gate.into_dispatch(), up.into_dispatch());
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
    pub trait SwigluOps: Backend {
        fn swiglu_op(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

        /// (dgate, dup)
        fn swiglu_gradients(
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
            dy: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>);
    }

    impl<B: Backend + SwigluOps, C: CheckpointStrategy> SwigluOps for Autodiff<B, C> {
        fn swiglu_op(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
            #[derive(Debug)]
            struct Swiglu;
            impl<B: Backend + SwigluOps> Backward<B, 2> for Swiglu {
                type State = [FloatTensor<B>; 2];
                fn backward(
                    self,
                    ops: Ops<Self::State, 2>,
                    grads: &mut Gradients,
                    _: &mut Checkpointer,
                ) {
                    let dy = grads.consume::<B>(&ops.node);
                    let [gate, up] = ops.state;
                    let (dgate, dup) = B::swiglu_gradients(gate, up, dy);
                    register!(B, grads, ops.parents, [dgate, dup]);
                }
            }
            let (gp, up_) = (gate.primitive().clone(), up.primitive().clone());
            let y = B::swiglu_op(gp.clone(), up_.clone());
            match Swiglu.prepare::<C>([gate.node(), up.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish([gp, up_], y),
                OpsKind::UnTracked(prep) => prep.finish(y),
            }
        }

        fn swiglu_gradients(
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
            dy: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            use burn::backend::AutodiffBackend;
            let p = |t: FloatTensor<Self>| t.primitive().clone();
            let (dgate, dup) = B::swiglu_gradients(p(gate), p(up), p(dy));
            (Self::from_inner(dgate), Self::from_inner(dup))
        }
    }
}

#[cfg(feature = "flex")]
mod flex {
    use super::op::SwigluOps;
    use crate::fused::rows;
    use crate::simd::{sigmoid, vectorized};
    use burn::backend::Flex;
    use burn::tensor::TensorData;
    use burn_flex::FlexTensor;

    impl SwigluOps for Flex {
        fn swiglu_op(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
            let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
            let (g, u) = (gate.storage::<f32>(), up.storage::<f32>());
            let y = rows(g.len(), 1, |first, out| {
                vectorized(
                    #[inline(always)]
                    || {
                        for ((y, g), u) in out.iter_mut().zip(&g[first..]).zip(&u[first..]) {
                            *y = g * sigmoid(*g) * u;
                        }
                    },
                )
            });
            like(y, &gate)
        }

        fn swiglu_gradients(
            gate: FlexTensor,
            up: FlexTensor,
            dy: FlexTensor,
        ) -> (FlexTensor, FlexTensor) {
            let (gate, up, dy) = (gate.to_contiguous(), up.to_contiguous(), dy.to_contiguous());
            let (g, u, d) = (gate.storage::<f32>(), up.storage::<f32>(), dy.storage::<f32>());
            let dg = rows(g.len(), 1, |first, out| {
                vectorized(
                    #[inline(always)]
                    || {
                        let inputs = g[first..].iter().zip(&u[first..]).zip(&d[first..]);
                        for (((g, u), d), out) in inputs.zip(out) {
                            let s = sigmoid(*g);
                            *out = d * u * s * (1.0 + g * (1.0 - s));
                        }
                    },
                )
            });
            let du = rows(g.len(), 1, |first, out| {
                vectorized(
                    #[inline(always)]
                    || {
                        for ((out, g), d) in out.iter_mut().zip(&g[first..]).zip(&d[first..]) {
                            *out = d * g * sigmoid(*g);
                        }
                    },
                )
            });
            (like(dg, &gate), like(du, &gate))
        }
    }

    fn like(data: Vec<f32>, of: &FlexTensor) -> FlexTensor {
        FlexTensor::from_data(TensorData::new(data, of.layout().shape().clone()))
    }
}
