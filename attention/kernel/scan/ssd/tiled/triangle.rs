//! Sums over tokens as products with triangles of ones.

use crate::linear::products_on_card as products;
use burn::tensor::{DType, Tensor, TensorData};

/// Ones `[Q, Q]` where the first token is not behind the second, and where it is before it.
pub(super) struct Triangle {
    pub up_to: Tensor<2>,
    pub before: Tensor<2>,
}

impl Triangle {
    pub fn new(q: usize, like: &Tensor<3>) -> Self {
        let make = |is: fn(usize, usize) -> bool| {
            let data: Vec<f32> = (0..q * q).map(|i| f32::from(is(i / q, i % q))).collect();
            let data = TensorData::new(data, [q, q]);
            Tensor::<2>::from_data(data, (&like.device(), DType::F32)).cast(like.dtype())
        };
        Self { up_to: make(|i, j| i <= j), before: make(|i, j| i < j) }
    }

    /// Of the first tokens.
    pub fn first(&self, q: usize) -> Self {
        let first = |x: &Tensor<2>| x.clone().narrow(0, 0, q).narrow(1, 0, q);
        Self { up_to: first(&self.up_to), before: first(&self.before) }
    }

    /// Decays between tokens of logarithms `[R, Q]`: from j to i at (j, i), zero where i is before j,
    /// `[R, Q, Q]`.
    pub fn decays(&self, log: Tensor<2>) -> Tensor<3> {
        // At (j, k) the logarithm of k where it is behind j.
        let behind = log.unsqueeze_dim::<3>(1) * self.before.clone().unsqueeze();
        let sums = by_matrix(behind, self.up_to.clone());
        sums.exp() * self.up_to.clone().unsqueeze()
    }
}

/// Sums over the last dimension, `[C, Q, H, X] -> [C, Q, H, 1]`, as a product with ones: cards' own sums over
/// short rows take several times as long.
pub(super) fn sums_of_last(x: Tensor<4>) -> Tensor<4> {
    let [c, q, h, width] = x.dims();
    let ones = Tensor::ones([width, 1], (&x.device(), x.dtype()));
    products(x.reshape([c * q * h, width]), ones).reshape([c, q, h, 1])
}

/// Sums over the second dimension, `[S, Q, X] -> [S, 1, X]`, as a product with ones.
pub(super) fn sums_of_rows(x: Tensor<3>) -> Tensor<3> {
    let [s, q, _] = x.dims();
    products(Tensor::ones([s, 1, q], (&x.device(), x.dtype())), x)
}

/// Each row of the last dimension times a matrix: `[S, Q, K] -> [S, Q, X]`
pub(super) fn by_matrix(x: Tensor<3>, matrix: Tensor<2>) -> Tensor<3> {
    let ([s, q, k], n) = (x.dims(), matrix.dims()[1]);
    products(x.reshape([s * q, k]), matrix).reshape([s, q, n])
}

/// A matrix times each `[Q, X]`: `[S, Q, X] -> [S, K, X]`
pub(super) fn matrix_by(matrix: Tensor<2>, x: Tensor<3>) -> Tensor<3> {
    let (s, [rows, k]) = (x.dims()[0], matrix.dims());
    products(matrix.unsqueeze::<3>().expand([s, rows, k]), x)
}
