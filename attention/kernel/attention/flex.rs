//! Attention on the CPU: tiles through slices and a real matrix product, threads over
//! (batch, head, query tile) forward and over (batch, key head) backward.

use super::{Plan, TILE};
use crate::simd::{exp, gemm, vectorized};
use crate::{BlockKind, BlockMap, Mask};
use burn::backend::Flex;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, FloatDType, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;
use std::ops::Range;

/// Tiles that are computed together: larger matrix products come nearer to the machine's peak.
const RUN: usize = 4;
/// Distance between two rows of scores in the forward pass.
const WIDE: usize = RUN * TILE.1;

/// A `[N, H, T, D]` f32 tensor read through its strides; channels are adjacent.
struct View {
    tensor: FlexTensor,
    shape: [usize; 4],
    strides: [usize; 3],
    offset: usize,
}

impl View {
    fn new(tensor: FlexTensor) -> Self {
        let tensor = match tensor.dtype() {
            DType::F32 => tensor,
            _ => Flex::float_cast(tensor, FloatDType::F32),
        };
        let plain = |t: &FlexTensor| {
            let s = t.layout().strides();
            s[3] == 1 && s.iter().all(|s| *s >= 0)
        };
        let tensor = if plain(&tensor) { tensor } else { tensor.to_contiguous() };
        let layout = tensor.layout();
        let (dims, s) = (layout.shape().clone(), layout.strides().to_vec());
        Self {
            shape: [dims[0], dims[1], dims[2], dims[3]],
            strides: [s[0] as usize, s[1] as usize, s[2] as usize],
            offset: layout.start_offset(),
            tensor,
        }
    }

    /// Pointer to token `t` of head `h` in row `b`, and the stride between tokens.
    fn at(&self, b: usize, h: usize, t: usize) -> (*const f32, isize) {
        let [sb, sh, st] = self.strides;
        let start = self.offset + b * sb + h * sh + t * st;
        (self.tensor.storage::<f32>()[start..].as_ptr(), st as isize)
    }

    /// Channels of one token.
    fn row(&self, b: usize, h: usize, t: usize) -> &[f32] {
        let [sb, sh, st] = self.strides;
        let start = self.offset + b * sb + h * sh + t * st;
        &self.tensor.storage::<f32>()[start..start + self.shape[3]]
    }
}

/// A mask with its tiles and the class of every head.
struct Side<'a> {
    mask: &'a Mask,
    blocks: BlockMap,
    class_of: Vec<usize>,
}

impl<'a> Side<'a> {
    fn all(plan: &'a Plan) -> Vec<Self> {
        let side = |mask: &'a Mask| Side {
            mask,
            blocks: mask.blocks(TILE.0, TILE.1),
            class_of: (0..mask.heads()).map(|head| mask.class_of(head)).collect(),
        };
        plan.0.masks.iter().map(side).collect()
    }

    fn kind(&self, b: usize, head: usize, q: usize, k: usize) -> BlockKind {
        self.blocks.kind(b, self.class_of[head], q, k)
    }

    /// Writes −inf wherever a query of the tile may not see a key. `x`: `[rows, columns]`, rows
    /// `stride` apart.
    fn hide(
        &self,
        (b, head): (usize, usize),
        (rows, columns): (&Range<usize>, &Range<usize>),
        x: &mut [f32],
        stride: usize,
    ) {
        let class = &self.mask.classes()[self.class_of[head]];
        let (q, k) = (self.mask.queries(), self.mask.keys());
        let keys = b * k.len() + columns.start..b * k.len() + columns.end;
        let k_label = &class.k_label[keys.clone()];
        let k_pos = &k.pos()[keys.clone()];
        let sink = &self.mask.sink()[keys];
        let spec = self.mask.spec();
        let latest = |p: i32| if spec.causal { p } else { i32::MAX };
        let window = spec.window.unwrap_or(usize::MAX).min(i32::MAX as usize) as i32;
        vectorized(
            #[inline(always)]
            || {
                for (i, t) in rows.clone().enumerate() {
                    let t = b * q.len() + t;
                    let (label, pos) = (class.q_label[t], q.pos()[t]);
                    let (last, first) = (latest(pos), pos.saturating_sub(window));
                    let row = &mut x[i * stride..][..k_pos.len()];
                    for j in 0..row.len() {
                        let near = (k_pos[j] <= last) & ((k_pos[j] > first) | sink[j]);
                        let seen = (k_label[j] == label)
                            & (near | (window == i32::MAX && k_pos[j] <= last));
                        row[j] = if seen { row[j] } else { f32::NEG_INFINITY };
                    }
                }
            },
        )
    }
}

