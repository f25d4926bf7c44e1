//! `longburn train`

use crate::{Globals, INTERRUPTED, inspect, output, usable};
use clap::Args;
use longburn::attention::MixerConfig;
use longburn::models::ModelConfig;
use longburn::training::plan::parse_bytes;
use longburn::training::report::Progress;
use longburn::training::{Interrupter, Recipe, RunOptions, RunSummary, run_recipe};
use longburn::{Error, Result};
use serde_json::Value;
use std::path::PathBuf;

/// Run a recipe: swap, extend, adapt, train, measure, save
///
/// The folder of the run holds the recipe, metrics.jsonl, loss.svg, report.html, summary.json,
/// checkpoints/, and the result: `model/` in Hugging Face form or `adapter/` in PEFT form.
///
/// Ctrl-C (SIGINT) or SIGTERM finishes the step, saves a checkpoint and exits with status 130; a
/// second one exits at once. The same command with --resume goes on with the same bits as if
/// nothing had happened.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn train recipe.toml
  longburn train recipe.toml --out runs/second --seed 1
  longburn train recipe.toml --resume")]
pub struct TrainArgs {
    /// The recipe, TOML
    recipe: PathBuf,
    /// Folder of the run, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Mixer of all layers with its defaults, instead of the recipe's: such as longlora, mamba2
    #[arg(long, value_name = "NAME", value_parser = mixer)]
    mixer: Option<MixerConfig>,
    /// Memory that the run may take: bytes, or such as 8GiB; the recipe's own where not given
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    device_memory: Option<u64>,
    /// Go on from the newest checkpoint in the folder of the run; without one, begin
    #[arg(long)]
    resume: bool,
    /// Resume although recipe or data have changed in what decides the result
    #[arg(long, requires = "resume")]
    allow_changes: bool,
    /// Show curves in the terminal, where `q` stops the run; needs a build with feature tui
    #[arg(long)]
    tui: bool,
}

/// A mixer by its name.
fn mixer(name: &str) -> std::result::Result<MixerConfig, String> {
    serde_json::from_value(serde_json::json!({ "name": name })).map_err(|e| e.to_string())
}

impl TrainArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let recipe = match &self.mixer {
            Some(mixer) => Recipe::from_file_with(&self.recipe, mixer)?,
            None => Recipe::from_file(&self.recipe)?,
        };
        let options = RunOptions::new(globals.device.open()?)
            .with_seed(globals.seed)
            .with_out(self.out.clone())
            .with_mixer(self.mixer.clone())
            .with_explain(globals.explain)
            .with_device_memory(self.device_memory)
            .with_resume(self.resume)
            .with_allow_changes(self.allow_changes)
            .with_interrupter(stopped_by_signals()?)
            .with_terminal_view(self.tui);
        // Bars would be drawn over the view.
        let progress = if self.tui { Progress::quiet() } else { Progress::new(0) };
        let summary = run_recipe(&recipe, &options, &progress)?;
        let runs_in = runs_in(&summary)?;
        if globals.json {
            let mut said = output::value(&summary);
            if let Value::Object(said) = &mut said {
                said.insert("runs_in".into(), runs_in);
            }
            return output::json(&said);
        }
        output::print(&text(&summary, &runs_in))
    }
}

/// Stops a run at the first signal, the process at the second.
fn stopped_by_signals() -> Result<Interrupter> {
    let interrupter = Interrupter::new();
    let (run, mut asked) = (interrupter.clone(), false);
    let handler = move || {
        if std::mem::replace(&mut asked, true) {
            std::process::exit(INTERRUPTED.into());
        }
        // First what counts.
        run.stop(Some("a signal"));
        output::note(format_args!("stopping after this step; a second signal stops at once"));
    };
    ctrlc::set_handler(handler)
        .map_err(|e| Error::Training(format!("signals cannot be handled: {e}")))?;
    Ok(interrupter)
}

/// Where the result of a run runs as it is.
fn runs_in(summary: &RunSummary) -> Result<Value> {
    Ok(match (&summary.adapter, &summary.model) {
        (Some(dir), _) => inspect::runs_in_of_adapter(dir)?,
        (None, Some(dir)) => {
            usable::runs_in(&ModelConfig::from_file(&dir.join("config.json"))?, true)
        }
        (None, None) => Value::Null,
    })
}

fn text(summary: &RunSummary, runs_in: &Value) -> String {
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
    text += &usable::lines(runs_in);
    text + &format!("report: {}\n", summary.dir.join("report.html").display())
}
