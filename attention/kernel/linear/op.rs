//! One node of the graph for a linear layer, on the devices that have products of their own.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, AutodiffBackend, Backend, TensorMetadata};
use burn::backend::{backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, FloatDType};

/// x `[M, K]`, weight `[N, K]`, bias `[N]`, y and dy `[M, N]`.
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cuda")
)]
pub trait LinearOps: Backend {
    /// `x·Wᵀ`
    fn linear_op(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `x·Wᵀ + b`
    fn linear_bias_op(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// `a·b`, without a graph.
    fn product_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `x·Wᵀ` for x in 16 bits and a weight in f32, which is rounded for the product; its gradient is the
    /// product's own sums in f32.
    fn narrow_linear_op(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `a·b` of factors in 16 bits, in f32 and without a graph.
    fn wide_product_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `a·b` of matrices in the last two dimensions, `[.., M, K]` and `[.., K, N]`, without a graph.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    fn products_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;

    /// (dyᵀ·x `[N, K]`, the sums of dy's columns `[N]`), without a graph.
    fn parameter_gradients(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

#[cfg(feature = "flex")]
impl LinearOps for burn::backend::Flex {
    fn linear_op(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        super::flex::product(x, turned::<Self>(weight))
    }

    fn linear_bias_op(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        with_bias::<Self>(Self::linear_op(x, weight), bias)
    }

    fn product_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        if a.dtype() == DType::F32 {
            return super::flex::product(a, b);
        }
        let like = FloatDType::from(a.dtype());
        cast::<Self>(Self::wide_product_op(a, b), like)
    }

    fn narrow_linear_op(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let weight = rounded::<Self>(weight, &x);
        Self::product_op(x, turned::<Self>(weight))
    }

    fn wide_product_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        super::flex::product(widened::<Self>(a), widened::<Self>(b))
    }

    fn products_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        products::<Self>(a, b)
    }

    fn parameter_gradients(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        apart::<Self>(dy, x)
    }
}

#[cfg(feature = "cuda")]
impl LinearOps for burn::backend::Cube {
    fn linear_op(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        super::pass::linear(x, weight)
    }

    fn linear_bias_op(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        super::pass::linear_bias(x.clone(), weight.clone(), bias.clone())
            .unwrap_or_else(|| with_bias::<Self>(super::pass::linear(x, weight), bias))
    }

    fn product_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        super::pass::product(a, b)
    }

    fn narrow_linear_op(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let weight = rounded::<Self>(weight, &x);
        super::pass::linear(x, weight)
    }

    fn wide_product_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        super::pass::wide_product(a, b)
    }

    fn products_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        super::pass::product(a, b)
    }

    fn parameter_gradients(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        super::pass::parameter_gradients(dy.clone(), x.clone())
            .unwrap_or_else(|| apart::<Self>(dy, x))
    }
}

pub(super) fn turned<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_transpose(x)
}

/// `weight` in the dtype of `x`.
fn rounded<B: Backend>(weight: FloatTensor<B>, x: &FloatTensor<B>) -> FloatTensor<B> {
    cast::<B>(weight, FloatDType::from(x.dtype()))
}

pub(super) fn widened<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    cast::<B>(x, FloatDType::F32)
}

fn cast<B: Backend>(x: FloatTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    B::float_cast(x, dtype)
}

/// Burn's own.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(super) fn products<B: Backend>(a: FloatTensor<B>, b: FloatTensor<B>) -> FloatTensor<B> {
    B::float_matmul(a, b)
}

fn with_bias<B: Backend>(y: FloatTensor<B>, bias: FloatTensor<B>) -> FloatTensor<B> {
    let n = bias.shape()[0];
    B::float_add(y, B::float_reshape(bias, [1, n].into()))
}

/// The sums of dy's columns.
fn to_bias<B: Backend>(dy: FloatTensor<B>) -> FloatTensor<B> {
    let n = dy.shape()[1];
    B::float_reshape(B::float_sum_dim(dy, 0), [n].into())
}

/// Both gradients, each on its own.
fn apart<B: Backend + LinearOps>(
    dy: FloatTensor<B>,
    x: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    (B::product_op(turned::<B>(dy.clone()), x), to_bias::<B>(dy))
}

