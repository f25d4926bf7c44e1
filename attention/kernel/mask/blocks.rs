//! Tiles of a mask: skip what nobody sees, drop the predicate where everybody sees everything.

use super::Mask;
use std::ops::Range;

/// What a tile of queries and keys holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// No visible pair: not computed.
    Skip,
    /// Every pair is visible: computed without a predicate.
    Full,
    /// Some pairs are visible.
    Partial,
}

/// The tiles of a [`Mask`]; kinds are conservative (a `Partial` tile may turn out empty).
#[derive(Clone, Debug)]
pub struct BlockMap {
    q_tile: usize,
    k_tile: usize,
    q_tiles: usize,
    k_tiles: usize,
    classes: usize,
    /// `[B, class, q tile, k tile]`
    kinds: Vec<BlockKind>,
    heads: Vec<Range<usize>>,
    batch: usize,
}

/// Bounds of a tile's attributes.
#[derive(Clone, Copy)]
struct Bounds {
    label: (i32, i32),
    pos: (i32, i32),
    any_sink: bool,
    all_sinks: bool,
}

impl Bounds {
    fn new(label: &[i32], pos: &[i32], sink: Option<&[bool]>) -> Self {
        let range =
            |x: &[i32]| x.iter().fold((i32::MAX, i32::MIN), |(lo, hi), &v| (lo.min(v), hi.max(v)));
        Self {
            label: range(label),
            pos: range(pos),
            any_sink: sink.is_some_and(|s| s.iter().any(|s| *s)),
            all_sinks: sink.is_some_and(|s| s.iter().all(|s| *s)),
        }
    }
}

impl BlockMap {
    pub(super) fn new(mask: &Mask, q_tile: usize, k_tile: usize) -> Self {
        let (q_tile, k_tile) = (q_tile.max(1), k_tile.max(1));
        let (batch, tq, tk) = (mask.queries().batch(), mask.queries().len(), mask.keys().len());
        let (q_tiles, k_tiles) = (tq.div_ceil(q_tile), tk.div_ceil(k_tile));
        let mut kinds = Vec::with_capacity(batch * mask.classes().len() * q_tiles * k_tiles);
        for b in 0..batch {
            for class in mask.classes() {
                let part = |n: usize, tile: usize, len: usize| {
                    b * len + n * tile..b * len + ((n + 1) * tile).min(len)
                };
                let keys: Vec<Bounds> = (0..k_tiles)
                    .map(|n| part(n, k_tile, tk))
                    .map(|r| {
                        Bounds::new(
                            &class.k_label[r.clone()],
                            &mask.keys().pos()[r.clone()],
                            Some(&mask.sink()[r]),
                        )
                    })
                    .collect();
                for n in 0..q_tiles {
                    let r = part(n, q_tile, tq);
                    let q = Bounds::new(&class.q_label[r.clone()], &mask.queries().pos()[r], None);
                    kinds.extend(keys.iter().map(|k| kind(mask, q, *k)));
                }
            }
        }
        let heads = mask.classes().iter().map(|c| c.heads.clone()).collect();
        Self {
            q_tile,
            k_tile,
            q_tiles,
            k_tiles,
            classes: mask.classes().len(),
            kinds,
            heads,
            batch,
        }
    }

    /// Kind of tile (`q`, `k`) of row `b` for head class `class`.
    pub fn kind(&self, b: usize, class: usize, q: usize, k: usize) -> BlockKind {
        self.kinds[((b * self.classes + class) * self.q_tiles + q) * self.k_tiles + k]
    }

    /// Tile sizes (queries, keys).
    pub fn tile(&self) -> (usize, usize) {
        (self.q_tile, self.k_tile)
    }

    /// Numbers of tiles (queries, keys).
    pub fn tiles(&self) -> (usize, usize) {
        (self.q_tiles, self.k_tiles)
    }

    /// Head classes: heads of one class share a pattern.
    pub fn classes(&self) -> &[Range<usize>] {
        &self.heads
    }

    /// Tiles that are computed, over all rows and heads.
    pub fn visited(&self) -> usize {
        let per_class = self.q_tiles * self.k_tiles;
        (0..self.batch * self.classes)
            .map(|i| {
                let tiles = &self.kinds[i * per_class..(i + 1) * per_class];
                let visited = tiles.iter().filter(|k| **k != BlockKind::Skip).count();
                visited * self.heads[i % self.classes].len()
            })
            .sum()
    }

    /// All tiles, over all rows and heads.
    pub fn total(&self) -> usize {
        let heads: usize = self.heads.iter().map(|h| h.len()).sum();
        self.batch * heads * self.q_tiles * self.k_tiles
    }
}

fn kind(mask: &Mask, q: Bounds, k: Bounds) -> BlockKind {
    let spec = mask.spec();
    let window = spec.window.unwrap_or(usize::MAX).min(i64::MAX as usize) as i64;
    let nearest = q.pos.0 as i64 - k.pos.1 as i64;
    let farthest = q.pos.1 as i64 - k.pos.0 as i64;
    // Padding labels are negative and differ between queries and keys, so a tile of padding
    // alone is disjoint from everything.
    let disjoint = q.label.1 < k.label.0.max(0) || k.label.1 < q.label.0.max(0);
    if disjoint
        || (spec.causal && farthest < 0)
        || (spec.window.is_some() && nearest >= window && !k.any_sink)
    {
        return BlockKind::Skip;
    }
    let one_label = q.label.0 == q.label.1 && q.label == k.label;
    let seen = (!spec.causal || nearest >= 0)
        && (spec.window.is_none() || farthest < window || k.all_sinks);
    if one_label && seen { BlockKind::Full } else { BlockKind::Partial }
}
