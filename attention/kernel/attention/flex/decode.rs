//! A few queries behind a long cache: keys and values are read once, where they lie.

use super::edge::Edge;
use super::*;
use crate::panels::widest;
use crate::product::dot;
use crate::simd::exp2;
use crate::threads;
use pulp::{Simd, WithSimd};

/// Queries up to which packing keys and values would cost more than it saves.
pub(super) const FEW: usize = 4;
/// Keys of a part. Parts follow from the lengths alone, so that results do not depend on threads.
const PART: usize = 1024;

/// out `[B, H, T, E]`, lse `[B, H, T]`.
pub(super) fn decode(q: &View, k: &View, v: &View, plan: &Plan) -> (Vec<f32>, Vec<f32>) {
    let [_, heads, t, _] = q.shape;
    let [batch, kv, s, e] = v.shape;
    let sides = &Side::all(plan, TILE.0);
    let scale = plan.0.scale as f32 * LOG2_E;
    let parts = s.div_ceil(PART);
    // Of every row, key head and part: one share per query head and query.
    let shares: Vec<Vec<Share>> = threads::map(batch * kv * parts, |n| {
        let (b, key_head) = (n / parts / kv, n / parts % kv);
        let keys = part(n % parts, PART, s);
        widest(Job { sides, q, k, v, scale, b, key_head, keys })
    });
    let mut out = vec![0.0f32; batch * heads * t * e];
    let mut lse = vec![0.0f32; batch * heads * t];
    for (n, (out, lse)) in out.chunks_mut(e).zip(&mut lse).enumerate() {
        let (b, head, i) = (n / t / heads, n / t % heads, n % t);
        let (key_head, group) = (head / (heads / kv), head % (heads / kv));
        let of_head = &shares[(b * kv + key_head) * parts..][..parts];
        let of_query = || of_head.iter().map(|shares| &shares[group * t + i]);
        *lse = joined(of_query, out);
    }
    (out, lse)
}

/// What a part of the keys gives to one query.
struct Share {
    /// Greatest score, in units of log 2.
    top: f32,
    sum: f32,
    /// Weighted sum of the values, `[E]`.
    out: Vec<f32>,
}

/// Puts the shares of a query together; returns its lse.
fn joined<'a, I: Iterator<Item = &'a Share>>(shares: impl Fn() -> I, out: &mut [f32]) -> f32 {
    // NaN, which `max` passes over, is in the sums.
    let top = shares().fold(f32::NEG_INFINITY, |top, share| top.max(share.top));
    let base = if top == f32::NEG_INFINITY { 0.0 } else { top };
    let mut sum = 0.0;
    for share in shares() {
        let keep = exp2(share.top - base);
        sum += keep * share.sum;
        out.iter_mut().zip(&share.out).for_each(|(out, x)| *out += keep * x);
    }
    if sum == 0.0 {
        return f32::NEG_INFINITY;
    }
    out.iter_mut().for_each(|out| *out /= sum);
    base * LN_2 + sum.ln()
}

/// A part of the keys of one key head.
struct Job<'a> {
    sides: &'a [Side<'a>],
    q: &'a View,
    k: &'a View,
    v: &'a View,
    scale: f32,
    b: usize,
    key_head: usize,
    keys: Range<usize>,
}

impl WithSimd for Job<'_> {
    type Output = Vec<Share>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<Share> {
        let Self { sides, q, k, v, scale, b, key_head, keys } = self;
        let [_, heads, t, _] = q.shape;
        let [batch, kv, s, e] = v.shape;
        let group = heads / kv;
        let share = || Share { top: f32::NEG_INFINITY, sum: 0.0, out: vec![0.0; e] };
        let mut shares: Vec<Share> = (0..group * t).map(|_| share()).collect();
        let mut x = [0.0f32; FEW * TILE.1];
        for (i, side) in sides.iter().enumerate() {
            let stacked = i * batch + b;
            for ki in keys.start / TILE.1..keys.end.div_ceil(TILE.1) {
                let columns = part(ki, TILE.1, s);
                for g in 0..group {
                    let head = key_head * group + g;
                    let kind = side.kind(b, head, 0, ki);
                    if kind == BlockKind::Skip {
                        continue;
                    }
                    for ti in 0..t {
                        let query = q.row(stacked, head, ti);
                        let x = &mut x[ti * TILE.1..][..columns.len()];
                        for (x, key) in x.iter_mut().zip(columns.clone()) {
                            *x = scale * dot(simd, query, k.row(stacked, key_head, key));
                        }
                    }
                    if kind == BlockKind::Partial {
                        let edge = Edge::new(side, (b, head), &columns);
                        for ti in 0..t {
                            edge.hide(ti, &mut x[ti * TILE.1..][..columns.len()]);
                        }
                    }
                    for ti in 0..t {
                        let x = &mut x[ti * TILE.1..][..columns.len()];
                        let value = |j: usize| v.row(b, key_head, columns.start + j);
                        add(simd, &mut shares[g * t + ti], x, value);
                    }
                }
            }
        }
        shares
    }
}

/// Scores of a tile and the values that belong to them.
#[inline(always)]
fn add<'a, S: Simd>(simd: S, share: &mut Share, x: &mut [f32], value: impl Fn(usize) -> &'a [f32]) {
    let top = x.iter().fold(share.top, |top, x| if *x > top { *x } else { top });
    // Nothing visible yet: all weights are zero, whatever the reference point.
    let base = if top == f32::NEG_INFINITY { 0.0 } else { top };
    let keep = exp2(share.top - base);
    x.iter_mut().for_each(|x| *x = exp2(*x - base));
    share.sum = share.sum * keep + x.iter().sum::<f32>();
    share.top = top;
    let (out, out_rest) = S::as_mut_simd_f32s(&mut share.out);
    let keep_all = simd.splat_f32s(keep);
    out.iter_mut().for_each(|out| *out = simd.mul_f32s(*out, keep_all));
    out_rest.iter_mut().for_each(|out| *out *= keep);
    for (j, weight) in x.iter().enumerate() {
        let (values, rest) = S::as_simd_f32s(value(j));
        let all = simd.splat_f32s(*weight);
        for (out, value) in out.iter_mut().zip(values) {
            *out = simd.mul_add_f32s(all, *value, *out);
        }
        out_rest.iter_mut().zip(rest).for_each(|(out, value)| *out += weight * value);
    }
}
