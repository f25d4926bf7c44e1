//! The fast-weight branch by the size of its chunk: tokens per second, and what share of the
//! machine's matrix products that is.

use crate::settings::CostSettings;
use burn::tensor::{Device, Tensor, TensorData};
use longburn::Result;
use longburn::attention::lact::{FastOptimizer, Learner, read_and_learn};
use longburn::attention::{AttnShape, LactConfig};
use longburn::kernel::TokenMeta;
use longburn::streams::{Draw, Purpose, Streams};
use std::time::Instant;

/// Runs of each kind; the fastest counts.
const RUNS: usize = 3;

/// One chunk size.
pub struct Cost {
    pub optimizer: FastOptimizer,
    pub chunk: usize,
    /// Operations of the forward pass.
    pub operations: u64,
    /// Seconds of the forward pass.
    pub forward: f64,
    /// Seconds of both passes.
    pub both: f64,
}

impl Cost {
    pub fn tokens_per_second(&self, length: usize) -> f64 {
        length as f64 / self.both
    }

    /// Operations per second of both passes, the backward pass counted twice.
    pub fn operations_per_second(&self) -> f64 {
        3.0 * self.operations as f64 / self.both
    }
}

/// Operations per second of a large matrix product.
pub fn ceiling() -> f64 {
    let side = 1536;
    let [a, b] = [1, 2].map(|stream| normal([side, side], stream, &Device::flex()));
    let seconds = fastest(2 * RUNS, || drop(a.clone().matmul(b.clone())));
    2.0 * (side as f64).powi(3) / seconds
}

/// Every chunk size with every optimizer.
///
/// # Errors
/// Settings that do not go together.
pub fn measure(settings: &CostSettings) -> Result<Vec<Cost>> {
    let mut all = Vec::new();
    for optimizer in [FastOptimizer::Sgd, FastOptimizer::Muon] {
        for &chunk in &settings.chunks {
            all.push(one(settings, optimizer, chunk)?);
        }
    }
    Ok(all)
}

fn one(settings: &CostSettings, optimizer: FastOptimizer, chunk: usize) -> Result<Cost> {
    let CostSettings { width, fast_heads, length, .. } = *settings;
    let device = Device::flex().autodiff();
    let config = LactConfig::new()
        .with_fast_heads(fast_heads)
        .with_chunk(chunk)
        .with_optimizer(optimizer)
        .with_low_rank(0);
    let shape = AttnShape {
        hidden: width,
        heads: fast_heads,
        kv_heads: fast_heads,
        head_dim: width / fast_heads,
        qkv_bias: false,
        o_bias: false,
        qk_norm: None,
    };
    let layer = config.init(&shape, (0.02, 0.02), &Streams::new(0), 0, &device)?;
    let initial = layer.initial();
    let learner = Learner::new(config.rule(), &initial);
    let d = width / fast_heads;
    let unit =
        |stream| normal([1, fast_heads, length, d], stream, &device).div_scalar((d as f64).sqrt());
    let inputs = [1, 2, 3].map(unit);
    let rates = normal([1, fast_heads, length, 4], 4, &device).abs().mul_scalar(1e-3);
    let run = |track: bool| {
        let inputs = inputs.clone().map(|x| x.set_require_grad(track));
        read_and_learn(&initial, &learner, inputs, rates.clone(), chunk).map(|y| y.sum())
    };
    run(false)?;
    Ok(Cost {
        optimizer,
        chunk,
        operations: layer.fast_operations(&TokenMeta::contiguous(1, length, 0)),
        forward: fastest(RUNS, || drop(run(false))),
        both: fastest(RUNS, || drop(run(true).map(|loss| loss.backward()))),
    })
}

fn fastest(runs: usize, work: impl Fn()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..runs).map(time).fold(f64::INFINITY, f64::min)
}

fn normal<const D: usize>(shape: [usize; D], stream: u32, device: &Device) -> Tensor<D> {
    let mut rng = Streams::new(0).rng(Purpose::Synthetic, 0, 0, stream);
    let data = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(data, shape), device)
}
