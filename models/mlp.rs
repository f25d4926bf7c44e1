//! Gated feed-forward layer (SwiGLU, Shazeer, 2002.05202).

use crate::attention::{Linear, LinearConfig};
use crate::streams::Streams;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use longburn_kernels::fused::swiglu;

/// Configuration of [`Mlp`].
#[derive(Clone, Debug)]
pub struct MlpConfig {
    /// Model width.
    pub hidden: usize,
    /// Inner width.
    pub inner: usize,
    /// Biases on all three projections.
    pub bias: bool,
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
            gate_proj: linear(self.hidden, self.inner, std.0, 0),
            up_proj: linear(self.hidden, self.inner, std.0, 1),
            down_proj: linear(self.inner, self.hidden, std.1, 2),
        }
    }
}

/// `down(silu(gate(x)) · up(x))`
#[derive(Module, Debug)]
pub struct Mlp {
    /// `hidden -> inner`
    pub gate_proj: Linear,
    /// `hidden -> inner`
    pub up_proj: Linear,
    /// `inner -> hidden`
    pub down_proj: Linear,
}

impl Mlp {
    /// # Shapes
    /// x_BTD `[B, T, D]` -> the same
    pub fn forward(&self, x_BTD: Tensor<3>) -> Tensor<3> {
        let gate = self.gate_proj.forward(x_BTD.clone());
        self.down_proj.forward(swiglu(gate, self.up_proj.forward(x_BTD)))
    }
}
