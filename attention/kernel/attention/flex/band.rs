//! What is visible in a run of tiles, so that hidden corners of tiles at the edge of a mask are not
//! computed.

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
    pub unsafe fn scores<S: Simd, const N: usize>(
        &self,
        simd: S,
        d: usize,
        (queries, keys): (At, PanelsAt),
        (x, stride): (&mut [f32], usize),
    ) -> Band<N> {
        let band = Band::new(self, x, stride);
        let (size, c) = ((self.rows.len(), self.columns.len(), d), (x.as_mut_ptr(), stride));
        // Safe: as the caller vouches.
        unsafe { product(simd, size, queries, keys, c, false, band.scores()) };
        // What was computed beside visible pairs is a number that nobody may see, NaN perhaps.
        if band.partial {
            self.run.clone().filter(|ki| self.is_edge(*ki)).for_each(|ki| self.hide(ki, x, stride));
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

    fn hide(&self, ki: usize, x: &mut [f32], stride: usize) {
        let keys = part(ki, TILE.1, self.keys);
        self.side.hide(self.at, (self.rows, &keys), &mut x[self.own(ki).start..], stride);
    }
}

/// Least ranges that hold all visible pairs, by bands of queries and of keys, from the first of the
/// run on.
pub(super) struct Band<const N: usize> {
    /// Whether there are hidden pairs.
    partial: bool,
    columns: [(usize, usize); TILE.0 / BAND],
    rows: [(usize, usize); N],
}

/// Nothing.
const EMPTY: (usize, usize) = (usize::MAX, 0);

impl<const N: usize> Band<N> {
    /// `x`, rows `stride` apart, is left with −inf for hidden pairs, so that those that are not
    /// computed have it.
    #[inline(always)]
    fn new(place: &Place<'_>, x: &mut [f32], stride: usize) -> Self {
        let Place { run, rows, columns, .. } = *place;
        let partial = run.clone().any(|ki| place.is_edge(ki));
        let mut band = Self {
            partial,
            columns: [(0, columns.len()); TILE.0 / BAND],
            rows: [(0, rows.len()); N],
        };
        if !partial {
            return band;
        }
        (band.columns, band.rows) = ([EMPTY; TILE.0 / BAND], [EMPTY; N]);
        for ki in run.clone() {
            let (own, edge) = (place.own(ki), place.is_edge(ki));
            if edge {
                for i in 0..rows.len() {
                    x[i * stride..][own.clone()].fill(0.0);
                }
                place.hide(ki, x, stride);
            }
            for i in 0..rows.len() {
                let row = &x[i * stride..][own.clone()];
                let seen = if edge {
                    let from = row.iter().position(|x| *x == 0.0).unwrap_or(row.len());
                    from..row.iter().rposition(|x| *x == 0.0).map_or(0, |last| last + 1)
                } else {
                    0..row.len()
                };
                if seen.is_empty() {
                    continue;
                }
                let seen = own.start + seen.start..own.start + seen.end;
                let widen = |range: &mut (usize, usize), from: usize, to: usize| {
                    *range = (range.0.min(from), range.1.max(to));
                };
                widen(&mut band.columns[i / BAND], seen.start, seen.end);
                for keys in &mut band.rows[seen.start / BAND..=(seen.end - 1) / BAND] {
                    widen(keys, i, i + 1);
                }
            }
        }
        band
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
