//! A linear layer fused with its cross-entropy: no `[N, V]` tensor is kept, forward or backward.
//!
//! The logits of a chunk of tokens live long enough to give the loss of the chunk and, while they
//! are there, its share of the gradients of a *unit* loss; the backward pass only scales those.
//!
//! For hidden states of 16 bits the weights may be in f32: they are rounded once for all products, while
//! softmax, loss, and the sum over chunks that is the weights' gradient stay in f32.

mod autodiff;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
mod reference;
#[cfg(test)]
mod tests;
mod tiled;

use crate::{Error, Implementation};
use autodiff::LossOps;
use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};
use std::sync::Arc;

/// Marks a token without a label.
pub const IGNORED: i64 = -100;

/// Everything about a call but its tensors.
#[derive(Clone, Debug)]
pub struct LossPlan {
    /// Per token; negative is ignored.
    pub(crate) labels: Arc<Vec<i32>>,
    pub(crate) x_grad: bool,
    pub(crate) w_grad: bool,
    #[cfg_attr(not(any(feature = "flex", feature = "cube")), allow(dead_code))]
    pub(crate) implementation: Implementation,
}

/// Logits of a chunk take about this many floats.
const CHUNK_FLOATS: usize = 1 << 20;
/// The same on cards, where a product of few rows costs as much as one of many, bytes.
const CHUNK_ON_CARD: usize = 1 << 26;
/// Rows of a tile of a product there.
const TILE: usize = 128;

/// Tokens per chunk for a vocabulary on the CPU.
pub fn chunk_len(vocabulary: usize) -> usize {
    (CHUNK_FLOATS / vocabulary.max(1)).clamp(16, 1024)
}

/// Tokens per chunk for a vocabulary where `x` lies.
fn chunk_on(x: &Tensor<2>, vocabulary: usize) -> usize {
    if crate::attention::is_flex(&x.device()) {
        return chunk_len(vocabulary);
    }
    let rows = CHUNK_ON_CARD / x.dtype().size() / vocabulary.max(1);
    match rows / TILE * TILE {
        0 => rows.max(16),
        whole => whole.min(1 << 14),
    }
}

/// Whether the CPU form keeps a packed copy of a head of this width.
pub fn packs_head(width: usize) -> bool {
    #[cfg(feature = "flex")]
    return width <= crate::product::NEAR;
    #[cfg(not(feature = "flex"))]
    {
        let _ = width;
        false
    }
}

/// Sum over labelled tokens of −log softmax(x·Wᵀ) at the label.
///
/// # Shapes
/// x_ND `[N, D]`, weight_VD `[V, D]`, like x or in f32, labels N (−100 = ignored) -> `[1]`, f32
///
/// # Errors
/// When shapes or dtypes do not fit, N or V is 0, or a label is not below V.
pub fn linear_cross_entropy(
    x_ND: Tensor<2>,
    weight_VD: Tensor<2>,
    labels: &[i64],
) -> Result<Tensor<1>, Error> {
    linear_cross_entropy_with(x_ND, weight_VD, labels, Implementation::Auto)
}

/// [`linear_cross_entropy`] by a chosen implementation.
///
/// # Errors
/// As [`linear_cross_entropy`]; [`Error::Unsupported`] when the implementation is not there.
pub fn linear_cross_entropy_with(
    x_ND: Tensor<2>,
    weight_VD: Tensor<2>,
    labels: &[i64],
    implementation: Implementation,
) -> Result<Tensor<1>, Error> {
    let labels = check(&x_ND, &weight_VD, labels)?;
    let implementation = match implementation {
        #[cfg(feature = "cube")]
        Implementation::Auto | Implementation::Cube
            if [&x_ND, &weight_VD].into_iter().all(crate::card::floats_on_card) =>
        {
            Implementation::Cube
        }
        other => other.in_f32("linear_cross_entropy", &x_ND)?,
    };
    if implementation == Implementation::Reference {
        return Ok(reference::loss(x_ND, weight_VD, &labels));
    }
    let (x_grad, w_grad) = (x_ND.is_tracked(), weight_VD.is_tracked());
    let plan = LossPlan { labels: Arc::new(labels), x_grad, w_grad, implementation };
    let (loss, _, _) =
        <Dispatch as LossOps>::linear_loss(x_ND.into_dispatch(), weight_VD.into_dispatch(), plan);
    Ok(Tensor::from_dispatch(loss))
}

/// −log softmax(x·Wᵀ) at the label of every token, on the host; 0 where the label is ignored.
///
/// # Shapes
/// As [`linear_cross_entropy`]
///
/// # Errors
/// As [`linear_cross_entropy`].
pub fn linear_nll(
    x_ND: Tensor<2>,
    weight_VD: Tensor<2>,
    labels: &[i64],
) -> Result<Vec<f32>, Error> {
    let labels = check(&x_ND, &weight_VD, labels)?;
    let (n, chunk) = (labels.len(), chunk_on(&x_ND, weight_VD.dims()[0]));
    let (x, w) = (x_ND.inner(), weight_VD.inner());
    let w = w.cast(x.dtype());
    let mut all = Vec::with_capacity(n);
    for start in (0..n).step_by(chunk) {
        let len = chunk.min(n - start);
        let nll = tiled::nll(x.clone().narrow(0, start, len), w.clone(), &labels[start..][..len]);
        all.extend(nll.cast(DType::F32).into_data().iter::<f32>());
    }
    Ok(all)
}

fn check(x: &Tensor<2>, weight: &Tensor<2>, labels: &[i64]) -> Result<Vec<i32>, Error> {
    let fail = |reason| Err(Error::shape("linear_cross_entropy", reason));
    let ([n, d], [v, wd]) = (x.dims(), weight.dims());
    if d != wd || labels.len() != n || n * d * v == 0 {
        return fail(format!(
            "x {:?}, weight {:?}, {} labels",
            x.dims(),
            weight.dims(),
            labels.len()
        ));
    }
    let narrow = crate::precision::is_narrow(x.dtype());
    if x.dtype() != weight.dtype() && !(narrow && weight.dtype() == DType::F32) {
        return fail(format!("x is {:?}, weight {:?}", x.dtype(), weight.dtype()));
    }
    if let Some((i, label)) = labels.iter().enumerate().find(|(_, l)| **l >= v as i64) {
        return fail(format!("label {label} of token {i} with a vocabulary of {v}"));
    }
    Ok(labels.iter().map(|l| (*l).max(-1) as i32).collect())
}
