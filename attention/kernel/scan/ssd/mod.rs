//! The scan of Mamba-2, one decay per head: `h_t = e^{a_t} h_{t-1} + Δ_t x_t ⊗ B_t`,
//! `y_t = h_t C_t`, computed by matrix products over chunks of tokens (structured state-space duality).
//!
//! Within a chunk, `y = ((C Bᵀ) ∘ L)(Δ x)` with `L_ij` the decay from token j to i; what came before
//! enters through the state at the chunk's beginning. `L` is built of products of decays, never of
//! differences of long sums, so that it is exact where decays are strong, and does not depend on
//! tokens outside of i and j.

mod autodiff;
#[cfg(any(test, feature = "cuda-nvrtc"))]
#[cfg_attr(not(feature = "cuda-nvrtc"), allow(dead_code))]
mod cuda;
mod documents;
#[cfg(feature = "flex")]
pub(super) mod flex;
mod reference;
mod tiled;

use super::{Step, Steps, softplus, unpack, with_row};
use crate::fused::swiglu;
use crate::precision::wide;
use crate::{Error, Implementation};
use autodiff::{Inputs, SsdOps};
use burn::backend::Dispatch;
use burn::tensor::Tensor;

/// Logarithm of a decay to nothing, where a document begins: finite, so that sums of it are.
const FORGET: f64 = -1e4;

/// Input of [`ssd`].
#[derive(Clone, Debug)]
pub struct Ssd {
    /// `[B, T, H, P]`
    pub x: Tensor<4>,
    /// Δ, `[B, T, H]`
    pub dt: Tensor<3>,
    /// A, `[H]`; negative in a layer.
    pub a: Tensor<1>,
    /// B, `[B, T, G, N]`, G divides H: heads in G runs of neighbours share one.
    pub b: Tensor<4>,
    /// C, `[B, T, G, N]`
    pub c: Tensor<4>,
    /// D, the part of x that passes by the state, `[H]` or `[H·P]`
    pub d: Option<Tensor<1>>,
    /// Gate: y is multiplied by silu(z), `[B, T, H, P]`
    pub z: Option<Tensor<4>>,
    /// Added to Δ before softplus, `[H]`
    pub dt_bias: Option<Tensor<1>>,
    /// Whether Δ goes through softplus.
    pub softplus: bool,
    /// Bounds of Δ, after softplus.
    pub dt_limit: Option<(f64, f64)>,
    /// State to go on from, `[B, H, P, N]`; zeros where none is given.
    pub h0: Option<Tensor<4>>,
    /// Documents and padding; one document per row where none are given.
    pub steps: Option<Steps>,
    /// Tokens per chunk.
    pub chunk: usize,
    /// Whether the state behind the last token is wanted.
    pub keep_state: bool,
    /// Which code runs.
    pub implementation: Implementation,
}

impl Ssd {
    /// The bare recurrence from a state of zeros, in chunks of 64.
    pub fn new(x: Tensor<4>, dt: Tensor<3>, a: Tensor<1>, b: Tensor<4>, c: Tensor<4>) -> Self {
        Self {
            x,
            dt,
            a,
            b,
            c,
            d: None,
            z: None,
            dt_bias: None,
            softplus: false,
            dt_limit: None,
            h0: None,
            steps: None,
            chunk: 64,
            keep_state: false,
            implementation: Implementation::Auto,
        }
    }
}

/// Input of [`ssd_discrete`].
#[derive(Clone, Debug)]
pub struct SsdDiscrete {
    /// `[B, T, H, P]`
    pub x: Tensor<4>,
    /// Factor of x, `[B, T, H]`
    pub weight: Tensor<3>,
    /// Logarithm of the decay, at most 0, `[B, T, H]`
    pub log_decay: Tensor<3>,
    /// `[B, T, G, N]`
    pub b: Tensor<4>,
    /// `[B, T, G, N]`
    pub c: Tensor<4>,
    /// D, the part of x that passes by the state, `[H]` or `[H·P]`
    pub d: Option<Tensor<1>>,
    /// `[B, H, P, N]`
    pub h0: Option<Tensor<4>>,
    /// Documents and padding.
    pub steps: Option<Steps>,
    /// Tokens per chunk.
    pub chunk: usize,
    /// Whether the state behind the last token is wanted.
    pub keep_state: bool,
    /// Which code runs.
    pub implementation: Implementation,
}

