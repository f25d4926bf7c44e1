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

/// Scores of blocks for blocks, head by head and number by number.
///
/// # Shapes
/// q `[B, H, T, D]`, k `[B, K, T, D]` unrotated, sizes `[B, H, K, T, D]`; which of max, min, avg
/// are pooled for queries and keys; weights `[H, in, G]` (none: no layer) and `[K or H, in, G]` ->
/// `[B, H, N, N]`
pub fn block_logits(
    (q, k): (&[f32], &[f32]),
    [b, heads, kv, t, d]: [usize; 5],
    (block, q_pool, k_pool): (usize, [bool; 3], [bool; 3]),
    (q_weight, k_weight): (Option<Vec<f32>>, Vec<f32>),
    theta: f64,
) -> Vec<f32> {
    let n = t.div_ceil(block);
    let pooled = |x: &[f32], row: usize, i: usize, pools: [bool; 3]| -> Vec<f64> {
        let tokens = i * block..((i + 1) * block).min(t);
        let channel = |c: usize| tokens.clone().map(move |t_| f64::from(x[(row * t + t_) * d + c]));
        let (mut out, count) = (Vec::new(), tokens.len() as f64);
        for pool in (0..3).filter(|pool| pools[*pool]) {
            out.extend((0..d).map(|c| match pool {
                0 => channel(c).fold(f64::NEG_INFINITY, f64::max),
                1 => channel(c).fold(f64::INFINITY, f64::min),
                _ => channel(c).sum::<f64>() / count,
            }));
        }
        out
    };
    let times = |x: &[f64], weight: &[f32], head: usize, wide: usize| -> Vec<f64> {
        let of_head = &weight[head * x.len() * wide..];
        let one = |o: usize| (0..x.len()).map(|i| x[i] * f64::from(of_head[i * wide + o])).sum();
        (0..wide).map(one).collect()
    };
    let rotated = |x: Vec<f64>, pos: usize| -> Vec<f64> {
        let half = x.len() / 2;
        let turn = |c: usize| {
            let angle = pos as f64 * theta.powf(-((c % half) as f64) / half as f64);
            let other = if c < half { -x[c + half] } else { x[c - half] };
            x[c] * angle.cos() + other * angle.sin()
        };
        (0..x.len()).map(turn).collect()
    };
    let inputs = d * k_pool.iter().filter(|wanted| **wanted).count();
    let per_query_head = q_weight.is_none();
    let wide = k_weight.len() / inputs / if per_query_head { heads } else { kv };
    let mut logits = Vec::new();
    for (row, head) in (0..b * heads).map(|at| (at / heads, at % heads)) {
        let key_head = head / (heads / kv);
        let query = |i: usize| {
            let x = pooled(q, row * heads + head, i, q_pool);
            let x = q_weight.as_ref().map_or(x.clone(), |weight| times(&x, weight, head, wide));
            rotated(x, i * block)
        };
        let key = |j: usize| {
            let x = pooled(k, row * kv + key_head, j, k_pool);
            let of = if per_query_head { head } else { key_head };
            rotated(times(&x, &k_weight, of, wide), j * block)
        };
        let keys: Vec<Vec<f64>> = (0..n).map(key).collect();
        for query in (0..n).map(query) {
            let dot = |key: &Vec<f64>| key.iter().zip(&query).map(|(k, q)| k * q).sum::<f64>();
            logits.extend(keys.iter().map(|key| (dot(key) / (wide as f64).sqrt()) as f32));
        }
    }
    logits
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
