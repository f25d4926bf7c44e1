//! Statistics of the weights, from scores that are computed again: products of queries and keys
//! alone.

use super::band::{Band, Place};
use super::steps::{RUN, by_keys};
use super::*;
use crate::attention::stats::{Fold, Kind};
use crate::panels::{BAND, widest};
use crate::simd::exp2;
use crate::threads;
use pulp::{Simd, WithSimd};

/// Distance between two rows of scores.
const WIDE: usize = wide(RUN);
/// Bands of queries in a tile, and of keys in a run.
const Q_BANDS: usize = TILE.0 / BAND;
const BANDS: usize = RUN * TILE.1 / BAND;
/// Queries that a job takes at least where one row of results comes of many, and how many jobs
/// share such a row. The shapes alone decide about both, so that results do not depend on threads.
const PART: usize = 512;
const PARTS: usize = 8;

/// `[B, H, rows, columns]` of results.
pub(in super::super) fn stats(
    q: FlexTensor,
    k: FlexTensor,
    lse: FlexTensor,
    plan: &Plan,
    fold: Fold,
) -> FlexTensor {
    let (q, k) = (View::new(q), View::new(k));
    let [batch, heads, t, _] = q.shape;
    let [_, kv, s, _] = k.shape;
    let (rows, width) = fold.results((t, s));
    let parts = (fold.block.0 / PART).clamp(1, PARTS);
    let lse = lse.to_contiguous();
    let base: Vec<f32> = lse.storage::<f32>().iter().map(|x| base_of(*x)).collect();
    let call = Call {
        side: &Side::all(plan, TILE.0)[0],
        q: &q,
        keys: &k.turned(plan.0.scale as f32 * LOG2_E),
        base: &base,
        kv,
        s,
        fold,
        parts,
    };
    let mut out = vec![0.0f32; parts * batch * heads * rows * width];

    // One job per (part, row, head, some rows of results); late ones are long under a causal mask.
    let together = (TILE.0 / fold.block.0).max(1);
    let mut jobs = Vec::new();
    for (n, out) in out.chunks_mut(rows * width).enumerate() {
        let (part, n) = (n / (batch * heads), n % (batch * heads));
        for (i, out) in out.chunks_mut(together * width).enumerate() {
            jobs.push((part, n, i * together, out));
        }
    }
    jobs.sort_by_key(|job| std::cmp::Reverse(job.2));
    threads::each_of_with(
        jobs,
        || vec![0.0f32; TILE.0 * WIDE],
        |x, (part, n, first, out)| {
            widest(Job { call, b: n / heads, head: n % heads, part, first, x, out });
        },
    );
    let len = out.len() / parts;
    let (first, others) = out.split_at_mut(len);
    let others: Vec<&[f32]> = others.chunks(len.max(1)).collect();
    match fold.kind {
        Kind::Max => fold_parts(first, &others, larger),
        _ => fold_parts(first, &others, plus),
    }
    out.truncate(len);
    out.shrink_to_fit();
    if fold.kind == Kind::Diagonals {
        out.chunks_mut(s).for_each(|row| row.reverse());
    }
    tensor(out, &[batch, heads, rows, width], DType::F32)
}

/// What the scores of a query are taken relative to, in units of log 2: weights are zero where lse
/// is −∞.
fn base_of(lse: f32) -> f32 {
    if lse == f32::NEG_INFINITY { f32::INFINITY } else { lse * LOG2_E }
}

/// What all jobs share.
#[derive(Clone, Copy)]
struct Call<'a> {
    side: &'a Side<'a>,
    q: &'a View,
    /// `[D, S]`, scaled.
    keys: &'a Panels,
    /// `[B, H, T]`
    base: &'a [f32],
    kv: usize,
    s: usize,
    fold: Fold,
    parts: usize,
}

/// Some rows of results of one head, from all their queries or, one tile in `parts`, from a part.
struct Job<'a> {
    call: Call<'a>,
    b: usize,
    head: usize,
    part: usize,
    /// The first row of results.
    first: usize,
    /// Scores, then weights.
    x: &'a mut [f32],
    /// `[rows, columns]` of results.
    out: &'a mut [f32],
}

