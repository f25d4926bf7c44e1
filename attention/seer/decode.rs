//! Sparse decoding (SeerAttention-R, arXiv 2506.08889): compressed keys of finished blocks beside
//! the cache, and single queries that attend to the blocks chosen for their key head.

use super::gate::of_width;
use super::{DecodeGate, RopeAt, Seer, Select};
use crate::attention::compute::wide;
use crate::attention::dense;
use crate::attention::projections::Projected;
use crate::attention::rows::gather_tokens;
use crate::attention::{KvCache, MixContext, MixOutput, State};
use crate::positional::{Positions, Rope};
use crate::{Error, Result};
use burn::tensor::{DType, Tensor, TensorData};
use longburn_kernels::{BlockList, Branch, Mask, MaskSpec, TokenMeta, masked_attention};
use std::ops::Range;

/// What a layer with a decode gate remembers.
#[derive(Clone, Debug)]
pub struct SeerCache {
    /// Keys and values of all tokens.
    pub kv: KvCache,
    /// What the gate reads.
    pub gate: GateCache,
}

/// Compressed keys of the finished blocks of every row, and the keys of the unfinished one.
///
/// A row is one document, with padding before it. Its blocks are counted from its first token,
/// so that a padded row has those that it has alone.
#[derive(Clone, Debug)]
pub struct GateCache {
    /// Gate keys `[B, K, N, G]` of ceil(tokens / block) blocks; zeros for an unfinished one.
    pub blocks: Tensor<4>,
    /// Unrotated keys of the newest tokens, `[B, K, 1 to block, D]`.
    pub open: Tensor<4>,
    /// Tokens of all calls, padding included.
    total: usize,
    rows: Vec<Row>,
}

/// The document of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Row {
    segment: Option<i32>,
    /// Index of its first token.
    start: usize,
    /// Its tokens.
    len: usize,
}

impl GateCache {
    /// Take up the keys of new tokens; with `None`, the first ones.
    ///
    /// # Shapes
    /// k_BKTD `[B, K, T, D]`, unrotated
    ///
    /// # Errors
    /// [`Error::Unsupported`] for rows of more than one document, padding inside of one, or
    /// positions that do not count on from 0.
    pub fn append(
        old: Option<Self>,
        gate: &DecodeGate,
        (block, rope_at): (usize, RopeAt),
        k_BKTD: Tensor<4>,
        tokens: &TokenMeta,
        rope: Option<&Rope>,
    ) -> Result<Self> {
        let [b, kv, t, _] = k_BKTD.dims();
        let k_BKTD = wide(k_BKTD.detach());
        let at_end = rope_at == RopeAt::CurrentToken && old.is_some() && t == 1;
        let (before, total) = match &old {
            Some(old) => (old.rows.clone(), old.total),
            None => (vec![Row::default(); b], 0),
        };
        let rows = follow(&before, total, tokens)?;
        let (keys, known) = match old {
            Some(old) => (Tensor::cat(vec![old.open, k_BKTD], 2), Some(old.blocks)),
            None => (k_BKTD, None),
        };
        let slots = rows.iter().map(|row| row.len.div_ceil(block)).max().unwrap_or(0).max(1);
        let grown = slots - known.as_ref().map_or(0, |blocks| blocks.dims()[2]);
        let mut parts: Vec<Tensor<4>> = known.into_iter().collect();
        if grown > 0 {
            let like = (&keys.device(), keys.dtype());
            parts.push(Tensor::zeros([b, kv, grown, gate.width()], like));
        }
        let mut blocks = Tensor::cat(parts, 2);
        let held = keys.dims()[2];
        let fresh = Fresh::between(&before, &rows, block, total + t - held);
        if let Some(range) = fresh.range() {
            let new = fresh.compress(gate, keys.clone(), range.clone(), at_end, rope)?;
            let old = blocks.clone().narrow(2, range.start, range.len());
            blocks = blocks.slice_assign([0..b, 0..kv, range, 0..gate.width()], old + new);
        }
        let open = held.min(block);
        Ok(Self { blocks, open: keys.narrow(2, held - open, open), total: total + t, rows })
    }

