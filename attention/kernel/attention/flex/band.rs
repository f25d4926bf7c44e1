//! What is visible in a run of tiles, so that hidden corners of tiles at the edge of a mask are not
//! computed.

use super::{Side, TILE, part};
use crate::BlockKind;
use crate::panels::{BAND, Limits};
use std::ops::Range;

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
    /// Of a run of tiles. `x`, rows `stride` apart, is left with −inf for hidden pairs, so that those
    /// that are not computed have it.
    #[inline(always)]
    pub fn new(
        side: &Side,
        at: (usize, usize),
        qi: usize,
        (run, run_len): (&Range<usize>, usize),
        (rows, columns): (&Range<usize>, &Range<usize>),
        (x, stride): (&mut [f32], usize),
    ) -> Self {
        let kind = |ki: usize| side.kind(at.0, at.1, qi, ki);
        let partial = run.clone().any(|ki| kind(ki) == BlockKind::Partial);
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
            let keys = part(ki, TILE.1, run_len);
            let first = keys.start - columns.start;
            let edge = kind(ki) == BlockKind::Partial;
            if edge {
                let rows_of_x = x[first..].chunks_mut(stride).take(rows.len());
                rows_of_x.for_each(|row| row[..keys.len()].fill(0.0));
                side.hide(at, (rows, &keys), &mut x[first..], stride);
            }
            for i in 0..rows.len() {
                let row = &x[i * stride + first..][..keys.len()];
                let seen = if edge {
                    let from = row.iter().position(|x| *x == 0.0).unwrap_or(row.len());
                    from..row.iter().rposition(|x| *x == 0.0).map_or(0, |last| last + 1)
                } else {
                    0..row.len()
                };
                if seen.is_empty() {
                    continue;
                }
                let seen = first + seen.start..first + seen.end;
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

    /// Hides what was computed beside visible pairs: a number that nobody may see, NaN perhaps.
    #[inline(always)]
    pub fn hide(
        &self,
        side: &Side,
        at: (usize, usize),
        qi: usize,
        (run, run_len): (&Range<usize>, usize),
        (rows, columns): (&Range<usize>, &Range<usize>),
        (x, stride): (&mut [f32], usize),
    ) {
        if !self.partial {
            return;
        }
        for ki in run.clone() {
            if side.kind(at.0, at.1, qi, ki) == BlockKind::Partial {
                let keys = part(ki, TILE.1, run_len);
                side.hide(at, (rows, &keys), &mut x[keys.start - columns.start..], stride);
            }
        }
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
