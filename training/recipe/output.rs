//! The folder of a run: recipe, metrics, plot, report, checkpoint.

use super::saving::trained;
use super::sections::Recipe;
use super::{Evaluation, RunSummary};
use crate::Result;
use crate::attention::HasProjections;
use crate::datasets::Tokenizer;
use crate::models::weights::write_atomic;
use crate::models::{Decoder, SaveOptions, copy_companions, lora};
use crate::training::report::{
    Cell, Figure, MetricsLog, Plot, Report, Section, Series, Table, read_metrics,
};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The evaluation before training.
const BEFORE: &str = "before.json";

/// An open run.
pub(super) struct Folder {
    dir: PathBuf,
    pub log: MetricsLog,
    /// Steps and their losses.
    pub losses: Vec<(u64, f64)>,
}

impl Folder {
    /// Open a new run, or one that goes on after step `resumed`.
    pub fn open(dir: &Path, recipe: &Recipe, resumed: Option<u64>) -> Result<Self> {
        let copy = dir.join("recipe.toml");
        // A disk that is full now need not keep a run from going on.
        if std::fs::read(&copy).ok().as_deref() != Some(recipe.text().as_bytes()) {
            write_atomic(&copy, recipe.text().as_bytes())?;
        }
        let path = dir.join("metrics.jsonl");
        let log = MetricsLog::open(&path)?;
        let mut losses = Vec::new();
        if let Some(step) = resumed {
            let metrics = read_metrics(&path)?;
            for torn in &metrics.torn {
                tracing::warn!("{}: line {} is torn: passed over", path.display(), torn.line);
            }
            let before = metrics.train("train").into_iter().filter(|r| r.step <= step);
            losses.extend(before.map(|record| (record.step, record.loss)));
        }
        Ok(Self { dir: dir.into(), log, losses })
    }

    /// Keep the evaluation before training for those who go on with the run.
    pub fn save_before(&self, before: &Option<Evaluation>) -> Result<()> {
        let value = serde_json::to_value(before).unwrap_or(Value::Null);
        write_json(&self.dir.join(BEFORE), &value)
    }

    /// The evaluation before training, where it was measured.
    pub fn load_before(&self) -> Option<Evaluation> {
        let text = std::fs::read_to_string(self.dir.join(BEFORE)).ok()?;
        serde_json::from_str(&text).ok().flatten()
    }

    /// Write what was trained: `model/`, or `adapter/` (updates, or gates) and, where asked for,
    /// `model/` merged.
    pub fn save<M: HasProjections>(
        &self,
        recipe: &Recipe,
        model: &Decoder<M>,
        tokenizer: &Tokenizer,
    ) -> Result<(Option<PathBuf>, Option<PathBuf>)> {
        let (model_dir, adapter_dir) = (self.dir.join("model"), self.dir.join("adapter"));
        let dtype = recipe.output.dtype;
        if recipe.lora.is_none() && recipe.mixer.seer().is_none() {
            trained(recipe, model, tokenizer, &model_dir, dtype)?;
            return Ok((Some(model_dir), None));
        }
        trained(recipe, model, tokenizer, &adapter_dir, dtype)?;
        if !recipe.output.merge {
            return Ok((None, Some(adapter_dir)));
        }
        let max_shard_bytes = recipe.output.max_shard_bytes;
        let options = SaveOptions { dtype, max_shard_bytes };
        lora::merge(model.clone()).save(&model_dir, &options)?;
        companions(recipe, tokenizer, &model_dir)?;
        Ok((Some(model_dir), Some(adapter_dir)))
    }

    /// Write summary, plot and report.
    pub fn close(&mut self, recipe: &Recipe, seed: u64, summary: &RunSummary) -> Result<()> {
        let json = serde_json::to_value(summary).unwrap_or(Value::Null);
        self.log.note("summary", json.clone())?;
        write_json(&self.dir.join("summary.json"), &json)?;
        let plot = self.plot();
        plot.save(self.dir.join("loss.svg"))?;
        self.report(recipe, seed, summary, &plot)?.save(self.dir.join("report.html"))
    }

