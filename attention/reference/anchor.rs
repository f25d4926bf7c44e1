//! AnchorAttention (2411.13476) document by document: each sees the anchor and itself, nothing else.

use burn::tensor::{Bool, Tensor, TensorData, activation::softmax};

/// q `[B, H, T, D]`, k and v `[B, K, T, D]` -> `[B, H, T, D]`. Token 0 of every row is the anchor;
/// `documents` are the lengths of those behind it, the same in all rows, T − 1 together.
///
/// Panics where they are not.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, documents: &[usize]) -> Tensor<4> {
    let ([b, h, t, d], kv) = (q.dims(), k.dims()[1]);
    assert_eq!(documents.iter().sum::<usize>() + 1, t);
    let repeat = |x: Tensor<4>| {
        let e = x.dims()[3];
        x.reshape([b, kv, 1, t, e]).repeat_dim(2, h / kv).reshape([b, h, t, e])
    };
    let (k, v) = (repeat(k), repeat(v));
    // Alone, the anchor sees itself.
    let mut outs = vec![v.clone().narrow(2, 0, 1)];
    let mut start = 1;
    for &len in documents {
        let own = |x: &Tensor<4>| {
            Tensor::cat(vec![x.clone().narrow(2, 0, 1), x.clone().narrow(2, start, len)], 2)
        };
        let scores = q.clone().narrow(2, start, len).matmul(own(&k).transpose());
        let scores = scores.div_scalar((d as f64).sqrt());
        let later: Vec<bool> =
            (0..len * (len + 1)).map(|n| n % (len + 1) > n / (len + 1) + 1).collect();
        let later: Tensor<4, Bool> =
            Tensor::from_data(TensorData::new(later, [1, 1, len, len + 1]), &q.device());
        let scores = scores.mask_fill(later.expand([b, h, len, len + 1]), -1e30);
        outs.push(softmax(scores, 3).matmul(own(&v)));
        start += len;
    }
    Tensor::cat(outs, 2)
}
