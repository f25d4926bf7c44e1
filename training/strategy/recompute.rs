//! Block by block (Chen et al., arXiv 1604.06174): the forward pass keeps the input of every
//! block and no graph; the backward pass runs one block at a time again.

use super::TrainStrategy;
use crate::models::{Blocks, ForwardOptions};
use crate::training::{GradientSum, LossParts, Objective};
use crate::{Error, Result};
use burn::tensor::Tensor;

/// Memory of one block's graph plus one `[B, T, D]` per block, for one more forward pass.
///
/// The gradients are those of [`super::Plain`], the mixers' own loss terms included.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recompute;

impl<M: Blocks, O: Objective<M>> TrainStrategy<M, O> for Recompute {
    fn accumulate(
        &self,
        model: &M,
        objective: &O,
        batch: &O::Batch,
        options: &ForwardOptions,
        gradients: &mut GradientSum,
    ) -> Result<LossParts> {
        let split = objective.split().ok_or_else(|| Error::Unsupported {
            what: format!(
                "block recompute with {}, which is not a function of the final hidden states",
                std::any::type_name::<O>()
            ),
            remedy: "use strategy = \"plain\"".into(),
        })?;

        let frozen = model.clone().no_grad();
        let mut x = split.embed(&frozen, batch)?;
        let place = frozen.place(split.tokens(batch), &x.device());
        let mut inputs = Vec::with_capacity(model.num_blocks());
        for index in 0..model.num_blocks() {
            let y = frozen.block(index, x.clone(), &place, options, None)?.y;
            inputs.push(std::mem::replace(&mut x, y));
        }

        let top = leaf(x);
        let hidden = model.finish(top.clone());
        let mut parts = split.loss_from_hidden(model, hidden, batch)?;
        if parts.weight == 0.0 {
            return Ok(parts.detached());
        }
        let mut dy = backward(Some(parts.total()), model, &top, gradients);
        parts = parts.detached();

        for index in (0..model.num_blocks()).rev() {
            let Some(x) = inputs.pop().map(leaf) else { break };
            let out = model.block(index, x.clone(), &place, options, None)?;
            let aux = out.aux.as_ref().map(|aux| aux.clone().mul_scalar(parts.weight));
            dy = backward(surrogate(out.y, dy, aux), model, &x, gradients);
            parts.add_aux(out.aux.map(Tensor::inner));
        }

        let x = split.embed(model, batch)?;
        backward(surrogate(x.clone(), dy, None), model, &x, gradients);
        Ok(parts)
    }
}

fn leaf(x: Tensor<3>) -> Tensor<3> {
    x.detach().require_grad()
}

/// ⟨y, dy⟩ + aux: its gradients are those of the whole loss, where dy is the loss's gradient
/// with respect to y. Its value is nobody's business.
fn surrogate(y: Tensor<3>, dy: Option<Tensor<3>>, aux: Option<Tensor<1>>) -> Option<Tensor<1>> {
    let inner = dy.map(|dy| (y * dy).sum());
    match (inner, aux) {
        (Some(a), Some(b)) => Some(a.cast(b.dtype()) + b),
        (a, b) => a.or(b),
    }
}

/// Add the parameters' gradients to the sum, and return that of `x`.
fn backward<M: Blocks>(
    loss: Option<Tensor<1>>,
    model: &M,
    x: &Tensor<3>,
    gradients: &mut GradientSum,
) -> Option<Tensor<3>> {
    let loss = loss.filter(Tensor::is_tracked)?;
    let mut found = loss.backward();
    gradients.add(model, &mut found);
    x.grad_remove(&mut found)
}
