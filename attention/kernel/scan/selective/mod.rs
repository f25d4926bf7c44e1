//! The scan of Mamba-1: `h_t = exp(Δ_t A) h_{t-1} + Δ_t u_t B_t`, `y_t = C_t·h_t + D u_t`.

mod autodiff;
#[cfg(feature = "cube")]
mod cube;
#[cfg(any(test, feature = "cuda-nvrtc"))]
#[cfg_attr(not(feature = "cuda-nvrtc"), allow(dead_code))]
mod cuda;
#[cfg(feature = "flex")]
pub(super) mod flex;
mod reference;
mod tiled;

use super::{Steps, unpack, with_row};
use crate::{Error, Implementation};
use autodiff::{Inputs, ScanOps};
use burn::backend::Dispatch;
use burn::tensor::Tensor;

/// Input of [`selective_scan`].
#[derive(Clone, Debug)]
pub struct SelectiveScan {
    /// `[B, T, E]`
    pub u: Tensor<3>,
    /// Δ, `[B, T, E]`
    pub delta: Tensor<3>,
    /// A, `[E, N]`; negative in a layer.
    pub a: Tensor<2>,
    /// B, `[B, T, G, N]`, G divides E: channels in G runs of neighbours share one.
    pub b: Tensor<4>,
    /// C, `[B, T, G, N]`
    pub c: Tensor<4>,
    /// D, the part of u that passes by the state, `[E]`
    pub d: Option<Tensor<1>>,
    /// Gate: y is multiplied by silu(z), `[B, T, E]`
    pub z: Option<Tensor<3>>,
    /// Added to Δ before softplus, `[E]`
    pub delta_bias: Option<Tensor<1>>,
    /// Whether Δ goes through softplus.
    pub softplus: bool,
    /// State to go on from, `[B, E, N]`; zeros where none is given.
    pub h0: Option<Tensor<3>>,
    /// Documents and padding; one document per row where none are given.
    pub steps: Option<Steps>,
    /// Whether the state behind the last token is wanted.
    pub keep_state: bool,
    /// Which code runs.
    pub implementation: Implementation,
}

impl SelectiveScan {
    /// The bare recurrence from a state of zeros.
    pub fn new(u: Tensor<3>, delta: Tensor<3>, a: Tensor<2>, b: Tensor<4>, c: Tensor<4>) -> Self {
        Self {
            u,
            delta,
            a,
            b,
            c,
            d: None,
            z: None,
            delta_bias: None,
            softplus: false,
            h0: None,
            steps: None,
            keep_state: false,
            implementation: Implementation::Auto,
        }
    }
}

/// Everything about a call but its tensors.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) steps: Steps,
    pub(crate) groups: usize,
    pub(crate) softplus: bool,
    /// Whether D and z are there; tensors of one zero stand in for them.
    pub(crate) skip: bool,
    pub(crate) gate: bool,
    pub(crate) keep_state: bool,
    /// Whether there will be a backward pass.
    pub(crate) tracked: bool,
    pub(crate) implementation: Implementation,
}

/// y `[B, T, E]` and, where it was asked for, the state `[B, E, N]` behind the last token; both with
/// gradients of all that went in.
///
/// # Errors
/// [`Error::Shape`] when shapes or steps do not fit or a size is 0; [`Error::Unsupported`] when the
/// implementation asked for is not there.
pub fn selective_scan(input: SelectiveScan) -> Result<(Tensor<3>, Option<Tensor<3>>), Error> {
    let [batch, len, channels] = input.u.dims();
    let (groups, n) = check(&input)?;
    let device = input.u.device();
    let implementation = selective_implementation_for(input.implementation, &input.u)?;
    let delta = match input.delta_bias {
        Some(bias) => {
            let bias = bias.cast(input.delta.dtype());
            with_row(input.delta, bias, |delta, bias| delta + bias)
        }
        None => input.delta,
    };
    let state = |h: Tensor<3>| h.swap_dims(1, 2);
    let flat = |x: Tensor<4>| x.reshape([batch, len, groups * n]);
    let (skip, gate) = (input.d.is_some(), input.z.is_some());
    let zero = || Tensor::<1>::zeros([1], (&device, input.u.dtype()));
    let x = Inputs {
        delta,
        a: input.a.transpose(),
        b: flat(input.b),
        c: flat(input.c),
        d: input.d.unwrap_or_else(zero),
        z: input.z.unwrap_or_else(|| zero().reshape([1, 1, 1])),
        h0: input
            .h0
            .map_or_else(|| Tensor::zeros([batch, n, channels], (&device, input.u.dtype())), state),
        u: input.u,
    };
    let tracked = x.tracked();
    let plan = Plan {
        steps: input.steps.unwrap_or_else(|| Steps::plain(batch, len)),
        groups,
        softplus: input.softplus,
        skip,
        gate,
        keep_state: input.keep_state,
        tracked,
        implementation,
    };
    let (y, h) = match implementation {
        Implementation::Reference => {
            let (y, h) = reference::scan(x, &plan);
            (y, plan.keep_state.then_some(h))
        }
        _ => {
            let (out, _) = <Dispatch as ScanOps>::scan_forward(x.into_dispatch(), plan.clone());
            unpack(Tensor::from_dispatch(out), len, plan.keep_state)
        }
    };
    Ok((y, h.map(state)))
}

