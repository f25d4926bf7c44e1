//! Attention in tiles out of tensor operations: any device, memory O(T·D).
//!
//! Forward: an online softmax over the visited key tiles of each query tile. Backward: one pass
//! over the same tiles, which recomputes the scores from (q, k, lse).

mod stats;

pub(super) use stats::stats;

use super::Plan;
use crate::linear::products_on_card;
use crate::mask::HeadClass;
use crate::{BlockKind, BlockList, BlockMap, Mask, TokenMeta};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use std::ops::Range;

/// Larger than the CPU form's: every tile costs several launches.
const TILE: (usize, usize) = (128, 256);

/// Stands for −inf in running maxima, so that their differences are never NaN.
const LOW: f32 = -1e30;

/// Query heads that can be computed together, and the key heads they read.
struct Run {
    heads: Range<usize>,
    kv: Range<usize>,
    /// Their class in the mask of each branch.
    classes: Vec<usize>,
}

/// Runs of heads that are of one class in every mask: whole where they align with the key heads,
/// else one key head at a time.
fn runs(masks: &[Mask], heads: usize, kv: usize) -> Vec<Run> {
    let group = heads / kv;
    let classes_of = |head| masks.iter().map(|mask| mask.class_of(head)).collect::<Vec<_>>();
    let mut runs = Vec::new();
    let mut head = 0;
    while head < heads {
        let classes = classes_of(head);
        let end = (head..heads).find(|h| classes_of(*h) != classes).unwrap_or(heads);
        let (first, aligned) = (head / group, head % group == 0 && end % group == 0);
        let kv = if aligned { first..end / group } else { first..first + 1 };
        let stop = end.min(kv.end * group);
        runs.push(Run { heads: head..stop, kv, classes });
        head = stop;
    }
    runs
}

/// A branch's mask on the device.
struct Side {
    blocks: BlockMap,
    /// labels `[B, 1, T, 1]` and `[B, 1, 1, S]`, as the mask has them
    labels: Vec<(Tensor<4, Int>, Tensor<4, Int>)>,
    q_pos: Tensor<4, Int>,
    k_pos: Tensor<4, Int>,
    sink: Tensor<4, Bool>,
    strided: Option<Blocks>,
    listed: Option<Listed>,
    mask: Mask,
}

/// A list of blocks: per class 1 where seen `[B, 1, query blocks, key blocks]`, and the block of
/// every query `[T]` and key `[S]`.
struct Listed {
    seen: Vec<Tensor<4, Int>>,
    q_block: Tensor<1, Int>,
    k_block: Tensor<1, Int>,
}

impl Listed {
    fn new(list: &BlockList, mask: &Mask, device: &Device) -> Self {
        let ([batch, _, t, s], [q, k]) = (list.tokens(), list.block());
        let (rows, columns) = list.numbers();
        let seen = |class: &HeadClass| {
            let all = 0..batch * rows * columns;
            let seen = all.map(|n| {
                let (b, q, k) = (n / columns / rows, n / columns % rows, n % columns);
                i32::from(list.sees(b, class.heads.start, q, k))
            });
            ints(&seen.collect::<Vec<_>>(), [batch, 1, rows, columns], device)
        };
        let blocks = |len: usize, block: usize| {
            let blocks: Vec<i32> = (0..len).map(|i| (i / block) as i32).collect();
            ints(&blocks, [1, 1, 1, len], device).reshape([len])
        };
        let seen = mask.classes().iter().map(seen).collect();
        Self { seen, q_block: blocks(t, q), k_block: blocks(s, k) }
    }
}

/// What a stride looks at: the farthest near block of every query that is hidden `[B, 1, T, 1]`,
/// blocks and columns of the keys `[B, 1, 1, S]`.
struct Blocks {
    farthest: Tensor<4, Int>,
    k_block: Tensor<4, Int>,
    k_column: Tensor<4, Int>,
}

impl Side {
    fn new(mask: &Mask, device: &Device) -> Self {
        let (b, t, s) = (mask.queries().batch(), mask.queries().len(), mask.keys().len());
        let column = |x: &[i32]| ints(x, [b, 1, t, 1], device);
        let row = |x: &[i32]| ints(x, [b, 1, 1, s], device);
        let sink: Vec<i32> = mask.sink().iter().map(|s| *s as i32).collect();
        let strided = mask.strided().map(|strided| {
            let pos = mask.queries().pos().iter();
            let farthest: Vec<i32> = pos.map(|p| strided.farthest(*p)).collect();
            Blocks {
                farthest: column(&farthest),
                k_block: row(&strided.k_block),
                k_column: row(&strided.k_column),
            }
        });
        Self {
            blocks: mask.blocks(TILE.0, TILE.1),
            labels: mask.labels().iter().map(|l| (column(&l.q), row(&l.k))).collect(),
            q_pos: column(mask.queries().pos()),
            k_pos: row(mask.keys().pos()),
            sink: row(&sink).equal_scalar(1),
            strided,
            listed: mask.list().map(|list| Listed::new(list, mask, device)),
            mask: mask.clone(),
        }
    }

