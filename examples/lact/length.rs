//! One layer beside dense attention of the same width, over long rows.

use crate::cost::name;
use crate::timing::{Pass, shape};
use burn::tensor::Device;
use longburn::Result;
use longburn::attention::lact::FastOptimizer;
use longburn::attention::{Compute, DenseConfig, LactConfig};
use longburn::positional::RopeConfig;
use longburn::streams::Streams;
use longburn::training::report::{Cell, Table};
use serde::Deserialize;
use std::path::Path;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LengthPart {
    width: usize,
    heads: usize,
    fast_heads: usize,
    chunk: usize,
    window: usize,
    lengths: Vec<usize>,
    /// In f32 dense attention has no kernels of its own on cards.
    longest_in_f32: usize,
}

/// Measures, prints the table and writes it to `length.md`; in bf16, too, where the device computes
/// in it and is a card: CPUs have few such products.
///
/// # Errors
/// Settings that do not go together, or a folder that cannot be written to.
pub fn report(part: &LengthPart, device: &Device, out: &Path) -> Result<()> {
    let &LengthPart { width, heads, fast_heads, chunk, window, .. } = part;
    let dtypes = match is_card(device) && Compute::Bf16.runs_on(device) {
        true => vec![Compute::F32, Compute::Bf16],
        false => vec![Compute::F32],
    };
    let device = device.clone().autodiff();
    let (shape, std, streams) = (shape(width, heads), (0.02, 0.02), Streams::new(0));
    let rope = RopeConfig::new(10_000.0, shape.head_dim);
    let dense = DenseConfig::new().init(shape.init(std, &streams, 100, &device));
    let config = LactConfig::new().with_fast_heads(fast_heads).with_chunk(chunk);
    let fast = |optimizer| {
        let config = config.clone().with_window(window).with_optimizer(optimizer);
        config.init(&shape, std, &streams, 0, &device)
    };
    let optimizers = [FastOptimizer::Sgd, FastOptimizer::Muon];
    let layers = optimizers.map(|one| fast(one).map(|layer| (name(one), layer)));
    let layers = layers.into_iter().collect::<Result<Vec<_>>>()?;
    let mut table = Table::new([
        "layer",
        "computes in",
        "tokens",
        "both passes, ms",
        "tokens/s",
        "time, of dense attention's",
    ]);
    for compute in dtypes {
        let fits = |length: &&usize| compute != Compute::F32 || **length <= part.longest_in_f32;
        for &length in part.lengths.iter().filter(fits) {
            let pass = Pass::new((length, width), Some(&rope), &device)?.computing_in(compute);
            let of_dense = pass.both(&dense)?;
            let mut row = |layer: &str, seconds: f64| {
                table.push([
                    Cell::from(layer),
                    Cell::from(compute.name()),
                    Cell::from(length as u64),
                    Cell::from(1e3 * seconds),
                    Cell::from(length as f64 / seconds),
                    Cell::from(seconds / of_dense),
                ]);
            };
            row("dense attention", of_dense);
            for (steps, layer) in &layers {
                row(&format!("LaCT, {steps}"), pass.both(layer)?);
            }
        }
    }
    let table = table.decimals(3, 1).decimals(4, 0).decimals(5, 2);
    println!(
        "one layer of width {width} by the length of the row; LaCT with chunks of {chunk} tokens and a \
         window of {window}\n\n{}",
        table.to_markdown()
    );
    table.save(out.join("length.md"))
}

/// Whether it is not the CPU.
pub fn is_card(device: &Device) -> bool {
    *device != Device::flex()
}
