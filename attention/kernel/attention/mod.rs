//! Attention over disjoint branches with one softmax: memory O(T·D), nothing of size T×S kept.
//!
//! `reference` is dense and obvious, `tiled` is made of tensor operations, `flex` of slices and
//! a matrix-product library, and `hopper` (beside this folder) of CUDA C++; `autodiff` puts all but the
//! first behind one node of the graph, whose backward pass recomputes the tiles from (q, k, v, out,
//! lse). `stats` computes the weights once more for what is said about them, outside the graph.

mod autodiff;
#[cfg(feature = "flex")]
mod flex;
mod reference;
mod stats;
#[cfg(test)]
pub(crate) mod tests;
mod tiled;

use crate::{
    AttentionGrads, AttentionOptions, AttentionOutput, Branch, Error, Implementation, Mask,
};
use autodiff::AttentionOps;
use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Tensor};
use std::sync::Arc;

pub use stats::{Reduce, attention_stats};

/// Tile sizes (queries, keys) of the CPU form, also used to count visited blocks in tests.
pub const TILE: (usize, usize) = (64, 64);

/// Numbers that the CPU form holds in its backward pass beside what goes in and comes out, for memory
/// plans. With value heads as wide as the others.
///
/// # Shapes
/// q `[B, H, T, D]`, k `[B, K, S, D]` as ([B, H, T, D], K, S)
pub fn scratch([b, h, t, d]: [usize; 4], kv: usize, s: usize) -> usize {
    #[cfg(feature = "flex")]
    return flex::scratch([b, h, t, d], kv, s);
    #[cfg(not(feature = "flex"))]
    {
        let _ = (b, h, t, d, kv, s);
        0
    }
}

/// Everything about a call but its tensors.
#[derive(Clone, Debug)]
pub struct Plan(pub(crate) Arc<PlanInner>);

#[derive(Debug)]
pub(crate) struct PlanInner {
    /// One per branch.
    pub masks: Vec<Mask>,
    pub scale: f64,
    pub implementation: Implementation,
    #[cfg(feature = "cuda-nvrtc")]
    pub deterministic: bool,
}

/// Attention of all branches with one softmax over their disjoint sets of keys.
///
/// # Shapes
/// branches: q `[B, H, T, D]`, k `[B, K, S, D]` with K dividing H; v `[B, K, S, E]`;
/// out `[B, H, T, E]`, lse `[B, H, T]` (f32, detached).
///
/// A query that sees nothing gives zeros, and zero gradients.
///
/// # Errors
/// [`Error::Shape`] when shapes, dtypes or masks do not fit; [`Error::Unsupported`] when the
/// implementation asked for is not there.
///
/// ```
/// # use burn::tensor::{Device, Distribution, Tensor};
/// # use longburn_kernels::{masked_attention, AttentionOptions, Branch, Mask};
/// let device = Device::default();
/// let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Default, &device);
/// let (q, k, v) = (random([1, 4, 100, 16]), random([1, 2, 100, 16]), random([1, 2, 100, 16]));
/// let branch = Branch { q, k, mask: Mask::causal(1, 100, 4) };
/// let out = masked_attention(&[branch], v, &AttentionOptions::default()).unwrap().out;
/// assert_eq!(out.dims(), [1, 4, 100, 16]);
/// ```
pub fn masked_attention(
    branches: &[Branch],
    v: Tensor<4>,
    options: &AttentionOptions,
) -> Result<AttentionOutput, Error> {
    let plan = check("masked_attention", branches, ("v", &v), options)?;
    if options.implementation == Implementation::Reference {
        return Ok(reference::attention(branches, v, plan.0.scale));
    }
    let tracked = |branch: &Branch| branch.q.is_tracked() || branch.k.is_tracked();
    let backward = v.is_tracked() || branches.iter().any(tracked);
    let plan = prepare("masked_attention", plan, branches, &v, options, backward)?;
    let (q, k) = stack(branches);
    let (out, lse) = <Dispatch as AttentionOps>::attention_forward(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        plan,
    );
    let lse: Tensor<3> = Tensor::from_dispatch(lse);
    Ok(AttentionOutput { out: Tensor::from_dispatch(out), lse: lse.detach() })
}

