//! Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space
//! Duality (arXiv 2405.21060), known as Mamba-2.
//!
//! A state-space layer with one decay per head and token (§7): stream, gate, B, C and step size come
//! of one projection, one convolution runs over stream, B and C, the scan is matrix products over
//! chunks of tokens (§6), and a gated norm precedes the projection back.
//!
//! *Deviations.* The bounds of Δ hold in decoding, too, where the authors' code leaves them out.
//! Documents of a packed row have states of their own, padding neither moves the state nor enters the
//! convolution, several tokens may follow a state, and the last state has a gradient.

use super::compute::wide;
use super::drawing::Drawing;
use super::state_space::{self, Conv1d, Past, StepSizes};
use super::{
    Compute, Linear, MixContext, MixOutput, MixerSite, RmsNorm, RmsNormConfig, SequenceMixer,
    State, Taps,
};
use crate::error::check_sizes;
use crate::streams::Streams;
use crate::{Error, Result};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use longburn_kernels::fused::{GatedNorm, gated_rms_norm, swiglu};
use longburn_kernels::scan::{ssd_implementation_for, ssd_in_cuda};
use longburn_kernels::{Ssd, ssd};
use serde::{Deserialize, Serialize};

/// Configuration of [`Mamba2`]; defaults as in the paper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mamba2Config {
    /// N, numbers of state per channel.
    pub d_state: usize,
    /// K, inputs that the convolution sees.
    pub d_conv: usize,
    /// Inner channels per channel of the model.
    pub expand: usize,
    /// E, where it is not `expand` times the model's width.
    pub d_inner: Option<usize>,
    /// P, channels of a head; divides E.
    pub head_dim: usize,
    /// G, groups of heads that share B and C; divides the heads.
    pub n_groups: usize,
    /// Tokens per chunk. It decides the speed, not the result.
    pub chunk: usize,
    /// Initial Δ.
    pub step_sizes: StepSizes,
    /// Bounds of Δ, after softplus.
    pub dt_limit: Option<(f64, f64)>,
    /// Bounds of the initial −A.
    pub a_init: (f64, f64),
    /// Whether the output is normalised; else it is gated only.
    pub rms_norm: bool,
    /// Normalise before the gate instead of after it.
    pub norm_before_gate: bool,
    /// Runs of channels that are normalised each by itself; one per group of heads where none is given.
    pub norm_groups: Option<usize>,
    /// Added to the mean square in the norm.
    pub norm_eps: f64,
    /// D per channel instead of per head.
    pub d_has_head_dim: bool,
    /// Bias of the convolution.
    pub conv_bias: bool,
    /// Biases of the projections.
    pub bias: bool,
}

impl Default for Mamba2Config {
    fn default() -> Self {
        Self {
            d_state: 128,
            d_conv: 4,
            expand: 2,
            d_inner: None,
            head_dim: 64,
            n_groups: 1,
            chunk: 256,
            step_sizes: StepSizes::default(),
            dt_limit: None,
            a_init: (1.0, 16.0),
            rms_norm: true,
            norm_before_gate: false,
            norm_groups: None,
            norm_eps: 1e-5,
            d_has_head_dim: false,
            conv_bias: true,
            bias: false,
        }
    }
}

impl Mamba2Config {
    /// The paper's settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Numbers of state per channel.
    pub fn with_d_state(mut self, n: usize) -> Self {
        self.d_state = n;
        self
    }

    /// Inputs that the convolution sees.
    pub fn with_d_conv(mut self, k: usize) -> Self {
        self.d_conv = k;
        self
    }

    /// Inner channels.
    pub fn with_d_inner(mut self, channels: usize) -> Self {
        self.d_inner = Some(channels);
        self
    }

    /// Channels of a head.
    pub fn with_head_dim(mut self, p: usize) -> Self {
        self.head_dim = p;
        self
    }

    /// Groups of heads that share B and C.
    pub fn with_n_groups(mut self, groups: usize) -> Self {
        self.n_groups = groups;
        self
    }

    /// Tokens per chunk.
    pub fn with_chunk(mut self, tokens: usize) -> Self {
        self.chunk = tokens;
        self
    }

    /// Bounds of Δ.
    pub fn with_dt_limit(mut self, limit: Option<(f64, f64)>) -> Self {
        self.dt_limit = limit;
        self
    }

    /// Runs of channels that are normalised each by itself, and whether before the gate.
    pub fn with_norm(mut self, groups: Option<usize>, before_gate: bool) -> Self {
        (self.norm_groups, self.norm_before_gate) = (groups, before_gate);
        self
    }

