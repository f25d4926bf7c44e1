//! `longburn plan`

use crate::{Globals, output};
use clap::{Args, ValueEnum};
use longburn::Result;
use longburn::models::hub::Need;
use longburn::training::plan::{RecipePlan, bytes, parse_bytes};
use longburn::training::report::Progress;
use longburn::training::{Recipe, Strategy};
use std::path::PathBuf;

/// What a recipe will take in memory, before it runs
///
/// `longburn plan run.toml --length 32768 --device-memory 16GiB` prints the peak by part of the
/// model and what would lower it. It needs the recipe and the checkpoint's config.json only.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn plan recipe.toml
  longburn plan recipe.toml --length 8192 --strategy recompute --device-memory 16GiB")]
pub struct PlanArgs {
    /// The recipe, TOML
    recipe: PathBuf,
    /// Tokens per row, instead of the recipe's
    #[arg(long, value_name = "N")]
    length: Option<usize>,
    /// Rows per micro-batch, instead of the recipe's
    #[arg(long, value_name = "B")]
    batch: Option<usize>,
    /// How gradients come about, instead of the recipe's
    #[arg(long)]
    strategy: Option<StrategyName>,
    /// What the run may take: bytes, or such as 8GiB; the recipe's own where not given
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    device_memory: Option<u64>,
}

/// How gradients come about.
#[derive(Clone, Copy, ValueEnum)]
pub enum StrategyName {
    /// One graph
    Plain,
    /// Block by block
    Recompute,
}

impl StrategyName {
    pub fn strategy(self) -> Strategy {
        match self {
            Self::Plain => Strategy::Plain,
            Self::Recompute => Strategy::Recompute,
        }
    }
}

impl PlanArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let recipe = Recipe::from_file(&self.recipe)?;
        let recipe = recipe.located(Need::Description, &Progress::new(0))?;
        let mut config = recipe.plan_config()?;
        config.length = self.length.unwrap_or(config.length);
        config.batch = self.batch.unwrap_or(config.batch);
        config.strategy = self.strategy.map_or(config.strategy, StrategyName::strategy);
        let budget = self.device_memory.or(recipe.train.device_memory);
        let plan = RecipePlan::new(&config, budget, recipe.model.path.is_some())?;
        match globals.json {
            true => output::json(&output::value(&plan)),
            false => output::print(&text(&plan)),
        }
    }
}

fn text(plan: &RecipePlan) -> String {
    let mut text = format!("{}\n", plan.plan);
    if let (Some(budget), Some(fits)) = (plan.budget, plan.fits) {
        let verdict = if fits { "fits into" } else { "does NOT fit into" };
        text += &format!("{verdict} {}\n", bytes(budget));
    }
    if plan.fits != Some(true) && !plan.remedies.is_empty() {
        text += "what would lower the peak:\n";
        for remedy in &plan.remedies {
            let verdict = match remedy.fits {
                Some(true) => ", fits",
                Some(false) => ", does not fit",
                None => "",
            };
            text += &format!("  {:>10}{verdict}  {}\n", bytes(remedy.peak), remedy.change);
        }
    }
    text
}
