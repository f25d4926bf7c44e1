//! Key statements between the tokens of documents.

use super::check_depth;
use crate::datasets::Tokenizer;
use crate::error::check_sizes;
use crate::streams::Draw;
use crate::{Error, Result};
use rand_chacha::rand_core::RngCore;
use serde::{Deserialize, Serialize};

/// Statement and question up to the key.
const BEFORE: &str = "\n// The pass key is";
/// Statement behind the key.
const AFTER: &str = ".\n";

/// Configuration of [`Passkey`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PasskeyConfig {
    /// Words that keys are made of; each is one token.
    pub words: usize,
    /// Words per key.
    pub key_words: usize,
    /// Which words of the vocabulary.
    pub seed: u64,
}

impl Default for PasskeyConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl PasskeyConfig {
    /// Four words out of 64.
    pub fn new() -> Self {
        Self { words: 64, key_words: 4, seed: 0 }
    }

    /// Choose how many words keys are made of.
    pub fn with_words(mut self, words: usize) -> Self {
        self.words = words;
        self
    }

    /// Choose the words per key.
    pub fn with_key_words(mut self, key_words: usize) -> Self {
        self.key_words = key_words;
        self
    }

    /// Choose other words.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Find the words in a vocabulary.
    ///
    /// # Errors
    /// When the vocabulary has fewer words of one token, or a number is 0.
    pub fn init(&self, tokenizer: &Tokenizer) -> Result<Passkey> {
        check_sizes("passkey", &[("words", self.words), ("key_words", self.key_words)])?;
        Ok(Passkey {
            before: tokenizer.encode(BEFORE, false)?,
            after: tokenizer.encode(AFTER, false)?,
            words: tokenizer.single_token_words(self.words, self.seed)?,
            key_words: self.key_words,
        })
    }
}

/// Puts key statements into documents of token ids and asks for the key at the end.
#[derive(Clone, Debug)]
pub struct Passkey {
    before: Vec<u32>,
    after: Vec<u32>,
    words: Vec<(String, u32)>,
    key_words: usize,
}

impl Passkey {
    /// The words, with their leading space, and their ids.
    pub fn words(&self) -> &[(String, u32)] {
        &self.words
    }

    /// Probability of guessing a key.
    pub fn chance(&self) -> f64 {
        (self.words.len() as f64).powi(-(self.key_words as i32))
    }

    /// Tokens of a document that a row of `len` with so many statements has room for.
    ///
    /// # Errors
    /// When statements, question and key alone are longer than the row.
    pub fn document_len(&self, len: usize, repeats: usize) -> Result<usize> {
        let statement = self.before.len() + self.key_words + self.after.len();
        let fixed = statement * repeats + self.before.len() + self.key_words;
        len.checked_sub(fixed).ok_or_else(|| {
            Error::shape(
                "passkey",
                format!("{repeats} statements, question and key take {fixed} tokens of {len}"),
            )
        })
    }

    /// A row of exactly `len` tokens to train on: the beginning of `document` with the statement
    /// at `repeats` random places, the question and the key.
    ///
    /// # Errors
    /// When the row is too short or the document shorter than
    /// [`document_len`](Self::document_len).
    pub fn training_row(
        &self,
        document: &[u32],
        len: usize,
        repeats: usize,
        rng: &mut (impl RngCore + ?Sized),
    ) -> Result<Vec<u32>> {
        let room = self.document_len(len, repeats)?;
        let places: Vec<_> = (0..repeats).map(|_| rng.below(room + 1)).collect();
        let (mut row, key) = self.row(document, room, &places, rng)?;
        row.extend(key);
        Ok(row)
    }

    /// Prompt and key to evaluate with, together exactly `len` tokens: the beginning of
    /// `document` with the statement at `depth` (0 first, 1 last), and the question.
    ///
    /// # Errors
    /// Those of [`training_row`](Self::training_row), and a depth outside of 0 to 1.
    pub fn evaluation_row(
        &self,
        document: &[u32],
        len: usize,
        depth: f64,
        rng: &mut (impl RngCore + ?Sized),
    ) -> Result<(Vec<u32>, Vec<u32>)> {
        check_depth(depth)?;
        let room = self.document_len(len, 1)?;
        let place = (depth * room as f64).round() as usize;
        self.row(document, room, &[place], rng)
    }

    /// The row up to and with the question, and its key.
    fn row(
        &self,
        document: &[u32],
        room: usize,
        places: &[usize],
        rng: &mut (impl RngCore + ?Sized),
    ) -> Result<(Vec<u32>, Vec<u32>)> {
        let document = document.get(..room).ok_or_else(|| {
            Error::shape(
                "passkey",
                format!("a document of {} tokens for a row that holds {room}", document.len()),
            )
        })?;
        let word = |_| self.words[rng.below(self.words.len())].1;
        let key: Vec<u32> = (0..self.key_words).map(word).collect();
        let statement = [&self.before[..], &key, &self.after].concat();
        let mut row = insert_statements(document, &statement, places)?;
        row.extend(&self.before);
        Ok((row, key))
    }
}

/// `ids` with `statement` in front of the tokens at `places` (in any order, `ids.len()` is the
/// end).
///
/// # Errors
/// When a place lies behind the end.
pub fn insert_statements(ids: &[u32], statement: &[u32], places: &[usize]) -> Result<Vec<u32>> {
    let mut places = places.to_vec();
    places.sort_unstable();
    if let Some(place) = places.last().filter(|place| **place > ids.len()) {
        let reason = format!("place {place} in a text of {} tokens", ids.len());
        return Err(Error::shape("passkey", reason));
    }
    let mut row = Vec::with_capacity(ids.len() + places.len() * statement.len());
    let mut from = 0;
    for place in places {
        row.extend_from_slice(&ids[from..place]);
        row.extend_from_slice(statement);
        from = place;
    }
    row.extend_from_slice(&ids[from..]);
    Ok(row)
}
