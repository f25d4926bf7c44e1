//! Batches of tokens with their targets.

use crate::kernel::TokenMeta;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Label of a token that has no target.
pub const IGNORE: i64 = -100;

/// Documents that an error message names before it counts the rest.
const NAMED: usize = 4;

/// Where a row is filled up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// In front, as generation needs it.
    Left,
    /// Behind.
    Right,
}

/// One row of a batch: tokens, targets and attributes of equal length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// `[T]`
    pub ids: Vec<u32>,
    /// `[T]`, the token that follows each, or [`IGNORE`].
    pub labels: Vec<i64>,
    /// `[T]`, position within the document.
    pub pos: Vec<i32>,
    /// `[T]`, document within the row; negative for padding.
    pub segment: Vec<i32>,
    /// `[T]`, position that rotary encoding uses, where it is not `pos`.
    pub rotary: Option<Vec<i32>>,
    /// The documents that the row was taken from.
    pub sources: Vec<String>,
}

impl Row {
    /// A document, or part of one, alone in its row. `next` is the token behind it, which the
    /// last position predicts.
    pub fn single(ids: Vec<u32>, next: Option<u32>, source: impl Into<String>) -> Self {
        let len = ids.len();
        Self {
            labels: shifted(&ids, next),
            ids,
            pos: (0..len as i32).collect(),
            segment: vec![0; len],
            rotary: None,
            sources: vec![source.into()],
        }
    }

    /// Fill up to `len` with padding, which has no target.
    pub(super) fn pad(&mut self, len: usize, side: Side, pad_id: u32) {
        let n = len.saturating_sub(self.ids.len());
        let at = if side == Side::Left { 0 } else { self.ids.len() };
        self.ids.splice(at..at, std::iter::repeat_n(pad_id, n));
        self.labels.splice(at..at, std::iter::repeat_n(IGNORE, n));
        self.pos.splice(at..at, std::iter::repeat_n(0, n));
        self.segment.splice(at..at, std::iter::repeat_n(-1, n));
        if let Some(rotary) = &mut self.rotary {
            rotary.splice(at..at, std::iter::repeat_n(0, n));
        }
    }
}

/// Each token's successor as its label; the last one's is `next`.
pub(super) fn shifted(ids: &[u32], next: Option<u32>) -> Vec<i64> {
    let last = (!ids.is_empty()).then(|| next.map_or(IGNORE, i64::from));
    ids.iter().skip(1).map(|id| i64::from(*id)).chain(last).collect()
}

/// Rows of equal length, ready for a model.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenBatch {
    /// `[B * T]`
    pub ids: Vec<u32>,
    /// `[B * T]`: `label[t]` is the token that follows `id[t]` in its document, or [`IGNORE`].
    /// They are shifted already: logits at t are compared with label t.
    pub labels: Vec<i64>,
    /// Position and document of each token.
    pub tokens: TokenMeta,
    /// The documents, for messages.
    pub source: String,
}

impl TokenBatch {
    /// Rows below each other, filled up to the longest.
    ///
    /// # Errors
    /// Without rows, with an empty one, or with one whose parts differ in length.
    pub fn stack(mut rows: Vec<Row>, pad: Side, pad_id: u32) -> Result<Self> {
        let len = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
        if len == 0 {
            return Err(Error::shape("TokenBatch", "a batch needs at least one token"));
        }
        let batch = rows.len();
        let mut sources = Vec::new();
        let (mut ids, mut labels) = (Vec::new(), Vec::new());
        let (mut pos, mut segment) = (Vec::new(), Vec::new());
        let mut rotary = rows.iter().any(|row| row.rotary.is_some()).then(Vec::new);
        for (b, row) in rows.iter_mut().enumerate() {
            let turned = row.rotary.as_ref().unwrap_or(&row.pos).len();
            let lengths =
                [row.ids.len(), row.labels.len(), row.pos.len(), row.segment.len(), turned];
            if lengths[0] == 0 || lengths.iter().any(|n| *n != lengths[0]) {
                return Err(Error::shape(
                    "TokenBatch",
                    format!(
                        "row {b} has {lengths:?} ids, labels, positions, segments and rotary positions"
                    ),
                ));
            }
            row.pad(len, pad, pad_id);
            ids.append(&mut row.ids);
            labels.append(&mut row.labels);
            if let Some(rotary) = &mut rotary {
                rotary.extend(row.rotary.as_ref().unwrap_or(&row.pos));
            }
            pos.append(&mut row.pos);
            segment.append(&mut row.segment);
            for source in row.sources.drain(..) {
                if !sources.contains(&source) {
                    sources.push(source);
                }
            }
        }
        let more = sources.len().saturating_sub(NAMED);
        sources.truncate(NAMED);
        let mut source = sources.join(", ");
        if more > 0 {
            source.push_str(&format!(" and {more} more"));
        }
        let mut tokens = TokenMeta::new(batch, len, pos, segment)?;
        if let Some(rotary) = rotary {
            tokens = tokens.with_rotary(rotary)?;
        }
        Ok(Self { ids, labels, tokens, source })
    }

    /// The next `batch` rows, or as many as there are; `None` of none.
    ///
    /// # Errors
    /// As [`stack`](Self::stack).
    pub(super) fn fill(
        batch: usize,
        pad_id: u32,
        mut next_row: impl FnMut() -> Option<Row>,
    ) -> Result<Option<Self>> {
        let rows: Vec<Row> = std::iter::from_fn(&mut next_row).take(batch).collect();
        if rows.is_empty() {
            return Ok(None);
        }
        Self::stack(rows, Side::Right, pad_id).map(Some)
    }

    /// Sequences of any lengths, one document each; every token but the last has a target.
    ///
    /// # Errors
    /// Without sequences or with an empty one.
    pub fn from_rows(rows: Vec<Vec<u32>>, pad: Side, pad_id: u32) -> Result<Self> {
        let rows = rows.into_iter().enumerate();
        let rows = rows.map(|(b, ids)| Row::single(ids, None, format!("row {b}"))).collect();
        Self::stack(rows, pad, pad_id)
    }

    /// Rows.
    pub fn batch(&self) -> usize {
        self.tokens.batch()
    }

    /// Tokens per row, padding included.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token; never true of a batch made here.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Tokens that have a target.
    pub fn targets(&self) -> usize {
        self.labels.iter().filter(|label| **label != IGNORE).count()
    }
}
