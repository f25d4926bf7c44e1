//! What is visible in a run of tiles, so that hidden corners of tiles at the edge of a mask are not
//! computed.

use super::edge::{Edge, Seen};
use super::steps::{RUN, Tiles};
use super::{Side, TILE, part};
use crate::BlockKind;
use crate::panels::{At, BAND, Beside, Limits, PanelsAt, product_beside};
use pulp::Simd;
use std::ops::Range;

/// Where some key tiles meet queries of one tile.
pub(super) struct Place<'a> {
    pub side: &'a Side<'a>,
    /// (row, query head)
    pub at: (usize, usize),
    /// Query tile.
    pub tile: usize,
    pub tiles: &'a Tiles,
    /// Keys of the call.
    pub keys: usize,
    pub rows: &'a Range<usize>,
}

impl Place<'_> {
    /// Scores, −inf for hidden pairs, in `x`, rows `stride` apart, the tiles side by side; returns what is
    /// visible, and does something else meanwhile.
    ///
    /// # Safety
    /// `queries` `[rows, d]` and what `keys` gives from a key of the call on, `[d, its tiles]`, must be
    /// readable, and `x` hold all.
    #[inline(always)]
    pub unsafe fn scores<S: Simd, const Q: usize, const N: usize>(
        &self,
        simd: S,
        d: usize,
        (queries, keys): (At, impl Fn(usize) -> PanelsAt),
        (x, stride): (&mut [f32], usize),
        beside: &mut impl Beside,
    ) -> Band<Q, N> {
        let band = Band::new(self);
        for (first, of) in self.tiles.pieces(self.keys) {
            let size = (self.rows.len(), of.len(), d);
            let (c, limits) = ((x[first..].as_mut_ptr(), stride), band.scores(first));
            // Safe: as the caller vouches.
            unsafe {
                product_beside(simd, size, (queries, keys(of.start)), c, false, limits, beside)
            };
        }
        // What was computed beside visible pairs is a number that nobody may see, NaN perhaps.
        if band.partial {
            for (n, seen) in band.seen.iter().enumerate().take(self.tiles.list().len()) {
                if !self.is_edge(n) {
                    continue;
                }
                let (edge, own) = (self.edge(n), self.own(n));
                for (i, t) in self.rows.clone().enumerate() {
                    let row = &mut x[i * stride..][own.clone()];
                    edge.hide_beside(t, seen[i / BAND][i % BAND], row);
                }
            }
        }
        band
    }

    fn tile(&self, n: usize) -> usize {
        self.tiles.list()[n] as usize
    }

    fn is_edge(&self, n: usize) -> bool {
        let kind = self.side.kind(self.at.0, self.at.1, self.tile, self.tile(n));
        kind == BlockKind::Partial
    }

    /// Columns of the `n`th key tile.
    fn own(&self, n: usize) -> Range<usize> {
        n * TILE.1..n * TILE.1 + part(self.tile(n), TILE.1, self.keys).len()
    }

    fn edge(&self, n: usize) -> Edge<'_> {
        Edge::new(self.side, self.at, &part(self.tile(n), TILE.1, self.keys))
    }
}

/// Least ranges that hold all visible pairs, by `Q` bands of queries and `N` of keys, these as the tiles
/// lie side by side.
pub(super) struct Band<const Q: usize, const N: usize> {
    /// Whether there are hidden pairs.
    partial: bool,
    columns: [(usize, usize); Q],
    rows: [(usize, usize); N],
    /// What the queries see of each tile; only of tiles at an edge.
    seen: [[[Seen; BAND]; Q]; RUN],
}

/// Nothing.
const EMPTY: (usize, usize) = (usize::MAX, 0);

impl<const Q: usize, const N: usize> Band<Q, N> {
    const FITS: () = assert!(N * BAND <= RUN * TILE.1);

    #[inline(always)]
    fn new(place: &Place<'_>) -> Self {
        const { Self::FITS };
        let (rows, tiles) = (place.rows, place.tiles.list().len());
        let partial = (0..tiles).any(|n| place.is_edge(n));
        let mut band = Self {
            partial,
            columns: [(0, place.tiles.len(place.keys)); Q],
            rows: [(0, rows.len()); N],
            seen: [[[Seen::default(); BAND]; Q]; RUN],
        };
        if !partial {
            return band;
        }
        (band.columns, band.rows) = ([EMPTY; Q], [EMPTY; N]);
        for n in 0..tiles {
            let own = place.own(n);
            if place.is_edge(n) {
                let edge = place.edge(n);
                for (i, t) in rows.clone().enumerate() {
                    let seen = edge.seen(t);
                    band.seen[n][i / BAND][i % BAND] = seen;
                    let seen = seen.range();
                    band.widen(i..i + 1, own.start + seen.start..own.start + seen.end);
                }
            } else {
                for first in (0..rows.len()).step_by(BAND) {
                    band.widen(first..(first + BAND).min(rows.len()), own.clone());
                }
            }
        }
        band
    }

    /// Takes in that these queries, of one band, see these columns.
    #[inline(always)]
    fn widen(&mut self, queries: Range<usize>, seen: Range<usize>) {
        if seen.is_empty() {
            return;
        }
        let widen = |range: &mut (usize, usize), from: usize, to: usize| {
            *range = (range.0.min(from), range.1.max(to));
        };
        widen(&mut self.columns[queries.start / BAND], seen.start, seen.end);
        for keys in &mut self.rows[seen.start / BAND..=(seen.end - 1) / BAND] {
            widen(keys, queries.start, queries.end);
        }
    }

    /// Whether some queries do not see all keys of the tiles.
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// Columns that query `i` may see; no others hold anything.
    #[inline(always)]
    pub fn of_query(&self, i: usize) -> Range<usize> {
        let (from, to) = self.columns[i / BAND];
        from.min(to)..to
    }

    /// For products whose rows are queries and whose columns are keys, from column `first` on.
    pub fn scores(&self, first: usize) -> Limits<'_> {
        if self.partial { Limits::Columns(&self.columns, first) } else { Limits::None }
    }

    /// For products that sum over keys, from column `first` on.
    pub fn over_keys(&self, first: usize) -> Limits<'_> {
        if self.partial { Limits::Depth(&self.columns, first) } else { Limits::None }
    }

    /// For products that sum over queries, whose rows are keys from column `first` on.
    pub fn over_queries(&self, first: usize) -> Limits<'_> {
        if self.partial { Limits::Depth(&self.rows[first / BAND..], 0) } else { Limits::None }
    }
}
