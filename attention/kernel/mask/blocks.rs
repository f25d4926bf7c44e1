//! Tiles of a mask: skip what nobody sees, drop the predicate where everybody sees everything.

use super::lines::Lines;
use super::{HeadClass, Mask, TokenMeta};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

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

/// The tiles of a [`Mask`], cheap to clone; kinds are conservative (a `Partial` tile may turn out empty).
#[derive(Clone, Debug)]
pub struct BlockMap {
    q_tile: usize,
    k_tile: usize,
    q_tiles: usize,
    k_tiles: usize,
    classes: usize,
    /// `[B, class, q tile, k tile]`
    kinds: Arc<[BlockKind]>,
    /// What is not skipped: key tiles of `[B, class, q tile]`, query tiles of `[B, class, k tile]`.
    computed: Arc<(Lines, Lines)>,
    heads: Vec<Range<usize>>,
    batch: usize,
}

/// The maps of a mask that were asked for, since all layers and both passes ask for the same.
#[derive(Debug, Default)]
pub(super) struct Maps(Mutex<Vec<BlockMap>>);

/// A mask that is cloned is about to become another one.
impl Clone for Maps {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Maps {
    /// Sizes of tiles that are kept; the CPU form has two.
    const MOST: usize = 2;

    pub fn get(&self, mask: &Mask, q_tile: usize, k_tile: usize) -> BlockMap {
        let mut maps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(map) = maps.iter().find(|map| map.tile() == (q_tile, k_tile)) {
            return map.clone();
        }
        let map = BlockMap::new(mask, q_tile, k_tile);
        if maps.len() < Self::MOST {
            maps.push(map.clone());
        }
        map
    }
}

/// Bounds of a tile's attributes.
#[derive(Clone, Copy)]
struct Bounds {
    /// Of all tokens but anchors.
    label: (i32, i32),
    pos: (i32, i32),
    any_anchor: bool,
    any_sink: bool,
    all_sinks: bool,
}

impl Bounds {
    fn new(label: &[i32], pos: &[i32], sink: Option<&[bool]>) -> Self {
        fn range<'a>(x: impl Iterator<Item = &'a i32>) -> (i32, i32) {
            x.fold((i32::MAX, i32::MIN), |(lo, hi), &v| (lo.min(v), hi.max(v)))
        }
        let range_of_labels = label.iter().filter(|label| **label != TokenMeta::ANCHOR);
        Self {
            label: range(range_of_labels),
            pos: range(pos.iter()),
            any_anchor: label.contains(&TokenMeta::ANCHOR),
            any_sink: sink.is_some_and(|s| s.iter().any(|s| *s)),
            all_sinks: sink.is_some_and(|s| s.iter().all(|s| *s)),
        }
    }
}

/// A mask cut into tiles of some size, whose kinds are told one at a time.
pub(super) struct Tiles<'a> {
    mask: &'a Mask,
    q_tile: usize,
    k_tile: usize,
    /// `[B, labels, q tile]`
    queries: Vec<Bounds>,
    /// `[B, labels, k tile]`
    keys: Vec<Bounds>,
}

impl<'a> Tiles<'a> {
    pub fn new(mask: &'a Mask, q_tile: usize, k_tile: usize) -> Self {
        let (q_tile, k_tile) = (q_tile.max(1), k_tile.max(1));
        let (mut queries, mut keys) = (Vec::new(), Vec::new());
        for b in 0..mask.queries().batch() {
            for labels in mask.labels() {
                for r in spans(b, q_tile, mask.queries().len()) {
                    let pos = &mask.queries().pos()[r.clone()];
                    queries.push(Bounds::new(&labels.q[r], pos, None));
                }
                for r in spans(b, k_tile, mask.keys().len()) {
                    let pos = &mask.keys().pos()[r.clone()];
                    keys.push(Bounds::new(&labels.k[r.clone()], pos, Some(&mask.sink()[r])));
                }
            }
        }
        Self { mask, q_tile, k_tile, queries, keys }
    }

    /// Numbers of tiles (queries, keys).
    pub fn numbers(&self) -> (usize, usize) {
        let of = |len: usize, tile: usize| len.div_ceil(tile);
        (of(self.mask.queries().len(), self.q_tile), of(self.mask.keys().len(), self.k_tile))
    }

    /// Queries and keys of a tile.
    pub fn spans(&self, q: usize, k: usize) -> (Range<usize>, Range<usize>) {
        let span = |n: usize, tile: usize, len: usize| n * tile..((n + 1) * tile).min(len);
        let (t, s) = (self.mask.queries().len(), self.mask.keys().len());
        (span(q, self.q_tile, t), span(k, self.k_tile, s))
    }

    /// Kind of tile (`q`, `k`) of row `b` for a class of heads.
    pub fn kind(&self, b: usize, class: &HeadClass, q: usize, k: usize) -> BlockKind {
        self.within(self.of_labels(b, class.labels, q, k), b, class, q, k)
    }

