//! What state-space layers share: a short convolution, the initial values that their papers give,
//! and the memory between calls.

use super::dense::kernel_on;
use super::{Linear, MixContext, MixerSite, Recurrent, State};
use crate::streams::{Draw, Purpose, Streams};
use crate::{Error, Result};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use longburn_kernels::fused::{causal_conv_silu, conv_tail};
use longburn_kernels::{Error as KernelError, Implementation, Steps};
use serde::{Deserialize, Serialize};

/// Range of the initial step sizes Δ: drawn evenly on a logarithmic scale.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StepSizes {
    /// Least.
    pub min: f64,
    /// Greatest.
    pub max: f64,
    /// None is smaller.
    pub floor: f64,
}

impl Default for StepSizes {
    fn default() -> Self {
        Self { min: 1e-3, max: 0.1, floor: 1e-4 }
    }
}

impl StepSizes {
    /// Refuses what gives no numbers.
    pub(crate) fn check(&self, what: &str) -> Result<()> {
        let Self { min, max, floor } = *self;
        let bad = |field: &str, value: f64, expected: &str| {
            Err(Error::config(what, format!("step_sizes.{field}"), value, expected))
        };
        match () {
            _ if !(min > 0.0 && min.is_finite()) => bad("min", min, "a number above 0"),
            _ if !(max >= min && max.is_finite()) => bad("max", max, "at least step_sizes.min"),
            _ if !(floor > 0.0 && floor.is_finite()) => bad("floor", floor, "a number above 0"),
            _ => Ok(()),
        }
    }

    /// Biases whose softplus are drawn step sizes, `[n]`.
    fn biases(&self, n: usize, streams: &Streams, index: u32, device: &Device) -> Tensor<1> {
        let (low, high) = (self.min.ln(), self.max.ln());
        let draw = |unit: f64| {
            let dt = (low + unit * (high - low)).exp().max(self.floor);
            // The inverse of softplus; e^dt − 1 keeps the digits of a small dt.
            (dt + (-(-dt).exp_m1()).ln()) as f32
        };
        drawn([n], streams, index, device, draw)
    }
}

/// `value` of numbers that are uniform in [0, 1).
pub(crate) fn drawn<const D: usize>(
    shape: [usize; D],
    streams: &Streams,
    index: u32,
    device: &Device,
    value: impl Fn(f64) -> f32,
) -> Tensor<D> {
    let mut rng = streams.rng(Purpose::Init, 0, 0, index);
    let data: Vec<f32> = (0..shape.iter().product()).map(|_| value(rng.unit())).collect();
    Tensor::from_data(TensorData::new(data, shape), device)
}

/// Uniform in ± `bound`; nothing is drawn where that is 0.
pub(crate) fn uniform<const D: usize>(
    shape: [usize; D],
    bound: f64,
    streams: &Streams,
    index: u32,
    device: &Device,
) -> Tensor<D> {
    if bound == 0.0 {
        return Tensor::zeros(shape, device);
    }
    drawn(shape, streams, index, device, |unit| ((2.0 * unit - 1.0) * bound) as f32)
}

/// What a layer is built for; its weights are drawn from the streams `first .. first + 8`.
pub(crate) struct Drawing<'a> {
    pub hidden: usize,
    pub layers: usize,
    pub streams: &'a Streams,
    pub first: u32,
    pub device: &'a Device,
    /// What is about to be read takes no time to draw: matrices are then zero.
    pub drawn: bool,
}

impl<'a> Drawing<'a> {
    /// For a layer of a model.
    pub(crate) fn of(site: &MixerSite<'a>) -> Self {
        let &MixerSite { hidden, layers, streams, device, drawn, .. } = site;
        Self { hidden, layers, streams, first: site.own_streams(), device, drawn }
    }

    /// A linear layer as PyTorch draws it, uniform in ± `factor`/√in; biases zero.
    pub(crate) fn linear(
        &self,
        (from, to): (usize, usize),
        bias: bool,
        factor: f64,
        index: u32,
    ) -> Linear {
        let bound = if self.drawn { factor / (from as f64).sqrt() } else { 0.0 };
        let weight = uniform([to, from], bound, self.streams, self.first + index, self.device);
        Linear {
            weight: Param::from_tensor(weight),
            bias: bias.then(|| Param::from_tensor(Tensor::zeros([to], self.device))),
            lora: None,
        }
    }

    /// The layer's last one, into the residual stream.
    pub(crate) fn out(&self, inner: usize, bias: bool) -> Linear {
        self.linear((inner, self.hidden), bias, 1.0 / (self.layers as f64).sqrt(), 6)
    }

    /// Over so many inputs of each channel.
    pub(crate) fn conv(&self, channels: usize, taps: usize, bias: bool) -> Conv1d {
        Conv1d::init((channels, taps), bias, (self.streams, self.first + 1), self.device)
    }

