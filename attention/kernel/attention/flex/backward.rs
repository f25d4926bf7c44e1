//! All gradients in one pass over the tiles, from weights that are computed again.

use super::band::{Band, Place};
use super::steps::{RUN, by_queries};
use super::*;
use crate::ahead::{Ahead, Pieces};
use crate::panels::{BAND, Beside, groups, pack_into, product, product_beside, widest};
use crate::room::{Room, filled, zeroed};
use crate::simd::exp2_of;
use crate::threads;
use pulp::{Simd, WithSimd};
use std::mem::MaybeUninit;

/// Queries of a tile at most: what the gradients of keys and values sum over at a time.
const QUERIES: usize = 2 * TILE.0;
/// Distance between two rows of scores.
const WIDE: usize = wide(RUN);
/// Bands of queries in a tile, and of keys in a run.
const Q_BANDS: usize = QUERIES / BAND;
const BANDS: usize = RUN * TILE.1 / BAND;
/// Jobs that are wanted at least. The shapes alone decide about the parts, not the threads, so
/// that results do not depend on these.
const JOBS: usize = 16;
/// Copies of the gradient of the queries at most.
const PARTS: usize = 4;

/// (dq, dk, dv) shaped like q, k and v.
pub(in super::super) fn backward(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    out: FlexTensor,
    lse: FlexTensor,
    dout: FlexTensor,
    plan: &Plan,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let dtype = v.dtype();
    let (q, k, v) = (View::new(q), View::new(k), View::new(v));
    let (out, dout) = (View::new(out), View::new(dout));
    let [stacked, heads, t, d] = q.shape;
    let [batch, kv, s, e] = v.shape;
    let (branches, group) = (stacked / batch, heads / kv);
    let lse = lse.to_contiguous();
    let scale = plan.0.scale as f32;
    let base: Vec<f32> = lse.storage::<f32>().iter().map(|x| base_of(*x)).collect();
    // Larger tiles would hold what is not computed.
    let of_blocks = plan.0.masks.iter().any(is_of_blocks);
    let queries_of_tile = if of_blocks { TILE.0 } else { QUERIES };
    let call = Call {
        sides: &Side::all(plan, queries_of_tile),
        queries_of_tile,
        q: &q,
        dout: &dout,
        k: &k,
        v: &v,
        scale,
        keys_of_dq: &k.rows(),
        queries: &q.rows(),
        douts: &dout.rows(),
        base: &base,
        delta: &delta_of(&out, &dout, scale),
        group,
        size: v.shape,
    };
    let mut dk = Room::new(stacked * kv * s * d);
    let mut dv = Room::new(batch * kv * s * e);

    // Every job owns some runs of key tiles and all that is written there; what it adds to the
    // queries of its key head goes to a copy of its own, summed up in a fixed order.
    let parts = parts_of(batch * kv, s);
    let mut dq: Vec<Room> = (0..parts).map(|_| Room::new(stacked * heads * t * d)).collect();
    let mut jobs: Vec<Job> = (0..batch * kv * parts)
        .map(|n| Job {
            call,
            b: n / parts / kv,
            key_head: n / parts % kv,
            dq: vec![],
            keys: vec![],
        })
        .collect();
    for (n, dv) in dv.parts(s * e).enumerate() {
        for (run, dv) in dv.chunks_mut(RUN * TILE.1 * e).enumerate() {
            let keys = Keys { run, dv, dk: vec![] };
            jobs[n * parts + part_of(run, parts)].keys.push(keys);
        }
    }
    for (n, dk) in dk.parts(s * d).enumerate() {
        let n = n % (batch * kv);
        for (run, dk) in dk.chunks_mut(RUN * TILE.1 * d).enumerate() {
            let keys = &mut jobs[n * parts + part_of(run, parts)].keys;
            keys.iter_mut().find(|keys| keys.run == run).expect("made above").dk.push(dk);
        }
    }
    for (part, dq) in dq.iter_mut().enumerate() {
        for (n, dq) in dq.parts(group * t * d).enumerate() {
            jobs[n % (batch * kv) * parts + part].dq.push(dq);
        }
    }
    debug_assert!(jobs.iter().all(|job| job.dq.len() == branches));
    let scratch = || {
        let turned = RUN * TILE.1 * (branches * d + e);
        (vec![0.0f32; 2 * QUERIES * WIDE], vec![MaybeUninit::uninit(); turned])
    };
    threads::each_of_with(jobs, scratch, |(x, turned), job| widest(Run { job, x, turned }));
    // Safe: every part belongs to a job, which has cleared and written it.
    let (dk, dv) = unsafe { (dk.written(), dv.written()) };
    let mut others: Vec<_> = dq.into_iter().map(|dq| unsafe { dq.written() }).collect();
    let mut dq = others.remove(0);
    let others: Vec<&[f32]> = others.iter().map(Vec::as_slice).collect();
    fold_parts(&mut dq, &others, |a, b| a + b);
    (
        tensor(dq, &[stacked, heads, t, d], dtype),
        tensor(dk, &[stacked, kv, s, d], dtype),
        tensor(dv, &[batch, kv, s, e], dtype),
    )
}

