//! How gradients come about, whatever the objective.

mod plain;
mod recompute;

pub use plain::Plain;
pub use recompute::Recompute;

use super::{GradientSum, LossParts, Objective};
use crate::Result;
use crate::models::{Blocks, ForwardOptions};
use serde::{Deserialize, Serialize};

/// A way to get the gradients of one micro-batch.
pub trait TrainStrategy<M, O: Objective<M>>: Sync {
    /// Add the gradients of `sum + weight · aux` to `gradients`, and return the parts without
    /// their graph. A micro-batch of weight 0 adds nothing.
    ///
    /// # Errors
    /// What objective and model refuse; [`crate::Error::Unsupported`] when the strategy needs
    /// something that the objective does not have.
    fn accumulate(
        &self,
        model: &M,
        objective: &O,
        batch: &O::Batch,
        options: &ForwardOptions,
        gradients: &mut GradientSum,
    ) -> Result<LossParts>;
}

/// The strategies that come with Longburn, as a recipe names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// See [`Plain`].
    #[default]
    Plain,
    /// See [`Recompute`].
    Recompute,
}

impl Strategy {
    /// The name that recipes use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Recompute => "recompute",
        }
    }
}

impl<M: Blocks, O: Objective<M>> TrainStrategy<M, O> for Strategy {
    fn accumulate(
        &self,
        model: &M,
        objective: &O,
        batch: &O::Batch,
        options: &ForwardOptions,
        gradients: &mut GradientSum,
    ) -> Result<LossParts> {
        match self {
            Self::Plain => Plain.accumulate(model, objective, batch, options, gradients),
            Self::Recompute => Recompute.accumulate(model, objective, batch, options, gradients),
        }
    }
}