/// The implementation that [`selective_scan`] would run for tensors like `u`, for reports.
///
/// # Errors
/// [`Error::Unsupported`] for an implementation that is not there.
pub fn selective_implementation_for(
    wanted: Implementation,
    u: &Tensor<3>,
) -> Result<Implementation, Error> {
    #[cfg(feature = "cube")]
    if matches!(wanted, Implementation::Auto | Implementation::Cube) {
        match cube::refusal(u) {
            None => return Ok(Implementation::Cube),
            Some(reason) if wanted == Implementation::Cube => {
                return Err(Error::Unsupported { op: "selective_scan", reason });
            }
            Some(_) => {}
        }
    }
    wanted.in_f32("selective_scan", u)
}

/// Whether kernels in CUDA C++ run for tensors like `u` and N states, where [`Implementation::Cube`] does,
/// for reports.
pub fn selective_in_cuda(u: &Tensor<3>, n: usize) -> bool {
    #[cfg(feature = "cuda-nvrtc")]
    return cuda::run_for(u, n);
    #[cfg(not(feature = "cuda-nvrtc"))]
    {
        let _ = (u, n);
        false
    }
}

/// G and N.
fn check(x: &SelectiveScan) -> Result<(usize, usize), Error> {
    let fail = |reason: String| Err(Error::shape("selective_scan", reason));
    let [batch, len, channels] = x.u.dims();
    let [_, n] = x.a.dims();
    let [_, _, groups, _] = x.b.dims();
    if batch * len * channels * n * groups == 0 {
        return fail(format!(
            "an empty dimension in u {:?}, A {:?} or B {:?}",
            x.u.dims(),
            x.a.dims(),
            x.b.dims()
        ));
    }
    if channels % groups != 0 {
        return fail(format!("{groups} groups do not divide {channels} channels"));
    }
    type Wanted<'a> = (&'a str, Option<Vec<usize>>, Vec<usize>);
    let wanted: [Wanted<'_>; 8] = [
        ("delta", Some(x.delta.dims().to_vec()), vec![batch, len, channels]),
        ("A", Some(x.a.dims().to_vec()), vec![channels, n]),
        ("B", Some(x.b.dims().to_vec()), vec![batch, len, groups, n]),
        ("C", Some(x.c.dims().to_vec()), vec![batch, len, groups, n]),
        ("D", x.d.as_ref().map(|d| d.dims().to_vec()), vec![channels]),
        ("z", x.z.as_ref().map(|z| z.dims().to_vec()), vec![batch, len, channels]),
        ("delta_bias", x.delta_bias.as_ref().map(|d| d.dims().to_vec()), vec![channels]),
        ("h0", x.h0.as_ref().map(|h| h.dims().to_vec()), vec![batch, channels, n]),
    ];
    for (name, got, want) in wanted {
        if let Some(got) = got.filter(|got| *got != want) {
            return fail(format!("{name} is {got:?}, expected {want:?} for u {:?}", x.u.dims()));
        }
    }
    if let Some(s) = x.steps.as_ref().filter(|s| (s.batch(), s.len()) != (batch, len)) {
        return fail(format!("steps of {} rows of {} for u {:?}", s.batch(), s.len(), x.u.dims()));
    }
    Ok((groups, n))
}

impl Inputs {
    fn tracked(&self) -> bool {
        let Self { u, delta, a, b, c, d, z, h0 } = self;
        let some = [u, delta, b, c, z, h0].iter().any(|x| x.is_tracked());
        some || a.is_tracked() || d.is_tracked()
    }
}