/// Parts of the keys, each with a copy of the gradient of the queries.
pub(super) fn parts_of(key_heads: usize, s: usize) -> usize {
    let runs = s.div_ceil(RUN * TILE.1);
    JOBS.div_ceil(key_heads.max(1)).min(runs).clamp(1, PARTS)
}

/// To and fro, since under a causal mask the first runs cost most.
fn part_of(run: usize, parts: usize) -> usize {
    let n = run % (2 * parts);
    n.min(2 * parts - 1 - n)
}

/// What the scores of a query are taken relative to, in units of log 2.
fn base_of(lse: f32) -> f32 {
    // A query that sees nothing has all scores at −inf; any finite reference gives 0.
    if lse == f32::NEG_INFINITY { 0.0 } else { lse * LOG2_E }
}

/// Σ_e dout·out per query, times the scale: `[B·H·T]`.
fn delta_of(out: &View, dout: &View, scale: f32) -> Vec<f32> {
    let [batch, heads, t, _] = out.shape;
    let write = |n: usize, delta: &mut [MaybeUninit<f32>]| {
        let (b, head, delta) = (n / heads, n % heads, zeroed(delta));
        vectorized(
            #[inline(always)]
            || {
                for (i, delta) in delta.iter_mut().enumerate() {
                    let pairs = out.row(b, head, i).iter().zip(dout.row(b, head, i));
                    *delta = scale * pairs.map(|(o, g)| o * g).sum::<f32>();
                }
            },
        )
    };
    // Safe: every part is cleared.
    unsafe { filled(batch * heads * t, t, true, write) }
}

/// What all jobs share.
#[derive(Clone, Copy)]
struct Call<'a> {
    sides: &'a [Side<'a>],
    queries_of_tile: usize,
    q: &'a View,
    dout: &'a View,
    k: &'a View,
    v: &'a View,
    /// Of the scores, and so of their gradient, here and in `delta`.
    scale: f32,
    /// `[S, D]`
    keys_of_dq: &'a Rows<'a>,
    /// `[T, D]`
    queries: &'a Rows<'a>,
    /// `[T, E]`
    douts: &'a Rows<'a>,
    /// `[B·H·T]`
    base: &'a [f32],
    /// `[B·H·T]`
    delta: &'a [f32],
    /// Query heads per key head.
    group: usize,
    /// `[B, K, S, E]`
    size: [usize; 4],
}

/// Some runs of key tiles of one key head.
struct Job<'a> {
    call: Call<'a>,
    b: usize,
    key_head: usize,
    /// Of each branch: all queries of the key head's query heads.
    dq: Vec<&'a mut [MaybeUninit<f32>]>,
    keys: Vec<Keys<'a>>,
}

struct Keys<'a> {
    run: usize,
    dv: &'a mut [MaybeUninit<f32>],
    /// Of each branch.
    dk: Vec<&'a mut [MaybeUninit<f32>]>,
}

struct Run<'a, 'x> {
    job: Job<'a>,
    x: &'x mut [f32],
    /// Keys `[D, keys of a run]` of each branch and values `[E, ..]`, turned: the job alone reads them.
    turned: &'x mut [MaybeUninit<f32>],
}

