//! `longburn eval`

use crate::{Globals, load, output};
use clap::{Args, ValueEnum};
use longburn::datasets::source::{self, DocumentSource, JsonlSourceConfig};
use longburn::datasets::synthetic::{PasskeyPromptConfig, stratified_depth};
use longburn::datasets::{DataReport, TokenDocument, Tokenizer, tokenize};
use longburn::models::Blocks;
use longburn::streams::{Purpose, Streams};
use longburn::training::eval::{
    PasskeyEval, PasskeyItem, PasskeyReport, Perplexity, PerplexityReport, Protocol,
};
use longburn::training::report::{Cell, Progress, Table};
use longburn::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Measure a model: perplexity, loss by position, retrieval of pass keys
///
/// The protocols give different numbers on the same text; quote a perplexity with its protocol
/// only.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn eval MODEL --data books --max-len 2048 --stride 1024 --by-position
  longburn eval MODEL --adapter runs/first/adapter --data books
  longburn eval MODEL --passkey 512,1024,2048")]
pub struct EvalArgs {
    /// Folder of a checkpoint in Hugging Face form
    dir: PathBuf,
    /// A text file, a folder of them, a .jsonl file, or a folder of those
    #[arg(long, value_name = "PATH", required_unless_present = "passkey")]
    data: Option<PathBuf>,
    /// Field of a .jsonl object that holds the text
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
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
    /// Windows that go through the model at a time
    #[arg(long, default_value_t = 4, value_name = "N")]
    batch: usize,
    /// Show the loss by position in the window
    #[arg(long)]
    by_position: bool,
    /// Lengths at which a pass key is hidden and asked for
    #[arg(long, value_delimiter = ',', value_name = "N,N")]
    passkey: Vec<usize>,
    /// Pass keys per length, at depths spread evenly
    #[arg(long, default_value_t = 10, value_name = "N")]
    passkey_samples: usize,
    /// Folder of an adapter in PEFT form
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum ProtocolName {
    /// Hugging Face's: what an earlier window has scored does not count again
    Strided,
    /// LongLoRA's sliding window: every token of every window counts
    Longlora,
}

impl EvalArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let model = load::model(&self.dir, self.adapter.as_deref(), globals)?;
        let tokenizer = load::needed_tokenizer(&self.dir, &model)?;
        let mut result = Map::new();
        let mut text = String::new();
        if let Some(data) = &self.data {
            let (documents, account) = self.documents(data, &tokenizer)?;
            let report = self.perplexity(&model, &documents)?;
            eprintln!("data: {account}");
            text += &self.perplexity_text(&report);
            result.insert("perplexity".into(), perplexity_json(&report));
            result.insert("data".into(), output::value(&account));
        }
        if !self.passkey.is_empty() {
            let report = self.passkeys(&model, &tokenizer, globals.seed.unwrap_or(0))?;
            text += &passkey_text(&report);
            result.insert("passkey".into(), output::value(&report));
        }
        if globals.json { output::json(&Value::Object(result)) } else { output::print(&text) }
    }

    fn documents(
        &self,
        path: &Path,
        tokenizer: &Tokenizer,
    ) -> Result<(Vec<TokenDocument>, DataReport)> {
        let mut source: Box<dyn DocumentSource> = match &self.field {
            Some(field) => Box::new(JsonlSourceConfig::new(path).with_field(field).init()?),
            None => source::open(path)?,
        };
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

    fn passkeys(
        &self,
        model: &impl Blocks,
        tokenizer: &Tokenizer,
        seed: u64,
    ) -> Result<PasskeyReport> {
        let prompts = PasskeyPromptConfig::new().init()?;
        if self.passkey_samples == 0 {
            return Err(Error::config("command line", "passkey-samples", 0, "at least 1"));
        }
        let mut items = Vec::new();
        for &length in &self.passkey {
            for i in 0..self.passkey_samples {
                let mut rng =
                    Streams::new(seed).rng(Purpose::Synthetic, i as u64, length as u32, 0);
                let depth = stratified_depth(i, self.passkey_samples, &mut rng)?;
                let sample = prompts.sample(tokenizer, length, depth, &mut rng)?;
                let item = PasskeyItem::new(sample.ids, sample.answer_ids, sample.depth);
                items.push(item.with_length(length));
            }
        }
        let mut stage = Progress::new(0).stage("Pass keys", None, "prompts");
        let report = PasskeyEval::new().with_batch_size(self.batch).eval(model, &items)?;
        stage.advance(items.len() as u64);
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

fn passkey_text(report: &PasskeyReport) -> String {
    let mut table = Table::new(["pass keys at length", "right", "of", "share"]).decimals(0, 0);
    for cell in &report.by_length {
        table.push([
            (cell.length as u64).into(),
            (cell.exact as u64).into(),
            (cell.total as u64).into(),
            cell.rate.into(),
        ]);
    }
    table.to_text()
}
