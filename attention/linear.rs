//! A linear layer with weights as checkpoints store them, and an optional low-rank update.

use super::drawing::normal;
use crate::streams::Streams;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use longburn_kernels::fused::{linear, linear_bias};

/// Configuration of [`Linear`].
#[derive(Clone, Debug)]
pub struct LinearConfig {
    in_features: usize,
    out_features: usize,
    bias: bool,
    std: f64,
}

impl LinearConfig {
    /// `in_features -> out_features`, no bias, standard deviation 0.02.
    pub fn new(in_features: usize, out_features: usize) -> Self {
        Self { in_features, out_features, bias: false, std: 0.02 }
    }

    /// Add a bias.
    pub fn with_bias(mut self, bias: bool) -> Self {
        self.bias = bias;
        self
    }

    /// Standard deviation of the initial weights.
    pub fn with_std(mut self, std: f64) -> Self {
        self.std = std;
        self
    }

    /// Build; `index` selects the random stream of this layer.
    pub fn init(&self, streams: &Streams, index: u32, device: &Device) -> Linear {
        let shape = [self.out_features, self.in_features];
        let weight = normal(shape, self.std, streams, index, device);
        let bias = self.bias.then(|| Tensor::zeros([self.out_features], device));
        Linear {
            weight: Param::from_tensor(weight),
            bias: bias.map(Param::from_tensor),
            lora: None,
        }
    }
}

/// `y = x·Wᵀ + b`, plus `scale·(x·Aᵀ)·Bᵀ` with LoRA (Hu et al., 2106.09685): the update stays in
/// activation space, so that no gradient of W's shape is ever formed while W is frozen.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Param<Tensor<2>>,
    /// `[out]`
    pub bias: Option<Param<Tensor<1>>>,
    /// Low-rank update.
    pub lora: Option<Lora>,
}

/// A low-rank update of a linear layer.
#[derive(Module, Debug)]
pub struct Lora {
    /// `[r, in]`
    pub a: Param<Tensor<2>>,
    /// `[out, r]`
    pub b: Param<Tensor<2>>,
    /// α
    #[module(skip)]
    pub alpha: f64,
    /// Scale by α/√r instead of α/r (2312.03732).
    #[module(skip)]
    pub rslora: bool,
}

impl Lora {
    /// r
    pub fn rank(&self) -> usize {
        self.a.dims()[0]
    }

    /// Factor of B·A.
    pub fn scale(&self) -> f64 {
        let rank = self.rank() as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

impl Linear {
    /// In the dtype of the input, to which the weights are rounded.
    ///
    /// # Shapes
    /// x_BTD `[B, T, in]` -> `[B, T, out]`
    pub fn forward(&self, x_BTD: Tensor<3>) -> Tensor<3> {
        let ([b, t, d], dtype) = (x_BTD.dims(), x_BTD.dtype());
        let x = x_BTD.reshape([b * t, d]);
        let mut y = match &self.bias {
            Some(bias) => {
                linear_bias(x.clone(), self.weight.val().cast(dtype), bias.val().cast(dtype))
            }
            None => linear(x.clone(), self.weight.val()),
        };
        if let Some(lora) = &self.lora {
            let low = linear(x, lora.a.val());
            y = y + linear(low, lora.b.val()).mul_scalar(lora.scale());
        }
        let out = y.dims()[1];
        y.reshape([b, t, out])
    }

    /// `[in, out]` as (columns, rows) of the stored weight.
    pub fn features(&self) -> (usize, usize) {
        let [out, d] = self.weight.dims();
        (d, out)
    }
}
