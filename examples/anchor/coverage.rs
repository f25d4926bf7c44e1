//! Which positions packed rows hold: of tokens, and of queries relative to the keys that they see.

use longburn::attention::AnchorConfig;
use longburn::kernel::{Mask, TokenMeta};
use longburn::{Error, Result};

/// Counts by position, each as long as a row. A relative position n is the angle n·θ^(−2i/D) of
/// channel pair i, so one list of them stands for the angles of all pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct Coverage {
    /// Pairs of a query and a key that it sees, by how much larger the query's rotary position is.
    pub relative: Vec<u64>,
    /// Tokens, by their rotary position.
    pub absolute: Vec<u64>,
}

impl Coverage {
    /// Of no rows, which will have up to so many tokens.
    pub fn new(length: usize) -> Self {
        Self { relative: vec![0; length], absolute: vec![0; length] }
    }

    /// Count the rows of a batch. Padding counts nowhere.
    ///
    /// # Errors
    /// Rows longer than those that were announced, and keys behind their queries.
    pub fn add(&mut self, tokens: &TokenMeta) -> Result<()> {
        let mask = Mask::new(AnchorConfig::new().spec(), tokens.clone(), tokens.clone(), 1)?;
        let (len, rotary) = (tokens.len(), tokens.rotary());
        let length = self.absolute.len();
        let place = |n: i32| {
            let place = usize::try_from(n).ok().filter(|place| *place < length);
            let outside = || format!("a position of {n} in rows of {length} tokens");
            place.ok_or_else(|| Error::shape("Coverage", outside()))
        };
        for b in 0..tokens.batch() {
            for t in (0..len).filter(|t| tokens.segment()[b * len + t] >= 0) {
                let query = rotary[b * len + t];
                self.absolute[place(query)?] += 1;
                for s in (0..=t).filter(|s| mask.visible(b, 0, t, *s)) {
                    self.relative[place(query - rotary[b * len + s])?] += 1;
                }
            }
        }
        Ok(())
    }

    /// Add what was counted elsewhere, in rows of the same length.
    pub fn join(&mut self, other: &Self) {
        let of =
            |all: &mut [u64], more: &[u64]| all.iter_mut().zip(more).for_each(|(a, b)| *a += b);
        of(&mut self.relative, &other.relative);
        of(&mut self.absolute, &other.absolute);
    }

    /// Positions that occur.
    pub fn seen(counts: &[u64]) -> usize {
        counts.iter().filter(|count| **count > 0).count()
    }

    /// Share of what lies at position `from` or beyond; 0 of nothing.
    pub fn share_from(counts: &[u64], from: usize) -> f64 {
        let sum = |counts: &[u64]| counts.iter().sum::<u64>() as f64;
        sum(counts.get(from..).unwrap_or_default()) / sum(counts).max(1.0)
    }
}
