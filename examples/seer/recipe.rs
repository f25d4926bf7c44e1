//! The recipe: `run.toml` beside this file, or another of its form.

use longburn::attention::SeerConfig;
use longburn::attention::seer::Select;
use longburn::models::ModelConfig;
use longburn::positional::RopeConfig;
use longburn::training::recipe::settings;
use longburn::training::{AdamW, Schedule, TrainConfig, Warmup};
use longburn::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// Everything that decides what the example does.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub seeds: Vec<u64>,
    pub expected_share: f64,
    pub text: TextPart,
    pub model: ModelPart,
    pub base: BasePart,
    pub gate: GatePart,
    pub optimizer: OptimizerPart,
    pub evaluate: EvaluatePart,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextPart {
    pub vocabulary: usize,
    pub hold_out: usize,
    pub tokenizer_documents: usize,
    pub repeated: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPart {
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub rope_theta: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BasePart {
    pub length: usize,
    pub batch: usize,
    pub steps: u64,
    pub lr: f64,
    pub warmup: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatePart {
    pub block: usize,
    pub batch: usize,
    pub steps: u64,
    pub lr: f64,
    pub warmup: f64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerPart {
    pub beta1: f32,
    pub beta2: f32,
    pub clip: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluatePart {
    pub windows: usize,
    pub sparsity: Vec<f64>,
}

impl Recipe {
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let (recipe, name): (Self, _) = settings(path, ("run.toml", include_str!("run.toml")))?;
        for sparsity in &recipe.evaluate.sparsity {
            if !(0.0..1.0).contains(sparsity) {
                let expected = "shares of at least 0, below 1";
                return Err(Error::config(name, "evaluate.sparsity", sparsity, expected));
            }
        }
        Ok(recipe)
    }

    pub fn model(&self, vocabulary: usize) -> ModelConfig {
        let ModelPart { width, layers, heads, kv_heads, rope_theta } = self.model;
        ModelConfig::llama(vocabulary, width, layers, heads)
            .with_kv_heads(kv_heads)
            .with_tied(true)
            .with_max_positions(self.base.length)
            .with_rope(RopeConfig::new(rope_theta, width / heads))
    }

    /// The gate, and what is computed at this sparsity; all of it for none.
    pub fn seer(&self, sparsity: Option<f64>) -> SeerConfig {
        SeerConfig::new()
            .with_block(self.gate.block)
            .with_last_block_dense(false)
            .with_select(sparsity.map(|sparsity| Select::NzRatio(1.0 - sparsity)))
    }

    pub fn base_training(&self, seed: u64) -> TrainConfig {
        let BasePart { steps, lr, warmup, .. } = self.base;
        self.training(steps, lr, warmup, seed)
    }

    pub fn gate_training(&self, seed: u64) -> TrainConfig {
        let GatePart { steps, lr, warmup, .. } = self.gate;
        self.training(steps, lr, warmup, seed)
    }

    fn training(&self, steps: u64, lr: f64, warmup: f64, seed: u64) -> TrainConfig {
        let OptimizerPart { beta1, beta2, clip } = self.optimizer;
        TrainConfig::new(steps, lr)
            .with_schedule(Schedule::Cosine { warmup: Warmup::Fraction(warmup), last: 0.0 })
            .with_adamw(AdamW { beta1, beta2, eps: 1e-8, weight_decay: 0.0 })
            .with_clip(clip)
            // The halves of a batch on a thread each: the sums do not depend on it.
            .with_micro_batches(2)
            .with_workers(2)
            .with_seed(seed)
    }
}
