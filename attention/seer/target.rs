//! What the gate learns: the largest attention weight of every block, and the divergence from it.

use super::{BlockLayout, Reduction, SeerConfig};
use crate::Result;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use longburn_kernels::{AttentionOptions, Branch, Mask, Reduce, attention_stats};

/// Logit of a block that may not be chosen.
const LOW: f32 = -1e20;
/// Numbers of a pass over weights of single queries, `[B, H, queries, N]`.
const SLAB: usize = 1 << 24;

/// Largest weight of every pair of blocks, each row divided by its sum.
///
/// # Shapes
/// branch as `layout` lays its tokens out, lse `[B, H, T']` -> `[B, H, N, N]`
///
/// # Errors
/// What the statistics of attention refuse.
pub fn block_targets(
    branch: &Branch,
    lse: Tensor<3>,
    layout: &BlockLayout,
    options: &AttentionOptions,
) -> Result<Tensor<4>> {
    let (block, n) = (layout.block(), layout.blocks());
    let largest = Reduce::BlockMax { queries: block, keys: block };
    let largest = weights(branch, lse, largest, options)?.narrow(2, 0, n).narrow(3, 0, n);
    // A row that sees something has a weight of at least one in so many keys.
    let sum = largest.clone().sum_dim(3).clamp_min(1e-20);
    Ok(largest / sum)
}

/// Largest weight that a query gives to every block *before its own*, over the query heads of a
/// key head, each row divided by its sum.
///
/// # Shapes
/// as [`block_targets`]; hidden `[B or 1, 1, T', N]` -> `[B, K, T', N]`
///
/// # Errors
/// What the statistics of attention refuse.
pub fn token_targets(
    branch: &Branch,
    lse: Tensor<3>,
    layout: &BlockLayout,
    hidden: &Tensor<4, Bool>,
    options: &AttentionOptions,
) -> Result<Tensor<4>> {
    let [b, h, t, _] = branch.q.dims();
    let (kv, n) = (branch.k.dims()[1], layout.blocks());
    let largest = Reduce::BlockMax { queries: 1, keys: layout.block() };
    let piece = (SLAB / (b * h * n)).max(layout.block());
    let mut parts = Vec::new();
    for start in (0..t).step_by(piece) {
        let len = piece.min(t - start);
        let queries = branch.mask.queries().slice(start..start + len)?;
        let (spec, keys) = (branch.mask.spec().clone(), branch.mask.keys().clone());
        let mask = Mask::new(spec, queries, keys, h)?;
        let part = Branch { q: branch.q.clone().narrow(2, start, len), k: branch.k.clone(), mask };
        let lse = lse.clone().narrow(2, start, len);
        let of_heads = weights(&part, lse, largest, options)?.narrow(3, 0, n);
        let of_heads: Tensor<5> = of_heads.reshape([b, kv, h / kv, len, n]);
        parts.push(of_heads.max_dim(2).reshape([b, kv, len, n]));
    }
    let largest = Tensor::cat(parts, 2);
    let largest = largest.mask_fill(hidden.clone().expand([b, kv, t, n]), 0.0);
    let sum = largest.clone().sum_dim(3).add_scalar(1e-9);
    Ok(largest / sum)
}

/// Statistics beside the tensors that they are compared with: without a graph of their own.
fn weights(
    branch: &Branch,
    lse: Tensor<3>,
    reduce: Reduce,
    options: &AttentionOptions,
) -> Result<Tensor<4>> {
    let found = attention_stats(branch, lse, reduce, options)?;
    Ok(if branch.q.is_autodiff() { Tensor::from_inner(found) } else { found })
}

