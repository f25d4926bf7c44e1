//! What is visible in a run of tiles, so that hidden corners of tiles at the edge of a mask are not
//! computed.

use super::edge::{Edge, Seen};
use super::{Side, TILE, part};
use crate::BlockKind;
use crate::panels::{At, BAND, Limits, PanelsAt, product};
use pulp::Simd;
use std::ops::Range;

/// Where a run of key tiles meets queries of one tile.
pub(super) struct Place<'a> {
    pub side: &'a Side<'a>,
    /// (row, query head)
    pub at: (usize, usize),
    /// Query tile.
    pub tile: usize,
    /// Key tiles.
    pub run: &'a Range<usize>,
    /// Keys of the call.
    pub keys: usize,
    pub rows: &'a Range<usize>,
    pub columns: &'a Range<usize>,
}

impl Place<'_> {
    /// Scores, −inf for hidden pairs, in `x`, rows `stride` apart; returns what is visible.
    ///
    /// # Safety
    /// `queries` `[rows, d]` and `keys` `[d, columns]` must be readable, and `x` hold the run.
    #[inline(always)]
    pub unsafe fn scores<S: Simd, const Q: usize, const N: usize>(
        &self,
        simd: S,
        d: usize,
        (queries, keys): (At, PanelsAt),
        (x, stride): (&mut [f32], usize),
    ) -> Band<Q, N> {
        let band = Band::new(self);
        let (size, c) = ((self.rows.len(), self.columns.len(), d), (x.as_mut_ptr(), stride));
        // Safe: as the caller vouches.
        unsafe { product(simd, size, queries, keys, c, false, band.scores()) };
        // What was computed beside visible pairs is a number that nobody may see, NaN perhaps.
        if band.partial {
            for (ki, seen) in self.run.clone().zip(&band.seen).filter(|(ki, _)| self.is_edge(*ki)) {
                let (edge, own) = (self.edge(ki), self.own(ki));
                for (i, t) in self.rows.clone().enumerate() {
                    edge.hide_beside(
                        t,
                        seen[i / BAND][i % BAND],
                        &mut x[i * stride..][own.clone()],
                    );
                }
            }
        }
        band
    }

    fn is_edge(&self, ki: usize) -> bool {
        self.side.kind(self.at.0, self.at.1, self.tile, ki) == BlockKind::Partial
    }

    /// Columns of a key tile, from the first of the run on.
    fn own(&self, ki: usize) -> Range<usize> {
        let keys = part(ki, TILE.1, self.keys);
        keys.start - self.columns.start..keys.end - self.columns.start
    }

    fn edge(&self, ki: usize) -> Edge<'_> {
        Edge::new(self.side, self.at, &part(ki, TILE.1, self.keys))
    }
}

/// Least ranges that hold all visible pairs, by `Q` bands of queries and `N` of keys, from the first
/// of the run on.
pub(super) struct Band<const Q: usize, const N: usize> {
    /// Whether there are hidden pairs.
    partial: bool,
    columns: [(usize, usize); Q],
    rows: [(usize, usize); N],
    /// What the queries see of each tile of the run; only of tiles at an edge.
    seen: [[[Seen; BAND]; Q]; RUN],
}

/// Key tiles of a run at most.
const RUN: usize = 4;
/// Nothing.
const EMPTY: (usize, usize) = (usize::MAX, 0);

impl<const Q: usize, const N: usize> Band<Q, N> {
    const FITS: () = assert!(N * BAND <= RUN * TILE.1);

    #[inline(always)]
    fn new(place: &Place<'_>) -> Self {
        const { Self::FITS };
        let Place { run, rows, columns, .. } = *place;
        let partial = run.clone().any(|ki| place.is_edge(ki));
        let mut band = Self {
            partial,
            columns: [(0, columns.len()); Q],
            rows: [(0, rows.len()); N],
            seen: [[[Seen::default(); BAND]; Q]; RUN],
        };
        if !partial {
            return band;
        }
        (band.columns, band.rows) = ([EMPTY; Q], [EMPTY; N]);
        for (n, ki) in run.clone().enumerate() {
            let own = place.own(ki);
            if place.is_edge(ki) {
                let edge = place.edge(ki);
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

    /// Whether some queries do not see all keys of the run.
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// Columns that query `i` of the run may see; no others hold anything.
    #[inline(always)]
    pub fn of_query(&self, i: usize) -> Range<usize> {
        let (from, to) = self.columns[i / BAND];
        from.min(to)..to
    }

    /// For products whose rows are queries and whose columns are keys.
    pub fn scores(&self) -> Limits<'_> {
        if self.partial { Limits::Columns(&self.columns) } else { Limits::None }
    }

    /// For products that sum over keys.
    pub fn over_keys(&self) -> Limits<'_> {
        if self.partial { Limits::Depth(&self.columns) } else { Limits::None }
    }

    /// For products that sum over queries.
    pub fn over_queries(&self) -> Limits<'_> {
        if self.partial { Limits::Depth(&self.rows) } else { Limits::None }
    }
}