    /// Kind of a tile over all rows of the batch together.
    fn kind(&self, class: usize, q: usize, k: usize) -> BlockKind {
        let kinds: Vec<_> =
            (0..self.mask.queries().batch()).map(|b| self.blocks.kind(b, class, q, k)).collect();
        match kinds.iter().all(|kind| *kind == kinds[0]) {
            true => kinds[0],
            false => BlockKind::Partial,
        }
    }

    /// `[B, 1, t, s]`, true where hidden.
    fn hidden(&self, class: usize, q: &Range<usize>, k: &Range<usize>) -> Tensor<4, Bool> {
        let rows = |x: &Tensor<4, Int>| x.clone().narrow(2, q.start, q.len());
        let columns = |x: &Tensor<4, Int>| x.clone().narrow(3, k.start, k.len());
        let shape = [self.mask.queries().batch(), 1, q.len(), k.len()];
        let both = |r: Tensor<4, Int>, c: Tensor<4, Int>| (r.expand(shape), c.expand(shape));
        let &HeadClass { labels, column, .. } = &self.mask.classes()[class];
        let labels = &self.labels[labels];
        let (ql, kl) = both(rows(&labels.0), columns(&labels.1));
        let mut hidden = ql.clone().not_equal(kl.clone());
        if self.mask.spec().anchor {
            let anchor = kl.equal_scalar(TokenMeta::ANCHOR);
            hidden = hidden.bool_and(anchor.bool_and(ql.greater_equal_scalar(0)).bool_not());
        }
        let (qp, kp) = both(rows(&self.q_pos), columns(&self.k_pos));
        if self.mask.spec().causal {
            hidden = hidden.bool_or(kp.clone().greater(qp.clone()));
        }
        // Sinks are never far.
        let hide = |hidden: Tensor<4, Bool>, far: Tensor<4, Bool>| {
            let far = match self.mask.spec().sinks {
                0 => far,
                _ => {
                    let sink = self.sink.clone().narrow(3, k.start, k.len()).expand(shape);
                    far.bool_and(sink.bool_not())
                }
            };
            hidden.bool_or(far)
        };
        if let Some(window) = self.mask.spec().window {
            let far = (qp - kp).greater_equal_scalar(window.min(i32::MAX as usize) as i32);
            hidden = hide(hidden, far);
        }
        if let (Some(blocks), Some(column)) = (&self.strided, column) {
            let (farthest, block) = both(rows(&blocks.farthest), columns(&blocks.k_block));
            let other = columns(&blocks.k_column).not_equal_scalar(column).expand(shape);
            hidden = hide(hidden, block.lower_equal(farthest).bool_and(other));
        }
        if let Some(listed) = &self.listed {
            let seen = listed.seen[class].clone();
            let seen = seen.select(2, listed.q_block.clone().narrow(0, q.start, q.len()));
            let seen = seen.select(3, listed.k_block.clone().narrow(0, k.start, k.len()));
            hidden = hidden.bool_or(seen.equal_scalar(0));
        }
        hidden
    }
}

fn ints(x: &[i32], shape: [usize; 4], device: &Device) -> Tensor<4, Int> {
    Tensor::from_data(TensorData::new(x.to_vec(), shape), (device, DType::I32))
}

fn part(tile: usize, size: usize, len: usize) -> Range<usize> {
    tile * size..((tile + 1) * size).min(len)
}

/// The sub-tensor of rows `b`, heads `h` and tokens `t`.
fn cut(x: &Tensor<4>, b: Range<usize>, h: &Range<usize>, t: &Range<usize>) -> Tensor<4> {
    let d = x.dims()[3];
    x.clone().slice([b, h.clone(), t.clone(), 0..d])
}

/// Scores `[B, heads, t, s]` in f32, or f64 where q is, hidden ones at [`LOW`].
fn scores(q: Tensor<4>, k: Tensor<4>, scale: f64, hidden: Option<&Tensor<4, Bool>>) -> Tensor<4> {
    let [b, h, t, _] = q.dims();
    let s = k.dims()[2];
    // Before the product: scores that are rounded to 16 bits would make lse as coarse as they are.
    let float = crate::precision::wide(q.dtype());
    let (q, k) = (grouped(q, k.dims()[1]).cast(float), k.cast(float));
    let x = products_on_card(q, k.transpose()).reshape([b, h, t, s]).mul_scalar(scale);
    match hidden {
        Some(hidden) => x.mask_fill(hidden.clone().expand([b, h, t, s]), LOW),
        None => x,
    }
}

