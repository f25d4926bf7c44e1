//! Rows of token ids that ask for something they said before: what tasks of recall have in common.

use crate::datasets::{IGNORE, Row, Side, TokenBatch};
use crate::kernel::TokenMeta;
use crate::streams::{Draw, Purpose, RngCore, Streams};
use crate::{Error, Result};
use std::ops::Range;

/// A token whose successor follows from what stands before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Place of the token.
    pub at: usize,
    /// Place of what decides the answer, before `at`.
    pub evidence: usize,
    /// The successor.
    pub answer: u32,
}

/// A row of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuestionRow {
    /// `[T]`; the answers are among them, each behind its question, but for one at the very end.
    pub ids: Vec<u32>,
    /// In the order of their places.
    pub questions: Vec<Question>,
}

/// A task that makes such rows.
pub trait QuestionTask {
    /// Number of ids.
    fn vocabulary(&self) -> usize;

    /// Ids that can be answers.
    fn answers(&self) -> Range<u32>;

    /// The largest share of right answers that there is without looking at the evidence.
    fn chance(&self) -> f64;

    /// A row.
    fn row(&self, rng: &mut dyn RngCore) -> QuestionRow;

    /// So many rows, those of batch `n`; the same for the same seed and number.
    fn rows(&self, seed: u64, n: u64, rows: usize) -> Vec<QuestionRow> {
        let streams = Streams::new(seed);
        let row = |row| self.row(&mut streams.rng(Purpose::Synthetic, n, row as u32, 0));
        (0..rows).map(row).collect()
    }
}

/// Rows ready for a model: answers are the only targets.
#[derive(Clone, Debug, PartialEq)]
pub struct QuestionBatch {
    /// The rows.
    pub batch: TokenBatch,
    /// All questions, each with its row; `at` and `evidence` are places in that row.
    pub questions: Vec<(usize, Question)>,
}

impl QuestionBatch {
    /// A row of the batch for each.
    ///
    /// # Errors
    /// Without rows, or with an empty one.
    pub fn stack(rows: &[QuestionRow]) -> Result<Self> {
        Self::packed(rows, 1, None)
    }

    /// So many rows as documents of one row of the batch, behind a shared anchor where one is given
    /// (AnchorAttention, 2411.13476; its rotary positions go on through the row). The last row of
    /// the batch may hold fewer.
    ///
    /// # Errors
    /// Without rows, with an empty one, or with 0 for each row of the batch.
    pub fn packed(rows: &[QuestionRow], each: usize, anchor: Option<u32>) -> Result<Self> {
        if each == 0 {
            return Err(Error::config("task", "documents per row", 0, "at least 1"));
        }
        let (mut all, mut questions) = (Vec::new(), Vec::new());
        for (b, documents) in rows.chunks(each).enumerate() {
            let mut row = Row { sources: vec!["synthetic".into()], ..Row::default() };
            let mut rotary = Vec::new();
            if let Some(id) = anchor {
                row.ids.push(id);
                row.labels.push(IGNORE);
                row.pos.push(0);
                row.segment.push(TokenMeta::ANCHOR);
                rotary.push(0);
            }
            for (segment, document) in documents.iter().enumerate() {
                let (start, len) = (row.ids.len(), document.ids.len());
                row.ids.extend(&document.ids);
                row.labels.resize(start + len, IGNORE);
                row.pos.extend((0..len).map(|pos| pos as i32));
                row.segment.resize(start + len, segment as i32);
                rotary.extend((start..start + len).map(|pos| pos as i32));
                for question in &document.questions {
                    let Question { at, evidence, answer } = *question;
                    row.labels[start + at] = i64::from(answer);
                    let (at, evidence) = (start + at, start + evidence);
                    questions.push((b, Question { at, evidence, answer }));
                }
            }
            row.rotary = anchor.is_some().then_some(rotary);
            all.push(row);
        }
        Ok(Self { batch: TokenBatch::stack(all, Side::Right, 0)?, questions })
    }
}

/// Ids of a task whose answers are different values in a row behind a sign: filler, the sign, values.
pub(super) struct BehindSign {
    pub filler: usize,
    pub values: usize,
    /// Answers of a row.
    pub asked: usize,
}

impl BehindSign {
    pub fn vocabulary(&self) -> usize {
        self.filler + 1 + self.values
    }

    pub fn answers(&self) -> Range<u32> {
        self.filler as u32 + 1..self.vocabulary() as u32
    }

    /// Of the last answer, which is none of those before it.
    pub fn chance(&self) -> f64 {
        1.0 / (self.values - self.asked + 1) as f64
    }
}

/// So many different numbers below `n`, in random order; all of them where there are fewer.
pub(super) fn distinct(n: usize, count: usize, rng: &mut dyn RngCore) -> Vec<usize> {
    let mut all: Vec<usize> = (0..n).collect();
    rng.shuffle(&mut all);
    all.truncate(count);
    all
}
