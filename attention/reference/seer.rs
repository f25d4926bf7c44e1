//! What SeerAttention's gates learn, from all attention weights (2410.13276 §3, 2506.08889 §3).

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Bool, Device, Tensor, TensorData};

/// Weights of causal attention.
///
/// # Shapes
/// q `[B, H, T, D]`, k `[B, K, T, D]` -> `[B, H, T, T]`
pub fn weights(q: Tensor<4>, k: Tensor<4>) -> Tensor<4> {
    let ([b, h, t, d], kv) = (q.dims(), k.dims()[1]);
    let k = k.reshape([b, kv, 1, t, d]).repeat_dim(2, h / kv).reshape([b, h, t, d]);
    let later = pairs(t, t, |i, j| j > i, &q.device()).expand([b, h, t, t]);
    let scores = q.matmul(k.transpose()).div_scalar((d as f64).sqrt());
    softmax(scores.mask_fill(later, -1e30), 3)
}

/// Largest weight of every pair of blocks, rows divided by their sums: `[B, H, N, N]`.
pub fn block_targets(weights: Tensor<4>, block: usize) -> Tensor<4> {
    let t = weights.dims()[2];
    let largest = |x: Tensor<4>, dim: usize| {
        let parts = (0..t).step_by(block);
        let part = |start: usize| x.clone().narrow(dim, start, block.min(t - start)).max_dim(dim);
        Tensor::cat(parts.map(part).collect(), dim)
    };
    let largest = largest(largest(weights, 2), 3);
    largest.clone() / largest.sum_dim(3)
}

/// Largest weight that a query gives to every block before its own, over the heads of a group,
/// rows divided by their sums: `[B, K, T, N]`.
pub fn token_targets(weights: Tensor<4>, kv: usize, block: usize) -> Tensor<4> {
    let [b, h, t, _] = weights.dims();
    let parts = (0..t).step_by(block).map(|start| {
        let largest = weights.clone().narrow(3, start, block.min(t - start)).max_dim(3);
        largest.reshape([b, kv, h / kv, t]).max_dim(2).reshape([b, kv, t, 1])
    });
    let largest: Tensor<4> = Tensor::cat(parts.collect(), 3);
    let n = largest.dims()[3];
    let own = pairs(t, n, |i, j| j >= i / block, &largest.device()).expand([b, kv, t, n]);
    let largest = largest.mask_fill(own, 0.0);
    largest.clone() / (largest.sum_dim(3) + 1e-9)
}

/// Mean over all elements of target·(ln target − score), scores after a logarithmic softmax over
/// what is not `hidden`, rows from `first` on.
///
/// # Shapes
/// logits, targets `[B, heads, R, N]`; hidden like them
pub fn loss(
    logits: Tensor<4>,
    targets: Tensor<4>,
    hidden: impl Fn(usize, usize) -> bool,
    first: usize,
) -> Tensor<1> {
    let [b, heads, r, n] = logits.dims();
    let hidden = pairs(r, n, hidden, &logits.device()).expand([b, heads, r, n]);
    let kept = |x: Tensor<4>| x.narrow(2, first, r - first);
    let scores = kept(log_softmax(logits.mask_fill(hidden, -1e20), 3));
    let targets = kept(targets);
    let none = targets.clone().equal_scalar(0.0);
    let logs = targets.clone().mask_fill(none, 1.0).log();
    (targets * (logs - scores)).mean()
}

fn pairs(
    rows: usize,
    columns: usize,
    holds: impl Fn(usize, usize) -> bool,
    device: &Device,
) -> Tensor<4, Bool> {
    let data: Vec<bool> = (0..rows * columns).map(|n| holds(n / columns, n % columns)).collect();
    Tensor::from_data(TensorData::new(data, [1, 1, rows, columns]), device)
}
