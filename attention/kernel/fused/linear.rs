//! `y = x·Wᵀ` and its gradients, weights as checkpoints store them.

use burn::tensor::Tensor;

/// A linear layer without a bias.
///
/// # Shapes
/// x `[M, K]`, weight `[N, K]` -> `[M, N]`
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if has_op(&x, &weight) && x.dims()[1] == weight.dims()[1] {
        use burn::backend::Dispatch;
        let y = <Dispatch as flex::LinearOps>::linear_op(x.into_dispatch(), weight.into_dispatch());
        return Tensor::from_dispatch(y);
    }
    x.matmul(weight.transpose())
}

/// `a·b` by the code of [`linear`], without a graph: the products of its backward pass.
///
/// # Shapes
/// a `[M, K]`, b `[K, N]` -> `[M, N]`
pub fn matmul_detached(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if has_op(&a, &b) && a.dims()[1] == b.dims()[0] {
        use burn::backend::Dispatch;
        let c = <Dispatch as flex::LinearOps>::product_op(a.into_dispatch(), b.into_dispatch());
        return Tensor::from_dispatch(c);
    }
    a.detach().matmul(b.detach())
}

#[cfg(feature = "flex")]
fn has_op(a: &Tensor<2>, b: &Tensor<2>) -> bool {
    super::on_cpu(a) && super::on_cpu(b) && !a.shape().is_empty() && !b.shape().is_empty()
}

#[cfg(feature = "flex")]
mod flex {
    use crate::panels::At;
    use crate::product::product_of;
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::{Autodiff, AutodiffBackend, Backend, Flex};
    use burn::backend::{backend_extension, tensor::FloatTensor};
    use burn::tensor::TensorData;
    use burn_flex::FlexTensor;

    #[backend_extension(Autodiff, Flex)]
    pub trait LinearOps: Backend {
        /// `x·Wᵀ`
        fn linear_op(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

        /// `a·b`, without a graph.
        fn product_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;
    }

    impl LinearOps for Flex {
        fn linear_op(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
            Self::product_op(x, weight.transpose(0, 1))
        }

        fn product_op(a: FlexTensor, b: FlexTensor) -> FlexTensor {
            let (a, b) = (plain(a), plain(b));
            let [m, k] = dims(&a);
            let [_, n] = dims(&b);
            let (a, b) = (at(&a), at(&b));
            // Safe: sizes and strides are those of the tensors.
            let c = unsafe { product_of((m, n, k), a, b) };
            FlexTensor::from_data(TensorData::new(c, [m, n]))
        }
    }

    /// Rows or columns that are adjacent.
    fn plain(x: FlexTensor) -> FlexTensor {
        let s = x.layout().strides();
        if s.iter().all(|s| *s >= 0) && s.contains(&1) { x } else { x.to_contiguous() }
    }

    fn dims(x: &FlexTensor) -> [usize; 2] {
        [x.layout().shape()[0], x.layout().shape()[1]]
    }

    fn at(x: &FlexTensor) -> At {
        let (layout, s) = (x.layout(), x.layout().strides());
        let first = x.storage::<f32>()[layout.start_offset()..].as_ptr();
        At { first, rows: s[0] as usize, columns: s[1] as usize }
    }

    impl<B: Backend + LinearOps, C: CheckpointStrategy> LinearOps for Autodiff<B, C> {
        fn linear_op(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
            #[derive(Debug)]
            struct Linear;
            impl<B: Backend + LinearOps> Backward<B, 2> for Linear {
                /// x, where the weight has a gradient, and the weight, where x has one.
                type State = [Option<FloatTensor<B>>; 2];
                fn backward(
                    self,
                    ops: Ops<Self::State, 2>,
                    grads: &mut Gradients,
                    _: &mut Checkpointer,
                ) {
                    let dy = grads.consume::<B>(&ops.node);
                    let ([x, weight], [of_x, of_weight]) = (ops.state, ops.parents);
                    if let (Some(parent), Some(weight)) = (of_x, weight) {
                        grads.register::<B>(parent.id, B::product_op(dy.clone(), weight));
                    }
                    if let (Some(parent), Some(x)) = (of_weight, x) {
                        let dy = B::float_transpose(dy);
                        grads.register::<B>(parent.id, B::product_op(dy, x));
                    }
                }
            }
            let (xp, wp) = (x.primitive().clone(), weight.primitive().clone());
            let kept =
                [weight.is_tracked().then(|| xp.clone()), x.is_tracked().then(|| wp.clone())];
            let y = B::linear_op(xp, wp);
            match Linear.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish(kept, y),
                OpsKind::UnTracked(prep) => prep.finish(y),
            }
        }

        fn product_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
            let p = |t: FloatTensor<Self>| t.primitive().clone();
            Self::from_inner(B::product_op(p(a), p(b)))
        }
    }
}
