//! What state-space layers share: a short convolution, the initial values that their papers give,
//! and the memory between calls.

use super::dense::kernel_on;
use super::drawing::Drawing;
use super::softplus::inverse_softplus;
use super::{Linear, MixContext, Recurrent, State};
use crate::{Error, Result};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
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
}

impl Drawing<'_> {
    /// The layer's last one, into the residual stream of a model with so many layers.
    pub(super) fn out(&self, (inner, hidden): (usize, usize), bias: bool, layers: usize) -> Linear {
        self.uniform_linear((inner, hidden), bias, 1.0 / (layers as f64).sqrt(), 6)
    }

    /// Over so many inputs of each channel, uniform in ± 1/√taps.
    pub(super) fn conv(&self, channels: usize, taps: usize, bias: bool) -> Conv1d {
        let bound = 1.0 / (taps as f64).sqrt();
        let bias = bias.then(|| self.uniform([channels], bound, 2));
        Conv1d {
            weight: Param::from_tensor(self.uniform([channels, 1, taps], bound, 1)),
            bias: bias.map(Param::from_tensor),
        }
    }

    /// Biases whose softplus are drawn step sizes, `[n]`.
    pub(super) fn steps(&self, sizes: &StepSizes, n: usize) -> Tensor<1> {
        let (low, high) = (sizes.min.ln(), sizes.max.ln());
        self.each([n], 5, |unit| {
            inverse_softplus((low + unit * (high - low)).exp().max(sizes.floor)) as f32
        })
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
