//! Groups of neighbouring tokens with a shift for half of the heads (LongLoRA, 2309.12307, §3.2).

use super::{BLIND_QUERY, HIDDEN_KEY, Labels, TokenMeta};
use crate::Error;
use std::collections::HashMap;

/// How large a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupSize {
    /// One part in this many of each document's own length.
    Ratio(usize),
    /// The same number of tokens for all.
    Fixed(usize),
}

/// Block-diagonal groups, leak-free: the first half of the heads uses [0,G), [G,2G) ..., the
/// second half [0,G/2), [G/2,3G/2) ... Groups go by position within the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Size of a group.
    pub size: GroupSize,
    /// Shift the second half of the heads by half a group.
    pub shift: bool,
    /// Accept lengths that are not a multiple of the group: the last group is shorter, a group
    /// longer than the document is the whole document, and a ratio is rounded up to an even size.
    pub ragged: bool,
}

impl Groups {
    /// Group size for a document of `len` tokens.
    ///
    /// # Errors
    /// Group 0 or odd (with a shift), and, unless `ragged`, a length that is no multiple of it.
    pub fn size_for(&self, len: usize) -> Result<usize, Error> {
        let group = match self.size {
            GroupSize::Ratio(0) => {
                return Err(Error::mask("groups.size", "1/0", "a ratio needs a divisor"));
            }
            GroupSize::Ratio(parts) if self.ragged => {
                2 * len.div_ceil(parts.saturating_mul(2)).max(1)
            }
            GroupSize::Ratio(parts) if !len.is_multiple_of(parts) => {
                return Err(Error::mask(
                    "groups.size",
                    format!("1/{parts}"),
                    format!(
                        "a length of {len} does not divide by {parts}; pad it or allow ragged groups"
                    ),
                ));
            }
            GroupSize::Ratio(parts) => len / parts,
            GroupSize::Fixed(size) => size,
        };
        if group == 0 {
            return Err(Error::mask("groups.size", 0, "a group holds at least one token"));
        }
        if self.shift && group % 2 != 0 {
            return Err(Error::mask(
                "groups.size",
                group,
                "half a group of shift needs an even size",
            ));
        }
        if !self.ragged && group > len {
            return Err(Error::mask(
                "groups.size",
                group,
                format!("the sequence has {len} tokens only"),
            ));
        }
        if !self.ragged && !len.is_multiple_of(group) {
            return Err(Error::mask(
                "groups.size",
                group,
                format!("a length of {len} is no multiple; pad it or allow ragged groups"),
            ));
        }
        Ok(group)
    }

    pub(super) fn labels(
        &self,
        q: &TokenMeta,
        k: &TokenMeta,
        heads: usize,
    ) -> Result<Vec<Labels>, Error> {
        if self.shift && !heads.is_multiple_of(2) {
            return Err(Error::mask(
                "heads",
                heads,
                "half of the heads are shifted: even number needed",
            ));
        }
        if q != k {
            return Err(Error::mask(
                "groups",
                "set",
                "groups are for training on whole sequences; with a cache use dense attention",
            ));
        }
        let class = |heads: std::ops::Range<usize>, shifted: bool| {
            let numbers = self.numbers(q, shifted)?;
            let pad = |hidden: i32| numbers.iter().map(|l| l.unwrap_or(hidden)).collect();
            Ok(Labels { heads, q: pad(BLIND_QUERY), k: pad(HIDDEN_KEY) })
        };
        Ok(match self.shift {
            false => vec![class(0..heads, false)?],
            true => vec![class(0..heads / 2, false)?, class(heads / 2..heads, true)?],
        })
    }

    /// One number per (document, group) of a row; none for padding.
    fn numbers(&self, tokens: &TokenMeta, shifted: bool) -> Result<Vec<Option<i32>>, Error> {
        let mut labels = Vec::with_capacity(tokens.pos().len());
        for row in 0..tokens.batch() {
            let range = row * tokens.len()..(row + 1) * tokens.len();
            let (pos, segment) = (&tokens.pos()[range.clone()], &tokens.segment()[range]);
            let mut length: HashMap<i32, usize> = HashMap::new();
            for (&p, &s) in pos.iter().zip(segment).filter(|(_, s)| **s >= 0) {
                let len = length.entry(s).or_default();
                *len = (*len).max(p as usize + 1);
            }
            // Consecutive numbers in the order of the documents, so that a block's range of
            // labels says which groups it touches.
            let mut documents: Vec<i32> = length.keys().copied().collect();
            documents.sort_unstable();
            let mut base = HashMap::new();
            let mut next = 0i32;
            for s in documents {
                let group = self.size_for(length[&s])?;
                base.insert(s, (next, group));
                let numbers = i32::try_from(length[&s].div_ceil(group) + 1).ok();
                next = numbers.and_then(|n| next.checked_add(n)).ok_or_else(|| {
                    Error::mask("groups", group, "positions are too high to number all groups")
                })?;
            }
            labels.extend(pos.iter().zip(segment).map(|(&p, &s)| {
                base.get(&s).map(|&(first, group)| {
                    let shift = if shifted { group / 2 } else { 0 };
                    first + ((p as usize + shift) / group) as i32
                })
            }));
        }
        Ok(labels)
    }
}
