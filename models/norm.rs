//! The norm of the residual stream.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use longburn_kernels::fused::rms_norm;

/// Configuration of [`Norm`].
#[derive(Clone, Debug)]
pub struct NormConfig {
    width: usize,
    eps: f64,
    bias: bool,
}

impl NormConfig {
    /// RMS norm over the last `width` channels.
    pub fn new(width: usize, eps: f64) -> Self {
        Self { width, eps, bias: false }
    }

    /// LayerNorm instead, which has a bias.
    pub fn with_bias(mut self, bias: bool) -> Self {
        self.bias = bias;
        self
    }

    /// Build with weights of one and a bias of zero.
    pub fn init(&self, device: &Device) -> Norm {
        let bias = self.bias.then(|| Param::from_tensor(Tensor::zeros([self.width], device)));
        let weight = Param::from_tensor(Tensor::ones([self.width], device));
        Norm { weight, bias, eps: self.eps }
    }
}

/// RMS norm (1910.07467), or, with a bias, LayerNorm (1607.06450):
/// `y = w · (x − mean) / sqrt(variance + eps) + b`, computed in f32.
#[derive(Module, Debug)]
pub struct Norm {
    /// `[D]`
    pub weight: Param<Tensor<1>>,
    /// `[D]`, of LayerNorm.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    eps: f64,
}

impl Norm {
    /// # Shapes
    /// x `[B, T, D]` -> the same
    pub fn forward(&self, x_BTD: Tensor<3>) -> Tensor<3> {
        let Some(bias) = &self.bias else {
            return rms_norm(x_BTD, self.weight.val(), self.eps);
        };
        let dtype = x_BTD.dtype();
        let x = x_BTD.cast(DType::F32);
        let centred = x.clone() - x.mean_dim(2);
        let variance = centred.clone().powi_scalar(2).mean_dim(2);
        let normed = centred / variance.add_scalar(self.eps).sqrt();
        let wide = |w: &Param<Tensor<1>>| w.val().cast(DType::F32).unsqueeze();
        (normed * wide(&self.weight) + wide(bias)).cast(dtype)
    }
}
