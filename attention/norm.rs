//! Root-mean-square normalisation (Zhang & Sennrich, 1910.07467).

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use longburn_kernels::fused::rms_norm;

/// Configuration of [`RmsNorm`].
#[derive(Clone, Debug)]
pub struct RmsNormConfig {
    width: usize,
    eps: f64,
}

impl RmsNormConfig {
    /// Over the last `width` channels.
    pub fn new(width: usize, eps: f64) -> Self {
        Self { width, eps }
    }

    /// Build with weights of one.
    pub fn init(&self, device: &Device) -> RmsNorm {
        RmsNorm { weight: Param::from_tensor(Tensor::ones([self.width], device)), eps: self.eps }
    }
}

/// `y = w · x / sqrt(mean(x²) + eps)`, computed in f32.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[D]`
    pub weight: Param<Tensor<1>>,
    #[module(skip)]
    eps: f64,
}

impl RmsNorm {
    /// # Shapes
    /// x `[.., D]` -> the same
    pub fn forward<const N: usize>(&self, x: Tensor<N>) -> Tensor<N> {
        rms_norm(x, self.weight.val(), self.eps)
    }
}
