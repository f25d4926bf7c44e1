//! Attributes of tokens that masks look at.

use super::joined::Joined;
use crate::Error;
use std::sync::Arc;

/// What caches have grown to lately.
static JOINED: Joined = Joined::new();

/// Position and document of each token of a batch; cheap to clone.
///
/// `pos` counts within the token's own document and orders it there. `segment` numbers the
/// documents of a row; a negative segment is padding, which nobody sees and which sees nothing, and
/// [`ANCHOR`](Self::ANCHOR) is what all documents of a row see. `rotary` is the position that rotary
/// encoding is to use, where it is another than `pos`; no mask looks at it.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenMeta {
    pub(super) batch: usize,
    pub(super) len: usize,
    pub(super) pos: Arc<Vec<i32>>,
    pub(super) segment: Arc<Vec<i32>>,
    pub(super) rotary: Option<Arc<Vec<i32>>>,
}

impl TokenMeta {
    /// Segment of a row's anchor, which every document of the row sees and which sees itself alone
    /// (AnchorAttention, 2411.13476).
    pub const ANCHOR: i32 = i32::MAX;

    /// One document per row, positions `start..start + len`.
    ///
    /// # Panics
    /// When positions would not fit 31 bits: more than two thousand million.
    pub fn contiguous(batch: usize, len: usize, start: usize) -> Self {
        let end = start.checked_add(len).and_then(|end| i32::try_from(end).ok());
        let Some(end) = end else {
            panic!("TokenMeta::contiguous: {len} positions from {start} on do not fit 31 bits");
        };
        let row = (start.min(end as usize) as i32)..end;
        let pos = (0..batch).flat_map(|_| row.clone()).collect();
        let segment = Arc::new(vec![0; batch * len]);
        Self { batch, len, pos: Arc::new(pos), segment, rotary: None }
    }

    /// From flat `[B * T]` lists.
    ///
    /// # Errors
    /// When a list does not hold `batch * len` entries or a position is negative.
    pub fn new(batch: usize, len: usize, pos: Vec<i32>, segment: Vec<i32>) -> Result<Self, Error> {
        let tokens = batch.checked_mul(len);
        if tokens != Some(pos.len()) || tokens != Some(segment.len()) {
            return Err(Error::shape(
                "TokenMeta",
                format!(
                    "{} positions and {} segments for {batch} rows of {len}",
                    pos.len(),
                    segment.len()
                ),
            ));
        }
        if let Some(p) = pos.iter().find(|p| **p < 0) {
            return Err(Error::mask("pos", p, "positions start at 0"));
        }
        Ok(Self { batch, len, pos: Arc::new(pos), segment: Arc::new(segment), rotary: None })
    }

    /// Let rotary encoding use other positions than `pos`, `[B * T]`.
    ///
    /// # Errors
    /// When the list does not hold one number per token or a position is negative.
    pub fn with_rotary(mut self, rotary: Vec<i32>) -> Result<Self, Error> {
        if rotary.len() != self.pos.len() {
            let (n, rows, len) = (rotary.len(), self.batch, self.len);
            let reason = format!("{n} rotary positions for {rows} rows of {len}");
            return Err(Error::shape("TokenMeta", reason));
        }
        if let Some(p) = rotary.iter().find(|p| **p < 0) {
            return Err(Error::mask("rotary", p, "positions start at 0"));
        }
        self.rotary = Some(Arc::new(rotary));
        Ok(self)
    }

    /// Rows of different lengths, padded on the left to `len`.
    ///
    /// # Errors
    /// When a row is longer than `len`.
    pub fn left_padded(lengths: &[usize], len: usize) -> Result<Self, Error> {
        Self::padded(lengths, len, |n, t| t.checked_sub(len - n))
    }

    /// Rows of different lengths, padded on the right to `len`.
    ///
    /// # Errors
    /// When a row is longer than `len`.
    pub fn right_padded(lengths: &[usize], len: usize) -> Result<Self, Error> {
        Self::padded(lengths, len, |n, t| (t < n).then_some(t))
    }

    fn padded(
        lengths: &[usize],
        len: usize,
        place: impl Fn(usize, usize) -> Option<usize>,
    ) -> Result<Self, Error> {
        if let Some(n) = lengths.iter().find(|n| **n > len) {
            return Err(Error::shape("TokenMeta", format!("a row of {n} tokens padded to {len}")));
        }
        let mut pos = Vec::with_capacity(lengths.len() * len);
        let mut segment = Vec::with_capacity(lengths.len() * len);
        for &n in lengths {
            for t in 0..len {
                let p = place(n, t);
                pos.push(p.unwrap_or(0) as i32);
                segment.push(if p.is_some() { 0 } else { -1 });
            }
        }
        Self::new(lengths.len(), len, pos, segment)
    }

    /// Rows packed from documents of these lengths, in order; what is left of a row is padding.
    ///
    /// # Errors
    /// When the documents of a row exceed `len`.
    pub fn packed(rows: &[Vec<usize>], len: usize) -> Result<Self, Error> {
        let (mut pos, mut segment) = (Vec::new(), Vec::new());
        for row in rows {
            let used = row.iter().fold(0usize, |sum, n| sum.saturating_add(*n));
            if used > len {
                return Err(Error::shape("TokenMeta", format!("{used} tokens in a row of {len}")));
            }
            for (s, &n) in row.iter().enumerate() {
                pos.extend(0..n as i32);
                segment.extend(std::iter::repeat_n(s as i32, n));
            }
            pos.extend(std::iter::repeat_n(0, len - used));
            segment.extend(std::iter::repeat_n(-1, len - used));
        }
        Self::new(rows.len(), len, pos, segment)
    }

