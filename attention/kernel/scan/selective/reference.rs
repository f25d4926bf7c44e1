//! Token by token out of tensor operations, differentiated by Burn: slow, for tests.

use super::{Inputs, Plan};
use crate::precision::wide;
use crate::scan::{Step, softplus};
use burn::tensor::{Tensor, activation::silu};

/// y `[B, T, E]` and the state `[B, N, E]`.
pub(super) fn scan(x: Inputs, plan: &Plan) -> (Tensor<3>, Tensor<3>) {
    let dtype = x.u.dtype();
    let kind = wide(dtype);
    let [batch, len, channels] = x.u.dims();
    let n = x.a.dims()[0];
    let device = x.u.device();
    let token = |x: &Tensor<3>, t: usize| x.clone().narrow(1, t, 1).cast(kind);
    // The group's numbers for each of its channels: `[B, 1, G·N] -> [B, N, E]`
    let spread = |x: Tensor<3>| {
        let per_group = channels / plan.groups;
        x.reshape([batch, plan.groups, 1, n])
            .repeat_dim(2, per_group)
            .reshape([batch, channels, n])
            .swap_dims(1, 2)
    };
    let mut h = x.h0.cast(kind);
    let a = x.a.cast(kind).unsqueeze::<3>();
    let d = x.d.cast(kind).unsqueeze::<3>();
    let mask = |zero| plan.steps.but(zero, &device);
    let (keep, live) = (mask(Step::First), mask(Step::Skip));
    let mut y = Vec::with_capacity(len);
    for t in 0..len {
        let (keep, live) = (token(&keep, t), token(&live, t));
        let delta = token(&x.delta, t);
        let delta = if plan.softplus { softplus(delta) } else { delta } * live.clone();
        let (u, b, c) = (token(&x.u, t), spread(token(&x.b, t)), spread(token(&x.c, t)));
        h = (delta.clone() * a.clone()).exp() * h * keep + delta * u.clone() * b;
        let mut out = (h.clone() * c).sum_dim(1);
        if plan.skip {
            out = out + d.clone() * u;
        }
        if plan.gate {
            out = out * silu(token(&x.z, t));
        }
        y.push(out * live);
    }
    (Tensor::cat(y, 1).cast(dtype), h.cast(dtype))
}
