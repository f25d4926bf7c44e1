//! LongGen's pattern (2410.01485; blocks as in 2407.17678) written down as a table of blocks, and
//! attention under it with all scores at once.

use crate::attention::LongGenConfig;
use burn::tensor::{Bool, Tensor, TensorData, activation::softmax};

/// Whether key head `head` sees block `n` from block `m`, for `heads` query and `key_heads` key
/// heads.
///
/// Columns are counted up from the first key head on: every head starts `step` blocks earlier than
/// the one before it.
pub fn sees(
    config: &LongGenConfig,
    (heads, key_heads): (usize, usize),
    head: usize,
    (m, n): (usize, usize),
) -> bool {
    if n > m {
        return false;
    }
    if m < n + config.local_blocks {
        return true;
    }
    let sinks = match (config.sink_blocks, config.stride) {
        (Some(sinks), _) => sinks,
        (None, None) => 1,
        (None, Some(_)) => 0,
    };
    if n < sinks {
        return true;
    }
    let Some(stride) = config.stride else { return false };
    if head + config.dense_heads >= key_heads {
        return true;
    }
    let step = config.step.unwrap_or(if stride / heads > 1 { stride / heads } else { 1 });
    let mut phase = config.offset;
    for _ in 0..head {
        phase += step;
    }
    (n + phase).is_multiple_of(stride)
}

/// q `[B, H, T, D]`, k and v `[B, K, T, D]` of one document per row from position 0 on -> `[B, H, T, D]`.
pub fn attention(config: &LongGenConfig, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let ([b, h, t, d], kv) = (q.dims(), k.dims()[1]);
    let mut hidden = Vec::with_capacity(h * t * t);
    for head in 0..h {
        for query in 0..t {
            for key in 0..t {
                let blocks = (query / config.block, key / config.block);
                let seen = key <= query && sees(config, (h, kv), head / (h / kv), blocks);
                hidden.push(!seen);
            }
        }
    }
    let hidden: Tensor<4, Bool> =
        Tensor::from_data(TensorData::new(hidden, [1, h, t, t]), &q.device());
    let repeat = |x: Tensor<4>| {
        let e = x.dims()[3];
        x.reshape([b, kv, 1, t, e]).repeat_dim(2, h / kv).reshape([b, h, t, e])
    };
    let scores = q.matmul(repeat(k).transpose()).div_scalar((d as f64).sqrt());
    let scores = scores.mask_fill(hidden.expand([b, h, t, t]), -1e30);
    softmax(scores, 3).matmul(repeat(v))
}
