//! Documents of a recipe: read, split, tokenised, made into rows.

use super::chat::Chats;
use super::sections::{DataKind, Recipe, Rows};
use crate::datasets::source::SourceOptions;
use crate::datasets::{
    Amount, AnchorPacking, BpeConfig, DataReport, Document, Mixture, Named, PackConfig,
    PackedSource, TokenBatch, TokenCache, TokenDocument, Tokenizer, WindowSampler, split, tokenize,
    train_bpe, with_tokens,
};
use crate::streams::Streams;
use crate::training::BatchSource;
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// Documents of a run before tokenisation: texts with one entry per source that is mixed (none
/// where a token cache holds them), or conversations.
pub(super) enum Texts {
    Plain(Vec<PartTexts>),
    Chats(Box<Chats>),
}

/// Documents of one source.
pub(super) struct PartTexts {
    train: Vec<Document>,
    held_out: Vec<Document>,
    read: DataReport,
    /// Of `held_out`, where it has files of its own.
    held_out_read: DataReport,
}

/// A document that is measured on.
pub(super) struct HeldOut {
    pub document: TokenDocument,
    /// Which of its tokens count; all where not given.
    pub targets: Option<Vec<bool>>,
}

impl HeldOut {
    fn all(documents: Vec<TokenDocument>) -> Vec<Self> {
        documents.into_iter().map(|document| Self { document, targets: None }).collect()
    }
}

/// Training and held-out documents of one source as tokens.
pub(super) struct Tokens {
    pub documents: Vec<TokenDocument>,
    /// Which tokens are predicted; all where not given.
    pub targets: Option<Vec<Vec<bool>>>,
    /// Account of the training documents, from the files on.
    pub report: DataReport,
    pub held_out: Vec<HeldOut>,
    /// Account of the held-out ones, from the files on where they have files of their own.
    pub held_out_report: DataReport,
}

/// A source and its share of the rows.
struct Part<'a> {
    path: &'a Path,
    weight: f64,
    options: SourceOptions,
}

/// What a run trains on and is measured on.
pub(super) struct Data {
    pub rows: RowSource,
    pub held_out: Vec<HeldOut>,
    /// Account of the training documents, from the files to the rows.
    pub report: DataReport,
    /// Account of the held-out ones.
    pub held_out_report: DataReport,
}

/// The ways of making rows.
pub(super) enum RowSource {
    Packed(PackedSource),
    Mixed(Mixture),
    Windows(WindowSampler),
}

impl Texts {
    pub fn read(recipe: &Recipe) -> Result<Self> {
        let data = &recipe.data;
        if data.kind == DataKind::Chat {
            return Ok(Self::Chats(Box::new(Chats::read(recipe)?)));
        }
        if data.cache.is_some() {
            return Ok(Self::Plain(Vec::new()));
        }
        let read = |part: Part<'_>| {
            let (documents, read) = read(part.path, &part.options)?;
            let (train, held_out) = recipe.split(documents)?;
            Ok(PartTexts { train, held_out, read, held_out_read: DataReport::default() })
        };
        let mut parts = parts(recipe).map(read).collect::<Result<Vec<_>>>()?;
        if let (Some(path), Some(first)) = (&data.held_out, parts.first_mut()) {
            (first.held_out, first.held_out_read) = self::read(path, &recipe.source_options())?;
        }
        Ok(Self::Plain(parts))
    }

    /// A vocabulary learned from the training documents.
    pub fn learn_tokenizer(&self, vocab_size: usize) -> Result<Tokenizer> {
        let Self::Plain(parts) = self else {
            return Err(Error::Data("no tokenizer is learned from conversations".into()));
        };
        let special = vec!["<|endoftext|>".to_string()];
        let config = BpeConfig::new(vocab_size).with_special(special);
        let documents = parts.iter().flat_map(|part| &part.train);
        train_bpe(documents.map(|document| document.text.as_str()), &config)
    }

    pub fn prepare(self, recipe: &Recipe, tokenizer: &Tokenizer, seed: u64) -> Result<Data> {
        let parts = match (self, &recipe.data.cache) {
            (Self::Chats(chats), _) => vec![chats.tokenize(recipe, tokenizer)?],
            (Self::Plain(_), Some(cache)) => cached(recipe, &TokenCache::new(cache), tokenizer)?,
            (Self::Plain(parts), None) => tokenized(parts, tokenizer)?,
        };
        let (mut held_out, mut sources) = (Vec::new(), Vec::new());
        let (mut report, mut held_out_report) = (DataReport::default(), DataReport::default());
        for (part, Part { weight, .. }) in parts.into_iter().zip(self::parts(recipe)) {
            report = report.beside(&part.report);
            held_out_report = held_out_report.beside(&part.held_out_report);
            held_out.extend(part.held_out);
            sources.push((weight, part.documents, part.targets));
        }
        let (held_out, limited) = limit(recipe, held_out);
        let held_out_report = held_out_report.then(&limited);
        if recipe.eval.is_some() && held_out.is_empty() {
            return Err(Error::Data(format!(
                "no held-out document to evaluate on: {held_out_report}"
            )));
        }
        let rows = rows(recipe, tokenizer, sources, Streams::new(seed))?;
        Ok(Data { report, rows, held_out, held_out_report })
    }
}

