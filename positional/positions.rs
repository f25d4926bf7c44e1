//! Position numbers of a batch, exact at any length.

use crate::{Error, Result};
use longburn_kernels::TokenMeta;
use std::sync::Arc;

/// Integer numerators `[B, T]` over one denominator: exact where f32 positions round.
#[derive(Clone, Debug, PartialEq)]
pub struct Positions {
    batch: usize,
    len: usize,
    numerators: Arc<Vec<i64>>,
    denominator: u32,
}

impl Positions {
    /// `start .. start + len` in every row.
    pub fn range(batch: usize, len: usize, start: usize) -> Self {
        let row = start as i64..(start + len) as i64;
        let numerators = (0..batch).flat_map(|_| row.clone()).collect();
        Self { batch, len, numerators: Arc::new(numerators), denominator: 1 }
    }

    /// From flat `[B * T]` numerators.
    ///
    /// # Errors
    /// When the list does not hold `batch * len` numbers or the denominator is 0.
    pub fn new(batch: usize, len: usize, numerators: Vec<i64>, denominator: u32) -> Result<Self> {
        if numerators.len() != batch * len || denominator == 0 {
            return Err(Error::shape(
                "Positions",
                format!(
                    "{} numerators over {denominator} for {batch} rows of {len}",
                    numerators.len()
                ),
            ));
        }
        Ok(Self { batch, len, numerators: Arc::new(numerators), denominator })
    }

    /// The positions that token attributes carry for rotary encoding: within each document, unless
    /// they were set otherwise.
    pub fn of(tokens: &TokenMeta) -> Self {
        Self {
            batch: tokens.batch(),
            len: tokens.len(),
            numerators: Arc::new(tokens.rotary().iter().map(|p| *p as i64).collect()),
            denominator: 1,
        }
    }

    /// Rows.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Tokens per row.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Numerators of row `b`.
    pub fn row(&self, b: usize) -> &[i64] {
        &self.numerators[b * self.len..(b + 1) * self.len]
    }

    /// The largest position of row `b` plus one, rounded down: how long it is by its positions.
    pub fn row_length(&self, b: usize) -> usize {
        let largest = self.row(b).iter().max().copied().unwrap_or(-1).max(-1);
        (largest.div_euclid(i64::from(self.denominator)) + 1) as usize
    }

    /// The same of the longest row.
    pub fn length(&self) -> usize {
        (0..self.batch).map(|b| self.row_length(b)).max().unwrap_or(0)
    }

    /// The common denominator.
    pub fn denominator(&self) -> u32 {
        self.denominator
    }

    /// Whether all rows are equal.
    pub fn uniform(&self) -> bool {
        (1..self.batch).all(|b| self.row(b) == self.row(0))
    }
}
