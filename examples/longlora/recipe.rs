//! The recipe: `run.toml` beside this file, or another of its form.

use longburn::models::ModelConfig;
use longburn::positional::{RopeConfig, RopeKind};
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
    pub text: TextPart,
    pub model: ModelPart,
    pub base: BasePart,
    pub extend: ExtendPart,
    pub optimizer: OptimizerPart,
    pub passkey: PasskeyPart,
    pub evaluate: EvaluatePart,
    full: FullPart,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextPart {
    pub vocabulary: usize,
    pub hold_out: usize,
    pub tokenizer_documents: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPart {
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
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
    pub rows: Vec<KeyRows>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtendPart {
    pub length: usize,
    pub batch: usize,
    pub steps: u64,
    pub lr: f64,
    pub warmup_steps: u64,
    pub rank: usize,
    pub alpha: f64,
    pub group_ratio: usize,
    pub rows: KeyRows,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerPart {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
    pub clip: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasskeyPart {
    pub words: usize,
    pub key_words: usize,
}

/// What training rows are made of, beside plain text.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRows {
    /// Share of the steps after which the next ones follow.
    #[serde(default = "all")]
    until: f64,
    /// Share of the rows whose second half is their first half again.
    pub doubled: f64,
    /// Share of the others that carry a key.
    pub share: f64,
    /// How often the key stands in them: fewest and most.
    pub repeats: [usize; 2],
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluatePart {
    pub windows: usize,
    pub passkey_tests: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FullPart {
    seeds: Vec<u64>,
    width: usize,
    layers: usize,
    base_steps: u64,
    base_lr: f64,
    extend_steps: u64,
}

fn all() -> f64 {
    1.0
}

impl Recipe {
    /// Read `path`, or the recipe that was compiled in.
    pub fn load(path: Option<&Path>, full: bool, seed: Option<u64>) -> Result<Self> {
        let (mut recipe, file): (Self, _) = settings(path, ("run.toml", include_str!("run.toml")))?;
        if full {
            let full = recipe.full.clone();
            recipe.seeds = full.seeds;
            (recipe.model.width, recipe.model.layers) = (full.width, full.layers);
            (recipe.base.steps, recipe.base.lr) = (full.base_steps, full.base_lr);
            recipe.extend.steps = full.extend_steps;
        }
        if let Some(seed) = seed {
            recipe.seeds.iter_mut().for_each(|s| *s = s.wrapping_add(seed));
        }
        recipe.check(&file)?;
        Ok(recipe)
    }

    fn check(&self, file: &str) -> Result<()> {
        let bad = |field: &str, value: &dyn std::fmt::Display, expected: &str| {
            Err(Error::config(file, field, value, expected))
        };
        let (short, long) = (self.base.length, self.extend.length);
        if short == 0 || long <= short || !long.is_multiple_of(short) {
            return bad("extend.length", &long, "a multiple of base.length, larger than it");
        }
        let parts = self.extend.group_ratio;
        if parts == 0 || !long.is_multiple_of(parts) || !(long / parts).is_multiple_of(2) {
            return bad(
                "extend.group_ratio",
                &parts,
                "a divisor of extend.length into even groups",
            );
        }
        if self.model.heads == 0 || !self.model.width.is_multiple_of(2 * self.model.heads) {
            return bad("model.heads", &self.model.heads, "heads of an even width");
        }
        if self.seeds.is_empty() {
            return bad("seeds", &"empty", "at least one");
        }
        for (field, value) in [
            ("base.batch", self.base.batch),
            ("base.steps", self.base.steps as usize),
            ("extend.batch", self.extend.batch),
            ("extend.steps", self.extend.steps as usize),
            ("text.tokenizer_documents", self.text.tokenizer_documents),
            ("passkey.words", self.passkey.words),
            ("passkey.key_words", self.passkey.key_words),
            ("model.layers", self.model.layers),
        ] {
            if value == 0 {
                return bad(field, &value, "at least 1");
            }
        }
        // A row must have room for the question and the words, a prompt for both twice.
        if self.passkey.key_words > short / 4 {
            return bad("passkey.key_words", &self.passkey.key_words, "a quarter of base.length");
        }
        if self.evaluate.windows < 2 || self.evaluate.passkey_tests < 1 {
            return bad("evaluate", &"too small", "at least 2 windows and 1 pass-key test");
        }
        let mut from = 0.0;
        for rows in &self.base.rows {
            if rows.until <= from {
                return bad("base.rows.until", &rows.until, "growing shares of the steps");
            }
            from = rows.until;
        }
        if from != 1.0 {
            return bad("base.rows.until", &from, "1.0 at last");
        }
        let base = self.base.rows.iter().map(|rows| ("base.rows", rows));
        for (part, rows) in base.chain([("extend.rows", &self.extend.rows)]) {
            for (field, share) in [("doubled", rows.doubled), ("share", rows.share)] {
                if !(0.0..=1.0).contains(&share) {
                    return bad(&format!("{part}.{field}"), &share, "0 to 1");
                }
            }
            let [least, most] = rows.repeats;
            if least == 0 || most < least {
                let value = format!("{:?}", rows.repeats);
                return bad(&format!("{part}.repeats"), &value, "[fewest, most], at least 1");
            }
        }
        if !self.base.batch.is_multiple_of(2) || !self.extend.batch.is_multiple_of(2) {
            return bad(
                "batch",
                &"odd",
                "even batches: half of a step runs on a thread of its own",
            );
        }
        Ok(())
    }

    /// What the rows of a base step (from 1) are made of.
    pub fn base_rows(&self, step: u64) -> KeyRows {
        let done = step as f64 / self.base.steps as f64;
        let rows = &self.base.rows;
        rows[rows.partition_point(|r| r.until < done).min(rows.len() - 1)]
    }

    /// How many times longer the extended model is.
    pub fn factor(&self) -> f64 {
        (self.extend.length / self.base.length) as f64
    }

    pub fn model(&self, vocabulary: usize) -> ModelConfig {
        let width = self.model.width;
        // As Llama does it: two thirds of four widths, rounded to a multiple of 16.
        let inner = ((width as f64 * 8.0 / 3.0 / 16.0 + 0.5) as usize) * 16;
        ModelConfig::llama(vocabulary, width, self.model.layers, self.model.heads)
            .with_intermediate(inner)
            .with_rope(self.rope(1.0))
            .with_tied(true)
            .with_max_positions(self.base.length)
    }

    /// Rotary positions stretched by `factor`.
    pub fn rope(&self, factor: f64) -> RopeConfig {
        let rope = RopeConfig::new(self.model.rope_theta, self.model.width / self.model.heads);
        match factor {
            1.0 => rope,
            factor => rope.with_kind(RopeKind::Linear { factor }),
        }
    }

    pub fn base_training(&self, seed: u64) -> TrainConfig {
        let warmup = Warmup::Fraction(self.base.warmup);
        self.training(self.base.steps, self.base.lr, warmup, seed)
    }

    pub fn extension(&self, seed: u64) -> TrainConfig {
        let warmup = Warmup::Steps(self.extend.warmup_steps);
        self.training(self.extend.steps, self.extend.lr, warmup, seed)
    }

    fn training(&self, steps: u64, lr: f64, warmup: Warmup, seed: u64) -> TrainConfig {
        let OptimizerPart { beta1, beta2, eps, weight_decay, clip } = self.optimizer;
        TrainConfig::new(steps, lr)
            .with_schedule(Schedule::Linear { warmup, last: 0.0 })
            .with_adamw(AdamW { beta1, beta2, eps, weight_decay })
            .with_clip(clip)
            // The halves of a batch on a thread each: the sums do not depend on it.
            .with_micro_batches(2)
            .with_workers(2)
            .with_seed(seed)
    }
}
