//! Seconds of one layer, for examples that compare layers by length or by their settings.
#![allow(dead_code, reason = "each example uses a part")]

use burn::tensor::{Device, Tensor, TensorData};
use longburn::attention::{AttnShape, Compute, MixContext, MixOutput, Phase, SequenceMixer};
use longburn::kernel::TokenMeta;
use longburn::positional::{Positions, RopeConfig, RopeTable};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::training::report::{Cell, Plot, Series, Table};
use longburn::{Error, Result};
use serde::Deserialize;
use std::path::Path;
use std::time::Instant;

/// Runs of each kind; the fastest counts, and so not the first on a card, which compiles.
const RUNS: usize = 3;

/// Numbers of standard deviation 1.
pub fn normal<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let mut rng = Streams::new(0).rng(Purpose::Synthetic, 0, 0, 0);
    let data = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(data, shape), device)
}

/// Seconds of `work` on a device, at best.
///
/// # Errors
/// What it returns, and a device that fails.
pub fn fastest(device: &Device, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..RUNS {
        let start = Instant::now();
        work()?;
        device.sync().map_err(|e| Error::Unsupported {
            what: format!("the device failed: {e:?}"),
            remedy: "see `longburn doctor`".into(),
        })?;
        least = least.min(start.elapsed().as_secs_f64());
    }
    Ok(least)
}

/// Attention with so many heads of a model of this width.
pub fn shape(width: usize, heads: usize) -> AttnShape {
    AttnShape {
        hidden: width,
        heads,
        kv_heads: heads,
        head_dim: width / heads.max(1),
        qkv_bias: false,
        o_bias: false,
        qk_norm: None,
    }
}

/// One row of tokens for a layer.
pub struct Pass {
    tokens: TokenMeta,
    rope: Option<RopeTable>,
    x: Tensor<3>,
    compute: Compute,
    device: Device,
}

impl Pass {
    /// So many tokens of this width on a device with a graph; `rope` rotates where the layer asks for
    /// it.
    ///
    /// # Errors
    /// A rotation that cannot be.
    pub fn new(
        (length, width): (usize, usize),
        rope: Option<&RopeConfig>,
        device: &Device,
    ) -> Result<Self> {
        let tokens = TokenMeta::contiguous(1, length, 0);
        let rope = match rope {
            Some(rope) => Some(rope.init()?.table(&Positions::of(&tokens), device)),
            None => None,
        };
        let x = normal([1, length, width], device);
        Ok(Self { tokens, rope, x, compute: Compute::F32, device: device.clone() })
    }

    /// The same tokens for a layer that computes in `compute`.
    pub fn computing_in(self, compute: Compute) -> Self {
        Self { x: compute.of(self.x), compute, ..self }
    }

    fn forward(
        &self,
        layer: &impl SequenceMixer,
        x: Tensor<3>,
        keep_state: bool,
    ) -> Result<MixOutput> {
        let ctx = MixContext {
            rope: self.rope.as_ref(),
            phase: if keep_state { Phase::Infer } else { Phase::Train },
            keep_state,
            compute: self.compute,
            ..MixContext::infer(&self.tokens)
        };
        layer.forward(x, &ctx, None)
    }

    /// Seconds of a forward and a backward pass.
    ///
    /// # Errors
    /// What the layer refuses.
    pub fn both(&self, layer: &impl SequenceMixer) -> Result<f64> {
        fastest(&self.device, || {
            let y = self.forward(layer, self.x.clone().require_grad(), false)?.y;
            drop(y.sum().backward());
            Ok(())
        })
    }

    /// Bytes that decoding goes on with behind the row.
    ///
    /// # Errors
    /// What the layer refuses.
    pub fn state_bytes(&self, layer: &impl SequenceMixer) -> Result<usize> {
        let state = self.forward(layer, self.x.clone(), true)?.state;
        Ok(state.map_or(0, |state| state.bytes()))
    }
}

/// Layers of one width by the length of the row.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ByLength {
    pub width: usize,
    pub lengths: Vec<usize>,
}

impl ByLength {
    /// One row per length, and microseconds per token as a curve, of a layer on a device with a graph.
    ///
    /// # Errors
    /// What the layer refuses.
    pub fn measure(
        &self,
        name: &str,
        layer: &impl SequenceMixer,
        rope: Option<&RopeConfig>,
        device: &Device,
    ) -> Result<(Vec<[Cell; 5]>, Series)> {
        let (mut rows, mut each) = (Vec::new(), Vec::new());
        for &length in &self.lengths {
            let pass = Pass::new((length, self.width), rope, device)?;
            let seconds = pass.both(layer)?;
            each.push(1e6 * seconds / length as f64);
            rows.push([
                Cell::from(name),
                Cell::from(length as u64),
                Cell::from(1e3 * seconds),
                Cell::from(1e6 * seconds / length as f64),
                Cell::from(pass.state_bytes(layer)? as f64 / 1024.0),
            ]);
        }
        let lengths: Vec<f64> = self.lengths.iter().map(|n| *n as f64).collect();
        Ok((rows, Series::new(name).points(&lengths, &each)))
    }

    /// What was measured, as a table under `title` and as curves: `out/name.md` and `.svg`.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn report(
        measured: impl IntoIterator<Item = (Vec<[Cell; 5]>, Series)>,
        title: &str,
        (out, name): (&Path, &str),
    ) -> Result<()> {
        let mut table =
            Table::new(["layer", "tokens", "both passes, ms", "us per token", "state, KiB"]);
        let mut plot = Plot::lines("Time of a layer by length")
            .x("length of the row (tokens)")
            .y("us per token, both passes");
        for (rows, series) in measured {
            rows.into_iter().for_each(|row| table.push(row));
            plot = plot.series(series);
        }
        let table = table.decimals(2, 1).decimals(3, 1).decimals(4, 0);
        println!("{title}\n\n{}", table.to_markdown());
        table.save(out.join(format!("{name}.md")))?;
        plot.save(out.join(format!("{name}.svg")))
    }
}
