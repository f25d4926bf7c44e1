//! One layer by the size of its chunk: operations, what share of them fast weights have, speed.

use crate::timing::{Pass, fastest, normal, shape};
use burn::tensor::Device;
use longburn::Result;
use longburn::attention::LactConfig;
use longburn::attention::lact::FastOptimizer;
use longburn::kernel::{Mask, MaskSpec, TokenMeta};
use longburn::positional::RopeConfig;
use longburn::streams::Streams;
use longburn::training::report::{Cell, Plot, Series, Table};
use serde::Deserialize;
use std::path::Path;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostPart {
    width: usize,
    heads: usize,
    fast_heads: usize,
    window: usize,
    length: usize,
    chunks: Vec<usize>,
    /// Rows and columns of the matrix product that speeds are compared with.
    product: usize,
}

/// A layer with one chunk size. Operations are those of the forward pass.
struct Cost {
    chunk: usize,
    projections: f64,
    window: f64,
    fast: f64,
    /// Of both passes.
    seconds: f64,
}

impl Cost {
    fn operations(&self) -> f64 {
        self.projections + self.window + self.fast
    }

    /// Share of the operations, percent.
    fn of_fast(&self) -> f64 {
        100.0 * self.fast / self.operations()
    }

    /// Operations per second of both passes; the backward pass has twice as many.
    fn speed(&self) -> f64 {
        3.0 * self.operations() / self.seconds
    }
}

pub fn name(optimizer: FastOptimizer) -> &'static str {
    match optimizer {
        FastOptimizer::Sgd => "gradient steps",
        FastOptimizer::Muon => "orthogonalised steps",
    }
}

/// Measures, prints the table, and draws `speed.svg` and `share.svg`.
///
/// # Errors
/// Settings that do not go together, or a folder that cannot be written to.
pub fn report(part: &CostPart, device: &Device, out: &Path) -> Result<()> {
    let product = product(part.product, device)?;
    let chunks: Vec<String> = part.chunks.iter().map(usize::to_string).collect();
    let plot = |title: &str, y: &str| {
        Plot::categories(title, chunks.clone()).x("tokens per chunk").y(y).y_covers(0.0, 100.0)
    };
    let mut speed = plot("Speed by the size of the chunk", "% of a matrix product's");
    let mut share = plot("Share of the fast weights in the operations", "%");
    let mut table = Table::new([
        "steps",
        "chunk",
        "GFLOP forward",
        "of fast weights, %",
        "both passes, ms",
        "tokens/s",
        "speed, % of a product",
    ]);
    for optimizer in [FastOptimizer::Sgd, FastOptimizer::Muon] {
        let costs: Vec<Cost> = part
            .chunks
            .iter()
            .map(|chunk| measure(part, optimizer, *chunk, device))
            .collect::<Result<_>>()?;
        for cost in &costs {
            table.push([
                Cell::from(name(optimizer)),
                Cell::from(cost.chunk as u64),
                Cell::from(cost.operations() / 1e9),
                Cell::from(cost.of_fast()),
                Cell::from(1e3 * cost.seconds),
                Cell::from(part.length as f64 / cost.seconds),
                Cell::from(100.0 * cost.speed() / product),
            ]);
        }
        let of = |value: &dyn Fn(&Cost) -> f64| costs.iter().map(value).collect::<Vec<_>>();
        let percent = of(&|cost| 100.0 * cost.speed() / product);
        speed = speed.series(Series::new(name(optimizer)).values(&percent));
        share = share.series(Series::new(name(optimizer)).values(&of(&Cost::of_fast)));
    }
    let table = table.decimals(1, 0).decimals(4, 0).decimals(5, 0);
    let (width, length) = (part.width, part.length);
    println!("one layer of width {width} over {length} tokens\n\n{}", table.to_markdown());
    table.save(out.join("cost.md"))?;
    speed.save(out.join("speed.svg"))?;
    share.save(out.join("share.svg"))
}

/// Operations per second of a square product.
fn product(side: usize, device: &Device) -> Result<f64> {
    let [a, b] = [(); 2].map(|()| normal([side, side], device));
    let seconds = fastest(device, || {
        drop(a.clone().matmul(b.clone()));
        Ok(())
    })?;
    Ok(2.0 * (side as f64).powi(3) / seconds)
}

fn measure(
    part: &CostPart,
    optimizer: FastOptimizer,
    chunk: usize,
    device: &Device,
) -> Result<Cost> {
    let CostPart { width, heads, fast_heads, window, length, .. } = *part;
    let config = LactConfig::new()
        .with_fast_heads(fast_heads)
        .with_chunk(chunk)
        .with_window(window)
        .with_optimizer(optimizer)
        .with_low_rank(0);
    let shape = shape(width, heads);
    let head_dim = shape.head_dim;
    let device = device.clone().autodiff();
    let layer = config.init(&shape, (0.02, 0.02), &Streams::new(0), 0, &device)?;
    let tokens = TokenMeta::contiguous(1, length, 0);
    let spec = MaskSpec::causal().with_window(Some(window));
    let mask = Mask::new(spec, tokens.clone(), tokens.clone(), heads)?;
    // q, k, v and the output; per head three rates, a share of momentum and a scale.
    let channels = 4 * width + 5 * fast_heads;
    let rope = RopeConfig::new(10_000.0, head_dim);
    Ok(Cost {
        chunk,
        projections: 2.0 * (length * width * channels) as f64,
        window: mask.flops(head_dim, head_dim),
        fast: layer.fast_operations(&tokens) as f64,
        seconds: Pass::new((length, width), Some(&rope), &device)?.both(&layer)?,
    })
}
