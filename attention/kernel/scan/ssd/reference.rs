//! Token by token out of tensor operations, differentiated by Burn: slow, for tests.

use super::{Inputs, Plan};
use crate::precision::wide;
use burn::tensor::Tensor;

/// y `[B, T, E]` and the state `[B, N, E]`.
pub(super) fn scan(x: Inputs, plan: &Plan) -> (Tensor<3>, Tensor<3>) {
    let dtype = x.x.dtype();
    let kind = wide(dtype);
    let [batch, len, channels] = x.x.dims();
    let (heads, groups) = (plan.heads, plan.groups);
    let n = x.b.dims()[2] / groups;
    let p = channels / heads;
    let token = |x: &Tensor<3>, t: usize| x.clone().narrow(1, t, 1).cast(kind);
    let of_head = |x: &Tensor<3>, t: usize| token(x, t).reshape([batch, heads, 1, 1]);
    let of_group = |x: &Tensor<3>, t: usize| {
        token(x, t)
            .reshape([batch, groups, 1, n])
            .repeat_dim(2, heads / groups)
            .reshape([batch, heads, 1, n])
    };
    // `[B, H, P, N]`
    let mut h = x.h0.cast(kind).swap_dims(1, 2).reshape([batch, heads, p, n]);
    let mut y = Vec::with_capacity(len);
    for t in 0..len {
        let input = token(&x.x, t).reshape([batch, heads, p, 1]) * of_head(&x.weight, t);
        h = of_head(&x.log_decay, t).exp() * h + input * of_group(&x.b, t);
        let read = (h.clone() * of_group(&x.c, t)).sum_dim(3).reshape([batch, 1, channels]);
        y.push(match plan.skip {
            true => read + token(&x.x, t) * x.d.clone().cast(kind).unsqueeze(),
            false => read,
        });
    }
    let h = h.reshape([batch, channels, n]).swap_dims(1, 2);
    (Tensor::cat(y, 1).cast(dtype), h.cast(dtype))
}
