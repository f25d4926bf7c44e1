//! Weights and their sum in one pass over the keys, relative to a running maximum.

use super::band::{Band, Place};
use super::decode::{FEW, decode};
use super::steps::{RUN, Tiles, by_keys, one_by_one};
use super::*;
use crate::ahead::{Ahead, Pieces};
use crate::panels::{BAND, Beside, groups, product, widest};
use crate::room::{Room, zeroed};
use crate::simd::{exp2, exp2_of, maximum, sum as sum_of};
use crate::threads;
use pulp::{Simd, WithSimd};

/// Query tiles of a job at most: what it reads of a run of keys serves them all.
const TILES: usize = 4;
/// Distance between two rows of scores.
const WIDE: usize = wide(RUN);
/// Bands of queries in a tile, and of keys in a run.
const Q_BANDS: usize = TILE.0 / BAND;
const BANDS: usize = RUN * TILE.1 / BAND;

/// out `[B, H, T, E]`, lse `[B, H, T]`.
pub(in super::super) fn forward(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    plan: &Plan,
) -> (FlexTensor, FlexTensor) {
    let dtype = v.dtype();
    let (q, k, v) = (View::new(q), View::new(k), View::new(v));
    let [_, heads, t, _] = q.shape;
    let [batch, kv, _, e] = v.shape;
    if t <= FEW {
        let (out, lse) = decode(&q, &k, &v, plan);
        let shape = [batch, heads, t];
        return (tensor(out, &[batch, heads, t, e], dtype), tensor(lse, &shape, DType::F32));
    }
    let call = Call {
        sides: &Side::all(plan, TILE.0),
        keys: &k.turned(plan.0.scale as f32 * LOG2_E),
        values: &v.rows(),
        q: &q,
        group: heads / kv,
        size: v.shape,
    };
    let mut out = Room::new(batch * heads * t * e);
    let mut lse = Room::new(batch * heads * t);

    // One job per (row, head, query tiles); late ones are long under a causal mask. Short rows give
    // few jobs, of one tile each.
    let tiles = (t / 1024).clamp(1, TILES);
    let mut jobs = Vec::with_capacity(batch * heads * t.div_ceil(tiles * TILE.0));
    let rows_of = out.parts(t * e).zip(lse.parts(t)).enumerate();
    for (n, (out, lse)) in rows_of {
        let parts = out.chunks_mut(tiles * TILE.0 * e).zip(lse.chunks_mut(tiles * TILE.0));
        let job = |(i, (out, lse))| (n / heads, n % heads, i * tiles, out, lse);
        jobs.extend(parts.enumerate().map(job));
    }
    jobs.sort_by_key(|job| std::cmp::Reverse(job.2));
    threads::each_of_with(
        jobs,
        || vec![0.0f32; TILE.0 * WIDE],
        |x, (b, head, first, out, lse)| {
            let (out, lse) = (zeroed(out), zeroed(lse));
            widest(Job { call, b, head, first, x, out, lse });
        },
    );
    // Safe: the jobs have cleared and written all parts.
    let (out, lse) = unsafe { (out.written(), lse.written()) };
    (tensor(out, &[batch, heads, t, e], dtype), tensor(lse, &[batch, heads, t], DType::F32))
}

/// What all jobs share.
#[derive(Clone, Copy)]
struct Call<'a> {
    sides: &'a [Side<'a>],
    q: &'a View,
    /// `[D, S]`, scaled.
    keys: &'a Panels,
    /// `[S, E]`
    values: &'a Rows<'a>,
    /// Query heads per key head.
    group: usize,
    /// `[B, K, S, E]`
    size: [usize; 4],
}

/// Some query tiles of one head.
struct Job<'a> {
    call: Call<'a>,
    b: usize,
    head: usize,
    first: usize,
    /// Scores, then weights.
    x: &'a mut [f32],
    out: &'a mut [f32],
    lse: &'a mut [f32],
}

