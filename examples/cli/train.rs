//! `longburn train`

use crate::{Globals, output};
use clap::Args;
use longburn::Result;
use longburn::training::plan::parse_bytes;
use longburn::training::report::Progress;
use longburn::training::{Recipe, RunOptions, RunSummary, run_recipe};
use std::path::PathBuf;

/// Run a recipe: swap, extend, adapt, train, measure, save
///
/// The folder of the run holds the recipe, metrics.jsonl, loss.svg, report.html, summary.json,
/// and the result: `model/` in Hugging Face form or `adapter/` in PEFT form.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn train recipe.toml
  longburn train recipe.toml --out runs/second --seed 1")]
pub struct TrainArgs {
    /// The recipe, TOML
    recipe: PathBuf,
    /// Folder of the run, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Memory that the run may take: bytes, or such as 8GiB; the recipe's own where not given
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    device_memory: Option<u64>,
}

impl TrainArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let recipe = Recipe::from_file(&self.recipe)?;
        let options = RunOptions::new(globals.device.open()?)
            .with_seed(globals.seed)
            .with_out(self.out.clone())
            .with_explain(globals.explain)
            .with_device_memory(self.device_memory);
        let summary = run_recipe(&recipe, &options, &Progress::new(0))?;
        match globals.json {
            true => output::json(&output::value(&summary)),
            false => output::print(&text(&summary)),
        }
    }
}

fn text(summary: &RunSummary) -> String {
    let mut text = format!(
        "{} steps, {} tokens, {:.0} tokens/s; loss {:.4} -> {:.4}\n",
        summary.steps,
        summary.tokens,
        summary.tokens_per_second,
        summary.first_loss,
        summary.last_loss
    );
    if let Some(after) = &summary.after {
        let before = summary.before.as_ref().map_or(String::new(), |e| format!("{:.3} -> ", e.ppl));
        text += &format!("perplexity {before}{:.3} ({})\n", after.ppl, after.protocol);
    }
    for (name, path) in [("adapter", &summary.adapter), ("model", &summary.model)] {
        if let Some(path) = path {
            text += &format!("{name}: {}\n", path.display());
        }
    }
    text + &format!("report: {}\n", summary.dir.join("report.html").display())
}
