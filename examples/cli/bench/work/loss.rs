//! A linear layer and the cross-entropy of its output, forward and backward.

use super::{Lazy, Work, calls, lazy};
use crate::bench::inputs;
use crate::bench::job::LossJob;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use longburn::Result;
use longburn::kernel::linear_cross_entropy;

/// x `[N, D]`, W `[V, D]`, labels.
fn inputs(job: &LossJob, device: &Device) -> (Tensor<2>, Tensor<2>, Vec<i64>) {
    let scale = 1.0 / (job.width as f32).sqrt();
    let labels = inputs::ids(job.tokens, job.vocab, 3).into_iter().map(i64::from).collect();
    (
        inputs::tensor([job.tokens, job.width], 1, 1.0, device),
        inputs::tensor([job.vocab, job.width], 2, scale, device),
        labels,
    )
}

fn found(loss: Tensor<1>, x: &Tensor<2>, w: &Tensor<2>) -> Vec<Lazy> {
    let value = loss.clone().inner();
    let grads = loss.backward();
    let mut found = vec![lazy("loss", value)];
    for (name, leaf) in [("dx", x), ("dw", w)] {
        found.extend(leaf.grad(&grads).map(|grad| lazy(name, grad)));
    }
    found
}

pub fn ours(job: &LossJob, device: &Device) -> Box<dyn Work> {
    let (x, w, labels) = inputs(job, device);
    calls(device, move || {
        let leaf = |x: &Tensor<2>| x.clone().autodiff().require_grad();
        let (x, w) = (leaf(&x), leaf(&w));
        let loss = linear_cross_entropy(x.clone(), w.clone(), &labels)?;
        Ok(found(loss, &x, &w))
    })
}

/// All logits at once.
pub fn stock(job: &LossJob, device: &Device) -> Box<dyn Work> {
    let (x, w, labels) = inputs(job, device);
    let shape = [labels.len(), 1];
    let labels = Tensor::<2, Int>::from_data(TensorData::new(labels, shape), device);
    calls(device, move || -> Result<_> {
        let leaf = |x: &Tensor<2>| x.clone().autodiff().require_grad();
        let (x, w) = (leaf(&x), leaf(&w));
        let logits = x.clone().matmul(w.clone().transpose());
        let loss = log_softmax(logits, 1).gather(1, labels.clone().autodiff()).sum().neg();
        Ok(found(loss, &x, &w))
    })
}
