//! Mamba: Linear-Time Sequence Modeling with Selective State Spaces (arXiv 2312.00752).
//!
//! A layer with a state of fixed size per channel, whose step size Δ, input B and output C follow
//! from the token (§3.2, algorithm 2): a projection into a stream and its gate, a short causal
//! convolution, the selective scan, and a projection back. There are no positions and no attention;
//! decoding takes the same time and memory at any length.
//!
//! *Deviations.* As in the authors' code, B enters by Euler's rule (Δ B) and not by the paper's
//! zero-order hold. Unlike there, documents of a packed row have states of their own, padding
//! neither moves the state nor enters the convolution, several tokens may follow a state, and the
//! last state has a gradient.

use super::compute::wide;
use super::drawing::Drawing;
use super::state_space::{self, Conv1d, Past, StepSizes};
use super::{Compute, Linear, MixContext, MixOutput, MixerSite, SequenceMixer, State, Taps};
use crate::Result;
use crate::error::check_sizes;
use crate::streams::Streams;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use longburn_kernels::scan::{selective_implementation_for, selective_in_cuda};
use longburn_kernels::{SelectiveScan, selective_scan};
use serde::{Deserialize, Serialize};

/// Configuration of [`Mamba1`]; defaults as in the paper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mamba1Config {
    /// N, numbers of state per channel.
    pub d_state: usize,
    /// K, inputs that the convolution sees.
    pub d_conv: usize,
    /// Inner channels per channel of the model.
    pub expand: usize,
    /// E, where it is not `expand` times the model's width.
    pub d_inner: Option<usize>,
    /// R, width of the projection to Δ; a sixteenth of the model's width where none is given.
    pub dt_rank: Option<usize>,
    /// Initial Δ.
    pub step_sizes: StepSizes,
    /// Bias of the convolution.
    pub conv_bias: bool,
    /// Biases of the projections in and out.
    pub bias: bool,
}

impl Default for Mamba1Config {
    fn default() -> Self {
        Self {
            d_state: 16,
            d_conv: 4,
            expand: 2,
            d_inner: None,
            dt_rank: None,
            step_sizes: StepSizes::default(),
            conv_bias: true,
            bias: false,
        }
    }
}

impl Mamba1Config {
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

    /// Width of the projection to Δ.
    pub fn with_dt_rank(mut self, rank: usize) -> Self {
        self.dt_rank = Some(rank);
        self
    }

    /// Biases of the convolution, and of the projections in and out.
    pub fn with_biases(mut self, conv: bool, projections: bool) -> Self {
        (self.conv_bias, self.bias) = (conv, projections);
        self
    }

    /// E of a model of this width.
    pub fn inner(&self, hidden: usize) -> usize {
        self.d_inner.unwrap_or(self.expand.saturating_mul(hidden))
    }

    /// R of a model of this width.
    pub fn rank(&self, hidden: usize) -> usize {
        self.dt_rank.unwrap_or(hidden.div_ceil(16))
    }

    /// Build a layer of a model of this width with so many layers; streams `first .. first + 8`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for sizes of 0 and step sizes that are none.
    pub fn init(
        &self,
        hidden: usize,
        layers: usize,
        streams: &Streams,
        first: u32,
        device: &Device,
    ) -> Result<Mamba1> {
        self.drawn((hidden, layers), &Drawing { streams, first, device, drawn: true })
    }

    /// Build for a layer of a model.
    ///
    /// # Errors
    /// As [`Mamba1Config::init`].
    pub fn build(&self, site: &MixerSite<'_>) -> Result<Mamba1> {
        self.drawn((site.hidden, site.layers), &Drawing::of(site))
    }

    pub(super) fn check(&self, hidden: usize, layers: usize) -> Result<()> {
        let sizes = &[
            ("hidden", hidden),
            ("layers", layers),
            ("d_state", self.d_state),
            ("d_conv", self.d_conv),
            ("d_inner", self.inner(hidden)),
            ("dt_rank", self.rank(hidden)),
        ];
        check_sizes("mixer mamba1", sizes)?;
        self.step_sizes.check("mixer mamba1")
    }