impl WithSimd for Job<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { call, b, head, first, x, out, lse } = self;
        let batch = call.size[0];
        let mut top = [f32::NEG_INFINITY; TILES * TILE.0];
        let mut sum = [0.0f32; TILES * TILE.0];
        let tiles = first..first + lse.len().div_ceil(TILE.0);
        for (i, side) in call.sides.iter().enumerate() {
            let lines: Vec<_> = tiles.clone().map(|tile| side.keys_of(b, head, tile)).collect();
            let steps = if is_of_blocks(side.mask) { one_by_one(&lines) } else { by_keys(&lines) };
            for (at, (n, tiles)) in steps.iter().enumerate() {
                let (tile, from) = (first + n, n * TILE.0);
                let next = steps.get(at + 1).map(|(_, next)| next).filter(|next| *next != tiles);
                let at = Tile { call, side, stacked: i * batch + b, b, head, tile, tiles };
                let state = (&mut top[from..], &mut sum[from..]);
                at.add(simd, x, state, &mut out[from * call.size[3]..], next);
            }
        }
        let e = call.size[3];
        for (i, row) in out.chunks_mut(e).enumerate() {
            let inverse = if sum[i] == 0.0 { 0.0 } else { 1.0 / sum[i] };
            row.iter_mut().for_each(|o| *o *= inverse);
            lse[i] = match sum[i] == 0.0 {
                true => f32::NEG_INFINITY,
                false => top[i] * LN_2 + sum[i].ln(),
            };
        }
    }
}

/// A query tile and some key tiles.
struct Tile<'a> {
    call: Call<'a>,
    side: &'a Side<'a>,
    /// Row of queries and keys, which are stacked by branches.
    stacked: usize,
    b: usize,
    head: usize,
    tile: usize,
    tiles: &'a Tiles,
}

impl Tile<'_> {
    /// Adds the values that the tiles' keys give; `top`, `sum` and `out` begin with the query tile's. What
    /// `next` will read is asked for.
    #[inline(always)]
    fn add<S: Simd>(
        &self,
        simd: S,
        x: &mut [f32],
        (top, sum): (&mut [f32], &mut [f32]),
        out: &mut [f32],
        next: Option<&Tiles>,
    ) {
        let Self { call, side, stacked, b, head, tile, tiles } = *self;
        let [_, kv, s, e] = call.size;
        let [_, _, t, d] = call.q.shape;
        let (key_head, at) = (head / call.group, (b, head));
        let rows = part(tile, TILE.0, t);
        let (m, n) = (rows.len(), tiles.len(s));
        let keys = |first| call.keys.columns(stacked * kv + key_head, first);
        let values = |keys: &Range<usize>| call.values.at(b * kv + key_head, keys);
        let place = Place { side, at, tile, tiles, keys: s, rows: &rows };
        let mut pieces = [Pieces::NONE; 2 * RUN];
        let of_next = next.iter().flat_map(|next| next.pieces(s));
        for ((_, of), pieces) in of_next.zip(pieces.chunks_mut(2)) {
            pieces[0] = Pieces::panels(keys(of.start), d, of.len());
            pieces[1] = Pieces::panels(values(&of), of.len(), e);
        }
        let mut ahead = Ahead::new(pieces, groups::<S>(m, n) + m);
        // Safe: the tile lies within queries and keys, `x` holds it.
        let band: Band<Q_BANDS, BANDS> = unsafe {
            let queries = call.q.at(stacked, head, rows.start);
            place.scores(simd, d, (queries, keys), (x, WIDE), &mut ahead)
        };
        softmax_step(simd, x, (m, n), &band, (top, sum), (out, e), ahead);
        for (first, of) in tiles.pieces(s) {
            let weights = At { first: x[first..].as_ptr(), rows: WIDE, columns: 1 };
            let (out, limits) = ((out.as_mut_ptr(), e), band.over_keys(first));
            // Safe: as above; `out` holds m × E.
            unsafe { product(simd, (m, e, of.len()), weights, values(&of), out, true, limits) };
        }
    }
}

/// Turns scores into weights relative to the running maximum and rescales what was summed.
#[inline(always)]
fn softmax_step<S: Simd>(
    simd: S,
    x: &mut [f32],
    (rows, columns): (usize, usize),
    band: &Band<Q_BANDS, BANDS>,
    (top, sum): (&mut [f32], &mut [f32]),
    (out, e): (&mut [f32], usize),
    mut ahead: Ahead<{ 2 * RUN }>,
) {
    for i in 0..rows {
        ahead.some();
        let row = &mut x[i * WIDE..][..columns];
        let seen = band.of_query(i);
        if band.is_partial() {
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
        }
        let row = &mut row[seen];
        let next = top[i].max(maximum(simd, row));
        // Nothing visible yet: all weights are zero, whatever the reference point.
        let base = if next == f32::NEG_INFINITY { 0.0 } else { next };
        row.iter_mut().for_each(|x| *x = exp2_of::<S>(*x - base));
        let total = sum_of(simd, row);
        let keep = exp2(top[i] - base);
        if keep != 1.0 {
            out[i * e..(i + 1) * e].iter_mut().for_each(|o| *o *= keep);
        }
        sum[i] = sum[i] * keep + total;
        top[i] = next;
    }
}