    pub fn plot(&self) -> Plot {
        let (steps, losses): (Vec<f64>, Vec<f64>) =
            self.losses.iter().map(|(step, loss)| (*step as f64, *loss)).unzip();
        Plot::lines("Training loss")
            .x("step")
            .y("nats per token")
            .series(Series::new("loss").points(&steps, &losses).binned(200))
    }

    fn report(
        &self,
        recipe: &Recipe,
        seed: u64,
        summary: &RunSummary,
        plot: &Plot,
    ) -> Result<Report> {
        let title = match recipe.title.as_str() {
            "" => "Training run",
            title => title,
        };
        let lead = match recipe.expected.as_str() {
            "" => String::new(),
            expected => format!("Expected: {expected}"),
        };
        let mut report = Report::new(title, lead)
            .fact(format!("{:.4}", summary.last_loss), "loss of the last step, nats per token")
            .fact(format!("{:.0}", summary.tokens_per_second), "tokens per second in training");
        if let Some(after) = &summary.after {
            report = report.fact(format!("{:.3}", after.ppl), "perplexity of held-out documents");
        }
        let mut training = Section::new("Training")
            .figure(Figure::new(plot, "Mean loss of the tokens of each step.")?)
            .text(summary.trainable.to_string());
        if !summary.finished {
            training = training.text(format!("The data ended after step {}.", summary.steps));
        }
        report = report.section(training);
        if let Some(after) = &summary.after {
            report = report.section(evaluation(summary.before.as_ref(), after));
        }
        let mut data = Section::new("Data").text(format!("Training: {}.", summary.data));
        if summary.after.is_some() {
            data = data.text(format!("Held out: {}.", summary.held_out));
        }
        Ok(report.section(data).section(
            Section::new("Recipe")
                .pairs([
                    ("version", env!("CARGO_PKG_VERSION").to_string()),
                    ("seed", seed.to_string()),
                    ("steps", summary.steps.to_string()),
                    ("tokens", summary.tokens.to_string()),
                    ("seconds", format!("{:.1}", summary.seconds)),
                ])
                .pairs(summary.memory.rows())
                .command(recipe.text()),
        ))
    }
}

/// Loss by position, before and after.
fn evaluation(before: Option<&Evaluation>, after: &Evaluation) -> Section {
    let mut table = Table::new(["positions", "before", "after"]);
    let cell = |value: Option<(f64, Option<f64>)>| match value {
        Some((value, se)) => Cell::Number(value, se),
        None => Cell::Missing,
    };
    for (i, bucket) in after.by_position.iter().enumerate() {
        let old = before.and_then(|e| e.by_position.get(i));
        table.push([
            format!("{} – {}", bucket.start, bucket.end - 1).into(),
            cell(old.map(|b| (b.mean_nll, b.se))),
            cell(Some((bucket.mean_nll, bucket.se))),
        ]);
    }
    table.push([
        "all".into(),
        cell(before.map(|e| (e.mean_nll, e.se))),
        cell(Some((after.mean_nll, after.se))),
    ]);
    let text = format!(
        "Protocol: {}. {} tokens scored; {} documents too short.",
        after.protocol, after.tokens, after.skipped_documents
    );
    Section::new("Evaluation").text(text).table("Loss by position, nats per token.", table)
}

/// The tokenizer and what else belongs to the weights, byte for byte where there are files.
pub(super) fn companions(recipe: &Recipe, tokenizer: &Tokenizer, to: &Path) -> Result<()> {
    let Some(from) = recipe.tokenizer_dir() else { return tokenizer.save(to) };
    copy_companions(from, to)?;
    if let Some(template) = recipe.data.chat.as_ref().and_then(|chat| chat.template.as_ref()) {
        write_atomic(&to.join("chat_template.jinja"), template.as_bytes())?;
    }
    // A tokenizer file may have any name.
    if to.join("tokenizer.json").exists() { Ok(()) } else { tokenizer.save(to) }
}

pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_atomic(path, format!("{value:#}\n").as_bytes())
}
