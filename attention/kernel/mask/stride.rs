//! Blocks in a stride, another phase for every key head (LongGen, 2410.01485; S2-Attention,
//! 2407.17678).

use super::{BlockKind, MaskSpec, TokenMeta};
use crate::Error;

/// The nearest blocks of positions, and every `stride`-th block before them.
///
/// A query in block m = position / `block` sees keys of block n when m − n < `local_blocks`, or
/// when n + phase is a multiple of `stride`. The phase is h·`step` + `offset` for key head h: all
/// query heads of a key head see the same, and what a head drops it never needs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStride {
    /// Positions per block.
    pub block: usize,
    /// Nearest blocks that are seen whole, the query's own included.
    pub local_blocks: usize,
    /// One in so many of the blocks before them is seen.
    pub stride: usize,
    /// Key heads of the call; they divide its query heads.
    pub key_heads: usize,
    /// Phase between neighbouring key heads, 0 for heads that are all alike; where not given,
    /// `stride` over the number of query heads, at least 1.
    pub step: Option<usize>,
    /// Phase of the first key head.
    pub offset: usize,
    /// So many of the last key heads see every earlier key.
    pub dense_heads: usize,
}

impl BlockStride {
    /// With the usual phases.
    pub fn new(block: usize, local_blocks: usize, stride: usize, key_heads: usize) -> Self {
        Self { block, local_blocks, stride, key_heads, step: None, offset: 0, dense_heads: 0 }
    }

    /// The nearest blocks and none before them, in every head.
    pub fn near(block: usize, local_blocks: usize, key_heads: usize) -> Self {
        // The first block that such a stride keeps is block usize::MAX − 1.
        Self::new(block, local_blocks, usize::MAX, key_heads).with_step(0).with_offset(1)
    }

    /// Set the phase between key heads.
    pub fn with_step(mut self, step: usize) -> Self {
        self.step = Some(step);
        self
    }

    /// Set the phase of the first key head.
    pub fn with_offset(mut self, offset: usize) -> Self {
        self.offset = offset;
        self
    }

    /// What is added to the numbers of blocks in key head `head` of a call with `heads` query heads,
    /// modulo the stride; none where the head sees every earlier key.
    pub fn phase(&self, head: usize, heads: usize) -> Option<usize> {
        if head.saturating_add(self.dense_heads) >= self.key_heads || self.stride <= 1 {
            return None;
        }
        let step = self.step.unwrap_or((self.stride / heads.max(1)).max(1));
        let of = self.stride as u128;
        let phase = (head as u128 * (step as u128 % of) + self.offset as u128) % of;
        Some(phase as usize)
    }

    /// Let the last key heads see everything.
    pub fn with_dense_heads(mut self, heads: usize) -> Self {
        self.dense_heads = heads;
        self
    }
}

/// A stride applied to the tokens of one call.
#[derive(Clone, Debug)]
pub(crate) struct Strided {
    stride: BlockStride,
    /// Query heads.
    heads: usize,
    /// Block of every key, `[B * S]`.
    pub k_block: Vec<i32>,
    /// That modulo the stride.
    pub k_column: Vec<i32>,
}

impl Strided {
    pub(super) fn new(
        stride: &BlockStride,
        spec: &MaskSpec,
        k: &TokenMeta,
        heads: usize,
    ) -> Result<Self, Error> {
        for (field, value) in [
            ("stride.block", stride.block),
            ("stride.local_blocks", stride.local_blocks),
            ("stride.stride", stride.stride),
            ("stride.key_heads", stride.key_heads),
        ] {
            if value == 0 {
                return Err(Error::mask(field, 0, "at least 1 is needed"));
            }
        }
        if !spec.causal {
            return Err(Error::mask("stride", "set", "strides are defined for causal masks only"));
        }
        if spec.window.is_some() {
            let reason = "a stride has its own near blocks; leave the window out";
            return Err(Error::mask("stride", "set", reason));
        }
        if !heads.is_multiple_of(stride.key_heads) {
            let reason = format!("they do not divide the {heads} query heads");
            return Err(Error::mask("stride.key_heads", stride.key_heads, reason));
        }
        if stride.dense_heads > stride.key_heads {
            let reason = format!("there are {} key heads", stride.key_heads);
            return Err(Error::mask("stride.dense_heads", stride.dense_heads, reason));
        }
        // Positions are not negative and fit an i32, and so do their blocks.
        let k_block: Vec<i32> =
            k.pos().iter().map(|&p| (p as usize / stride.block) as i32).collect();
        let k_column = k_block.iter().map(|&n| (n as usize % stride.stride) as i32).collect();
        Ok(Self { stride: *stride, heads, k_block, k_column })
    }

    /// The block number modulo the stride that far blocks of a query head have; none where the
    /// head sees all of them.
    pub(super) fn column(&self, head: usize) -> Option<i32> {
        let (group, of) = (self.heads / self.stride.key_heads, self.stride.stride);
        let phase = self.stride.phase(head / group, self.heads)?;
        // No block is as late as a column that does not fit.
        Some(i32::try_from((of - phase) % of).unwrap_or(-1))
    }

    /// The last block that is not near to a query at `pos`; negative where all are.
    pub(crate) fn farthest(&self, pos: i32) -> i32 {
        let near = self.stride.local_blocks.min(i32::MAX as usize) as i32;
        self.block(pos) - near
    }

    fn block(&self, pos: i32) -> i32 {
        (pos as usize / self.stride.block) as i32
    }

    /// The rule for a query at `q` and a key at `k`, not later.
    pub(crate) fn sees(&self, column: Option<i32>, q: i32, k: i32) -> bool {
        let n = self.block(k);
        column.is_none_or(|c| n > self.farthest(q) || n as usize % self.stride.stride == c as usize)
    }

    /// What the rule says of a tile whose positions lie within these bounds.
    pub(super) fn kind(&self, column: Option<i32>, q: (i32, i32), k: (i32, i32)) -> BlockKind {
        let Some(column) = column else { return BlockKind::Full };
        let (first, last) = (self.block(k.0), self.block(k.1));
        // From the column's last block that is not behind the tile.
        let of = i64::try_from(self.stride.stride).unwrap_or(i64::MAX);
        let kept = i64::from(last) - (i64::from(last) - i64::from(column)).rem_euclid(of);
        let any = column >= 0 && kept >= i64::from(first);
        if first > self.farthest(q.1) || any && first == last {
            BlockKind::Full
        } else if any || last > self.farthest(q.0) {
            BlockKind::Partial
        } else {
            BlockKind::Skip
        }
    }
}