impl WithSimd for Run<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Job { call, b, key_head, dq, keys: of_keys } = self.job;
        let mut dq: Vec<_> = dq.into_iter().map(zeroed).collect();
        let [batch, _, s, e] = call.size;
        let [_, heads, t, d] = call.q.shape;
        let (x, dx) = self.x.split_at_mut(QUERIES * WIDE);
        let (turned_values, turned_keys) = self.turned.split_at_mut(RUN * TILE.1 * e);
        for Keys { run, dv, dk } in of_keys {
            let all = run * RUN * TILE.1..((run + 1) * RUN * TILE.1).min(s);
            // Safe: rows of these tensors, and room for as many.
            let values = unsafe {
                let values = call.v.at(b, key_head, all.start).turned();
                pack_into::<S>(values, (e, all.len()), call.scale, turned_values)
            };
            let mut keys = Vec::with_capacity(call.sides.len());
            for (i, room) in turned_keys.chunks_mut(RUN * TILE.1 * d).enumerate() {
                // Safe: as above. Query heads of one key head read the same.
                keys.push(unsafe {
                    let at = call.k.at(i * batch + b, key_head, all.start).turned();
                    pack_into::<S>(at, (d, all.len()), call.scale * LOG2_E, room)
                });
            }
            let dv = zeroed(dv);
            let mut dk: Vec<_> = dk.into_iter().map(zeroed).collect();
            let tiles = run * RUN..((run + 1) * RUN).min(s.div_ceil(TILE.1));
            for g in 0..call.group {
                let head = key_head * call.group + g;
                for (i, side) in call.sides.iter().enumerate() {
                    let dq = &mut dq[i][g * t * d..(g + 1) * t * d];
                    let lines: Vec<_> =
                        tiles.clone().map(|tile| side.queries_of(b, head, tile)).collect();
                    let steps = by_queries(&lines, tiles.start);
                    let (stacked, first) = (i * batch + b, all.start);
                    let keys = keys[i];
                    let tile =
                        Tile { call: &call, b, head, key_head, stacked, first, keys, values };
                    for (at, (qi, tiles)) in steps.iter().enumerate() {
                        let rows = part(*qi, call.queries_of_tile, t);
                        let of_rows = rows.start * d..rows.end * d;
                        let place =
                            Place { side, at: (b, head), tile: *qi, tiles, keys: s, rows: &rows };
                        let of_query = (b * heads + head) * t;
                        let of_query = of_query + rows.start..of_query + rows.end;
                        let (base, delta) = (&call.base[of_query.clone()], &call.delta[of_query]);
                        let next = steps.get(at + 1).map_or([Pieces::NONE; 5], |(next, _)| {
                            let rows = part(*next, call.queries_of_tile, t);
                            tile.reads(&rows, &dq[rows.start * d..rows.end * d])
                        });
                        let (m, n) = (rows.len(), tiles.len(s));
                        let mut ahead = Ahead::new(next, 2 * groups::<S>(m, n) + m);
                        let band = tile.scores(simd, &place, (x, dx), &mut ahead);
                        gradient_step::<S>((x, dx), base, delta, &band, n, ahead);
                        let dq = &mut dq[of_rows];
                        tile.gradients(simd, &place, (&band, x, dx), (dq, &mut dk[i], dv));
                    }
                }
            }
        }
    }
}

/// Where a tile lies.
struct Tile<'a> {
    call: &'a Call<'a>,
    b: usize,
    head: usize,
    key_head: usize,
    stacked: usize,
    /// The first key of the run.
    first: usize,
    /// `[D, keys]` of the run and `[E, keys]`, scaled.
    keys: PanelsAt,
    values: PanelsAt,
}

