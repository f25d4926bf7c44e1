//! The Newton-Schulz iteration of Muon (Jordan et al., 2024): a matrix with its singular values
//! brought to about 1, by matrix products alone. The optimizer and the fast weights of LaCT share
//! it.

use burn::tensor::{DType, Tensor};

/// Added to a sum of squares under a root: its gradient is then 0 at 0 instead of NaN, and no
/// norm above 1e-12 notices.
pub(crate) const TINY: f64 = 1e-30;

/// Least norm that a matrix is divided by.
const EPS: f64 = 1e-7;

/// a, b and c of `a·X + (b·A + c·A·A)·X` with `A = X·Xᵀ`, the same in every step: the slope at 0
/// is as steep as it gets, and singular values end in [0.68, 1.14].
const STEEP: [[f64; 3]; 5] = [[3.4445, -4.7750, 2.0315]; 5];

/// Others in every step: from 0.01 on, singular values end in [0.97, 1.04].
const TUNED: [[f64; 3]; 5] = [
    [4.0848, -6.8946, 2.9270],
    [3.9505, -6.3029, 2.6377],
    [3.7418, -5.5913, 2.3037],
    [2.8769, -3.1427, 1.2046],
    [2.8366, -3.0525, 1.2012],
];

/// Five steps of the iteration, batched over all dimensions but the last two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NewtonSchulz {
    coefficients: [[f64; 3]; 5],
    /// The norm is raised to the least one; otherwise that is added to it.
    clamped: bool,
    bf16: bool,
}

impl NewtonSchulz {
    /// As the language models of LaCT have it: coefficients per step.
    pub const LACT: Self = Self { coefficients: TUNED, clamped: false, bf16: false };
    /// As LaCT has it for sets: one triple of coefficients.
    pub const LACT_SET: Self = Self { coefficients: STEEP, clamped: false, bf16: false };
    /// As the optimizer has it: one triple of coefficients.
    pub const MUON: Self = Self { coefficients: STEEP, clamped: true, bf16: false };

    /// The steps in bf16 instead of the input's dtype, as GPU programs run them: about 1 % of
    /// noise.
    pub fn with_bf16(mut self, bf16: bool) -> Self {
        self.bf16 = bf16;
        self
    }

    /// Orthogonalise; a matrix of zeros stays one, with finite gradients.
    ///
    /// # Shapes
    /// g `[.., rows, columns]` -> the same
    pub fn orthogonalize<const D: usize>(&self, g: Tensor<D>) -> Tensor<D> {
        let [rows, columns] = [g.dims()[D - 2], g.dims()[D - 1]];
        let dtype = g.dtype();
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let g = g.cast(wide);
        let square = g.clone().square().sum_dim(D - 1).sum_dim(D - 2);
        let norm = square.add_scalar(TINY).sqrt();
        let norm = if self.clamped { norm.clamp_min(EPS) } else { norm.add_scalar(EPS) };
        // The smaller side squared is what the products work on.
        let tall = rows > columns;
        let mut x = g / norm;
        if tall {
            x = x.transpose();
        }
        let narrow = if self.bf16 { DType::BF16 } else { wide };
        // Not in bf16, to which coefficients would be rounded.
        let times = |x: Tensor<D>, by: f64| x.cast(wide).mul_scalar(by).cast(narrow);
        x = x.cast(narrow);
        for [a, b, c] in self.coefficients {
            let s = x.clone().matmul(x.clone().transpose());
            let s = times(s.clone(), b) + times(s.clone().matmul(s), c);
            x = times(x.clone(), a) + s.matmul(x);
        }
        if tall {
            x = x.transpose();
        }
        x.cast(dtype)
    }

    /// Multiplications and additions for one matrix: `30·d³` where it is square.
    pub fn operations(rows: usize, columns: usize) -> u64 {
        let (m, n) = (rows.min(columns) as u64, rows.max(columns) as u64);
        5 * (4 * m * m * n + 2 * m * m * m)
    }
}
