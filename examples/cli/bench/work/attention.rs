//! Attention: the kernel, and what a plain Burn program writes.

use super::{Lazy, Work, calls, lazy};
use crate::bench::inputs;
use crate::bench::job::AttentionJob;
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Device, Tensor, TensorData};
use longburn::Result;
use longburn::kernel::{AttentionOptions, Branch, Mask, attention_backward, masked_attention};

struct Inputs {
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    /// Gradient of the output.
    dout: Tensor<4>,
}

impl Inputs {
    fn new(job: &AttentionJob, device: &Device) -> Self {
        let of_queries = [job.batch, job.heads, job.len, job.head_dim];
        let of_keys = [job.batch, job.kv_heads, job.len, job.head_dim];
        let dtype = job.dtype.dtype();
        let tensor = |shape, salt| inputs::tensor::<4>(shape, salt, 1.0, device).cast(dtype);
        Self {
            q: tensor(of_queries, 1),
            k: tensor(of_keys, 2),
            v: tensor(of_keys, 3),
            dout: tensor(of_queries, 4),
        }
    }
}

/// One call forward and, where asked for, the backward pass with the gradient of the output.
pub fn ours(job: &AttentionJob, device: &Device) -> Result<Box<dyn Work>> {
    let Inputs { q, k, v, dout } = Inputs::new(job, device);
    let branches = [Branch { q, k, mask: job.mask()? }];
    let options = AttentionOptions::default()
        .with_implementation(job.code.implementation())
        .with_deterministic(job.deterministic);
    let backward = job.backward;
    Ok(calls(device, move || {
        let output = masked_attention(&branches, v.clone(), &options)?;
        if !backward {
            return Ok(vec![lazy("out", output.out)]);
        }
        let dout = dout.clone();
        let grads = attention_backward(&branches, v.clone(), &output, dout, &options)?;
        let mut found = vec![lazy("out", output.out), lazy("dv", grads.dv)];
        found.extend(grads.dq.into_iter().map(|x| lazy("dq", x)));
        found.extend(grads.dk.into_iter().map(|x| lazy("dk", x)));
        Ok(found)
    }))
}

/// `softmax(q·kᵀ/√D + mask)·v` and autodiff.
pub fn stock(job: &AttentionJob, device: &Device) -> Result<Box<dyn Work>> {
    let inputs = Inputs::new(job, device);
    let hidden = hidden(&job.mask()?, job, device);
    let (repeat, backward) = (job.heads / job.kv_heads, job.backward);
    let scale = 1.0 / (job.head_dim as f64).sqrt();
    Ok(calls(device, move || {
        let leaf = |x: &Tensor<4>| match backward {
            true => x.clone().autodiff().require_grad(),
            false => x.clone(),
        };
        let (q, k, v) = (leaf(&inputs.q), leaf(&inputs.k), leaf(&inputs.v));
        let keys = repeated(k.clone(), repeat);
        let scores = q.clone().matmul(keys.transpose()).mul_scalar(scale);
        let weights = softmax(scores.mask_fill(hidden.clone(), f32::NEG_INFINITY), 3);
        let out = weights.matmul(repeated(v.clone(), repeat));
        if !backward {
            return Ok(vec![lazy("out", out)]);
        }
        let kept = out.clone().inner();
        let grads = (out * inputs.dout.clone().autodiff()).sum().backward();
        let mut found = vec![lazy("out", kept)];
        for (name, x) in [("dq", &q), ("dk", &k), ("dv", &v)] {
            found.extend(x.grad(&grads).map(|grad| lazy(name, grad)));
        }
        Ok::<Vec<Lazy>, _>(found)
    }))
}

/// `[B, K, T, D]` -> `[B, K·n, T, D]`
fn repeated(x: Tensor<4>, n: usize) -> Tensor<4> {
    let [b, kv, t, d] = x.dims();
    match n {
        1 => x,
        n => x.reshape([b, kv, 1, t, d]).repeat_dim(2, n).reshape([b, kv * n, t, d]),
    }
}

/// Pairs that do not count: `[1, 1 or H, T, T]`, the smaller where all heads are alike.
fn hidden(mask: &Mask, job: &AttentionJob, device: &Device) -> Tensor<4, Bool> {
    let spec = mask.spec();
    let alike = spec.groups.is_none() && spec.stride.is_none() && mask.list().is_none();
    let heads = if alike { 1 } else { job.heads };
    let mut values = Vec::with_capacity(heads * job.len * job.len);
    for h in 0..heads {
        for t in 0..job.len {
            values.extend((0..job.len).map(|s| !mask.visible(0, h, t, s)));
        }
    }
    Tensor::from_data(TensorData::new(values, [1, heads, job.len, job.len]), device)
}
