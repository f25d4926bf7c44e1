//! The weights with which every sequence begins: slow parameters of the layer.

use crate::attention::drawing::Drawing;
use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};

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

impl Drawing<'_> {
    /// `N(0, 1/columns)`
    pub(super) fn full(&self, shape: [usize; 3], part: u32) -> InitialWeight {
        let std = 1.0 / (shape[2] as f64).sqrt();
        InitialWeight::Full(Param::from_tensor(self.normal(shape, std, part)))
    }

    /// A product of rank `r`.
    pub(super) fn low_rank(
        &self,
        [heads, rows, columns]: [usize; 3],
        r: usize,
        gain: f64,
        part: u32,
    ) -> InitialWeight {
        let left = self.normal([heads, rows, r], gain / (r as f64).sqrt(), part);
        let right = self.normal([heads, r, columns], gain / (columns as f64).sqrt(), part + 1);
        InitialWeight::LowRank(LowRank {
            w_left: Param::from_tensor(left),
            w_right: Param::from_tensor(right),
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