/// x, where the weight has a gradient, and the weight, where x has one.
type Kept<B> = [Option<FloatTensor<B>>; 2];

/// A layer without a bias, of a weight that the products have as `multiplied`; where that is rounded, the
/// weight's gradient is not.
fn layer<B: Backend + LinearOps, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    multiplied: FloatTensor<B>,
    is_rounded: bool,
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct Linear {
        is_rounded: bool,
    }

    impl<B: Backend + LinearOps> Backward<B, 2> for Linear {
        type State = Kept<B>;

        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let dy = grads.consume::<B>(&ops.node);
            let ([x, weight], [of_x, of_weight]) = (ops.state, ops.parents);
            if let (Some(parent), Some(weight)) = (of_x, weight) {
                grads.register::<B>(parent.id, B::product_op(dy.clone(), weight));
            }
            if let (Some(parent), Some(x)) = (of_weight, x) {
                let dy = turned::<B>(dy);
                let dw = match self.is_rounded {
                    true => B::wide_product_op(dy, x),
                    false => B::product_op(dy, x),
                };
                grads.register::<B>(parent.id, dw);
            }
        }
    }

    let xp = x.primitive().clone();
    let kept =
        [weight.is_tracked().then(|| xp.clone()), x.is_tracked().then(|| multiplied.clone())];
    let y = match is_rounded {
        true => B::narrow_linear_op(xp, multiplied),
        false => B::linear_op(xp, multiplied),
    };
    let node = Linear { is_rounded }.prepare::<C>([x.node(), weight.node()]);
    match node.compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(kept, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

impl<B: Backend + LinearOps, C: CheckpointStrategy> LinearOps for Autodiff<B, C> {
    fn linear_op(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let wp = weight.primitive().clone();
        layer::<B, C>(x, weight, wp, false)
    }

    fn linear_bias_op(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct LinearBias;

        impl<B: Backend + LinearOps> Backward<B, 3> for LinearBias {
            type State = Kept<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let dy = grads.consume::<B>(&ops.node);
                let ([x, weight], [of_x, of_weight, of_bias]) = (ops.state, ops.parents);
                if let (Some(parent), Some(weight)) = (of_x, weight) {
                    grads.register::<B>(parent.id, B::product_op(dy.clone(), weight));
                }
                match (of_weight.zip(x), of_bias) {
                    (Some((of_weight, x)), Some(of_bias)) => {
                        let (dw, db) = B::parameter_gradients(dy, x);
                        grads.register::<B>(of_weight.id, dw);
                        grads.register::<B>(of_bias.id, db);
                    }
                    (Some((of_weight, x)), None) => {
                        grads.register::<B>(of_weight.id, B::product_op(turned::<B>(dy), x));
                    }
                    (None, Some(of_bias)) => {
                        grads.register::<B>(of_bias.id, to_bias::<B>(dy));
                    }
                    (None, None) => {}
                }
            }
        }

        let (xp, wp) = (x.primitive().clone(), weight.primitive().clone());
        let kept = [weight.is_tracked().then(|| xp.clone()), x.is_tracked().then(|| wp.clone())];
        let y = B::linear_bias_op(xp, wp, bias.primitive().clone());
        let nodes = [x.node(), weight.node(), bias.node()];
        match LinearBias.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(kept, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn product_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        let p = |t: FloatTensor<Self>| t.primitive().clone();
        Self::from_inner(B::product_op(p(a), p(b)))
    }

    fn narrow_linear_op(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        // Rounded once, for both passes.
        let narrow = rounded::<B>(weight.primitive().clone(), x.primitive());
        layer::<B, C>(x, weight, narrow, true)
    }

    fn wide_product_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        let p = |t: FloatTensor<Self>| t.primitive().clone();
        Self::from_inner(B::wide_product_op(p(a), p(b)))
    }

    fn products_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        let p = |t: FloatTensor<Self>| t.primitive().clone();
        Self::from_inner(B::products_op(p(a), p(b)))
    }

    fn parameter_gradients(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let p = |t: FloatTensor<Self>| t.primitive().clone();
        let (dw, db) = B::parameter_gradients(p(dy), p(x));
        (Self::from_inner(dw), Self::from_inner(db))
    }
}
