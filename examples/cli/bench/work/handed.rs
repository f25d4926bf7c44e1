//! A backward pass from a gradient that is given, as PyTorch's `y.backward(dy)`: what would make one of a loss is
//! not what is timed.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::{Gradients as OfLeaves, Tensor};

/// Gradients of what y came from, where `dy` is that of y.
pub fn backward<const D: usize>(y: Tensor<D>, dy: Tensor<D>) -> OfLeaves {
    let end = <Dispatch as Handed>::handed(y.into_dispatch(), dy.into_dispatch());
    Tensor::<1>::from_dispatch(end).backward()
}

#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    Cube: cfg(any(feature = "wgpu", feature = "cuda"))
)]
pub trait Handed: Backend {
    /// One number, through which `dy` goes back to y.
    fn handed(y: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl<B: Backend + Handed, C: CheckpointStrategy> Handed for Autodiff<B, C> {
    fn handed(y: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct End;

        impl<B: Backend> Backward<B, 1> for End {
            type State = FloatTensor<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let _ = grads.consume::<B>(&ops.node);
                let [y] = ops.parents;
                if let Some(y) = y {
                    grads.register::<B>(y.id, ops.state);
                }
            }
        }

        let dy = dy.primitive().clone();
        let end = B::handed(y.primitive().clone(), dy.clone());
        match End.prepare::<C>([y.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(dy, end),
            OpsKind::UnTracked(prep) => prep.finish(end),
        }
    }
}

/// Implements [`Handed`] for a backend that computes.
macro_rules! handed {
    ($backend:ty) => {
        impl Handed for $backend {
            fn handed(y: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
                use burn::backend::{TensorMetadata, ops::FloatTensorOps};
                Self::float_zeros([1].into(), &y.device(), y.dtype().into())
            }
        }
    };
}

#[cfg(feature = "flex")]
handed!(burn::backend::Flex);
#[cfg(any(feature = "wgpu", feature = "cuda"))]
handed!(burn::backend::Cube);

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn gradients_are_those_of_what_is_handed_back() {
        let device = Device::flex();
        let x =
            Tensor::<1>::from_inner(Tensor::from_floats([1.0, -2.0, 3.0], &device)).require_grad();
        let dy = Tensor::from_inner(Tensor::from_floats([0.5, 4.0, -1.0], &device));
        let y = x.clone() * x.clone();
        let dx = x.grad(&backward(y, dy)).unwrap().into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(dx, [1.0, -16.0, -6.0]);
    }
}