/// Everything about a call but its tensors.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) heads: usize,
    pub(crate) groups: usize,
    pub(crate) chunk: usize,
    pub(crate) steps: Steps,
    /// Whether D is there; a tensor of one zero stands in for it.
    pub(crate) skip: bool,
    pub(crate) keep_state: bool,
    pub(crate) implementation: Implementation,
}

/// y `[B, T, H, P]` and, where it was asked for, the state `[B, H, P, N]` behind the last token; both
/// with gradients of all that went in. Padding gives zeros.
///
/// # Errors
/// [`Error::Shape`] when shapes or steps do not fit, a size is 0 or the bounds of Δ are empty;
/// [`Error::Unsupported`] when the implementation asked for is not there.
pub fn ssd(input: Ssd) -> Result<(Tensor<4>, Option<Tensor<4>>), Error> {
    let fail = |reason: String| Err(Error::shape("ssd", reason));
    let [batch, len, heads, p] = input.x.dims();
    if let Some((low, high)) =
        input.dt_limit.filter(|(low, high)| low.is_nan() || high.is_nan() || low > high)
    {
        return fail(format!("dt_limit is ({low}, {high}), expected a lower and an upper bound"));
    }
    for (name, x) in [("A", Some(&input.a)), ("dt_bias", input.dt_bias.as_ref())] {
        if let Some(x) = x.filter(|x| x.dims() != [heads]) {
            return fail(format!("{name} is {:?}, expected [{heads}]", x.dims()));
        }
    }
    if let Some(z) = input.z.as_ref().filter(|z| z.dims() != [batch, len, heads, p]) {
        return fail(format!("z is {:?}, expected {:?}", z.dims(), input.x.dims()));
    }
    let mut dt = input.dt;
    if dt.dims() != [batch, len, heads] {
        return fail(format!("dt is {:?}, expected {:?}", dt.dims(), [batch, len, heads]));
    }
    // Decays multiply over many tokens: they are never computed in fewer than 32 bits.
    let kind = wide(dt.dtype());
    dt = dt.cast(kind);
    if let Some(padding) =
        input.steps.as_ref().and_then(|steps| steps.mask(Step::Skip, &dt.device()))
    {
        dt = dt.mask_fill(padding, 0.0);
    }
    if let Some(bias) = input.dt_bias {
        dt = with_row(dt, bias.cast(kind), |dt, bias| dt + bias);
    }
    if input.softplus {
        dt = softplus(dt);
    }
    if let Some((low, high)) = input.dt_limit {
        dt = dt.clamp_min(low);
        dt = if high.is_finite() { dt.clamp_max(high) } else { dt };
    }
    let (y, state) = ssd_discrete(SsdDiscrete {
        x: input.x,
        log_decay: with_row(dt.clone(), input.a.cast(kind), |dt, a| dt * a),
        weight: dt,
        b: input.b,
        c: input.c,
        d: input.d,
        h0: input.h0,
        steps: input.steps,
        chunk: input.chunk,
        keep_state: input.keep_state,
        implementation: input.implementation,
    })?;
    let y = match input.z {
        Some(z) => swiglu(z, y),
        None => y,
    };
    Ok((y, state))
}

