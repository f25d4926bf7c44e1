//! ln(1 + eˣ), and back.

use burn::tensor::Tensor;

/// ln(1 + eˣ), exact where it is small.
pub(crate) fn softplus(x: Tensor<3>) -> Tensor<3> {
    // Beyond, it is x to the last bit.
    const LINEAR: f32 = 20.0;
    let low = x.clone().clamp_max(LINEAR).exp().log1p();
    low + (x - LINEAR).clamp_min(0.0)
}

/// The number whose softplus is `y`, which is above 0.
pub(crate) fn inverse_softplus(y: f64) -> f64 {
    // 1 − e⁻ʸ by exp_m1 keeps the digits of a small y.
    y + (-(-y).exp_m1()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_undoes_the_other() {
        for y in [1e-12, 1e-4, 0.1, 1.0, 30.0, 700.0] {
            let x = inverse_softplus(y);
            let back = x.max(0.0) + (-x.abs()).exp().ln_1p();
            assert!((back - y).abs() <= 1e-12 * y, "{y}: {back}");
        }
    }

    #[cfg(feature = "flex")]
    #[test]
    fn tensors_equal_the_formula() {
        let x = [-80.0f32, -10.0, -1.0, 0.0, 3.0, 19.9, 20.1, 100.0];
        let device = burn::tensor::Device::flex();
        let y = softplus(Tensor::<1>::from_floats(x, &device).reshape([1, 2, 4]));
        for (x, y) in x.into_iter().map(f64::from).zip(y.into_data().iter::<f64>()) {
            let want = x.max(0.0) + (-x.abs()).exp().ln_1p();
            assert!((y - want).abs() <= 2e-7 * want, "{x}: {y}, not {want}");
        }
    }
}