impl Tile<'_> {
    /// What is read and written of these queries.
    fn reads(&self, rows: &Range<usize>, dq: &[f32]) -> [Pieces; 5] {
        let Self { call, b, head, stacked, .. } = *self;
        let ([_, heads, _, d], e, m) = (call.q.shape, call.size[3], rows.len());
        let dq = At { first: dq.as_ptr(), rows: d, columns: 1 };
        [
            Pieces::rows(call.q.at(stacked, head, rows.start), m, d),
            Pieces::rows(call.dout.at(b, head, rows.start), m, e),
            call.douts.pieces(b * heads + head, rows, e),
            call.queries.pieces(stacked * heads + head, rows, d),
            Pieces::rows(dq, m, d),
        ]
    }

    /// x: scores; dx: scaled gradients of the weights.
    #[inline(always)]
    fn scores<S: Simd>(
        &self,
        simd: S,
        place: &Place<'_>,
        (x, dx): (&mut [f32], &mut [f32]),
        ahead: &mut Ahead<5>,
    ) -> Band<Q_BANDS, BANDS> {
        let Self { call, b, head, stacked, first, keys, values, .. } = *self;
        let ([_, _, _, d], e) = (call.q.shape, call.size[3]);
        let from = place.rows.start;
        // Safe: the tiles lie within queries and keys, `x` and `dx` hold them.
        unsafe {
            let queries = call.q.at(stacked, head, from);
            let keys = |key| keys.columns(key - first);
            let band: Band<Q_BANDS, BANDS> =
                place.scores(simd, d, (queries, keys), (x, WIDE), ahead);
            for (column, of) in place.tiles.pieces(place.keys) {
                let (size, values) =
                    ((place.rows.len(), of.len(), e), values.columns(of.start - first));
                let (douts, dx) = (call.dout.at(b, head, from), (dx[column..].as_mut_ptr(), WIDE));
                let (sides, limits) = ((douts, values), band.scores(column));
                product_beside(simd, size, sides, dx, false, limits, ahead);
            }
            band
        }
    }

    /// Adds to the gradients of the place's queries, and to those of the run's keys and values.
    #[inline(always)]
    fn gradients<S: Simd>(
        &self,
        simd: S,
        place: &Place<'_>,
        (band, x, dx): (&Band<Q_BANDS, BANDS>, &[f32], &[f32]),
        (dq, dk, dv): (&mut [f32], &mut [f32], &mut [f32]),
    ) {
        let Self { call, b, head, key_head, stacked, first, .. } = *self;
        let [_, heads, _, d] = call.q.shape;
        let [_, kv, _, e] = call.size;
        let (rows, m) = (place.rows, place.rows.len());
        let turned = |x: &[f32]| At { first: x.as_ptr(), rows: 1, columns: WIDE };
        for (column, of) in place.tiles.pieces(place.keys) {
            let (n, own) = (of.len(), of.start - first);
            let (x, dx) = (&x[column..], &dx[column..]);
            let straight = At { first: dx.as_ptr(), rows: WIDE, columns: 1 };
            let (dk, dv) = (dk[own * d..].as_mut_ptr(), dv[own * e..].as_mut_ptr());
            // Safe: as in `scores`; the gradients are of these queries, and hold the run's keys.
            unsafe {
                let limits = band.over_queries(column);
                let douts = call.douts.at(b * heads + head, rows);
                product(simd, (n, e, m), turned(x), douts, (dv, e), true, limits);
                let queries = call.queries.at(stacked * heads + head, rows);
                product(simd, (n, d, m), turned(dx), queries, (dk, d), true, limits);
                let keys = call.keys_of_dq.at(stacked * kv + key_head, &of);
                let (dq, limits) = ((dq.as_mut_ptr(), d), band.over_keys(column));
                product(simd, (m, d, n), straight, keys, dq, true, limits);
            }
        }
    }
}

/// x: scores -> weights; dx: d(weights) -> d(scores before the scale).
#[inline(always)]
fn gradient_step<S: Simd>(
    (x, dx): (&mut [f32], &mut [f32]),
    base: &[f32],
    delta: &[f32],
    band: &Band<Q_BANDS, BANDS>,
    columns: usize,
    mut ahead: Ahead<5>,
) {
    for (i, (base, delta)) in base.iter().zip(delta).enumerate() {
        ahead.some();
        let seen = band.of_query(i);
        let (x, dx) = (&mut x[i * WIDE..][..columns], &mut dx[i * WIDE..][..columns]);
        if band.is_partial() {
            for row in [&mut *x, &mut *dx] {
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
            }
        }
        for (p, dp) in x[seen.clone()].iter_mut().zip(&mut dx[seen]) {
            *p = exp2_of::<S>(*p - base);
            *dp = *p * (*dp - delta);
        }
    }
}