fn part(tile: usize, size: usize, len: usize) -> Range<usize> {
    tile * size..((tile + 1) * size).min(len)
}

/// Elements of a run of tiles.
fn span(run: &Range<usize>, size: usize, len: usize) -> Range<usize> {
    run.start * size..(run.end * size).min(len)
}

/// Neighbouring tiles that are computed, at most [`RUN`] at a time.
fn runs(tiles: usize, computed: impl Fn(usize) -> bool) -> impl Iterator<Item = Range<usize>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        while next < tiles && !computed(next) {
            next += 1;
        }
        let start = next;
        while next < tiles && next - start < RUN && computed(next) {
            next += 1;
        }
        (start < next).then_some(start..next)
    })
}

fn tensor(data: Vec<f32>, shape: &[usize], dtype: DType) -> FlexTensor {
    let out = FlexTensor::from_data(TensorData::new(data, shape.to_vec()));
    match dtype {
        DType::F32 => out,
        DType::BF16 => Flex::float_cast(out, FloatDType::BF16),
        DType::F16 => Flex::float_cast(out, FloatDType::F16),
        other => unreachable!("`choose` keeps {other:?} off this path"),
    }
}

/// Scores: `x[rows, columns]` = scale·q·kᵀ, rows `stride` apart.
fn scores(
    (q, k): (&View, &View),
    (qb, kb): ((usize, usize), (usize, usize)),
    (rows, columns): (&Range<usize>, &Range<usize>),
    scale: f32,
    x: &mut [f32],
    stride: usize,
) {
    let ((a, a_rows), (b, b_rows)) =
        (q.at(qb.0, qb.1, rows.start), k.at(kb.0, kb.1, columns.start));
    let size = (rows.len(), columns.len(), q.shape[3]);
    // Safe: `at` checks the start, the ranges end within the tensors, `x` holds the tile.
    unsafe {
        gemm(
            size,
            x.as_mut_ptr(),
            (stride as isize, 1),
            a,
            (a_rows, 1),
            b,
            (1, b_rows),
            scale,
            false,
        )
    }
}

/// out `[B, H, T, E]`, lse `[B, H, T]`.
pub(super) fn forward(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    plan: &Plan,
) -> (FlexTensor, FlexTensor) {
    let dtype = v.dtype();
    let (q, k, v) = (View::new(q), View::new(k), View::new(v));
    let [_, heads, t, _] = q.shape;
    let [batch, kv, s, e] = v.shape;
    let sides = Side::all(plan);
    let (q_tiles, k_tiles) = (t.div_ceil(TILE.0), s.div_ceil(TILE.1));
    let mut out = vec![0.0f32; batch * heads * t * e];
    let mut lse = vec![0.0f32; batch * heads * t];

    // One job per (row, head, query tile); late tiles are the long ones under a causal mask.
    let mut jobs = Vec::with_capacity(batch * heads * q_tiles);
    let rows_of = out.chunks_mut(t * e).zip(lse.chunks_mut(t)).enumerate();
    for (n, (out, lse)) in rows_of {
        let tiles = out.chunks_mut(TILE.0 * e).zip(lse.chunks_mut(TILE.0)).enumerate();
        jobs.extend(tiles.map(|(tile, (out, lse))| (n / heads, n % heads, tile, out, lse)));
    }
    jobs.sort_by_key(|job| std::cmp::Reverse(job.2));
    jobs.into_par_iter().for_each_init(
        || vec![0.0f32; TILE.0 * WIDE],
        |x, (b, head, tile, out, lse)| {
            let rows = part(tile, TILE.0, t);
            let mut top = [f32::NEG_INFINITY; TILE.0];
            let mut sum = [0.0f32; TILE.0];
            for (i, side) in sides.iter().enumerate() {
                let kind = |ki| side.kind(b, head, tile, ki);
                for run in runs(k_tiles, |ki| kind(ki) != BlockKind::Skip) {
                    let columns = span(&run, TILE.1, s);
                    let key_head = head * kv / heads;
                    let at = ((i * batch + b, head), (i * batch + b, key_head));
                    scores((&q, &k), at, (&rows, &columns), plan.0.scale as f32, x, WIDE);
                    for ki in run.filter(|ki| kind(*ki) == BlockKind::Partial) {
                        let part = part(ki, TILE.1, s);
                        let x = &mut x[part.start - columns.start..];
                        side.hide((b, head), (&rows, &part), x, WIDE);
                    }
                    softmax_step(x, rows.len(), columns.len(), &mut top, &mut sum, out, e);
                    let (values, v_rows) = v.at(b, key_head, columns.start);
                    let size = (rows.len(), e, columns.len());
                    let x_at = (WIDE as isize, 1);
                    // Safe: as in `scores`; `out` holds rows × e.
                    unsafe {
                        let o = out.as_mut_ptr();
                        gemm(
                            size,
                            o,
                            (e as isize, 1),
                            x.as_ptr(),
                            x_at,
                            values,
                            (v_rows, 1),
                            1.0,
                            true,
                        )
                    }
                }
            }
            for (i, row) in out.chunks_mut(e).enumerate() {
                let inverse = if sum[i] == 0.0 { 0.0 } else { 1.0 / sum[i] };
                row.iter_mut().for_each(|o| *o *= inverse);
                lse[i] = if sum[i] == 0.0 { f32::NEG_INFINITY } else { top[i] + sum[i].ln() };
            }
        },
    );
    (tensor(out, &[batch, heads, t, e], dtype), tensor(lse, &[batch, heads, t], DType::F32))
}

