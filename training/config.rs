//! What a recipe says of a training run.

use super::adamw::AdamW;
use super::muon::Muon;
use super::optim::{Optimizer, ParamGroup};
use super::{Schedule, Strategy};
use crate::attention::Compute;
use crate::models::ForwardOptions;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// What becomes of a step none of whose tokens has a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmptyStep {
    /// The run stops: there is a mistake in the data.
    #[default]
    Error,
    /// No update; the run goes on.
    Skip,
}

/// A training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps.
    pub steps: u64,
    /// Learning rate, before schedule and groups.
    pub lr: f64,
    /// Micro-batches whose gradients make up one step.
    #[serde(default = "one")]
    pub micro_batches: u32,
    /// Micro-batches computed at the same time, on a thread each: faster on a CPU with small
    /// models, and so many times the activations. The result does not depend on it.
    #[serde(default = "one")]
    pub workers: u32,
    /// Learning rate over the steps.
    #[serde(default)]
    pub schedule: Schedule,
    /// The optimizer.
    #[serde(default)]
    pub adamw: AdamW,
    /// Another optimizer for the matrices inside the blocks.
    #[serde(default)]
    pub muon: Option<Muon>,
    /// Parameters that are updated differently.
    #[serde(default)]
    pub groups: Vec<ParamGroup>,
    /// Scale the gradients down to this norm, over all parameters, where they exceed it.
    #[serde(default)]
    pub clip: Option<f64>,
    /// Steps with a NaN or infinite loss or gradient that may be skipped, in the whole run.
    #[serde(default)]
    pub skip_nonfinite: u64,
    /// What becomes of a step without targets.
    #[serde(default)]
    pub empty_step: EmptyStep,
    /// How gradients come about.
    #[serde(default)]
    pub strategy: Strategy,
    /// What matrix products and attention compute in; weights, gradients and optimizer are f32.
    #[serde(default)]
    pub compute: Compute,
    /// Whether a run repeated on the same machine gives the same bits, where faster code does not.
    #[serde(default)]
    pub deterministic: bool,
    /// Seed of the run's random streams.
    #[serde(default)]
    pub seed: u64,
}

fn one() -> u32 {
    1
}

impl TrainConfig {
    /// So many steps at this learning rate; AdamW without decay, no clipping, no schedule.
    pub fn new(steps: u64, lr: f64) -> Self {
        Self {
            steps,
            lr,
            micro_batches: one(),
            workers: one(),
            schedule: Schedule::default(),
            adamw: AdamW::default(),
            muon: None,
            groups: Vec::new(),
            clip: None,
            skip_nonfinite: 0,
            empty_step: EmptyStep::default(),
            strategy: Strategy::default(),
            compute: Compute::default(),
            deterministic: false,
            seed: 0,
        }
    }

    /// Micro-batches per step.
    pub fn with_micro_batches(mut self, micro_batches: u32) -> Self {
        self.micro_batches = micro_batches;
        self
    }

    /// Micro-batches computed at the same time.
    pub fn with_workers(mut self, workers: u32) -> Self {
        self.workers = workers;
        self
    }

    /// Learning rate over the steps.
    pub fn with_schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Settings of the optimizer.
    pub fn with_adamw(mut self, adamw: AdamW) -> Self {
        self.adamw = adamw;
        self
    }

    /// Muon for the matrices inside the blocks.
    pub fn with_muon(mut self, muon: Option<Muon>) -> Self {
        self.muon = muon;
        self
    }

    /// Parameters that are updated differently.
    pub fn with_groups(mut self, groups: Vec<ParamGroup>) -> Self {
        self.groups = groups;
        self
    }

    /// Norm to which gradients are clipped.
    pub fn with_clip(mut self, norm: f64) -> Self {
        self.clip = Some(norm);
        self
    }

    /// Non-finite steps that may be skipped.
    pub fn with_skip_nonfinite(mut self, steps: u64) -> Self {
        self.skip_nonfinite = steps;
        self
    }

    /// What becomes of a step without targets.
    pub fn with_empty_step(mut self, policy: EmptyStep) -> Self {
        self.empty_step = policy;
        self
    }

    /// How gradients come about.
    pub fn with_strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// What matrix products and attention compute in.
    pub fn with_compute(mut self, compute: Compute) -> Self {
        self.compute = compute;
        self
    }

    /// How its forward passes run.
    pub(super) fn options(&self) -> ForwardOptions {
        ForwardOptions::train().with_compute(self.compute).with_deterministic(self.deterministic)
    }

    /// Choose whether a run repeated on the same machine gives the same bits.
    pub fn with_deterministic(mut self, deterministic: bool) -> Self {
        self.deterministic = deterministic;
        self
    }

    /// Seed of the random streams.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Learning rate in `step`, before groups.
    pub fn lr_at(&self, step: u64) -> f64 {
        self.lr * self.schedule.factor(step, self.steps)
    }

    /// # Errors
    /// [`Error::Config`] with field, value and what is expected.
    pub fn validate(&self) -> Result<()> {
        let bad = |field: &str, value: &dyn std::fmt::Display, expected: &str| {
            Err(Error::config("training", field, value, expected))
        };
        if self.micro_batches == 0 {
            return bad("micro_batches", &0, "at least 1");
        }
        if self.workers == 0 {
            return bad("workers", &0, "at least 1");
        }
        if !(self.lr >= 0.0 && self.lr.is_finite()) {
            return bad("lr", &self.lr, "a number of at least 0");
        }
        if let Some(clip) = self.clip.filter(|clip| clip.is_nan() || *clip <= 0.0) {
            return bad("clip", &clip, "a positive norm");
        }
        self.schedule.validate(self.steps)?;
        Optimizer::new(&self.adamw, self.muon.as_ref(), &self.groups).map(drop)
    }
}