/// The same from decays: what gated linear attention computes, too. With a decay of 1 and a weight of
/// 1 it is linear attention with queries C, keys B and values x.
///
/// # Errors
/// As [`ssd`].
pub fn ssd_discrete(input: SsdDiscrete) -> Result<(Tensor<4>, Option<Tensor<4>>), Error> {
    let [batch, len, heads, p] = input.x.dims();
    let (groups, n) = check(&input)?;
    let channels = heads * p;
    let skip = input.d.is_some();
    let d = match input.d {
        Some(d) if d.dims() == [heads] => {
            d.reshape([heads, 1]).repeat_dim(1, p).reshape([channels])
        }
        Some(d) => d,
        None => Tensor::zeros([1], (&input.x.device(), input.x.dtype())),
    };
    let steps = input.steps.unwrap_or_else(|| Steps::plain(batch, len));
    let x = input.x.reshape([batch, len, channels]);
    let implementation = input.implementation.in_f32("ssd", &x)?;
    let (mut weight, mut log_decay) = (input.weight, input.log_decay);
    let padding = steps.mask(Step::Skip, &x.device());
    // Chunks are cut where documents begin, and padding is left out; the reference, which goes token by
    // token over all rows, forgets by factors.
    let by_factors = implementation == Implementation::Reference;
    if by_factors {
        if let Some(padding) = padding.clone() {
            weight = weight.mask_fill(padding.clone(), 0.0);
            log_decay = log_decay.mask_fill(padding, 0.0);
        }
        if let Some(first) = steps.mask(Step::First, &x.device()) {
            log_decay = log_decay.mask_fill(first, FORGET);
        }
    }
    let flat = |x: Tensor<4>| x.reshape([batch, len, groups * n]);
    let inputs = Inputs {
        h0: match input.h0 {
            Some(h) => h.reshape([batch, channels, n]).swap_dims(1, 2),
            None => Tensor::zeros([batch, n, channels], (&x.device(), x.dtype())),
        },
        x,
        weight,
        log_decay,
        b: flat(input.b),
        c: flat(input.c),
        d,
    };
    let (chunk, keep_state) = (input.chunk, input.keep_state);
    let plan = Plan { heads, groups, chunk, steps, skip, keep_state, implementation };
    let (y, h) = match implementation {
        Implementation::Reference => {
            let (y, h) = reference::scan(inputs, &plan);
            (y, plan.keep_state.then_some(h))
        }
        _ => {
            let out = <Dispatch as SsdOps>::ssd_forward(inputs.into_dispatch(), plan.clone());
            unpack(Tensor::from_dispatch(out), len, plan.keep_state)
        }
    };
    let y = match padding.filter(|_| by_factors) {
        Some(padding) => y.mask_fill(padding, 0.0),
        None => y,
    };
    let y = y.reshape([batch, len, heads, p]);
    Ok((y, h.map(|h| h.swap_dims(1, 2).reshape([batch, heads, p, n]))))
}

/// Whether kernels in CUDA C++ run for tensors like `x`, heads of P channels and N numbers of state, where
/// [`Implementation::Tiled`] does, for reports.
pub fn ssd_in_cuda(x: &Tensor<3>, p: usize, n: usize) -> bool {
    #[cfg(feature = "cuda-nvrtc")]
    return cuda::run_for(x, p, n);
    #[cfg(not(feature = "cuda-nvrtc"))]
    {
        let _ = (x, p, n);
        false
    }
}

/// G and N.
fn check(x: &SsdDiscrete) -> Result<(usize, usize), Error> {
    let fail = |reason: String| Err(Error::shape("ssd", reason));
    let [batch, len, heads, p] = x.x.dims();
    let [_, _, groups, n] = x.b.dims();
    if batch * len * heads * p * groups * n == 0 {
        return fail(format!("an empty dimension in x {:?} or B {:?}", x.x.dims(), x.b.dims()));
    }
    if heads % groups != 0 {
        return fail(format!("{groups} groups do not divide {heads} heads"));
    }
    if x.chunk == 0 {
        return fail("chunk is 0, expected at least 1 token".into());
    }
    let wanted = [
        ("weight", Some(x.weight.dims().to_vec()), vec![batch, len, heads]),
        ("log_decay", Some(x.log_decay.dims().to_vec()), vec![batch, len, heads]),
        ("B", Some(x.b.dims().to_vec()), vec![batch, len, groups, n]),
        ("C", Some(x.c.dims().to_vec()), vec![batch, len, groups, n]),
        ("h0", x.h0.as_ref().map(|h| h.dims().to_vec()), vec![batch, heads, p, n]),
    ];
    for (name, got, want) in wanted {
        if let Some(got) = got.filter(|got| *got != want) {
            return fail(format!("{name} is {got:?}, expected {want:?} for x {:?}", x.x.dims()));
        }
    }
    let wide = |d: &&Tensor<1>| d.dims() != [heads] && d.dims() != [heads * p];
    if let Some(d) = x.d.as_ref().filter(wide) {
        return fail(format!("D is {:?}, expected [{heads}] or [{}]", d.dims(), heads * p));
    }
    if let Some(s) = x.steps.as_ref().filter(|s| (s.batch(), s.len()) != (batch, len)) {
        return fail(format!("steps of {} rows of {} for x {:?}", s.batch(), s.len(), x.x.dims()));
    }
    Ok((groups, n))
}
