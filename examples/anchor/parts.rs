//! Parts of the recipe that both trainings have.

use longburn::models::ModelConfig;
use longburn::positional::RopeConfig;
use longburn::training::{Schedule, TrainConfig, Warmup};
use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPart {
    width: usize,
    layers: usize,
    heads: usize,
    rope_theta: f64,
}

impl ModelPart {
    /// A Llama for rows of `length` tokens.
    pub fn config(&self, vocabulary: usize, length: usize) -> ModelConfig {
        ModelConfig::llama(vocabulary, self.width, self.layers, self.heads)
            .with_rope(RopeConfig::new(self.rope_theta, self.width / self.heads.max(1)))
            .with_max_positions(length + 1)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainPart {
    pub length: usize,
    batch: usize,
    pub steps: u64,
    lr: f64,
    warmup: f64,
}

impl TrainPart {
    /// Two micro-batches make a step.
    pub fn config(&self) -> TrainConfig {
        TrainConfig::new(self.steps, self.lr)
            .with_schedule(Schedule::Linear { warmup: Warmup::Fraction(self.warmup), last: 0.0 })
            .with_clip(1.0)
            .with_micro_batches(2)
            .with_workers(2)
    }

    /// Rows of a micro-batch.
    pub fn rows(&self) -> usize {
        self.batch.div_ceil(2)
    }
}
