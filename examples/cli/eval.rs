//! `longburn eval`

mod grids;
mod tasks;

use crate::output::Target;
use crate::{Globals, load, output};
use clap::{Args, ValueEnum};
use longburn::datasets::source::{BadLines, SourceOptions};
use longburn::datasets::{DataReport, TokenDocument, Tokenizer, tokenize};
use longburn::models::Blocks;
use longburn::training::eval::{
    Perplexity, PerplexityReport, Protocol, ResultsFile, data_stamp, model_stamp,
};
use longburn::training::report::{Cell, Progress, Table};
use longburn::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use tasks::Task;

/// Measure a model: perplexity, loss by position, pass keys, needles, short-context tasks
///
/// The protocols of perplexity give different numbers on the same text; quote one with its
/// protocol only.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn eval MODEL --data books --max-len 2048 --stride 1024 --by-position
  longburn eval MODEL --adapter runs/first/adapter --data books
  longburn eval MODEL --passkey 512,1024,2048
  longburn eval MODEL --needle 512,1024,2048 --data books --svg needles.svg
  longburn eval MODEL --task lambada --data lambada.jsonl --limit 500")]
pub struct EvalArgs {
    /// Folder of a checkpoint in Hugging Face form, or a repository of the Hub: org/name
    dir: PathBuf,
    /// Text, .jsonl, .jsonl.zst or .parquet: a file, or a folder of one kind
    #[arg(long, value_name = "PATH", required_unless_present = "passkey")]
    data: Option<PathBuf>,
    /// Field of a .jsonl object, or column of a .parquet file, that holds the text
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
    /// Count lines and rows that cannot be used, and go on; without it the first one is an error
    #[arg(long, requires = "data", conflicts_with = "task")]
    skip_bad_lines: bool,
    /// At most so many documents
    #[arg(long, value_name = "N")]
    documents: Option<usize>,
    /// Which windows are scored and how they are averaged
    #[arg(long, value_enum, default_value_t = ProtocolName::Strided)]
    protocol: ProtocolName,
    /// Tokens per window; the model's context where not given
    #[arg(long, value_name = "N")]
    max_len: Option<usize>,
    /// Tokens between windows; half a window (longlora: 256) where not given
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Windows, prompts or items that go through the model at a time
    #[arg(long, default_value_t = 4, value_name = "N")]
    batch: usize,
    /// Show the loss by position in the window
    #[arg(long)]
    by_position: bool,
    /// Lengths at which a pass key is hidden in filler and asked for
    #[arg(long, value_delimiter = ',', value_name = "N,N")]
    passkey: Vec<usize>,
    /// Pass keys per length, at depths spread evenly
    #[arg(long, default_value_t = 10, value_name = "N")]
    passkey_samples: usize,
    /// Lengths at which a needle is hidden in the text of --data and asked for
    #[arg(long, value_delimiter = ',', value_name = "N,N", requires = "data")]
    needle: Vec<usize>,
    /// Depths of the needle, from the beginning of the text to its end
    #[arg(long, default_value_t = 5, value_name = "N")]
    depths: usize,
    /// Needles per length and depth
    #[arg(long, default_value_t = 4, value_name = "N")]
    needle_samples: usize,
    /// Score a task by log-likelihood, with --data as its rows
    #[arg(long, value_enum, requires = "data", conflicts_with_all = ["needle", "passkey"])]
    task: Option<Task>,
    /// At most so many rows of the task
    #[arg(long, value_name = "N", requires = "task")]
    limit: Option<usize>,
    /// For rows with a `question`, what stands in front of a choice
    #[arg(long, value_name = "TEXT", default_value = "Q: {question}\nA:")]
    prompt: String,
    /// Keep the result of every item in this file, and go on where it ends
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Draw needles or pass keys, length by depth, as a heat map
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    with: load::AdapterArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum ProtocolName {
    /// Hugging Face's: what an earlier window has scored does not count again
    Strided,
    /// LongLoRA's sliding window: every token of every window counts
    Longlora,
}

impl EvalArgs {
    pub fn models(&mut self) -> Vec<&mut PathBuf> {
        std::iter::once(&mut self.dir).chain(&mut self.with.adapter).collect()
    }

    pub fn targets(&self) -> Vec<Target<'_>> {
        let files = [("svg", &self.svg), ("results", &self.results)];
        files.into_iter().filter_map(|(option, path)| Target::file(option, path)).collect()
    }

    pub fn run(&self, globals: &Globals) -> Result<()> {
        self.check()?;
        let in_one_pass = self.task.is_some() || self.data.is_some() && self.needle.is_empty();
        if in_one_pass {
            load::check_whole_rows(&self.with)?;
        }
        let model = load::model(&self.dir, &self.with, globals)?;
        let tokenizer = load::needed_tokenizer(&self.dir, &model)?;
        let seed = globals.seed.unwrap_or(0);
        let mut result = Map::new();
        let mut text = String::new();
        if let Some(task) = self.task {
            let report = self.task(task, &model, &tokenizer)?;
            text += &tasks::text(&report);
            result.insert("task".into(), report);
        } else if !self.needle.is_empty() {
            let report = self.needles(&model, &tokenizer, seed)?;
            text += &grids::text("needles", &report);
            result.insert("needle".into(), output::value(&report));
        } else if let Some(data) = &self.data {
            let (documents, account) = self.documents(data, &tokenizer)?;
            let report = self.perplexity(&model, &documents)?;
            output::note(format_args!("data: {account}"));
            text += &self.perplexity_text(&report);
            result.insert("perplexity".into(), perplexity_json(&report));
            result.insert("data".into(), output::value(&account));
        }
        if !self.passkey.is_empty() {
            let report = self.passkeys(&model, &tokenizer, seed)?;
            text += &grids::text("pass keys", &report);
            result.insert("passkey".into(), output::value(&report));
        }
        if globals.json { output::json(&Value::Object(result)) } else { output::print(&text) }
    }

