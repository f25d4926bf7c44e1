//! Chunks of tokens out of tensor operations: any device.

use super::{LossPlan, chunk_on};
use crate::linear::{product_on_card, wide_product_on_card};
use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor, TensorData};

fn column(labels: &[i32], device: &Device) -> Tensor<2, Int> {
    let index: Vec<i32> = labels.iter().map(|l| (*l).max(0)).collect();
    Tensor::from_data(TensorData::new(index, [labels.len(), 1]), (device, DType::I32))
}

/// 1 where a token has a label, `[N, 1]`
fn counted(labels: &[i32], device: &Device) -> Tensor<2> {
    let counted: Vec<f32> = labels.iter().map(|l| (*l >= 0) as u8 as f32).collect();
    Tensor::from_data(TensorData::new(counted, [labels.len(), 1]), (device, DType::F32))
}

/// Log-probabilities out of logits `[n, V]`, in f32 or f64.
fn log_probabilities(logits: Tensor<2>) -> Tensor<2> {
    let wide = crate::precision::wide(logits.dtype());
    burn::tensor::activation::log_softmax(logits.cast(wide), 1)
}

/// −log p(label) per token, 0 where ignored, `[N]`
pub(super) fn nll(x: Tensor<2>, w: Tensor<2>, labels: &[i32]) -> Tensor<1> {
    let device = x.device();
    let logp = log_probabilities(x.matmul(w.transpose()));
    let counted = counted(labels, &device).cast(logp.dtype());
    let n = labels.len();
    (logp.gather(1, column(labels, &device)) * counted).neg().reshape([n])
}

/// (loss `[1]`, dx like x, dw like w); gradients that are not wanted are one zero.
pub(super) fn forward(
    x: Tensor<2>,
    w: Tensor<2>,
    plan: &LossPlan,
) -> (Tensor<1>, Tensor<2>, Tensor<2>) {
    let (device, dtype, of_w) = (x.device(), x.dtype(), w.dtype());
    let w = w.cast(dtype);
    let [n, d] = x.dims();
    let v = w.dims()[0];
    let wide = crate::precision::wide(dtype);
    let mut loss = Tensor::<1>::zeros([1], (&device, wide));
    let nothing = |dtype| Tensor::<2>::zeros([1, 1], (&device, dtype));
    let mut dx = Vec::new();
    let mut dw = plan.w_grad.then(|| Tensor::<2>::zeros([v, d], (&device, wide)));
    let chunk = chunk_on(&x, v);
    for start in (0..n).step_by(chunk) {
        let len = chunk.min(n - start);
        let labels = &plan.labels[start..start + len];
        let part = x.clone().narrow(0, start, len);
        let logp = log_probabilities(product_on_card(part.clone(), w.clone().transpose()));
        let index = column(labels, &device);
        let counted = counted(labels, &device).cast(wide);
        loss = loss - (logp.clone().gather(1, index.clone()) * counted.clone()).sum();
        if !(plan.x_grad || plan.w_grad) {
            continue;
        }
        let minus = Tensor::full([len, 1], -1.0, (&device, wide));
        let dlogits = logp.exp().scatter(1, index, minus, IndexingUpdateOp::Add) * counted;
        let dlogits = dlogits.cast(dtype);
        if plan.x_grad {
            dx.push(product_on_card(dlogits.clone(), w.clone()));
        }
        dw = dw.map(|sum| {
            let (left, right) = (dlogits.transpose(), part);
            sum + match wide {
                DType::F32 => wide_product_on_card(left, right),
                _ => product_on_card(left, right),
            }
        });
    }
    let dx = if dx.is_empty() { nothing(dtype) } else { Tensor::cat(dx, 0) };
    (loss, dx, dw.map_or_else(|| nothing(of_w), |dw| dw.cast(of_w)))
}
