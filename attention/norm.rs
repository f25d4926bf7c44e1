//! Root-mean-square normalisation (Zhang & Sennrich, 1910.07467).

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};

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
        let dtype = x.dtype();
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let x = x.cast(wide);
        let scale = x.clone().square().mean_dim(N - 1).add_scalar(self.eps).sqrt().recip();
        (x * scale).cast(dtype) * self.weight.val().unsqueeze()
    }
}
