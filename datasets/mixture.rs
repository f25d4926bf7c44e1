//! Rows of several sources, mixed by weight.
//!
//! Which source gives the next row follows from how many rows each has given, not from chance:
//! the one that is furthest behind its share. Shares are therefore met at any time to within a
//! row or so, and what a source gives in a mixture is what it gives alone, row for row.

use super::{DataReport, PackCursor, PackedSource, Row, TokenBatch};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Packed sources with weights, in batches, with a cursor that restores the place exactly.
///
/// A source that comes to its end leaves its share to the others; the mixture ends with the last.
#[derive(Clone, Debug)]
pub struct Mixture {
    parts: Vec<Part>,
    batch: usize,
}

#[derive(Clone, Debug)]
struct Part {
    source: PackedSource,
    weight: f64,
    rows: u64,
    done: bool,
}

/// Where a [`Mixture`] stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureCursor {
    /// One per source, in their order.
    pub parts: Vec<PartCursor>,
}

/// Where a source of a mixture stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartCursor {
    /// Rows that it has given.
    pub rows: u64,
    /// Whether it has come to its end.
    pub done: bool,
    /// Its own place.
    pub place: PackCursor,
}

impl Mixture {
    /// Mix sources of rows of one length; a weight is a share of the rows, relative to the others.
    ///
    /// # Errors
    /// No source, a batch of 0, a weight that is not above 0, or rows of different lengths.
    pub fn new(parts: Vec<(f64, PackedSource)>, batch: usize) -> Result<Self> {
        let bad = |field: String, value: &dyn std::fmt::Display, expected: String| {
            Err(Error::config("mixture", field, value, expected))
        };
        if batch == 0 {
            return bad("batch".into(), &0, "at least 1".into());
        }
        let Some(len) = parts.first().map(|(_, source)| source.row_len()) else {
            return bad("parts".into(), &"empty", "at least one source".into());
        };
        for (i, (weight, source)) in parts.iter().enumerate() {
            if !(weight.is_finite() && *weight > 0.0) {
                return bad(format!("weight of source {i}"), weight, "a number above 0".into());
            }
            if source.row_len() != len {
                let expected = format!("{len} tokens, as the first source has");
                return bad(format!("row length of source {i}"), &source.row_len(), expected);
            }
        }
        let part = |(weight, source)| Part { source, weight, rows: 0, done: false };
        Ok(Self { parts: parts.into_iter().map(part).collect(), batch })
    }

    /// The next batch; the last one may have fewer rows. `None` when all sources are used up.
    ///
    /// # Errors
    /// When a batch cannot be formed; not for sources that [`new`](Self::new) accepted.
    pub fn next_batch(&mut self) -> Result<Option<TokenBatch>> {
        TokenBatch::fill(self.batch, 0, || self.next_row())
    }

    fn next_row(&mut self) -> Option<Row> {
        loop {
            // Sainte-Laguë: the next row goes where it is due first.
            let due = |part: &Part| (part.rows as f64 + 0.5) / part.weight;
            let live = self.parts.iter_mut().filter(|part| !part.done);
            let part = live.min_by(|a, b| due(a).total_cmp(&due(b)))?;
            match part.source.next_row() {
                Some(row) => {
                    part.rows += 1;
                    return Some(row);
                }
                None => part.done = true,
            }
        }
    }

    /// Rows that each source has given, in their order.
    pub fn rows(&self) -> Vec<u64> {
        self.parts.iter().map(|part| part.rows).collect()
    }

    /// Where the mixture stands.
    pub fn cursor(&self) -> MixtureCursor {
        let of = |part: &Part| PartCursor {
            rows: part.rows,
            done: part.done,
            place: part.source.cursor(),
        };
        MixtureCursor { parts: self.parts.iter().map(of).collect() }
    }

    /// Go to where a mixture of the same sources stood.
    ///
    /// # Errors
    /// When the cursor has another number of sources or lies outside of one; nothing has moved
    /// then.
    pub fn seek(&mut self, cursor: &MixtureCursor) -> Result<()> {
        if cursor.parts.len() != self.parts.len() {
            return Err(Error::Data(format!(
                "the cursor is of a mixture of {} sources, this one has {} (remedy: resume with the \
                 sources that the run started with)",
                cursor.parts.len(),
                self.parts.len()
            )));
        }
        let mut moved = self.parts.clone();
        for (part, at) in moved.iter_mut().zip(&cursor.parts) {
            part.source.seek(at.place)?;
            (part.rows, part.done) = (at.rows, at.done);
        }
        self.parts = moved;
        Ok(())
    }

    /// What one pass over every source keeps and loses, and the padding so far.
    pub fn report(&self) -> DataReport {
        let reports = self.parts.iter().map(|part| part.source.report());
        reports.fold(DataReport::default(), |sum, report| sum.beside(report))
    }
}