    /// What the options ask for together.
    fn check(&self) -> Result<()> {
        let grids = usize::from(!self.needle.is_empty()) + usize::from(!self.passkey.is_empty());
        let items = grids + usize::from(self.task.is_some());
        let bad = |field: &str, value: &Path, expected: &str| {
            Err(Error::config("command line", field, value.display(), expected))
        };
        if let Some(svg) = self.svg.as_ref().filter(|_| grids != 1) {
            return bad("svg", svg, "a file for either --needle or --passkey");
        }
        match &self.results {
            Some(file) if items != 1 => {
                bad("results", file, "a file for one of --task, --needle and --passkey")
            }
            _ => self.check_numbers(),
        }
    }

    /// The results file, where one is wanted, for `what` is measured.
    fn results(&self, what: Value) -> Result<Option<ResultsFile>> {
        let Some(path) = &self.results else { return Ok(None) };
        let settings = json!({
            "model": model_stamp(&self.dir, self.with.adapter.as_deref())?,
            // Absent where gates have their own, as in the files of earlier versions.
            "select": self.with.select,
            "data": self.data.as_deref().map(data_stamp).transpose()?,
            "field": self.field,
            // Absent where nothing is skipped, as in the files of earlier versions.
            "bad_lines": self.skip_bad_lines.then_some("skip"),
            "what": what,
        });
        let file = ResultsFile::open(path, &settings)?;
        if !file.is_empty() {
            output::note(format_args!("{}: {} items are done", path.display(), file.len()));
        }
        Ok(Some(file))
    }

    fn source(&self) -> SourceOptions {
        SourceOptions::new()
            .with_text_field(self.field.clone())
            .with_bad_lines(self.skip_bad_lines.then_some(BadLines::Skip))
    }

    fn documents(
        &self,
        path: &Path,
        tokenizer: &Tokenizer,
    ) -> Result<(Vec<TokenDocument>, DataReport)> {
        let mut source = self.source().open(path)?;
        let mut documents = source.read_all()?;
        documents.truncate(self.documents.unwrap_or(usize::MAX));
        let (mut documents, account) = tokenize(&documents, tokenizer, true)?;
        // A loss needs a token to predict from.
        documents.retain(|document| document.ids.len() > 1);
        if documents.is_empty() {
            return Err(Error::Data(format!("{}: nothing to score: {account}", path.display())));
        }
        Ok((documents, source.report().clone().then(&account)))
    }

    fn perplexity(
        &self,
        model: &impl Blocks,
        documents: &[TokenDocument],
    ) -> Result<PerplexityReport> {
        let len = self.max_len.unwrap_or(model.config().max_context());
        let protocol = match self.protocol {
            ProtocolName::Strided => {
                let stride = self.stride.unwrap_or(len.div_ceil(2));
                Protocol::Strided { max_len: len, stride }
            }
            ProtocolName::Longlora => Protocol::LongLora { len, step: self.stride.unwrap_or(256) },
        };
        let ids: Vec<_> = documents.iter().map(|document| &document.ids[..]).collect();
        let mut stage = Progress::new(0).stage("Perplexity", None, "tokens");
        let report = Perplexity::new(protocol).with_batch_size(self.batch).eval(model, &ids)?;
        stage.advance(report.tokens as u64);
        stage.finish();
        Ok(report)
    }

    fn perplexity_text(&self, report: &PerplexityReport) -> String {
        let error = report.se.map_or(String::new(), |se| format!(" ± {se:.4}"));
        let mut text = format!(
            "perplexity {:.4} (loss {:.4}{error} nats per token)\n{}; {} tokens scored, {} \
             documents too short\n",
            report.ppl, report.mean_nll, report.protocol, report.tokens, report.skipped_documents
        );
        if self.by_position {
            let mut table = Table::new(["positions", "loss", "tokens"]).decimals(2, 0);
            for bucket in &report.by_position {
                table.push([
                    format!("{} – {}", bucket.start, bucket.end - 1).into(),
                    Cell::Number(bucket.mean_nll, bucket.se),
                    (bucket.count as u64).into(),
                ]);
            }
            text += &table.to_text();
        }
        text
    }
}

fn perplexity_json(report: &PerplexityReport) -> Value {
    json!({
        "protocol": report.protocol,
        "ppl": report.ppl,
        "mean_nll": report.mean_nll,
        "se": report.se,
        "token_mean_nll": report.token_mean_nll,
        "tokens": report.tokens,
        "skipped_documents": report.skipped_documents,
        "by_position": report.by_position,
    })
}