impl WithSimd for Job<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { call, b, head, part: own, first, x, out } = self;
        let Call { side, q, s, fold, .. } = call;
        let [_, heads, t, d] = q.shape;
        let width = fold.results((t, s)).1;
        let height = fold.block.0;
        let queries = first * height..((first + out.len() / width) * height).min(t);
        let key_head = b * call.kv + head / (heads / call.kv);
        let tiles = queries.start / TILE.0..queries.end.div_ceil(TILE.0);
        for tile in tiles.filter(|tile| tile % call.parts == own) {
            let whole = part(tile, TILE.0, t);
            let rows = whole.start.max(queries.start)..whole.end.min(queries.end);
            let base = &call.base[(b * heads + head) * t..][rows.clone()];
            for (_, tiles) in by_keys(&[side.keys_of(b, head, tile)]) {
                let (at, rows) = ((b, head), &rows);
                let place = Place { side, at, tile, tiles: &tiles, keys: s, rows };
                // Safe: the tile lies within queries and keys, `x` holds it.
                let band: Band<Q_BANDS, BANDS> = unsafe {
                    let keys = |key| call.keys.columns(key_head, key);
                    let queries = q.at(b, head, rows.start);
                    place.scores(simd, d, (queries, keys), (x, WIDE), &mut ())
                };
                for (i, (x, base)) in x.chunks_mut(WIDE).zip(base).enumerate() {
                    let seen = band.of_query(i);
                    x[..seen.start].fill(0.0);
                    x[seen.end..tiles.len(s)].fill(0.0);
                    match fold.kind {
                        Kind::Entropy => terms(&mut x[seen], *base),
                        _ => weights(&mut x[seen], *base),
                    }
                }
                for (column, columns) in tiles.pieces(s) {
                    let (x, columns) = (&x[column..], &columns);
                    let tile = Tile { x, rows, columns };
                    match fold.kind {
                        Kind::Diagonals => tile.diagonals(t, out),
                        Kind::Max => tile.blocks(fold.block, first, width, out, larger),
                        Kind::Sum | Kind::Entropy => {
                            tile.blocks(fold.block, first, width, out, plus)
                        }
                    }
                }
            }
        }
    }
}

/// 2^(x − base), 0 for hidden pairs even of a query whose lse is NaN.
#[inline(always)]
fn weight(x: f32, base: f32) -> f32 {
    if x == f32::NEG_INFINITY { 0.0 } else { exp2(x - base) }
}

/// Scores to weights.
#[inline(always)]
fn weights(x: &mut [f32], base: f32) {
    for x in x {
        *x = weight(*x, base);
    }
}

/// Scores to −p·ln p.
#[inline(always)]
fn terms(x: &mut [f32], base: f32) {
    for x in x {
        let p = weight(*x, base);
        *x = if p == 0.0 { 0.0 } else { p * (base - *x) * LN_2 };
    }
}

#[inline(always)]
fn plus(a: f32, b: f32) -> f32 {
    a + b
}

/// NaN where one of both is.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if (b > a) | b.is_nan() { b } else { a }
}

/// All of `x` by `op`, for which 0 changes nothing.
#[inline(always)]
fn all(x: &[f32], op: impl Fn(f32, f32) -> f32 + Copy) -> f32 {
    let (chunks, rest) = x.as_chunks::<32>();
    let wide = match chunks {
        [] => 0.0,
        _ => {
            let mut lanes = [0.0f32; 32];
            for chunk in chunks {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    *lane = op(*lane, *x);
                }
            }
            lanes.into_iter().fold(0.0, op)
        }
    };
    rest.iter().copied().fold(wide, op)
}

/// Weights of some neighbouring queries and keys.
struct Tile<'a> {
    x: &'a [f32],
    rows: &'a Range<usize>,
    columns: &'a Range<usize>,
}

impl Tile<'_> {
    #[inline(always)]
    fn row(&self, t: usize) -> &[f32] {
        &self.x[(t - self.rows.start) * WIDE..][..self.columns.len()]
    }

    /// Folds into the blocks `[rows from first, width]` that the tile touches: down, then across.
    #[inline(always)]
    fn blocks(
        &self,
        (queries, keys): (usize, usize),
        first: usize,
        width: usize,
        out: &mut [f32],
        op: impl Fn(f32, f32) -> f32 + Copy,
    ) {
        let mut line = [0.0f32; RUN * TILE.1];
        let line = &mut line[..self.columns.len()];
        let mut t = self.rows.start;
        while t < self.rows.end {
            let block = t / queries;
            let end = ((block + 1) * queries).min(self.rows.end);
            line.copy_from_slice(self.row(t));
            for t in t + 1..end {
                line.iter_mut().zip(self.row(t)).for_each(|(a, x)| *a = op(*a, *x));
            }
            let out = &mut out[(block - first) * width..][..width];
            let mut s = self.columns.start;
            while s < self.columns.end {
                let end = ((s / keys + 1) * keys).min(self.columns.end);
                let part = &line[s - self.columns.start..end - self.columns.start];
                out[s / keys] = op(out[s / keys], all(part, op));
                s = end;
            }
            t = end;
        }
    }

    /// Adds what lies on each diagonal to `out[s + T − 1 − t]`, which begins with distance S − 1.
    #[inline(always)]
    fn diagonals(&self, t: usize, out: &mut [f32]) {
        let (m, n) = (self.rows.len(), self.columns.len());
        let mut band = [0.0f32; TILE.0 + RUN * TILE.1];
        for (i, t) in self.rows.clone().enumerate() {
            let band = &mut band[m - 1 - i..][..n];
            band.iter_mut().zip(self.row(t)).for_each(|(sum, x)| *sum += *x);
        }
        let first = self.columns.start + t - self.rows.end;
        // Distances below 0 lie beyond the end.
        if let Some(out) = out.get_mut(first..) {
            out.iter_mut().zip(&band[..m + n - 1]).for_each(|(sum, x)| *sum += *x);
        }
    }
}
