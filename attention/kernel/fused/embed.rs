//! Rows of an embedding.

use super::expect;
use burn::tensor::{Int, Tensor};

/// The rows of `weight` that `ids` name, which are below V.
///
/// On cards the gradient of the weight is one pass over what is to be added, in a fixed order; Burn adds
/// row after row there.
///
/// # Shapes
/// weight `[V, D]`, ids `[N]` -> `[N, D]`
///
/// # Panics
/// When there are ids, but nothing that they could name.
pub fn embed(weight: Tensor<2>, ids: Tensor<1, Int>) -> Tensor<2> {
    let ([of_weight, width], [n]) = (weight.dims(), ids.dims());
    expect(of_weight > 0 || n == 0, "embed", || format!("{n} ids, and a weight without rows"));
    #[cfg(feature = "cube")]
    if n * width > 0 && weight.is_tracked() && crate::card::floats_on_card(&weight) {
        use burn::backend::Dispatch;
        use burn::tensor::DType;
        let ids = ids.cast(DType::I32).into_dispatch();
        let rows = <Dispatch as op::EmbedOps>::embed_op(weight.into_dispatch(), ids);
        return Tensor::from_dispatch(rows);
    }
    if n * width == 0 {
        return Tensor::zeros([n, width], (&weight.device(), weight.dtype()));
    }
    weight.select(0, ids)
}

#[cfg(feature = "cube")]
pub(super) mod op {
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::tensor::{FloatTensor, IntTensor};
    use burn::backend::{Autodiff, Backend, TensorMetadata, backend_extension};

    #[backend_extension(Autodiff, Cube)]
    pub trait EmbedOps: Backend {
        fn embed_op(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self>;

        /// dweight of so many rows, like dy
        fn embed_gradient(
            ids: IntTensor<Self>,
            dy: FloatTensor<Self>,
            rows: usize,
        ) -> FloatTensor<Self>;
    }

    impl<B: Backend + EmbedOps, C: CheckpointStrategy> EmbedOps for Autodiff<B, C> {
        fn embed_op(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
            #[derive(Debug)]
            struct Embed;
            impl<B: Backend + EmbedOps> Backward<B, 1> for Embed {
                type State = (IntTensor<B>, usize);
                fn backward(
                    self,
                    ops: Ops<Self::State, 1>,
                    grads: &mut Gradients,
                    _: &mut Checkpointer,
                ) {
                    let dy = grads.consume::<B>(&ops.node);
                    let (ids, rows) = ops.state;
                    register!(B, grads, ops.parents, [B::embed_gradient(ids, dy, rows)]);
                }
            }
            let rows = weight.primitive().shape()[0];
            let y = B::embed_op(weight.primitive().clone(), ids.clone());
            match Embed.prepare::<C>([weight.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish((ids, rows), y),
                OpsKind::UnTracked(prep) => prep.finish(y),
            }
        }

        fn embed_gradient(
            ids: IntTensor<Self>,
            dy: FloatTensor<Self>,
            rows: usize,
        ) -> FloatTensor<Self> {
            use burn::backend::AutodiffBackend;
            Self::from_inner(B::embed_gradient(ids, dy.primitive().clone(), rows))
        }
    }
}