fn tokenized(parts: Vec<PartTexts>, tokenizer: &Tokenizer) -> Result<Vec<Tokens>> {
    let part = |PartTexts { train, held_out, read, held_out_read }| {
        let (documents, report) = tokenize(&train, tokenizer, true)?;
        let (held_out, held_out_report) = tokenize(&held_out, tokenizer, true)?;
        Ok(Tokens {
            documents,
            targets: None,
            report: read.then(&report),
            held_out: HeldOut::all(held_out),
            held_out_report: held_out_read.then(&held_out_report),
        })
    };
    parts.into_iter().map(part).collect()
}

/// The same tokens as [`tokenized`] makes, from the disk where they are there.
fn cached(recipe: &Recipe, cache: &TokenCache, tokenizer: &Tokenizer) -> Result<Vec<Tokens>> {
    let load = |path: &Path, options: &SourceOptions| {
        let cached = cache.documents(path, options, tokenizer, true)?;
        if let Some(reason) = &cached.rebuilt {
            tracing::info!("{}: tokenised, {reason}", cached.file.display());
        }
        Ok::<_, Error>(cached)
    };
    let part = |part: Part<'_>| {
        let cached = load(part.path, &part.options)?;
        let (train, held_out) = recipe.split(cached.documents)?;
        let (documents, report) = with_tokens(train, tokenizer);
        let (held_out, held_out_report) = with_tokens(held_out, tokenizer);
        let report = cached.report.then(&report);
        let held_out = HeldOut::all(held_out);
        Ok(Tokens { documents, targets: None, report, held_out, held_out_report })
    };
    let mut parts = parts(recipe).map(part).collect::<Result<Vec<_>>>()?;
    if let (Some(path), Some(first)) = (&recipe.data.held_out, parts.first_mut()) {
        let cached = load(path, &recipe.source_options())?;
        let (held_out, report) = with_tokens(cached.documents, tokenizer);
        first.held_out = HeldOut::all(held_out);
        first.held_out_report = cached.report.then(&report);
    }
    Ok(parts)
}

impl Recipe {
    /// Training and held-out ones of what `data.train` or a source beside it holds.
    pub(super) fn split<T: Named>(&self, documents: Vec<T>) -> Result<(Vec<T>, Vec<T>)> {
        match (&self.data.held_out, self.data.split) {
            (None, Some(every)) => split(documents, every),
            _ => Ok((documents, Vec::new())),
        }
    }
}

/// `data.train`, whose weight is 1, and what is mixed with it.
fn parts(recipe: &Recipe) -> impl Iterator<Item = Part<'_>> {
    let data = &recipe.data;
    let options = recipe.source_options();
    let first = Part { path: &data.train, weight: 1.0, options: options.clone() };
    let mixed = data.mix.iter().map(move |mix| {
        let field = mix.text_field.clone().or_else(|| options.text_field.clone());
        Part {
            path: &mix.path,
            weight: mix.weight,
            options: options.clone().with_text_field(field),
        }
    });
    std::iter::once(first).chain(mixed)
}

/// Share of the rows, documents, and which of their tokens are predicted.
type Source = (f64, Vec<TokenDocument>, Option<Vec<Vec<bool>>>);