    /// Blocks of the row's document, the unfinished one included.
    pub fn blocks_of(&self, row: usize, block: usize) -> usize {
        self.rows[row].len.div_ceil(block)
    }

    /// Blocks that each row and key head attends to: those that `select` keeps, and the newest.
    ///
    /// # Shapes
    /// logits `[B, K, 1, N]` -> `[B · K]` lists of N or fewer
    ///
    /// # Errors
    /// As [`Select::choose`].
    pub fn choose(
        &self,
        logits: Tensor<4>,
        select: Select,
        block: usize,
    ) -> Result<Vec<Vec<bool>>> {
        let [b, kv, _, n] = logits.dims();
        let logits: Vec<f32> = logits.cast(DType::F32).into_data().iter::<f32>().collect();
        (0..b * kv)
            .map(|line| {
                let blocks = self.blocks_of(line / kv, block);
                let mut chosen =
                    select.choose(&logits[line * n..line * n + blocks], blocks, block)?;
                chosen.last_mut().into_iter().for_each(|newest| *newest = true);
                Ok(chosen)
            })
            .collect()
    }
}

/// Blocks that a call finished, in each row: `first..end`, of tokens from index `start` on.
struct Fresh {
    rows: Vec<(Range<usize>, usize)>,
    block: usize,
}

impl Fresh {
    /// `held` is the index of the first token whose key is there.
    fn between(before: &[Row], after: &[Row], block: usize, held: usize) -> Self {
        let of = |(old, new): (&Row, &Row)| {
            let blocks = old.len / block..new.len / block;
            // Keys of unfinished blocks are kept.
            let start = (new.start + blocks.start * block).saturating_sub(held);
            (blocks, start)
        };
        Self { rows: before.iter().zip(after).map(of).collect(), block }
    }

    /// All blocks that some row has finished, and others between them.
    fn range(&self) -> Option<Range<usize>> {
        let finished = || self.rows.iter().map(|(blocks, _)| blocks).filter(|b| !b.is_empty());
        let first = finished().map(|blocks| blocks.start).min()?;
        Some(first..finished().map(|blocks| blocks.end).max()?)
    }

