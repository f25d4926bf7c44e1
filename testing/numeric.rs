//! Numbers on the host: random inputs and comparisons.

use crate::streams::{Draw, Purpose, Streams};
use burn::tensor::{Device, Tensor, TensorData};

/// RMS(a − b) / RMS(b); infinite where a number is NaN or the lengths differ.
pub fn ratio(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let square = |x: f64| x * x;
    let diff: f64 = a.iter().zip(b).map(|(a, b)| square(*a as f64 - *b as f64)).sum();
    let size: f64 = b.iter().map(|b| square(*b as f64)).sum();
    match (diff.is_finite(), size) {
        (false, _) => f64::INFINITY,
        (true, 0.0) => diff.sqrt(),
        (true, size) => (diff / size).sqrt(),
    }
}

pub(super) fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.inner().into_data().iter::<f32>().collect()
}

/// Standard normal numbers of stream `index`.
pub(super) fn normal(n: usize, index: u64) -> Vec<f32> {
    let mut rng = Streams::new(0x10_4B).rng(Purpose::Synthetic, index, 0, 0);
    (0..n).map(|_| rng.normal() as f32).collect()
}

pub(super) fn tensor<const D: usize>(
    data: Vec<f32>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(data, shape), device)
}