/// `[B, K·g, t, D]` -> `[B, K, g·t, D]`, so that one product serves all heads of a key head.
fn grouped(x: Tensor<4>, kv: usize) -> Tensor<4> {
    let [b, h, t, d] = x.dims();
    x.reshape([b, kv, h / kv * t, d])
}

/// out `[B, H, T, E]`, lse `[B, H, T]`.
pub(super) fn forward(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    plan: &Plan,
) -> (Tensor<4>, Tensor<3>) {
    let [_, heads, t, _] = q.dims();
    let [batch, kv, s, e] = v.dims();
    let device = v.device();
    let sides: Vec<Side> = plan.0.masks.iter().map(|m| Side::new(m, &device)).collect();
    let wide = q.dtype() == DType::F64;
    let float = if wide { DType::F64 } else { DType::F32 };
    let (mut outs, mut lses) = (Vec::new(), Vec::new());
    for run in runs(&plan.0.masks, heads, kv) {
        let h = run.heads.len();
        for qi in 0..t.div_ceil(TILE.0) {
            let rows = part(qi, TILE.0, t);
            let full = |width: usize, x: f32| {
                Tensor::<4>::full([batch, h, rows.len(), width], x, (&device, DType::F32))
                    .cast(float)
            };
            let (mut acc, mut sum, mut top) = (full(e, 0.0), full(1, 0.0), full(1, LOW));
            for (i, side) in sides.iter().enumerate() {
                let b = i * batch..(i + 1) * batch;
                for ki in 0..s.div_ceil(TILE.1) {
                    let kind = side.kind(run.classes[i], qi, ki);
                    if kind == BlockKind::Skip {
                        continue;
                    }
                    let columns = part(ki, TILE.1, s);
                    let hidden = (kind == BlockKind::Partial)
                        .then(|| side.hidden(run.classes[i], &rows, &columns));
                    let x = scores(
                        cut(&q, b.clone(), &run.heads, &rows),
                        cut(&k, b.clone(), &run.kv, &columns),
                        plan.0.scale,
                        hidden.as_ref(),
                    )
                    .cast(float);
                    let next = top.clone().max_pair(x.clone().max_dim(3));
                    let keep = (top - next.clone()).exp();
                    let mut p = (x - next.clone()).exp();
                    if let Some(hidden) = hidden {
                        // A row with nothing visible so far has next = LOW and p = 1.
                        let shape = p.dims();
                        p = p.mask_fill(hidden.expand(shape), 0.0);
                    }
                    sum = sum * keep.clone() + p.clone().sum_dim(3);
                    let values = cut(&v, 0..batch, &run.kv, &columns);
                    let shape = [batch, h, rows.len(), e];
                    let p = grouped(p.cast(v.dtype()), run.kv.len());
                    acc = acc * keep + products_on_card(p, values).reshape(shape).cast(float);
                    top = next;
                }
            }
            let blind = sum.clone().equal_scalar(0.0);
            let lse = (sum.clone().log() + top).mask_fill(blind.clone(), f32::NEG_INFINITY);
            outs.push((acc / sum.mask_fill(blind, 1.0)).cast(v.dtype()));
            lses.push(lse.squeeze_dim::<3>(3).cast(DType::F32));
        }
    }
    let tiles = t.div_ceil(TILE.0);
    (rows_then_heads(outs, tiles), {
        let heads = lses.chunks(tiles).map(|c| Tensor::cat(c.to_vec(), 2)).collect();
        Tensor::cat(heads, 1)
    })
}

/// Tiles listed run by run: joined along tokens, then along heads.
fn rows_then_heads(tiles: Vec<Tensor<4>>, per_run: usize) -> Tensor<4> {
    Tensor::cat(tiles.chunks(per_run).map(|c| Tensor::cat(c.to_vec(), 2)).collect(), 1)
}

/// Adds to an accumulator that may not exist yet.
fn add(sum: &mut Option<Tensor<4>>, x: Tensor<4>) {
    *sum = Some(match sum.take() {
        Some(old) => old + x,
        None => x,
    });
}