fn rows(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    mut sources: Vec<Source>,
    streams: Streams,
) -> Result<RowSource> {
    let (data, length, batch) = (&recipe.data, recipe.train.length, recipe.train.batch);
    let special = tokenizer.special_ids();
    let mut config = PackConfig::new(length).with_segments(data.segments());
    if let Some(section) = &data.anchor {
        let anchor = AnchorPacking::of_tokenizer(special.bos, special.eos)?
            .with_engine(section.engine)
            .with_min_len(section.min_len)
            .with_mask_borders(section.mask_borders);
        config = config.with_anchor(anchor);
    }
    if let Some(positions) = data.positions {
        config = config.with_positions(positions);
    }
    let config = config
        .with_pack(data.pack())
        .with_eos(match data.kind {
            DataKind::Text => special.eos,
            // A template writes its own end of a turn.
            DataKind::Chat => None,
        })
        .with_pad_id(special.pad.unwrap_or(0))
        .with_shuffle(true)
        .with_epochs(data.epochs);
    let pack = |documents, targets: Option<_>, batch| {
        let rows = config.init(documents, batch, streams)?;
        match targets {
            Some(targets) => rows.with_targets(targets),
            None => Ok(rows),
        }
    };
    if sources.len() > 1 {
        let part = |(weight, documents, targets)| Ok((weight, pack(documents, targets, 1)?));
        let sources = sources.into_iter().map(part).collect::<Result<_>>()?;
        return Ok(RowSource::Mixed(Mixture::new(sources, batch)?));
    }
    let (_, train, targets): Source = sources.pop().unwrap_or_default();
    Ok(match data.rows {
        Rows::Windows => RowSource::Windows(WindowSampler::new(train, length, batch, streams)?),
        Rows::Packed => RowSource::Packed(pack(train, targets, batch)?),
    })
}

impl Data {
    /// Account of the training documents with what making rows left out so far.
    pub fn closing_report(&self) -> DataReport {
        let rows = match &self.rows {
            RowSource::Packed(rows) => rows.report().clone(),
            RowSource::Mixed(rows) => rows.report(),
            RowSource::Windows(rows) => rows.report().clone(),
        };
        self.report.clone().then(&rows)
    }
}

impl BatchSource<TokenBatch> for RowSource {
    fn batch(&mut self, step: u64, micro: u32) -> Result<Option<TokenBatch>> {
        match self {
            Self::Packed(rows) => BatchSource::batch(rows, step, micro),
            Self::Mixed(rows) => BatchSource::batch(rows, step, micro),
            Self::Windows(rows) => BatchSource::batch(rows, step, micro),
        }
    }

    fn cursor(&self) -> Value {
        match self {
            Self::Packed(rows) => BatchSource::<TokenBatch>::cursor(rows),
            Self::Mixed(rows) => BatchSource::<TokenBatch>::cursor(rows),
            Self::Windows(rows) => BatchSource::<TokenBatch>::cursor(rows),
        }
    }

    fn seek(&mut self, cursor: &Value) -> Result<()> {
        match self {
            Self::Packed(rows) => BatchSource::<TokenBatch>::seek(rows, cursor),
            Self::Mixed(rows) => BatchSource::<TokenBatch>::seek(rows, cursor),
            Self::Windows(rows) => BatchSource::<TokenBatch>::seek(rows, cursor),
        }
    }
}

/// Documents that `[eval]` measures on, and what it leaves out.
fn limit(recipe: &Recipe, mut documents: Vec<HeldOut>) -> (Vec<HeldOut>, DataReport) {
    let eval = recipe.eval.as_ref();
    let most = eval.and_then(|eval| eval.documents).unwrap_or(usize::MAX);
    let tokens = eval.and_then(|eval| eval.tokens).unwrap_or(usize::MAX).max(2);
    documents.sort_by(|a, b| a.document.id.cmp(&b.document.id));
    let (mut kept, mut report) = (Vec::new(), DataReport::default());
    for HeldOut { mut document, mut targets } in documents {
        let len = document.ids.len();
        targets = targets.map(|all| all.into_iter().take(tokens).collect());
        let counts = |targets: &Vec<bool>| targets.iter().skip(1).any(|counts| *counts);
        if len < 2 || targets.as_ref().is_some_and(|targets| !counts(targets)) {
            report.drop_document("nothing to predict", Amount::tokens(len));
        } else if kept.len() == most {
            report.drop_document("more than eval.documents", Amount::tokens(len));
        } else {
            document.ids.truncate(tokens);
            report.kept += Amount::tokens(len.min(tokens));
            if len > tokens {
                report.truncated += Amount::tokens(len - tokens);
            }
            kept.push(HeldOut { document, targets });
        }
    }
    (kept, report)
}

fn read(path: &Path, options: &SourceOptions) -> Result<(Vec<Document>, DataReport)> {
    let mut source = options.open(path)?;
    let documents = source.read_all()?;
    Ok((documents, source.report().clone()))
}
