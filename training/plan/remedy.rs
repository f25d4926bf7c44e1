//! What would make a run smaller, with the peak that each change gives.

use super::PlanConfig;
use crate::Result;
use crate::attention::MixerConfig;
use crate::models::lora::{LoraConfig, Target};
use crate::training::Strategy;
use serde::Serialize;

/// A change to a run, and what it would then take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// The change, in the words of a recipe.
    pub change: String,
    /// Peak with it, bytes.
    pub peak: u64,
    /// Whether that is within the budget; `None` without one.
    pub fits: Option<bool>,
}

/// Rows shorter than this are not proposed.
const SHORTEST: usize = 64;

impl PlanConfig {
    /// Changes that lower the peak, each by itself, then all that leave the length as it is
    /// together. `adaptable` is whether LoRA is one of them: it needs a checkpoint to adapt.
    ///
    /// Batch and length are the largest that fit the budget, or the smallest proposed where none
    /// does; without a budget they are halved.
    ///
    /// # Errors
    /// As [`PlanConfig::init`].
    pub fn remedies(&self, budget: Option<u64>, adaptable: bool) -> Result<Vec<Remedy>> {
        let peak = self.init()?.peak;
        let mut changes: Vec<(String, Self)> = Vec::new();
        let mut together = self.clone();
        if self.strategy == Strategy::Plain {
            together.strategy = Strategy::Recompute;
            let one = self.clone().with_strategy(Strategy::Recompute);
            changes.push(("train.strategy = \"recompute\"".into(), one));
        }
        if self.workers.min(self.micro_batches) > 1 {
            together.workers = 1;
            let one = self.clone().with_micro_batches(self.micro_batches, 1);
            changes.push(("train.workers = 1".into(), one));
        }
        let fits = |config: &Self| budget.is_some_and(|b| config.init().is_ok_and(|p| p.peak <= b));
        if self.batch > 1 {
            together.batch = 1;
            let batch = match budget {
                Some(_) => largest(self.batch - 1, |n| fits(&self.clone().with_batch(n))),
                None => self.batch / 2,
            };
            let times = self.batch.div_ceil(batch);
            let change = format!("train.batch = {batch} (with {times} times the micro_batches)");
            let one = self.clone().with_batch(batch);
            // More micro-batches than one at a time: their sum is held beside the next gradients.
            let micro_batches = self.micro_batches.saturating_mul(times as u32);
            changes.push((change, one.with_micro_batches(micro_batches, self.workers)));
        }
        if let Some((change, lora)) = self.adapter()?.filter(|_| adaptable) {
            together.lora = Some(lora.clone());
            changes.push((change, self.clone().with_lora(Some(lora))));
        }
        if changes.len() > 1 {
            let names: Vec<&str> = changes.iter().map(|(name, _)| short(name)).collect();
            changes.push((format!("{} together", names.join(", ")), together));
        }
        // Halves keep what divides the length, such as groups, dividing it.
        let mut shorter = self.length / 2;
        while budget.is_some()
            && shorter / 2 >= SHORTEST
            && !fits(&self.clone().with_length(shorter))
        {
            shorter /= 2;
        }
        if shorter >= SHORTEST {
            let one = self.clone().with_length(shorter);
            changes.push((format!("train.length = {shorter}"), one));
        }
        let mut remedies = Vec::new();
        for (change, config) in changes {
            let with = config.init()?.peak;
            if with < peak {
                let fits = budget.map(|budget| with <= budget);
                remedies.push(Remedy { change, peak: with, fits });
            }
        }
        Ok(remedies)
    }
}

impl PlanConfig {
    /// Low-rank adaptation in the words of a recipe, of layers that the model has; none where it is
    /// adapted, or where gates are all that trains.
    fn adapter(&self) -> Result<Option<(String, LoraConfig)>> {
        let mixers = self.mixer.resolve(&self.model.mixers)?;
        if self.lora.is_some() || mixers.iter().any(|mixer| mixer.seer().is_some()) {
            return Ok(None);
        }
        if mixers.iter().any(MixerConfig::has_projections) {
            return Ok(Some(("[lora]".into(), LoraConfig::new())));
        }
        let has = |target: &Target| mixers.iter().any(|mixer| target.is_in(mixer));
        let targets: Vec<Target> = Target::STATE_SPACE.into_iter().filter(has).collect();
        let names: Vec<String> = targets.iter().map(|t| format!("{:?}", t.name())).collect();
        let change = format!("[lora] targets = [{}]", names.join(", "));
        Ok((!targets.is_empty()).then(|| (change, LoraConfig::new().with_targets(&targets))))
    }
}

/// The name alone.
fn short(change: &str) -> &str {
    if change.starts_with("train.batch") { "train.batch = 1" } else { change }
}

/// The largest of `1..=most` that fits, 1 where none does; what fits is all below it.
fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (1, most.max(1));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}
