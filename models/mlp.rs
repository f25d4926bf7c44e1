//! Feed-forward layer: gated (SwiGLU, Shazeer, 2002.05202) or plain (GELU, 1606.08415).

use crate::attention::{Linear, LinearConfig};
use crate::streams::Streams;
use burn::module::Module;
use burn::tensor::activation::{gelu, gelu_approximate};
use burn::tensor::{Device, Tensor};
use longburn_kernels::fused::{swiglu, widened};

/// What stands between the projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `silu(gate(x)) · up(x)`
    SwiGlu,
    /// `gelu(up(x))`, with the error function.
    Gelu,
    /// `gelu(up(x))`, with the tangens hyperbolicus in its place.
    GeluTanh,
}

impl Activation {
    /// Whether a second projection gates the first.
    pub fn is_gated(self) -> bool {
        self == Self::SwiGlu
    }
}

/// Configuration of [`Mlp`].
#[derive(Clone, Debug)]
pub struct MlpConfig {
    /// Model width.
    pub hidden: usize,
    /// Inner width.
    pub inner: usize,
    /// Biases on all projections.
    pub bias: bool,
    /// Which decides whether there is a gate.
    pub activation: Activation,
}

impl MlpConfig {
    /// Build; `std` is that of gate and up, and of down; streams `first .. first + 3`.
    pub fn init(&self, std: (f64, f64), streams: &Streams, first: u32, device: &Device) -> Mlp {
        let linear = |from, to, std, index| {
            LinearConfig::new(from, to).with_bias(self.bias).with_std(std).init(
                streams,
                first + index,
                device,
            )
        };
        Mlp {
            gate_proj: self
                .activation
                .is_gated()
                .then(|| linear(self.hidden, self.inner, std.0, 0)),
            up_proj: linear(self.hidden, self.inner, std.0, 1),
            down_proj: linear(self.inner, self.hidden, std.1, 2),
            activation: self.activation,
        }
    }
}

/// `down(silu(gate(x)) · up(x))`, or `down(gelu(up(x)))`
#[derive(Module, Debug)]
pub struct Mlp {
    /// `hidden -> inner`, of a gated layer.
    pub gate_proj: Option<Linear>,
    /// `hidden -> inner`
    pub up_proj: Linear,
    /// `inner -> hidden`
    pub down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    /// # Shapes
    /// x_BTD `[B, T, D]` -> the same
    pub fn forward(&self, x_BTD: Tensor<3>) -> Tensor<3> {
        let up = self.up_proj.forward(x_BTD.clone());
        self.down_proj.forward(match (&self.gate_proj, self.activation) {
            (Some(gate), _) => swiglu(gate.forward(x_BTD), up),
            (None, Activation::GeluTanh) => widened(up, gelu_approximate),
            (None, _) => widened(up, gelu),
        })
    }
}