    /// Biases of the convolution, and of the projections.
    pub fn with_biases(mut self, conv: bool, projections: bool) -> Self {
        (self.conv_bias, self.bias) = (conv, projections);
        self
    }

    /// E of a model of this width.
    pub fn inner(&self, hidden: usize) -> usize {
        self.d_inner.unwrap_or(self.expand.saturating_mul(hidden))
    }

    /// H of a model of this width, rounded down.
    pub fn heads(&self, hidden: usize) -> usize {
        self.inner(hidden).checked_div(self.head_dim).unwrap_or(0)
    }

    pub(super) fn check(&self, hidden: usize, layers: usize) -> Result<()> {
        let bad = |field: &str, value: &dyn std::fmt::Display, expected: &str| {
            Err(Error::config("mixer mamba2", field, value, expected))
        };
        let (inner, groups) = (self.inner(hidden), self.n_groups);
        let norm_groups = self.norm_groups.unwrap_or(groups);
        let sizes = &[
            ("hidden", hidden),
            ("layers", layers),
            ("d_state", self.d_state),
            ("d_conv", self.d_conv),
            ("d_inner", inner),
            ("head_dim", self.head_dim),
            ("n_groups", groups),
            ("chunk", self.chunk),
            ("norm_groups", norm_groups),
        ];
        check_sizes("mixer mamba2", sizes)?;
        if !inner.is_multiple_of(self.head_dim) {
            let expected = format!("a divisor of the {inner} inner channels");
            return bad("head_dim", &self.head_dim, &expected);
        }
        let heads = self.heads(hidden);
        if !heads.is_multiple_of(groups) {
            return bad("n_groups", &groups, &format!("a divisor of the {heads} heads"));
        }
        if !inner.is_multiple_of(norm_groups) {
            let expected = format!("a divisor of the {inner} inner channels");
            return bad("norm_groups", &norm_groups, &expected);
        }
        if let Some((low, high)) =
            self.dt_limit.filter(|(low, high)| low.is_nan() || high.is_nan() || low > high)
        {
            return bad("dt_limit", &format!("({low}, {high})"), "a lower and an upper bound");
        }
        let (low, high) = self.a_init;
        if !(low > 0.0 && low <= high && high.is_finite()) {
            return bad("a_init", &format!("({low}, {high})"), "two bounds above 0, in order");
        }
        self.step_sizes.check("mixer mamba2")
    }

    /// Build a layer of a model of this width with so many layers; streams `first .. first + 8`.
    ///
    /// # Errors
    /// [`Error::Config`] for sizes of 0 or that do not divide each other, and bounds out of order.
    pub fn init(
        &self,
        hidden: usize,
        layers: usize,
        streams: &Streams,
        first: u32,
        device: &Device,
    ) -> Result<Mamba2> {
        self.drawn((hidden, layers), &Drawing { streams, first, device, drawn: true })
    }

    /// Build for a layer of a model.
    ///
    /// # Errors
    /// As [`Mamba2Config::init`].
    pub fn build(&self, site: &MixerSite<'_>) -> Result<Mamba2> {
        self.drawn((site.hidden, site.layers), &Drawing::of(site))
    }

    fn drawn(&self, (hidden, layers): (usize, usize), at: &Drawing<'_>) -> Result<Mamba2> {
        self.check(hidden, layers)?;
        let (inner, heads) = (self.inner(hidden), self.heads(hidden));
        let convolved = inner + 2 * self.n_groups * self.d_state;
        let (low, high) = self.a_init;
        let A_log = at.each([heads], 4, |unit| (low + unit * (high - low)).ln() as f32);
        let skip = if self.d_has_head_dim { inner } else { heads };
        Ok(Mamba2 {
            in_proj: at.uniform_linear((hidden, inner + convolved + heads), self.bias, 1.0, 0),
            conv1d: at.conv(convolved, self.d_conv, self.conv_bias),
            dt_bias: Param::from_tensor(at.steps(&self.step_sizes, heads)),
            A_log: Param::from_tensor(A_log),
            D: Param::from_tensor(Tensor::ones([skip], at.device)),
            norm: self.rms_norm.then(|| RmsNormConfig::new(inner, self.norm_eps).init(at.device)),
            out_proj: at.out((inner, hidden), self.bias, layers),
            config: self.clone(),
        })
    }
}