/// Turns scores into weights relative to the running maximum and rescales what was summed.
#[inline]
fn softmax_step(
    x: &mut [f32],
    rows: usize,
    columns: usize,
    top: &mut [f32],
    sum: &mut [f32],
    out: &mut [f32],
    e: usize,
) {
    vectorized(
        #[inline(always)]
        || {
            for i in 0..rows {
                let row = &mut x[i * WIDE..][..columns];
                let next = top[i].max(maximum(row));
                // Nothing visible yet: all weights are zero, whatever the reference point.
                let base = if next == f32::NEG_INFINITY { 0.0 } else { next };
                let mut lanes = [0.0f32; 16];
                let (chunks, rest) = row.as_chunks_mut::<16>();
                for chunk in chunks {
                    for (x, lane) in chunk.iter_mut().zip(&mut lanes) {
                        *x = exp(*x - base);
                        *lane += *x;
                    }
                }
                let mut total: f32 = lanes.iter().sum();
                for x in rest {
                    *x = exp(*x - base);
                    total += *x;
                }
                let keep = exp(top[i] - base);
                if keep != 1.0 {
                    out[i * e..(i + 1) * e].iter_mut().for_each(|o| *o *= keep);
                }
                sum[i] = sum[i] * keep + total;
                top[i] = next;
            }
        },
    )
}

#[inline(always)]
fn maximum(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for (x, lane) in chunk.iter().zip(&mut lanes) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m })
}

/// (dq, dk, dv) shaped like q, k and v.
pub(super) fn backward(
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
    let lse = lse.storage::<f32>();
    let sides = Side::all(plan);
    let mut dq = vec![0.0f32; stacked * heads * t * d];
    let mut dk = vec![0.0f32; stacked * kv * s * d];
    let mut dv = vec![0.0f32; batch * kv * s * e];

    // One job per (row, key head) owns every gradient it writes: no locks, fixed order of sums.
    let mut jobs: Vec<_> = dv.chunks_mut(s * e).map(|dv| (dv, Vec::new(), Vec::new())).collect();
    for (n, dq) in dq.chunks_mut(group * t * d).enumerate() {
        jobs[n % (batch * kv)].1.push(dq);
    }
    for (n, dk) in dk.chunks_mut(s * d).enumerate() {
        jobs[n % (batch * kv)].2.push(dk);
    }
    debug_assert!(jobs.iter().all(|job| job.1.len() == branches));
    jobs.into_par_iter().enumerate().for_each_init(
        || Scratch::new(t),
        |scratch, (n, (dv, mut dq, mut dk))| {
            let (b, key_head) = (n / kv, n % kv);
            for g in 0..group {
                let head = key_head * group + g;
                let lse = &lse[(b * heads + head) * t..][..t];
                scratch.delta_of(b, head, &out, &dout);
                for (i, side) in sides.iter().enumerate() {
                    let job = Job { b, head, key_head, branch: i, batch };
                    let (dq, dk) = (&mut dq[i][g * t * d..(g + 1) * t * d], &mut *dk[i]);
                    job.run(
                        [&q, &k, &v, &dout],
                        side,
                        lse,
                        plan.0.scale as f32,
                        scratch,
                        [dq, dk, dv],
                    );
                }
            }
        },
    );
    (
        tensor(dq, &[stacked, heads, t, d], dtype),
        tensor(dk, &[stacked, kv, s, d], dtype),
        tensor(dv, &[batch, kv, s, e], dtype),
    )
}

struct Scratch {
    x: Vec<f32>,
    dx: Vec<f32>,
    /// Σ_e dout·out per query
    delta: Vec<f32>,
}

