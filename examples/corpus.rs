//! The text that examples train on, split into training and held-out documents, with a tokenizer
//! trained on the former.
#![allow(dead_code, reason = "each example uses a part")]

use longburn::Result;
use longburn::datasets::source::{CrateSourceConfig, Crates};
use longburn::datasets::{
    BpeConfig, DataReport, Document, TokenDocument, Tokenizer, split, tokenize, train_bpe,
};

/// Which crates there are, whatever folder the example is run from.
const LOCK: &str = include_str!("../Cargo.lock");

/// The Rust sources of this project's dependencies, a document for each.
///
/// # Errors
/// Sources that are not there.
pub fn crates() -> Result<Crates> {
    CrateSourceConfig::new(LOCK).read()
}

pub struct Corpus {
    pub tokenizer: Tokenizer,
    pub train: Vec<TokenDocument>,
    pub held_out: Vec<TokenDocument>,
    /// What tokenizing left out.
    pub report: DataReport,
}

impl Corpus {
    /// One document in `hold_out` is held out; at most `sample` of the others, from all over the
    /// list, train the tokenizer.
    ///
    /// # Errors
    /// Too few documents, or settings that do not go together.
    pub fn new(
        documents: Vec<Document>,
        hold_out: usize,
        (bpe, sample): (&BpeConfig, usize),
    ) -> Result<Self> {
        let (train, held_out) = split(documents, hold_out)?;
        let step = train.len().div_ceil(sample.max(1)).max(1);
        let sample = train.iter().step_by(step).map(|d| d.text.as_str());
        let tokenizer = train_bpe(sample, bpe)?;
        let (train, of_train) = tokenize(&train, &tokenizer, false)?;
        let (held_out, of_held_out) = tokenize(&held_out, &tokenizer, false)?;
        Ok(Self { tokenizer, train, held_out, report: of_train.then(&of_held_out) })
    }
}