    /// Gate keys of the blocks `range`, zeros where a row has not just finished one.
    ///
    /// # Shapes
    /// keys `[B, K, held, D]` -> `[B, K, range, G]`
    fn compress(
        &self,
        gate: &DecodeGate,
        keys: Tensor<4>,
        range: Range<usize>,
        at_end: bool,
        rope: Option<&Rope>,
    ) -> Result<Tensor<4>> {
        let ([b, kv, held, d], device) = (keys.dims(), keys.device());
        let (n, block) = (range.len(), self.block);
        let (mut index, mut shown, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (row, (blocks, start)) in self.rows.iter().enumerate() {
            for place in range.clone() {
                let fresh = blocks.contains(&place);
                let first = if fresh { start + (place - blocks.start) * block } else { 0 };
                let token = |i: usize| if fresh { first + i } else { 0 };
                index.extend((0..block).map(|i| row * held + token(i)));
                shown.push(f32::from(fresh));
                places.push((place * block + if at_end { block - 1 } else { 0 }) as i64);
            }
        }
        let tokens = gather_tokens(keys, &index).reshape([b, kv, n, block, d]);
        let pooled = super::layout::pooled(tokens, None, gate.pools());
        let table = match rope {
            Some(rope) => {
                let places = Positions::new(b, n, places, 1)?;
                Some(of_width(rope, d, gate.width())?.table(&places, &device))
            }
            None => None,
        };
        let shown = TensorData::new(shown, [b, 1, n, 1]);
        let shown = Tensor::<4>::from_data(shown, (&device, pooled.dtype()));
        Ok(gate.keys(pooled, table.as_ref()).detach() * shown)
    }
}

/// The rows after the new tokens.
fn follow(before: &[Row], total: usize, tokens: &TokenMeta) -> Result<Vec<Row>> {
    let (len, mut rows) = (tokens.len(), before.to_vec());
    if rows.len() != tokens.batch() {
        let reason = format!("{} rows where the cache has {}", tokens.batch(), rows.len());
        return Err(Error::shape("SeerCache", reason));
    }
    for (b, row) in rows.iter_mut().enumerate() {
        for t in 0..len {
            let (segment, pos) = (tokens.segment()[b * len + t], tokens.pos()[b * len + t]);
            if segment < 0 {
                continue;
            }
            if row.segment.is_none() {
                *row = Row { segment: Some(segment), start: total + t, len: 0 };
            }
            let follows = row.start + row.len == total + t && row.len == pos as usize;
            if row.segment != Some(segment) || !follows {
                return Err(Error::Unsupported {
                    what: format!(
                        "a cache of compressed keys for row {b}, whose token {} is not the next of \
                         its one document",
                        total + t
                    ),
                    remedy: "cache one document per row, counted from 0, padded on the left; or \
                             decode densely (no `select`)"
                        .into(),
                });
            }
            row.len += 1;
        }
    }
    Ok(rows)
}

impl Seer {
    /// Dense for several tokens, sparse for one; with the gate's cache.
    pub(super) fn decode(
        &self,
        gate: &DecodeGate,
        select: Select,
        new: Projected,
        (kv, old): (Option<KvCache>, Option<GateCache>),
        ctx: &MixContext<'_>,
    ) -> Result<MixOutput> {
        let rope = ctx.rope.map(|table| table.rope());
        let (block, config) = (self.config.block, &self.config);
        let (q, sizes) = (wide(new.q.clone().detach()), (block, config.rope_at));
        let cache = GateCache::append(old, gate, sizes, new.k.clone(), ctx.tokens, rope)?;
        let (rotated, new, taps) = dense::rotated(new, ctx);
        let kv = match kv {
            Some(kv) => kv.append(new.k, new.v, ctx.tokens)?,
            None => new,
        };
        let spec = MaskSpec::causal().with_window(self.window);
        let heads = self.proj.heads();
        let mut mask = Mask::new(spec, ctx.tokens.clone(), kv.tokens.clone(), heads)?;
        if ctx.tokens.len() == 1 {
            let width = (q.dims()[3], gate.width());
            let table = match rope {
                Some(rope) => {
                    let positions = Positions::of(ctx.tokens);
                    Some(of_width(rope, width.0, width.1)?.table(&positions, &q.device()))
                }
                None => None,
            };
            let logits = gate.logits(gate.queries(q, table.as_ref()), cache.blocks.clone());
            let chosen = cache.choose(logits, select, block)?;
            mask = mask.with_blocks(self.cached_blocks(&cache, &chosen)?)?;
        }
        let branch = Branch { q: rotated, k: dense::keys(&kv, ctx), mask };
        let mixed = masked_attention(&[branch], kv.v.clone(), &ctx.attention())?.out;
        let state = ctx.keep_state.then_some(State::Seer(SeerCache { kv, gate: cache }));
        Ok(dense::output(&self.proj, mixed, ctx, taps, state))
    }

    /// The chosen blocks as parts of the cache. Rows begin at different places in it, so the parts
    /// are of a size that divides all their distances.
    fn cached_blocks(&self, cache: &GateCache, chosen: &[Vec<bool>]) -> Result<BlockList> {
        let block = self.config.block;
        let (heads, kv) = (self.proj.heads(), self.proj.kv_heads());
        let size = cache.rows.iter().fold(block, |size, row| gcd(size, row.start));
        let tokens = [cache.rows.len(), heads, 1, cache.total];
        let list = BlockList::from_fn(tokens, [1, size], |b, h, _, part| {
            let of_row = &chosen[b * kv + h / (heads / kv)];
            let behind = (part * size).checked_sub(cache.rows[b].start);
            behind.and_then(|at| of_row.get(at / block)).is_some_and(|kept| *kept)
        })?;
        Ok(list)
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
