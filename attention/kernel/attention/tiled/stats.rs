//! Statistics of the weights in tiles out of tensor operations.

use super::*;
use crate::attention::stats::{Fold, Kind};

/// `[B, H, rows, columns]` of results, from tensors of 32 or 64 bits.
pub(in super::super) fn stats(
    q: Tensor<4>,
    k: Tensor<4>,
    lse: Tensor<3>,
    plan: &Plan,
    fold: Fold,
) -> Tensor<4> {
    let ([batch, heads, t, _], device, float) = (q.dims(), q.device(), q.dtype());
    let [_, kv, s, _] = k.dims();
    let side = Side::new(&plan.0.masks[0], &device);
    let width = fold.results((t, s)).1;
    // +LOW's negative where nothing is seen: exp gives 0.
    let lse = lse.unsqueeze_dim::<4>(3).cast(float);
    let lse = lse.clone().mask_fill(lse.equal_scalar(f32::NEG_INFINITY), -LOW);
    let (down, across) = (groups(t, fold.block.0, TILE.0), groups(s, fold.block.1, TILE.1));
    let mut outs = Vec::new();
    for run in runs(&plan.0.masks, heads, kv) {
        let class = run.classes[0];
        for group in &down {
            let blocks = group.len().div_ceil(fold.block.0);
            let mut out = Tensor::zeros([batch, run.heads.len(), blocks, width], (&device, float));
            for rows in pieces(group, TILE.0) {
                let queries = cut(&q, 0..batch, &run.heads, &rows);
                let base = cut(&lse, 0..batch, &run.heads, &rows);
                for columns in across.iter().flat_map(|group| pieces(group, TILE.1)) {
                    let kind = kind_of(&side, class, &rows, &columns);
                    if kind == BlockKind::Skip {
                        continue;
                    }
                    let keys = cut(&k, 0..batch, &run.kv, &columns);
                    let mut y = scores(queries.clone(), keys, plan.0.scale, None) - base.clone();
                    if kind == BlockKind::Partial {
                        // After the subtraction, so that a lse of NaN stays where it counts.
                        let hidden = side.hidden(class, &rows, &columns).expand(y.dims());
                        y = y.mask_fill(hidden, LOW);
                    }
                    let p = y.clone().exp();
                    out = match fold.kind {
                        Kind::Diagonals => {
                            add_at(out, columns.start + t - rows.end, diagonals(p), Kind::Sum)
                        }
                        kind => {
                            let x = if kind == Kind::Entropy { p * y.neg() } else { p };
                            let x = blocks_of(x, 2, fold.block.0, kind);
                            let x = blocks_of(x, 3, fold.block.1, kind);
                            add_at(out, columns.start / fold.block.1, x, kind)
                        }
                    };
                }
            }
            outs.push(out);
        }
    }
    let out = rows_then_heads(outs, down.len());
    // Diagonals begin with the farthest.
    if fold.kind == Kind::Diagonals { out.flip([3]) } else { out }
}

/// Tokens that are computed together: as many whole blocks as a tile holds, or one.
fn groups(len: usize, block: usize, tile: usize) -> Vec<Range<usize>> {
    let size = (tile / block).max(1) * block;
    (0..len.div_ceil(size)).map(|n| part(n, size, len)).collect()
}

/// Parts of a group of at most a tile, each of whole blocks or of one block.
fn pieces(group: &Range<usize>, tile: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let Range { start, end } = *group;
    (start..end).step_by(tile).map(move |first| first..(first + tile).min(end))
}

/// Kind of the pairs of any queries with any keys, from the tiles that they touch.
fn kind_of(side: &Side, class: usize, q: &Range<usize>, k: &Range<usize>) -> BlockKind {
    let tiles = |x: &Range<usize>, size| x.start / size..x.end.div_ceil(size);
    let keys = tiles(k, TILE.1);
    let mut kinds = tiles(q, TILE.0)
        .flat_map(|q| keys.clone().map(move |k| (q, k)))
        .map(|(q, k)| side.kind(class, q, k));
    let first = kinds.next().unwrap_or(BlockKind::Skip);
    if kinds.all(|kind| kind == first) { first } else { BlockKind::Partial }
}

/// Folds dimension `dim` by blocks; a last block that is cut off is filled with zeros, which
/// change neither a sum of weights nor a maximum.
fn blocks_of(x: Tensor<4>, dim: usize, block: usize, kind: Kind) -> Tensor<4> {
    let mut dims = x.dims();
    let len = dims[dim];
    let block = block.min(len);
    let blocks = len.div_ceil(block);
    dims[dim] = blocks * block - len;
    let x = match dims[dim] {
        0 => x,
        _ => Tensor::cat(vec![x.clone(), Tensor::zeros(dims, (&x.device(), x.dtype()))], dim),
    };
    let mut split = [0; 5];
    split[..dim].copy_from_slice(&dims[..dim]);
    split[dim..dim + 2].copy_from_slice(&[blocks, block]);
    split[dim + 2..].copy_from_slice(&dims[dim + 1..]);
    dims[dim] = blocks;
    let x = x.reshape(split);
    let x = if kind == Kind::Max { x.max_dim(dim + 1) } else { x.sum_dim(dim + 1) };
    x.reshape(dims)
}

/// Sums along the diagonals of `[.., m, n]`: those with equal j − i, from 1 − m on.
fn diagonals(x: Tensor<4>) -> Tensor<4> {
    let [b, h, m, n] = x.dims();
    let right = Tensor::zeros([b, h, m, m], (&x.device(), x.dtype()));
    // Rows one element shorter than they are stored move to the right one by one.
    let x = Tensor::cat(vec![x.flip([2]), right], 3).reshape([b, h, m * (n + m)]);
    let wide = n + m - 1;
    x.narrow(2, 0, m * wide).reshape([b, h, m, wide]).sum_dim(2)
}

/// Folds `x` into the columns of `out` from `first` on; what lies beyond its end is dropped.
fn add_at(out: Tensor<4>, first: usize, x: Tensor<4>, kind: Kind) -> Tensor<4> {
    let [b, h, rows, width] = out.dims();
    let len = x.dims()[3].min(width.saturating_sub(first));
    if len == 0 {
        return out;
    }
    let (old, x) = (out.clone().narrow(3, first, len), x.narrow(3, 0, len));
    let new = match kind {
        // Not the larger of a pair, which drops NaN.
        Kind::Max => Tensor::stack::<5>(vec![old, x], 4).max_dim(4).squeeze_dim::<4>(4),
        _ => old + x,
    };
    out.slice_assign([0..b, 0..h, 0..rows, first..first + len], new)
}
