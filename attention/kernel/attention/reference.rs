//! Dense attention as in the textbook: all scores at once, differentiated by Burn.

use crate::{AttentionOutput, Branch, Mask};
use burn::tensor::{DType, Device, Tensor, TensorData, activation::softmax};

/// One softmax over the concatenated scores of all branches.
pub(super) fn attention(branches: &[Branch], v: Tensor<4>, scale: f64) -> AttentionOutput {
    let [_, heads, _, _] = branches[0].q.dims();
    let device = v.device();
    let v = repeat_heads(v, heads);
    let mut scores = Vec::new();
    let mut visible = Vec::new();
    for branch in branches {
        let k = repeat_heads(branch.k.clone(), heads);
        scores.push(branch.q.clone().matmul(k.transpose()).mul_scalar(scale));
        visible.push(dense(&branch.mask, &device, branch.q.dtype()));
    }
    let values = Tensor::cat(vec![v; branches.len()], 2);
    let (scores, visible) = (Tensor::cat(scores, 3), Tensor::cat(visible, 3));
    let hidden = visible.clone().equal_scalar(0.0);
    // Large and finite: a row that sees nothing stays free of NaN and is zeroed afterwards.
    let scores = scores.mask_fill(hidden, -1e30);
    let seen = visible.clone().sum_dim(3).greater_scalar(0.0).float().cast(scores.dtype());
    let weights = softmax(scores.clone(), 3) * visible;
    let out = weights.matmul(values) * seen.clone();
    let top = scores.clone().max_dim(3);
    let lse = (scores - top.clone()).exp().sum_dim(3).log() + top;
    let lse = lse.mask_fill(seen.equal_scalar(0.0), f32::NEG_INFINITY);
    AttentionOutput { out, lse: lse.squeeze_dim::<3>(3).cast(DType::F32).detach() }
}

/// exp(score − lse), 0 where hidden or where lse is −∞: `[B, H, T, S]`.
pub(super) fn weights(branch: &Branch, lse: Tensor<3>, scale: f64) -> Tensor<4> {
    let Branch { q, k, mask } = branch;
    let visible = dense(mask, &q.device(), q.dtype());
    let k = repeat_heads(k.clone(), mask.heads());
    let scores = q.clone().matmul(k.transpose()).mul_scalar(scale);
    let blind = lse.clone().equal_scalar(f32::NEG_INFINITY);
    let lse = lse.mask_fill(blind, f32::INFINITY).unsqueeze_dim::<4>(3).cast(q.dtype());
    (scores - lse).exp().mask_fill(visible.equal_scalar(0.0), 0.0)
}

/// `[B, K, S, D]` -> `[B, H, S, D]`: head h reads key head h / (H / K).
fn repeat_heads(x: Tensor<4>, heads: usize) -> Tensor<4> {
    let [b, kv, s, d] = x.dims();
    x.reshape([b, kv, 1, s, d]).repeat_dim(2, heads / kv).reshape([b, heads, s, d])
}

/// `[B, H, T, S]`, 1 where visible.
fn dense(mask: &Mask, device: &Device, dtype: DType) -> Tensor<4> {
    let [b, h, t, s] =
        [mask.queries().batch(), mask.heads(), mask.queries().len(), mask.keys().len()];
    let mut data = Vec::with_capacity(b * h * t * s);
    for row in 0..b {
        for head in 0..h {
            for i in 0..t {
                data.extend((0..s).map(|j| mask.visible(row, head, i, j) as u8 as f32));
            }
        }
    }
    Tensor::<4>::from_data(TensorData::new(data, [b, h, t, s]), (device, DType::F32)).cast(dtype)
}