impl Scratch {
    fn new(t: usize) -> Self {
        let run = || vec![0.0f32; RUN * TILE.0 * TILE.1];
        Self { x: run(), dx: run(), delta: vec![0.0; t] }
    }

    fn delta_of(&mut self, b: usize, head: usize, out: &View, dout: &View) {
        for (i, delta) in self.delta.iter_mut().enumerate() {
            let pairs = out.row(b, head, i).iter().zip(dout.row(b, head, i));
            *delta = pairs.map(|(o, g)| o * g).sum();
        }
    }
}

/// One query head of one branch.
struct Job {
    b: usize,
    head: usize,
    key_head: usize,
    branch: usize,
    batch: usize,
}

impl Job {
    fn run(
        &self,
        [q, k, v, dout]: [&View; 4],
        side: &Side,
        lse: &[f32],
        scale: f32,
        scratch: &mut Scratch,
        [dq, dk, dv]: [&mut [f32]; 3],
    ) {
        let ([_, _, t, d], [_, _, s, e]) = (q.shape, v.shape);
        let stacked = self.branch * self.batch + self.b;
        let x_at = (TILE.1 as isize, 1);
        let x_transposed = (1, TILE.1 as isize);
        for ki in 0..s.div_ceil(TILE.1) {
            let columns = part(ki, TILE.1, s);
            let kind = |qi| side.kind(self.b, self.head, qi, ki);
            for run in runs(t.div_ceil(TILE.0), |qi| kind(qi) != BlockKind::Skip) {
                let rows = span(&run, TILE.0, t);
                let at = ((stacked, self.head), (stacked, self.key_head));
                scores((q, k), at, (&rows, &columns), scale, &mut scratch.x, TILE.1);
                for qi in run.filter(|qi| kind(*qi) == BlockKind::Partial) {
                    let part = part(qi, TILE.0, t);
                    let x = &mut scratch.x[(part.start - rows.start) * TILE.1..];
                    side.hide((self.b, self.head), (&part, &columns), x, TILE.1);
                }
                let (g, g_rows) = dout.at(self.b, self.head, rows.start);
                let (value, v_rows) = v.at(self.b, self.key_head, columns.start);
                let (m, n) = (rows.len(), columns.len());
                // Safe here and below: `at` checks starts, ranges end within the tensors, the
                // gradients are slices of exactly the shapes used.
                unsafe {
                    let dx = scratch.dx.as_mut_ptr();
                    gemm((m, n, e), dx, x_at, g, (g_rows, 1), value, (1, v_rows), 1.0, false);
                }
                let delta = &scratch.delta[rows.clone()];
                gradient_step(&mut scratch.x, &mut scratch.dx, &lse[rows.clone()], delta, n, scale);
                let (x, dx) = (scratch.x.as_ptr(), scratch.dx.as_ptr());
                let (query, q_rows) = q.at(stacked, self.head, rows.start);
                let (key, k_rows) = k.at(stacked, self.key_head, columns.start);
                let dv = dv[columns.start * e..columns.end * e].as_mut_ptr();
                let dk = dk[columns.start * d..columns.end * d].as_mut_ptr();
                let dq = dq[rows.start * d..rows.end * d].as_mut_ptr();
                let (by_d, by_e) = ((d as isize, 1), (e as isize, 1));
                unsafe {
                    gemm((n, e, m), dv, by_e, x, x_transposed, g, (g_rows, 1), 1.0, true);
                    gemm((n, d, m), dk, by_d, dx, x_transposed, query, (q_rows, 1), 1.0, true);
                    gemm((m, d, n), dq, by_d, dx, x_at, key, (k_rows, 1), 1.0, true);
                }
            }
        }
    }
}

/// x: scores -> weights; dx: d(weights) -> d(scores before the scale).
#[inline]
fn gradient_step(
    x: &mut [f32],
    dx: &mut [f32],
    lse: &[f32],
    delta: &[f32],
    columns: usize,
    scale: f32,
) {
    vectorized(
        #[inline(always)]
        || {
            for i in 0..lse.len() {
                // A query that sees nothing has all scores at −inf; any finite reference gives 0.
                let base = if lse[i] == f32::NEG_INFINITY { 0.0 } else { lse[i] };
                let row = x[i * TILE.1..][..columns].iter_mut();
                for (p, dp) in row.zip(&mut dx[i * TILE.1..][..columns]) {
                    *p = exp(*p - base);
                    *dp = *p * (*dp - delta[i]) * scale;
                }
            }
        },
    )
}
