//! One graph, forward and backward.

use super::TrainStrategy;
use crate::Result;
use crate::models::ForwardOptions;
use crate::training::{GradientSum, LossParts, Objective};
use burn::module::Module;

/// One graph for the whole micro-batch: fastest, and every activation is kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl<M: Module, O: Objective<M>> TrainStrategy<M, O> for Plain {
    fn accumulate(
        &self,
        model: &M,
        objective: &O,
        batch: &O::Batch,
        options: &ForwardOptions,
        gradients: &mut GradientSum,
    ) -> Result<LossParts> {
        let parts = objective.loss(model, batch, options)?;
        let total = parts.total();
        if parts.weight != 0.0 && total.is_tracked() {
            gradients.add(model, &mut total.backward());
        }
        Ok(parts.detached())
    }
}
