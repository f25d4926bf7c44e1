//! The weights with which every sequence begins: slow parameters of the layer.

use crate::attention::Linear;
use crate::streams::{Draw, Purpose, Streams};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};

/// Initial fast weights of all heads, `[H, rows, columns]`.
#[derive(Module, Debug)]
pub enum InitialWeight {
    /// As they are.
    Full(Param<Tensor<3>>),
    /// A product, and half of the identity.
    LowRank(LowRank),
}

/// `w_left·w_right + I/2`
#[derive(Module, Debug)]
pub struct LowRank {
    /// `[H, rows, r]`
    pub w_left: Param<Tensor<3>>,
    /// `[H, r, columns]`
    pub w_right: Param<Tensor<3>>,
}

/// Draws initial weights; every tensor from a stream of its own.
pub(super) struct Drawing<'a> {
    pub streams: &'a Streams,
    /// Stream of the layer.
    pub layer: u32,
    /// Whether anything is drawn: weights that are about to be replaced are zero.
    pub drawn: bool,
    pub device: &'a Device,
}

impl Drawing<'_> {
    /// Normal numbers of this standard deviation; `part` is the tensor's number in the layer.
    fn normal<const N: usize>(&self, shape: [usize; N], std: f64, part: u32) -> Param<Tensor<N>> {
        if !self.drawn {
            return Param::from_tensor(Tensor::zeros(shape, self.device));
        }
        let mut rng = self.streams.rng(Purpose::Init, 0, part, self.layer);
        let data: Vec<f32> =
            (0..shape.iter().product()).map(|_| (rng.normal() * std) as f32).collect();
        Param::from_tensor(Tensor::from_data(TensorData::new(data, shape), self.device))
    }

    /// A linear layer `[out, in]`, its bias 0.
    pub(super) fn linear(&self, shape: [usize; 2], bias: bool, std: f64, part: u32) -> Linear {
        let bias = bias.then(|| Param::from_tensor(Tensor::zeros([shape[0]], self.device)));
        Linear { weight: self.normal(shape, std, part), bias, lora: None }
    }

    /// `N(0, 1/columns)`
    pub(super) fn full(&self, shape: [usize; 3], part: u32) -> InitialWeight {
        InitialWeight::Full(self.normal(shape, 1.0 / (shape[2] as f64).sqrt(), part))
    }

    /// A product of rank `r`.
    pub(super) fn low_rank(
        &self,
        [heads, rows, columns]: [usize; 3],
        r: usize,
        gain: f64,
        part: u32,
    ) -> InitialWeight {
        InitialWeight::LowRank(LowRank {
            w_left: self.normal([heads, rows, r], gain / (r as f64).sqrt(), part),
            w_right: self.normal([heads, r, columns], gain / (columns as f64).sqrt(), part + 1),
        })
    }
}

impl InitialWeight {
    /// `[1, H, rows, columns]`
    pub fn weights(&self) -> Tensor<4> {
        let w = match self {
            Self::Full(w) => w.val(),
            Self::LowRank(LowRank { w_left, w_right }) => {
                let product = w_left.val().matmul(w_right.val());
                let [_, rows, columns] = product.dims();
                let half = |i: usize| if i / columns == i % columns { 0.5 } else { 0.0 };
                let half: Vec<f32> = (0..rows * columns).map(half).collect();
                let half = TensorData::new(half, [1, rows, columns]);
                product.clone() + Tensor::from_data(half, &product.device())
            }
        };
        w.unsqueeze_dim(0)
    }
}
