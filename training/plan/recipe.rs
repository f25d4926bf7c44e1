//! The plan of a recipe, and whether it fits.

use super::{MemoryPlan, PlanConfig, Remedy, bytes};
use crate::training::Recipe;
use crate::{Error, Result};
use serde::Serialize;

/// What a recipe will take, beside what there is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecipePlan {
    /// What it takes.
    #[serde(flatten)]
    pub plan: MemoryPlan,
    /// What there is, bytes.
    pub budget: Option<u64>,
    /// Whether it fits; `None` without a budget.
    pub fits: Option<bool>,
    /// What would make it smaller.
    pub remedies: Vec<Remedy>,
}

impl RecipePlan {
    /// The plan of `config` within `budget`; for `adaptable` see [`PlanConfig::remedies`].
    ///
    /// # Errors
    /// As [`PlanConfig::init`].
    pub fn new(config: &PlanConfig, budget: Option<u64>, adaptable: bool) -> Result<Self> {
        let plan = config.init()?;
        Ok(Self {
            fits: budget.map(|budget| plan.peak <= budget),
            remedies: config.remedies(budget, adaptable)?,
            plan,
            budget,
        })
    }

    /// Refuse what does not fit, before step `step`.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn check(&self, step: u64) -> Result<()> {
        let Some(budget) = self.budget.filter(|budget| *budget < self.plan.peak) else {
            return Ok(());
        };
        let one = |remedy: &Remedy| {
            let fits = if remedy.fits == Some(true) { "" } else { ", still too much" };
            format!("{} ({}{fits})", remedy.change, bytes(remedy.peak))
        };
        let remedies: Vec<String> = self.remedies.iter().map(one).collect();
        Err(Error::Memory {
            step,
            batch: format!(
                "{} of {} x {} tokens ({} at a time)",
                if self.plan.workers == 1 { "a micro-batch" } else { "micro-batches" },
                self.plan.batch,
                self.plan.length,
                self.plan.workers
            ),
            predicted: bytes(self.plan.peak),
            budget: bytes(budget),
            remedy: match remedies.is_empty() {
                true => "a smaller model or more memory".into(),
                false => remedies.join("; "),
            },
        })
    }
}

impl Recipe {
    /// What is to be planned.
    ///
    /// # Errors
    /// When the model's configuration cannot be read or does not go with the recipe.
    pub fn plan_config(&self) -> Result<PlanConfig> {
        let train = &self.train;
        Ok(PlanConfig::new(self.model_config()?, train.length)
            .with_mixer(self.mixer.clone())
            .with_lora(self.lora.clone())
            .with_muon(train.muon.is_some())
            .with_batch(train.batch)
            .with_micro_batches(train.micro_batches, train.workers)
            .with_strategy(train.strategy)
            .with_compute(train.compute))
    }

    /// What the run will take, within `budget` or else the recipe's own `train.device_memory`.
    ///
    /// # Errors
    /// As [`Recipe::plan_config`] and [`PlanConfig::init`].
    pub fn plan(&self, budget: Option<u64>) -> Result<RecipePlan> {
        let budget = budget.or(self.train.device_memory);
        RecipePlan::new(&self.plan_config()?, budget, self.model.path.is_some())
    }

    /// The plan of a run that is about to begin; none for one whose memory is not known, where no
    /// budget is set.
    pub(in crate::training) fn checked_plan(
        &self,
        budget: Option<u64>,
    ) -> Result<Option<RecipePlan>> {
        match self.plan(budget) {
            Ok(plan) => plan.check(1).map(|()| Some(plan)),
            Err(Error::Unsupported { .. }) if budget.or(self.train.device_memory).is_none() => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