/// Blocks that a query may not choose: its own (always computed), later ones, other documents'.
///
/// # Shapes
/// `[B or 1, 1, T', N]`, true where hidden
pub fn strict(layout: &BlockLayout, device: &Device) -> Tensor<4, Bool> {
    let queries = layout.tokens().len();
    let (rows, n, block) = (layout.rows(), layout.blocks(), layout.block());
    let mut data = Vec::with_capacity(rows * queries * n);
    for b in 0..rows {
        for t in 0..queries {
            let own = t / block;
            let first = if own < n { layout.cell(b, own).document.0 } else { own };
            data.extend((0..n).map(|j| !(first..own).contains(&j)));
        }
    }
    Tensor::from_data(TensorData::new(data, [rows, 1, queries, n]), device)
}

/// Kullback-Leibler divergence of the gate's rows from the targets, each row times its weight,
/// summed up; hidden blocks have neither score nor target. In f32.
///
/// # Shapes
/// logits, targets `[B, heads, R, N]`; hidden `[B or 1, 1, R, N]`; weights `[B or 1, 1, R, 1]` ->
/// `[1]`
pub fn divergence(
    logits: Tensor<4>,
    targets: Tensor<4>,
    hidden: Tensor<4, Bool>,
    weights: Tensor<4>,
) -> Tensor<1> {
    let hidden = hidden.expand(logits.dims());
    let scores = log_softmax(logits.cast(DType::F32).mask_fill(hidden, LOW), 3);
    // t·ln t is 0 where t is.
    let entropy = targets.clone() * targets.clone().clamp_min(f32::MIN_POSITIVE).log();
    ((entropy - targets * scores) * weights).sum()
}

/// Weights of the rows of [`divergence`] for pairs of blocks: 0 for the first rows of every
/// document, and what makes the sum a mean.
///
/// # Shapes
/// -> `[B or 1, 1, N, 1]`
pub fn block_weights(config: &SeerConfig, layout: &BlockLayout, logits: &Tensor<4>) -> Tensor<4> {
    let (n, rows, heads) = (layout.blocks(), layout.rows(), logits.dims()[1]);
    let kept = |place: usize| {
        let cell = layout.cells()[place];
        let dropped = (cell.of() as f64 * config.skipped()).floor() as usize;
        cell.tokens > 0 && place % n - cell.document.0 >= dropped
    };
    let all = layout.cells().iter().enumerate();
    let elements: usize =
        all.filter(|(place, _)| kept(*place)).map(|(_, cell)| heads * cell.of()).sum();
    let divisor = match config.reduction {
        Reduction::Mean => elements,
        Reduction::BatchMean => layout.documents(),
    };
    let weight = |place| if kept(place) { 1.0 / divisor.max(1) as f32 } else { 0.0 };
    let data: Vec<f32> = (0..rows * n).map(weight).collect();
    Tensor::from_data(TensorData::new(data, [rows, 1, n, 1]), &logits.device())
}

/// The same for single queries: every document counts alike.
///
/// # Shapes
/// -> `[B or 1, 1, T', 1]`
pub fn token_weights(config: &SeerConfig, layout: &BlockLayout, logits: &Tensor<4>) -> Tensor<4> {
    let [_, heads, queries, _] = logits.dims();
    let (n, rows, block) = (layout.blocks(), layout.rows(), layout.block());
    let documents = layout.documents().max(1) as f64;
    let weight = |b: usize, t: usize| {
        let own = t / block;
        if own >= n || t % block >= layout.cell(b, own).tokens {
            return 0.0;
        }
        let cell = layout.cell(b, own);
        let (first, last) = cell.document;
        let len = (last - first) * block + layout.cell(b, last).tokens;
        let dropped = (len as f64 * config.skipped()) as usize;
        if t - first * block < dropped {
            return 0.0;
        }
        let elements = match config.reduction {
            Reduction::Mean => heads * (len - dropped) * cell.of(),
            Reduction::BatchMean => 1,
        };
        (1.0 / (documents * elements as f64)) as f32
    };
    let data: Vec<f32> = (0..rows * queries).map(|i| weight(i / queries, i % queries)).collect();
    Tensor::from_data(TensorData::new(data, [rows, 1, queries, 1]), &logits.device())
}
