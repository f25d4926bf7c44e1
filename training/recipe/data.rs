//! Documents of a recipe: read, split, tokenised, made into rows.

use super::chat::Chats;
use super::sections::{DataKind, Recipe, Rows};
use crate::datasets::source::{self, DocumentSource, JsonlSourceConfig};
use crate::datasets::{
    Amount, BpeConfig, DataReport, Document, PackConfig, PackedSource, TokenBatch, TokenDocument,
    Tokenizer, WindowSampler, split, tokenize, train_bpe,
};
use crate::streams::Streams;
use crate::training::BatchSource;
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// Documents of a run before tokenisation.
pub(super) enum Texts {
    Plain {
        train: Vec<Document>,
        held_out: Vec<Document>,
        read: DataReport,
        /// Of `held_out`, where it has files of its own.
        held_out_read: DataReport,
    },
    Chats(Chats),
}

/// What a run trains on and is measured on.
pub(super) struct Data {
    pub rows: RowSource,
    pub held_out: Vec<TokenDocument>,
    /// Account of the training documents, from the files to the rows.
    pub report: DataReport,
    /// Account of the held-out ones.
    pub held_out_report: DataReport,
}

/// Training and held-out documents as tokens.
pub(super) struct Tokens {
    pub documents: Vec<TokenDocument>,
    /// Which tokens are predicted; all where not given.
    pub targets: Option<Vec<Vec<bool>>>,
    pub report: DataReport,
    pub held_out: Vec<TokenDocument>,
    pub held_out_report: DataReport,
}

/// The two ways of making rows.
pub(super) enum RowSource {
    Packed(PackedSource),
    Windows(WindowSampler),
}

impl Texts {
    pub fn read(recipe: &Recipe) -> Result<Self> {
        let data = &recipe.data;
        if data.kind == DataKind::Chat {
            return Chats::read(recipe).map(Self::Chats);
        }
        let field = data.text_field.as_deref();
        let (documents, read) = read(&data.train, field)?;
        let mut held_out_read = DataReport::default();
        let (train, held_out) = match (&data.held_out, data.split) {
            (Some(path), _) => {
                let (held_out, report) = self::read(path, field)?;
                held_out_read = report;
                (documents, held_out)
            }
            (None, Some(every)) => split(documents, every)?,
            (None, None) => (documents, Vec::new()),
        };
        Ok(Self::Plain { train, held_out, read, held_out_read })
    }

    /// A vocabulary learned from the training documents.
    pub fn learn_tokenizer(&self, vocab_size: usize) -> Result<Tokenizer> {
        let Self::Plain { train, .. } = self else {
            return Err(Error::Data("no tokenizer is learned from conversations".into()));
        };
        let special = vec!["<|endoftext|>".to_string()];
        let config = BpeConfig::new(vocab_size).with_special(special);
        train_bpe(train.iter().map(|document| document.text.as_str()), &config)
    }

    pub fn prepare(self, recipe: &Recipe, tokenizer: &Tokenizer, seed: u64) -> Result<Data> {
        let special = tokenizer.special_ids();
        let (read, tokens, eos) = match self {
            Self::Plain { train, held_out, read, held_out_read } => {
                let (documents, report) = tokenize(&train, tokenizer, true)?;
                let (held_out, held_out_report) = tokenize(&held_out, tokenizer, true)?;
                let held_out_report = held_out_read.then(&held_out_report);
                let targets = None;
                let tokens = Tokens { documents, targets, report, held_out, held_out_report };
                (read, tokens, special.eos)
            }
            // A template writes its own end of a turn.
            Self::Chats(chats) => (chats.read.clone(), chats.tokenize(recipe, tokenizer)?, None),
        };
        let (held_out, limited) = limit(recipe, tokens.held_out);
        let held_out_report = tokens.held_out_report.then(&limited);
        if recipe.eval.is_some() && held_out.is_empty() {
            return Err(Error::Data(format!(
                "no held-out document to evaluate on: {held_out_report}"
            )));
        }
        let report = read.then(&tokens.report);
        let (section, streams) = (&recipe.train, Streams::new(seed));
        let (length, batch) = (section.length, section.batch);
        let rows = match recipe.data.rows {
            Rows::Windows => {
                let sampler = WindowSampler::new(tokens.documents, length, batch, streams)?;
                RowSource::Windows(sampler)
            }
            Rows::Packed => {
                let rows = PackConfig::new(length)
                    .with_pack(recipe.data.pack())
                    .with_segments(recipe.data.segments())
                    .with_eos(eos)
                    .with_pad_id(special.pad.unwrap_or(0))
                    .with_shuffle(true)
                    .with_epochs(recipe.data.epochs)
                    .init(tokens.documents, batch, streams)?;
                RowSource::Packed(match tokens.targets {
                    Some(targets) => rows.with_targets(targets)?,
                    None => rows,
                })
            }
        };
        Ok(Data { report, rows, held_out, held_out_report })
    }
}

impl Data {
    /// Account of the training documents with what making rows left out so far.
    pub fn closing_report(&self) -> DataReport {
        let rows = match &self.rows {
            RowSource::Packed(rows) => rows.report(),
            RowSource::Windows(rows) => rows.report(),
        };
        self.report.clone().then(rows)
    }
}

impl BatchSource<TokenBatch> for RowSource {
    fn batch(&mut self, step: u64, micro: u32) -> Result<Option<TokenBatch>> {
        match self {
            Self::Packed(rows) => BatchSource::batch(rows, step, micro),
            Self::Windows(rows) => BatchSource::batch(rows, step, micro),
        }
    }

    fn cursor(&self) -> Value {
        match self {
            Self::Packed(rows) => BatchSource::<TokenBatch>::cursor(rows),
            Self::Windows(rows) => BatchSource::<TokenBatch>::cursor(rows),
        }
    }

    fn seek(&mut self, cursor: &Value) -> Result<()> {
        match self {
            Self::Packed(rows) => BatchSource::<TokenBatch>::seek(rows, cursor),
            Self::Windows(rows) => BatchSource::<TokenBatch>::seek(rows, cursor),
        }
    }
}

/// Documents that `[eval]` measures on, and what it leaves out.
fn limit(recipe: &Recipe, mut documents: Vec<TokenDocument>) -> (Vec<TokenDocument>, DataReport) {
    let eval = recipe.eval.as_ref();
    let most = eval.and_then(|eval| eval.documents).unwrap_or(usize::MAX);
    let tokens = eval.and_then(|eval| eval.tokens).unwrap_or(usize::MAX).max(2);
    documents.sort_by(|a, b| a.id.cmp(&b.id));
    let (mut kept, mut report) = (Vec::new(), DataReport::default());
    for mut document in documents {
        let len = document.ids.len();
        if len < 2 {
            report.drop_document("nothing to predict", Amount::tokens(len));
        } else if kept.len() == most {
            report.drop_document("more than eval.documents", Amount::tokens(len));
        } else {
            document.ids.truncate(tokens);
            report.kept += Amount::tokens(len.min(tokens));
            if len > tokens {
                report.truncated += Amount::tokens(len - tokens);
            }
            kept.push(document);
        }
    }
    (kept, report)
}

fn read(path: &Path, field: Option<&str>) -> Result<(Vec<Document>, DataReport)> {
    let mut source: Box<dyn DocumentSource> = match field {
        Some(field) => Box::new(JsonlSourceConfig::new(path).with_field(field).init()?),
        None => source::open(path)?,
    };
    let documents = source.read_all()?;
    Ok((documents, source.report().clone()))
}