    /// Biases of step sizes, `[n]`.
    pub(crate) fn steps(&self, sizes: &StepSizes, n: usize) -> Tensor<1> {
        sizes.biases(n, self.streams, self.first + 5, self.device)
    }
}

/// Causal depthwise convolution over a few inputs of each channel, then silu.
#[derive(Module, Debug)]
pub struct Conv1d {
    /// `[C, 1, K]`, the newest input last
    pub weight: Param<Tensor<3>>,
    /// `[C]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl Conv1d {
    /// Uniform in ± 1/√K; streams `first` and `first + 1`.
    fn init(
        (channels, k): (usize, usize),
        bias: bool,
        (streams, first): (&Streams, u32),
        device: &Device,
    ) -> Self {
        let bound = 1.0 / (k as f64).sqrt();
        let bias = bias.then(|| uniform([channels], bound, streams, first + 1, device));
        Self {
            weight: Param::from_tensor(uniform([channels, 1, k], bound, streams, first, device)),
            bias: bias.map(Param::from_tensor),
        }
    }

    /// # Shapes
    /// x `[B, T, C]`, tail `[B, 1, K, C]` -> `[B, T, C]`
    fn forward(&self, x: Tensor<3>, past: &Past) -> Tensor<3> {
        let bias = self.bias.as_ref().map(Param::val);
        causal_conv_silu(x, self.weight.val().squeeze_dim(1), bias, past.tail(), &past.steps)
    }

    /// K
    fn taps(&self) -> usize {
        self.weight.dims()[2]
    }
}

/// What a call finds: the state of an earlier one, and what each new token does to it.
pub(crate) struct Past {
    pub(crate) steps: Steps,
    /// Behind the new tokens.
    documents: Vec<i32>,
    state: Option<Recurrent>,
    len: usize,
}

impl Past {
    /// # Errors
    /// When tokens, input and state are not of the same rows or not of this layer's sizes, there is no
    /// token, or documents are not in order.
    pub(crate) fn new(
        layer: &str,
        x_BTD: &Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
        (conv, ssm): ([usize; 2], [usize; 3]),
    ) -> Result<Self> {
        let [b, t, _] = x_BTD.dims();
        ctx.check_tokens(layer, x_BTD)?;
        if b * t == 0 {
            return Err(Error::shape(layer, format!("{b} rows of {t} tokens")));
        }
        let state = match state {
            None => None,
            Some(State::Recurrent(state)) => {
                let ([k, c], [h, p, n]) = (conv, ssm);
                let got = (state.conv.dims(), state.ssm.dims());
                let want = ([b, 1, k, c], [b, h, p, n]);
                if got != want {
                    let reason = format!("a state of {got:?}, expected {want:?}");
                    return Err(Error::shape(layer, reason));
                }
                Some(state)
            }
            Some(other) => return Err(other.foreign(layer)),
        };
        let before = state.as_ref().map(|state| &state.documents[..]);
        let (steps, documents) = Steps::of(ctx.tokens, before)?;
        Ok(Self { steps, documents, len: t + state.as_ref().map_or(0, |s| s.tokens), state })
    }

    fn tail(&self) -> Option<Tensor<3>> {
        self.state.as_ref().map(|state| state.conv.clone().squeeze_dim(1))
    }

    /// `[B, H, P, N]`
    pub(crate) fn ssm(&self) -> Option<Tensor<4>> {
        self.state.as_ref().map(|state| state.ssm.clone())
    }

    /// The convolution, and what the next call needs of its input where that is `wanted`.
    pub(crate) fn convolve(
        &self,
        conv: &Conv1d,
        x: Tensor<3>,
        wanted: bool,
    ) -> (Tensor<3>, Option<Tensor<3>>) {
        let tail = wanted.then(|| conv_tail(x.clone(), self.tail(), &self.steps, conv.taps()));
        (conv.forward(x, self), tail)
    }

    /// The state behind the new tokens.
    pub(crate) fn next(self, tail: Option<Tensor<3>>, ssm: Option<Tensor<4>>) -> Option<State> {
        let (tail, ssm) = (tail?, ssm?);
        let conv = tail.unsqueeze_dim(1);
        Some(State::Recurrent(Recurrent { conv, ssm, documents: self.documents, tokens: self.len }))
    }
}

/// Which code of an op runs on `device`; `choice` is the op's own function for reports.
pub(crate) fn code(
    choice: fn(Implementation, &Tensor<3>) -> std::result::Result<Implementation, KernelError>,
    in_cuda: impl Fn(&Tensor<3>) -> bool,
    ctx: &MixContext<'_>,
    device: &Device,
) -> String {
    let like = Tensor::zeros([1, 1, 1], device);
    let chosen = choice(ctx.implementation, &like);
    let own =
        chosen.as_ref().is_ok_and(|chosen| *chosen != Implementation::Reference) && in_cuda(&like);
    kernel_on(chosen, device) + if own { ", in CUDA C++" } else { "" }
}