/// A state-space layer with one decay per head. As in the authors' code, `A_log`, `D` and `dt_bias` take no weight
/// decay, unless a group of parameters of the role `state_space` has one.
#[derive(Module, Debug)]
pub struct Mamba2 {
    /// `hidden -> 2 E + 2 G N + H`: gate, stream, B, C and Δ
    pub in_proj: Linear,
    /// Over stream, B and C.
    pub conv1d: Conv1d,
    /// Goes into softplus, `[H]`
    pub dt_bias: Param<Tensor<1>>,
    /// ln(−A), `[H]`
    pub A_log: Param<Tensor<1>>,
    /// `[H]`, or `[E]`
    pub D: Param<Tensor<1>>,
    /// Over the gated output.
    pub norm: Option<RmsNorm>,
    /// `E -> hidden`
    pub out_proj: Linear,
    #[module(skip)]
    config: Mamba2Config,
}

impl SequenceMixer for Mamba2 {
    fn forward(
        &self,
        x_BTD: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput> {
        let Mamba2Config { d_state: n, head_dim: p, n_groups: g, .. } = self.config;
        let heads = self.A_log.dims()[0];
        let [convolved, _, k] = self.conv1d.weight.dims();
        let past = Past::new("mamba2", &x_BTD, ctx, state, ([k, convolved], [heads, p, n]))?;
        // The first and the last product are in the dtype of the input, what lies between in f32.
        let dtype = x_BTD.dtype();
        let zxbcdt = wide(self.in_proj.forward(x_BTD));
        let (y, state) = self.inner(zxbcdt, [heads, p, g, n], past, ctx)?;
        let taps = Taps::default().with_mixed(ctx, || y.clone().unsqueeze_dim(1));
        Ok(MixOutput { y: self.out_proj.forward(y.cast(dtype)), state, aux: None, taps })
    }

    fn computes_in(&self, _: Compute) -> bool {
        true
    }

    fn explain(&self, ctx: &MixContext<'_>, device: &Device) -> String {
        let Mamba2Config { d_state, head_dim, chunk, .. } = self.config;
        let heads = self.A_log.dims()[0];
        let code = state_space::code(
            ssd_implementation_for,
            |x| ssd_in_cuda(x, head_dim, d_state),
            ctx,
            device,
        );
        format!(
            "state-space duality of {heads} heads with {head_dim} x {d_state} states each, chunks of \
             {chunk}: {code}"
        )
    }
}

impl Mamba2 {
    /// The linear layer of this name in checkpoints.
    pub fn linear(&self, name: &str) -> Option<&Linear> {
        match name {
            "in_proj" => Some(&self.in_proj),
            "out_proj" => Some(&self.out_proj),
            _ => None,
        }
    }

    /// The same, to be changed in place.
    pub fn linear_mut(&mut self, name: &str) -> Option<&mut Linear> {
        match name {
            "in_proj" => Some(&mut self.in_proj),
            "out_proj" => Some(&mut self.out_proj),
            _ => None,
        }
    }

    /// From the first projection's output to the last one's input.
    fn inner(
        &self,
        zxbcdt: Tensor<3>,
        [heads, p, g, n]: [usize; 4],
        past: Past,
        ctx: &MixContext<'_>,
    ) -> Result<(Tensor<3>, Option<State>)> {
        let ([b, t, _], e) = (zxbcdt.dims(), heads * p);
        let cut = |x: &Tensor<3>, from: usize, width: usize| x.clone().narrow(2, from, width);
        let convolved = e + 2 * g * n;
        let z = cut(&zxbcdt, 0, e);
        let stream = cut(&zxbcdt, e, convolved);
        let (xbc, tail) = past.convolve(&self.conv1d, stream, ctx.keep_state);
        let of_groups = |from: usize| cut(&xbc, from, g * n).reshape([b, t, g, n]);
        let (y, ssm) = ssd(Ssd {
            d: Some(self.D.val()),
            dt_bias: Some(self.dt_bias.val()),
            softplus: true,
            dt_limit: self.config.dt_limit,
            h0: past.ssm(),
            steps: Some(past.steps.clone()),
            chunk: self.config.chunk,
            keep_state: ctx.keep_state,
            implementation: ctx.implementation,
            ..Ssd::new(
                cut(&xbc, 0, e).reshape([b, t, heads, p]),
                cut(&zxbcdt, e + convolved, heads),
                self.A_log.val().exp().neg(),
                of_groups(e),
                of_groups(e + g * n),
            )
        })?;
        let y = y.reshape([b, t, e]);
        let y = match &self.norm {
            Some(norm) => {
                let options = GatedNorm {
                    groups: self.config.norm_groups.unwrap_or(g),
                    before_gate: self.config.norm_before_gate,
                    eps: self.config.norm_eps,
                };
                gated_rms_norm(y, z, norm.weight.val(), None, options)
            }
            None => swiglu(z, y),
        };
        Ok((y, past.next(tail, ssm)))
    }
}