    fn drawn(&self, (hidden, layers): (usize, usize), at: &Drawing<'_>) -> Result<Mamba1> {
        self.check(hidden, layers)?;
        let (inner, rank, n) = (self.inner(hidden), self.rank(hidden), self.d_state);
        let mut dt_proj = at.uniform_linear((rank, inner), false, 1.0, 4);
        dt_proj.bias = Some(Param::from_tensor(at.steps(&self.step_sizes, inner)));
        let row = (1..=n).map(|n| (n as f32).ln());
        let A_log: Vec<f32> = (0..inner).flat_map(|_| row.clone()).collect();
        let A_log = Tensor::from_data(TensorData::new(A_log, [inner, n]), at.device);
        Ok(Mamba1 {
            in_proj: at.uniform_linear((hidden, 2 * inner), self.bias, 1.0, 0),
            conv1d: at.conv(inner, self.d_conv, self.conv_bias),
            x_proj: at.uniform_linear((inner, rank + 2 * n), false, 1.0, 3),
            dt_proj,
            A_log: Param::from_tensor(A_log),
            D: Param::from_tensor(Tensor::ones([inner], at.device)),
            out_proj: at.out((inner, hidden), self.bias, layers),
        })
    }
}

/// A selective state-space layer. As in the authors' code, `A_log` and `D` take no weight decay, unless a group of
/// parameters of the role `state_space` has one; a group of the role `bias` leaves it out for the bias of `dt_proj`.
#[derive(Module, Debug)]
pub struct Mamba1 {
    /// `hidden -> 2 E`: the stream, then its gate
    pub in_proj: Linear,
    /// Over the stream.
    pub conv1d: Conv1d,
    /// `E -> R + 2 N`: what Δ is made of, B and C
    pub x_proj: Linear,
    /// `R -> E`, with the bias that goes into softplus
    pub dt_proj: Linear,
    /// ln(−A), `[E, N]`
    pub A_log: Param<Tensor<2>>,
    /// `[E]`
    pub D: Param<Tensor<1>>,
    /// `E -> hidden`
    pub out_proj: Linear,
}

impl Mamba1 {
    /// The linear layer of this name in checkpoints.
    pub fn linear(&self, name: &str) -> Option<&Linear> {
        match name {
            "in_proj" => Some(&self.in_proj),
            "x_proj" => Some(&self.x_proj),
            "dt_proj" => Some(&self.dt_proj),
            "out_proj" => Some(&self.out_proj),
            _ => None,
        }
    }

    /// The same, to be changed in place.
    pub fn linear_mut(&mut self, name: &str) -> Option<&mut Linear> {
        match name {
            "in_proj" => Some(&mut self.in_proj),
            "x_proj" => Some(&mut self.x_proj),
            "dt_proj" => Some(&mut self.dt_proj),
            "out_proj" => Some(&mut self.out_proj),
            _ => None,
        }
    }
}

impl SequenceMixer for Mamba1 {
    fn forward(
        &self,
        x_BTD: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput> {
        let [b, t, _] = x_BTD.dims();
        let ([e, n], (rank, _)) = (self.A_log.dims(), self.dt_proj.features());
        let sizes = ([self.conv1d.weight.dims()[2], e], [1, e, n]);
        let past = Past::new("mamba1", &x_BTD, ctx, state, sizes)?;
        // The first and the last product are in the dtype of the input, what lies between in f32.
        let dtype = x_BTD.dtype();
        let xz = wide(self.in_proj.forward(x_BTD));
        let (u, z) = (xz.clone().narrow(2, 0, e), xz.narrow(2, e, e));
        let (u, tail) = past.convolve(&self.conv1d, u, ctx.keep_state);
        let dbc = self.x_proj.forward(u.clone());
        let of_group = |from: usize| dbc.clone().narrow(2, from, n).reshape([b, t, 1, n]);
        let (y, ssm) = selective_scan(SelectiveScan {
            d: Some(self.D.val()),
            z: Some(z),
            softplus: true,
            h0: past.ssm().map(|h| h.squeeze_dim(1)),
            steps: Some(past.steps.clone()),
            keep_state: ctx.keep_state,
            implementation: ctx.implementation,
            ..SelectiveScan::new(
                u,
                self.dt_proj.forward(dbc.clone().narrow(2, 0, rank)),
                self.A_log.val().exp().neg(),
                of_group(rank),
                of_group(rank + n),
            )
        })?;
        let state = past.next(tail, ssm.map(|h| h.unsqueeze_dim(1)));
        let taps = Taps::default().with_mixed(ctx, || y.clone().unsqueeze_dim(1));
        Ok(MixOutput { y: self.out_proj.forward(y.cast(dtype)), state, aux: None, taps })
    }

    fn computes_in(&self, _: Compute) -> bool {
        true
    }

    fn explain(&self, ctx: &MixContext<'_>, device: &Device) -> String {
        let [e, n] = self.A_log.dims();
        let code = state_space::code(
            selective_implementation_for,
            |u| selective_in_cuda(u, n),
            ctx,
            device,
        );
        format!("selective scan of {e} channels with {n} states each: {code}")
    }
}
