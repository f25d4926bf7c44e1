//! All logits at once, differentiated by Burn.

use burn::tensor::{DType, Int, Tensor, TensorData, activation::log_softmax};

/// `[1]`
pub(super) fn loss(x: Tensor<2>, w: Tensor<2>, labels: &[i32]) -> Tensor<1> {
    let wide = crate::precision::wide(x.dtype());
    let device = x.device();
    let w = w.cast(x.dtype());
    let logits = x.matmul(w.transpose()).cast(wide);
    let n = labels.len();
    let index: Vec<i32> = labels.iter().map(|l| (*l).max(0)).collect();
    let index = Tensor::<2, Int>::from_data(TensorData::new(index, [n, 1]), (&device, DType::I32));
    let counted: Vec<f32> = labels.iter().map(|l| (*l >= 0) as u8 as f32).collect();
    let counted = Tensor::<2>::from_data(TensorData::new(counted, [n, 1]), (&device, DType::F32));
    (log_softmax(logits, 1).gather(1, index) * counted.cast(wide)).sum().neg()
}