/// (dq, dk, dv) shaped like q, k and v.
pub(super) fn backward(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    out: Tensor<4>,
    lse: Tensor<3>,
    dout: Tensor<4>,
    plan: &Plan,
) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
    let [stacked, heads, t, d] = q.dims();
    let [batch, kv, s, e] = v.dims();
    let (branches, device, dtype) = (stacked / batch, v.device(), q.dtype());
    let float = crate::precision::wide(dtype);
    let sides: Vec<Side> = plan.0.masks.iter().map(|m| Side::new(m, &device)).collect();
    // Σ_e dout·out, [B, H, T, 1], and lse with +LOW's negative where nothing is seen: exp gives 0.
    let delta = (dout.clone().cast(float) * out.cast(float)).sum_dim(3);
    let lse = lse.unsqueeze_dim::<4>(3).cast(float);
    let lse = lse.clone().mask_fill(lse.equal_scalar(f32::NEG_INFINITY), -LOW);
    let (q_tiles, k_tiles) = (t.div_ceil(TILE.0), s.div_ceil(TILE.1));
    let zeros =
        |h: usize, n: usize, w: usize| Tensor::<4>::zeros([batch, h, n, w], (&device, float));
    let all_runs = runs(&plan.0.masks, heads, kv);
    let mut dq: Vec<Option<Tensor<4>>> = vec![None; branches * all_runs.len() * q_tiles];
    let mut dk: Vec<Option<Tensor<4>>> = vec![None; branches * kv * k_tiles];
    let mut dv: Vec<Option<Tensor<4>>> = vec![None; kv * k_tiles];
    for (r, run) in all_runs.iter().enumerate() {
        for (i, side) in sides.iter().enumerate() {
            let b = i * batch..(i + 1) * batch;
            for ki in 0..k_tiles {
                let columns = part(ki, TILE.1, s);
                let keys = cut(&k, b.clone(), &run.kv, &columns);
                let values = cut(&v, 0..batch, &run.kv, &columns);
                let (mut dk_tile, mut dv_tile) = (None, None);
                for qi in 0..q_tiles {
                    let kind = side.kind(run.classes[i], qi, ki);
                    if kind == BlockKind::Skip {
                        continue;
                    }
                    let rows = part(qi, TILE.0, t);
                    let hidden = (kind == BlockKind::Partial)
                        .then(|| side.hidden(run.classes[i], &rows, &columns));
                    let queries = cut(&q, b.clone(), &run.heads, &rows);
                    let of_out = |x: &Tensor<4>| cut(x, 0..batch, &run.heads, &rows);
                    let x = scores(queries.clone(), keys.clone(), plan.0.scale, hidden.as_ref());
                    let p = (x.cast(float) - of_out(&lse)).exp();
                    let n = run.kv.len();
                    let g = grouped(of_out(&dout), n);
                    let shape = p.dims();
                    let dp = products_on_card(g.clone(), values.clone().transpose());
                    let dp = dp.reshape(shape).cast(float);
                    let ds =
                        (p.clone() * (dp - of_out(&delta))).mul_scalar(plan.0.scale).cast(dtype);
                    let (p, ds) = (grouped(p.cast(dtype), n), grouped(ds, n));
                    add(&mut dv_tile, products_on_card(p.transpose(), g).cast(float));
                    let of_k = products_on_card(ds.clone().transpose(), grouped(queries, n));
                    add(&mut dk_tile, of_k.cast(float));
                    let of_q = products_on_card(ds, keys.clone()).cast(float);
                    let of_q = of_q.reshape([batch, run.heads.len(), rows.len(), d]);
                    add(&mut dq[(i * all_runs.len() + r) * q_tiles + qi], of_q);
                }
                for (j, head) in run.kv.clone().enumerate() {
                    if let (Some(dk_tile), Some(dv_tile)) = (&dk_tile, &dv_tile) {
                        add(
                            &mut dk[(i * kv + head) * k_tiles + ki],
                            dk_tile.clone().narrow(1, j, 1),
                        );
                        add(&mut dv[head * k_tiles + ki], dv_tile.clone().narrow(1, j, 1));
                    }
                }
            }
        }
    }
    let q_parts = dq.into_iter().enumerate().map(|(n, x)| {
        let run = &all_runs[n / q_tiles % all_runs.len()];
        x.unwrap_or_else(|| zeros(run.heads.len(), part(n % q_tiles, TILE.0, t).len(), d))
    });
    let q_parts: Vec<Tensor<4>> = q_parts.collect();
    let join = |tiles: Vec<Option<Tensor<4>>>, width: usize| {
        let full = tiles
            .into_iter()
            .enumerate()
            .map(|(n, x)| x.unwrap_or_else(|| zeros(1, part(n % k_tiles, TILE.1, s).len(), width)));
        let full: Vec<_> = full.collect();
        let of_branch = full.chunks(kv * k_tiles).map(|c| rows_then_heads(c.to_vec(), k_tiles));
        Tensor::cat(of_branch.collect(), 0).cast(dtype)
    };
    let dq = q_parts
        .chunks(all_runs.len() * q_tiles)
        .map(|c| rows_then_heads(c.to_vec(), q_tiles))
        .collect();
    (Tensor::cat(dq, 0).cast(dtype), join(dk, d), join(dv, e))
}