/// Gradients of attention for part of its keys, given the *global* `out` and `lse`: rings and
/// attention servers call it once per part and add up `dq`.
///
/// # Shapes
/// As [`masked_attention`]; `dout` like `out`. Tensors without autodiff.
///
/// # Errors
/// As [`masked_attention`]; the reference has no backward of its own.
pub fn attention_backward(
    branches: &[Branch],
    v: Tensor<4>,
    output: &AttentionOutput,
    dout: Tensor<4>,
    options: &AttentionOptions,
) -> Result<AttentionGrads, Error> {
    let plan = check("attention_backward", branches, ("v", &v), options)?;
    if options.implementation == Implementation::Reference {
        return Err(Error::Unsupported {
            op: "attention_backward",
            reason: "the reference is differentiated by autodiff; choose another".into(),
        });
    }
    let [b, h, t, _] = branches[0].q.dims();
    let ([batch, .., e], dtype) = (v.dims(), v.dtype());
    for (name, x) in [("out", &output.out), ("dout", &dout)] {
        if x.dims() != [b, h, t, e] || x.dtype() != dtype {
            let reason = format!(
                "{name} is {:?} {:?}, expected {:?} {dtype:?}",
                x.dims(),
                x.dtype(),
                [b, h, t, e]
            );
            return Err(Error::shape("attention_backward", reason));
        }
    }
    check_lse("attention_backward", &output.lse, [b, h, t])?;
    let plan = prepare("attention_backward", plan, branches, &v, options, true)?;
    let (q, k) = stack(branches);
    let (dq, dk, dv) = <Dispatch as AttentionOps>::attention_gradients(
        q.inner().into_dispatch(),
        k.inner().into_dispatch(),
        v.inner().into_dispatch(),
        output.out.clone().inner().into_dispatch(),
        output.lse.clone().inner().into_dispatch(),
        dout.inner().into_dispatch(),
        plan,
    );
    let parts = |x| Tensor::<4>::from_dispatch(x).split(batch, 0);
    Ok(AttentionGrads { dq: parts(dq), dk: parts(dk), dv: Tensor::from_dispatch(dv) })
}

/// Branches stacked along the batch: `[N·B, H, T, D]`, `[N·B, K, S, D]`.
fn stack(branches: &[Branch]) -> (Tensor<4>, Tensor<4>) {
    match branches {
        [one] => (one.q.clone(), one.k.clone()),
        many => (
            Tensor::cat(many.iter().map(|b| b.q.clone()).collect(), 0),
            Tensor::cat(many.iter().map(|b| b.k.clone()).collect(), 0),
        ),
    }
}

fn check_lse(op: &'static str, lse: &Tensor<3>, shape: [usize; 3]) -> Result<(), Error> {
    if lse.dims() == shape && lse.dtype() == DType::F32 {
        return Ok(());
    }
    let reason = format!("lse is {:?} {:?}, expected {shape:?} F32", lse.dims(), lse.dtype());
    Err(Error::shape(op, reason))
}

/// `v` are the values or, where a call has none, the keys, with their name.
fn check(
    op: &'static str,
    branches: &[Branch],
    (name, v): (&str, &Tensor<4>),
    options: &AttentionOptions,
) -> Result<Plan, Error> {
    let fail = |reason: String| Err(Error::shape(op, reason));
    let Some(first) = branches.first() else {
        return fail("no branch given".into());
    };
    let [b, h, t, d] = first.q.dims();
    let [vb, kv, s, e] = v.dims();
    if b * h * t * d * s * e == 0 {
        let (q, v) = (first.q.dims(), v.dims());
        return fail(format!("an empty dimension in q {q:?} or {name} {v:?}"));
    }
    if kv == 0 || h % kv != 0 {
        return fail(format!("{kv} key heads do not divide {h} query heads"));
    }
    if vb != b {
        return fail(format!("q has {b} rows, {name} has {vb}"));
    }
    for (i, branch) in branches.iter().enumerate() {
        if branch.q.dims() != [b, h, t, d] || branch.k.dims() != [b, kv, s, d] {
            return fail(format!(
                "branch {i}: q {:?} and k {:?}, expected {:?} and {:?}",
                branch.q.dims(),
                branch.k.dims(),
                [b, h, t, d],
                [b, kv, s, d]
            ));
        }
        let m = &branch.mask;
        let of_mask = (m.queries().batch(), m.heads(), m.queries().len(), m.keys().len());
        if of_mask != (b, h, t, s) {
            return fail(format!(
                "branch {i}: the mask is for (batch, heads, queries, keys) {of_mask:?}, the tensors are {:?}",
                (b, h, t, s)
            ));
        }
        if let Some(stride) = m.spec().stride.filter(|stride| stride.key_heads != kv) {
            return fail(format!(
                "branch {i}: the mask's stride is for {} key heads, k has {kv}",
                stride.key_heads
            ));
        }
        if branch.q.dtype() != v.dtype() || branch.k.dtype() != v.dtype() {
            return fail(format!(
                "branch {i}: q is {:?}, k {:?}, {name} {:?}",
                branch.q.dtype(),
                branch.k.dtype(),
                v.dtype()
            ));
        }
    }
    let scale = options.scale.unwrap_or(1.0 / (d as f64).sqrt());
    // Kernels compute with it in f32.
    if !(scale as f32).is_finite() {
        return fail(format!("scale is {scale}, which f32 does not hold"));
    }
    let implementation = choose(options.implementation, v)?;
    let masks = branches.iter().map(|b| b.mask.clone()).collect();
    Ok(Plan(Arc::new(PlanInner {
        masks,
        scale,
        implementation,
        #[cfg(feature = "cuda-nvrtc")]
        deterministic: options.deterministic,
    })))
}