    /// Rows packed as [`packed`](Self::packed) has it, each behind an anchor that all its documents
    /// see.
    ///
    /// # Errors
    /// When the anchor and the documents of a row exceed `len`.
    pub fn anchored(rows: &[Vec<usize>], len: usize) -> Result<Self, Error> {
        let rest = len.checked_sub(1);
        let rest = rest.ok_or_else(|| Error::shape("TokenMeta", "an anchor in a row of 0"))?;
        let documents = Self::packed(rows, rest)?;
        let pos = vec![0; rows.len()];
        Self::new(rows.len(), 1, pos, vec![Self::ANCHOR; rows.len()])?.concat(&documents)
    }

    /// Rows.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Tokens per row, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `[B * T]`
    pub fn pos(&self) -> &[i32] {
        &self.pos
    }

    /// `[B * T]`
    pub fn segment(&self) -> &[i32] {
        &self.segment
    }

    /// `[B * T]`, what rotary encoding uses: `pos` unless set otherwise.
    pub fn rotary(&self) -> &[i32] {
        self.rotary.as_ref().unwrap_or(&self.pos)
    }

    /// Whether some row holds more than one document or padding.
    pub fn has_segments(&self) -> bool {
        self.segment.iter().any(|s| *s != 0)
    }

    /// Whether some row has a token that all its documents are to see.
    pub fn has_anchor(&self) -> bool {
        self.segment.contains(&Self::ANCHOR)
    }

    /// These tokens followed, row by row, by `next` (a cache and what is appended to it).
    ///
    /// # Errors
    /// When the numbers of rows differ.
    pub fn concat(&self, next: &Self) -> Result<Self, Error> {
        if self.batch != next.batch {
            return Err(Error::shape(
                "TokenMeta",
                format!("{} rows followed by {}", self.batch, next.batch),
            ));
        }
        if let Some(joined) = JOINED.get(self, next) {
            return Ok(joined);
        }
        let join = |a: &[i32], b: &[i32]| -> Vec<i32> {
            let mut out = Vec::with_capacity(a.len() + b.len());
            for row in 0..self.batch {
                out.extend_from_slice(&a[row * self.len..(row + 1) * self.len]);
                out.extend_from_slice(&b[row * next.len..(row + 1) * next.len]);
            }
            out
        };
        let joined = Self::new(
            self.batch,
            self.len + next.len,
            join(&self.pos, &next.pos),
            join(&self.segment, &next.segment),
        )?;
        let joined = match self.rotary.is_some() || next.rotary.is_some() {
            true => joined.with_rotary(join(self.rotary(), next.rotary()))?,
            false => joined,
        };
        JOINED.put(self, next, &joined);
        Ok(joined)
    }

    /// Some tokens of every row, by their places in it, with padding where none is named; rows are
    /// filled up to the longest.
    ///
    /// # Errors
    /// When there is not one list per row, or a place lies behind the row.
    pub fn gather(&self, rows: &[Vec<usize>]) -> Result<Self, Error> {
        if rows.len() != self.batch {
            let reason = format!("{} lists of tokens for {} rows", rows.len(), self.batch);
            return Err(Error::shape("TokenMeta", reason));
        }
        if let Some(at) = rows.iter().flatten().find(|at| **at >= self.len) {
            return Err(Error::shape("TokenMeta", format!("token {at} of rows of {}", self.len)));
        }
        let len = rows.iter().map(Vec::len).max().unwrap_or(0);
        let pick = |of: &[i32], padding: i32| -> Vec<i32> {
            let row = |(b, row): (usize, &Vec<usize>)| {
                let named = row.iter().map(|at| of[b * self.len + at]).collect::<Vec<_>>();
                named.into_iter().chain(std::iter::repeat_n(padding, len - row.len()))
            };
            rows.iter().enumerate().flat_map(row).collect()
        };
        let kept = Self::new(self.batch, len, pick(&self.pos, 0), pick(&self.segment, -1))?;
        match &self.rotary {
            Some(rotary) => kept.with_rotary(pick(rotary, 0)),
            None => Ok(kept),
        }
    }

    /// Tokens `range` of every row.
    ///
    /// # Errors
    /// When the range ends behind the row.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Result<Self, Error> {
        if range.start > range.end || range.end > self.len {
            return Err(Error::shape("TokenMeta", format!("{range:?} of rows of {}", self.len)));
        }
        let cut = |a: &[i32]| -> Vec<i32> {
            (0..self.batch)
                .flat_map(|row| &a[row * self.len + range.start..row * self.len + range.end])
                .copied()
                .collect()
        };
        let part = Self::new(self.batch, range.len(), cut(&self.pos), cut(&self.segment))?;
        match &self.rotary {
            Some(rotary) => part.with_rotary(cut(rotary)),
            None => Ok(part),
        }
    }

    /// Segment as label, with `padding` in place of every negative segment.
    pub(crate) fn labels(&self, padding: i32) -> Vec<i32> {
        self.segment.iter().map(|&s| if s < 0 { padding } else { s }).collect()
    }
}