    /// What labels, order, window and sinks say.
    fn of_labels(&self, b: usize, labels: usize, q: usize, k: usize) -> BlockKind {
        let (q, k) = self.bounds(b, labels, q, k);
        kind(self.mask, q, k)
    }

    /// `kind` with what differs from head to head beside labels.
    fn within(
        &self,
        kind: BlockKind,
        b: usize,
        class: &HeadClass,
        q: usize,
        k: usize,
    ) -> BlockKind {
        let mut kind = kind;
        if let Some(strided) = self.mask.strided().filter(|_| kind != BlockKind::Skip) {
            let (q, k) = self.bounds(b, class.labels, q, k);
            let of_blocks = match strided.kind(class.column, q.pos, k.pos) {
                _ if k.all_sinks => BlockKind::Full,
                BlockKind::Skip if k.any_sink => BlockKind::Partial,
                kind => kind,
            };
            kind = kind.and(of_blocks);
        }
        if let Some(list) = self.mask.list().filter(|_| kind != BlockKind::Skip) {
            let (queries, keys) = self.spans(q, k);
            kind = kind.and(list.kind((b, class.heads.start), &queries, &keys));
        }
        kind
    }

    fn bounds(&self, b: usize, labels: usize, q: usize, k: usize) -> (Bounds, Bounds) {
        let (q_tiles, k_tiles) = self.numbers();
        let of = b * self.mask.labels().len() + labels;
        (self.queries[of * q_tiles + q], self.keys[of * k_tiles + k])
    }
}

/// Tokens of the tiles of row `b`, among those of all rows.
fn spans(b: usize, tile: usize, len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(tile).map(move |t| b * len + t..b * len + t.saturating_add(tile).min(len))
}

impl BlockKind {
    /// What is left where both rules must hold.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Skip, _) | (_, Self::Skip) => Self::Skip,
            (Self::Full, Self::Full) => Self::Full,
            _ => Self::Partial,
        }
    }
}

impl BlockMap {
    pub(super) fn new(mask: &Mask, q_tile: usize, k_tile: usize) -> Self {
        let tiles = Tiles::new(mask, q_tile, k_tile);
        let (batch, (q_tiles, k_tiles)) = (mask.queries().batch(), tiles.numbers());
        let mut kinds = Vec::with_capacity(batch * mask.classes().len() * q_tiles * k_tiles);
        for b in 0..batch {
            // Heads of many classes may have the same labels.
            let mut of_labels: (usize, Vec<BlockKind>) = (usize::MAX, Vec::new());
            for class in mask.classes() {
                let all = || (0..q_tiles).flat_map(|q| (0..k_tiles).map(move |k| (q, k)));
                if of_labels.0 != class.labels {
                    let kind = |(q, k)| tiles.of_labels(b, class.labels, q, k);
                    of_labels = (class.labels, all().map(kind).collect());
                }
                let kinds_of_labels = all().zip(&of_labels.1);
                kinds.extend(
                    kinds_of_labels.map(|((q, k), kind)| tiles.within(*kind, b, class, q, k)),
                );
            }
        }
        let heads = mask.classes().iter().map(|c| c.heads.clone()).collect();
        let (q_tile, k_tile) = (tiles.q_tile, tiles.k_tile);
        let classes = mask.classes().len();
        let by_queries = Lines::by_queries(&kinds, k_tiles);
        let by_keys = by_queries.turned(batch * classes, (q_tiles, k_tiles));
        let (computed, kinds) = (Arc::new((by_queries, by_keys)), kinds.into());
        Self { q_tile, k_tile, q_tiles, k_tiles, classes, kinds, computed, heads, batch }
    }

    /// Kind of tile (`q`, `k`) of row `b` for head class `class`.
    pub fn kind(&self, b: usize, class: usize, q: usize, k: usize) -> BlockKind {
        self.kinds[((b * self.classes + class) * self.q_tiles + q) * self.k_tiles + k]
    }

    /// Tiles of keys that are computed for tile `q` of the queries, ascending.
    pub fn keys_of(&self, b: usize, class: usize, q: usize) -> &[u32] {
        self.computed.0.line((b * self.classes + class) * self.q_tiles + q)
    }

    /// Tiles of queries for which tile `k` of the keys is computed, ascending.
    pub fn queries_of(&self, b: usize, class: usize, k: usize) -> &[u32] {
        self.computed.1.line((b * self.classes + class) * self.k_tiles + k)
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
    let anchored = k.any_anchor && (q.any_anchor || q.label.1 >= 0);
    if (disjoint && !anchored)
        || (spec.causal && farthest < 0)
        || (spec.window.is_some() && nearest >= window && !k.any_sink)
    {
        return BlockKind::Skip;
    }
    let anchor = q.any_anchor || k.any_anchor;
    let one_label = q.label.0 == q.label.1 && q.label == k.label && !anchor;
    let seen = (!spec.causal || nearest >= 0)
        && (spec.window.is_none() || farthest < window || k.all_sinks);
    if one_label && seen { BlockKind::Full } else { BlockKind::Partial }
}