/// Compiles what a call needs that is compiled at run time, since a node of the graph cannot fail later.
/// Where that does not work, `Auto` runs something else.
#[cfg(feature = "cuda-nvrtc")]
fn prepare(
    op: &'static str,
    plan: Plan,
    branches: &[Branch],
    v: &Tensor<4>,
    options: &AttentionOptions,
    backward: bool,
) -> Result<Plan, Error> {
    if plan.0.implementation != Implementation::Hopper {
        return Ok(plan);
    }
    match crate::hopper::prepare(&plan, branches[0].q.dims(), v, backward) {
        Ok(()) => Ok(plan),
        Err(_) if options.implementation == Implementation::Auto => {
            let masks = plan.0.masks.clone();
            let implementation = Implementation::Tiled;
            Ok(Plan(Arc::new(PlanInner { masks, implementation, ..*plan.0 })))
        }
        Err(reason) => Err(Error::Unsupported { op, reason }),
    }
}

/// Nothing is compiled at run time.
#[cfg(not(feature = "cuda-nvrtc"))]
fn prepare(
    _: &'static str,
    plan: Plan,
    _: &[Branch],
    _: &Tensor<4>,
    _: &AttentionOptions,
    _: bool,
) -> Result<Plan, Error> {
    Ok(plan)
}

/// What `Auto` means on the tensor's device.
fn choose(wanted: Implementation, v: &Tensor<4>) -> Result<Implementation, Error> {
    let on_cpu = is_flex(&v.device());
    match wanted {
        Implementation::Auto if on_cpu && v.dtype() != DType::F64 => Ok(Implementation::Flex),
        Implementation::Auto if hopper_refusal(v).is_none() => Ok(Implementation::Hopper),
        Implementation::Auto => Ok(Implementation::Tiled),
        Implementation::Flex if !on_cpu || v.dtype() == DType::F64 => Err(Error::Unsupported {
            op: "masked_attention",
            reason: format!(
                "`Flex` runs on the CPU in up to 32 bits, not on {:?} in {:?}",
                v.device(),
                v.dtype()
            ),
        }),
        Implementation::Cube => Err(Error::Unsupported {
            op: "masked_attention",
            reason: "there are no CubeCL kernels of it".to_string(),
        }),
        Implementation::Hopper => match hopper_refusal(v) {
            Some(reason) => Err(Error::Unsupported { op: "masked_attention", reason }),
            None => Ok(Implementation::Hopper),
        },
        other => Ok(other),
    }
}

#[cfg(feature = "cuda-nvrtc")]
fn hopper_refusal(v: &Tensor<4>) -> Option<String> {
    crate::hopper::refusal(v)
}

#[cfg(not(feature = "cuda-nvrtc"))]
fn hopper_refusal(_: &Tensor<4>) -> Option<String> {
    Some("`Hopper` needs a build with the feature `cuda-nvrtc`".to_string())
}

#[cfg(feature = "flex")]
pub(crate) fn is_flex(device: &Device) -> bool {
    device.clone().inner() == Device::flex()
}

#[cfg(not(feature = "flex"))]
pub(crate) fn is_flex(_: &Device) -> bool {
    false
}

/// The implementation that [`masked_attention`] would run for tensors like `v`, for reports. A call whose
/// masks, branches or kernels [`Implementation::Hopper`] refuses runs `Tiled` under `Auto`.
///
/// # Errors
/// As [`masked_attention`] for an implementation that is not there.
pub fn implementation_for(wanted: Implementation, v: &Tensor<4>) -> Result<Implementation, Error> {
    choose(wanted, v)
}

/// Why `Auto` runs other code than [`Implementation::Hopper`] for tensors like `v` on an NVIDIA card, for reports;
/// nothing where it runs that, and on other devices.
pub fn passed_over(wanted: Implementation, v: &Tensor<4>) -> Option<String> {
    #[cfg(feature = "cuda-nvrtc")]
    if wanted == Implementation::Auto && crate::hopper::on_cuda(v) {
        return hopper_refusal(v);
    }
    let _ = (wanted, v);
    None
}
