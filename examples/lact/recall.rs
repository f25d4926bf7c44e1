//! Associative recall over distances that the window does not reach: pairs of a key and a value,
//! then filling, then keys that ask for their values.

use crate::settings::RecallSettings;
use burn::tensor::Device;
use longburn::Result;
use longburn::attention::{LactConfig, MixerConfig};
use longburn::datasets::{Row, Side, TokenBatch};
use longburn::models::{Blocks, Decoder, ForwardOptions, ModelConfig, ids_tensor};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::training::{NextToken, Schedule, TrainConfig, Trainer, Warmup};

/// Label of a token without a target.
const NONE: i64 = -100;

/// A way to build the layers.
#[derive(Clone, Debug)]
pub struct Arm {
    pub name: String,
    mixer: MixerConfig,
    window: Option<usize>,
}

/// What an arm learned.
pub struct Learned {
    pub arm: String,
    pub seed: u64,
    /// Share of the questions answered, of rows that training has not seen.
    pub found: f64,
}

impl RecallSettings {
    /// Window attention alone, and beside fast weights of one and of two widths.
    pub fn arms(&self) -> Vec<Arm> {
        let lact = |inter: f64| {
            let config = LactConfig::new()
                .with_fast_heads(self.fast_heads)
                .with_chunk(self.chunk)
                .with_window(self.window)
                .with_low_rank(0)
                .with_base_lr(self.base_lr)
                .with_inter_multi(inter);
            Arm {
                name: format!("window + fast weights x {inter}"),
                mixer: MixerConfig::Lact(config),
                window: None,
            }
        };
        let alone =
            Arm { name: "window".into(), mixer: MixerConfig::Dense, window: Some(self.window) };
        vec![alone, lact(1.0), lact(2.0)]
    }

    fn vocabulary(&self) -> usize {
        self.keys + self.values + self.filling
    }

    /// One row: pairs, filling, questions. The answer is the target behind each question.
    fn row(&self, stream: u64, number: u32) -> Row {
        let mut rng = Streams::new(stream).rng(Purpose::Synthetic, u64::from(number), 0, 0);
        let mut keys: Vec<usize> = (0..self.keys).collect();
        rng.shuffle(&mut keys);
        let pairs: Vec<(usize, usize)> =
            keys[..self.pairs].iter().map(|k| (*k, self.keys + rng.below(self.values))).collect();
        let mut ids: Vec<u32> = pairs.iter().flat_map(|(k, v)| [*k as u32, *v as u32]).collect();
        let filling = self.length - 4 * self.pairs;
        ids.extend(
            (0..filling).map(|_| (self.keys + self.values + rng.below(self.filling)) as u32),
        );
        let mut labels = vec![NONE; ids.len()];
        let mut asked = pairs;
        rng.shuffle(&mut asked);
        for (key, value) in asked {
            ids.extend([key as u32, value as u32]);
            labels.extend([value as i64, NONE]);
        }
        let pos = (0..ids.len() as i32).collect();
        let segment = vec![0; ids.len()];
        Row { ids, labels, pos, segment, sources: vec![format!("row {number}")] }
    }

    fn batch(&self, stream: u64, first: u32, rows: usize) -> Result<TokenBatch> {
        let rows = (0..rows as u32).map(|i| self.row(stream, first + i)).collect();
        TokenBatch::stack(rows, Side::Right, 0)
    }
}

/// Train `arm` and ask it.
///
/// # Errors
/// Settings that do not go together, or a run that fails.
pub fn run(
    settings: &RecallSettings,
    arm: &Arm,
    seed: u64,
    told: &mut dyn FnMut(u64, f64),
) -> Result<Learned> {
    let mut config =
        ModelConfig::llama(settings.vocabulary(), settings.width, settings.layers, settings.heads)
            .with_max_positions(settings.length);
    config.windows = vec![arm.window; settings.layers];
    let model = Decoder::new(&config, &arm.mixer, seed, &Device::flex())?;
    let train = TrainConfig::new(settings.steps, settings.lr)
        .with_schedule(Schedule::cosine().with_warmup(Warmup::Fraction(0.05)))
        .with_clip(1.0)
        .with_seed(seed);
    let rows = settings.batch;
    let mut data =
        |step: u64, _: u32| settings.batch(2 * seed, step as u32 * rows as u32, rows).map(Some);
    let trained = Trainer::new(train)?.fit(model, &NextToken, &mut data, &mut |step| {
        told(step.report.step, step.report.loss);
        Ok(())
    })?;

    let (mut right, mut asked) = (0, 0);
    for first in (0..settings.tests).step_by(rows) {
        let batch = settings.batch(2 * seed + 1, first as u32, rows)?;
        let ids = ids_tensor(&batch.ids, rows, &Device::flex());
        let out =
            trained.model.forward_ids(ids, &batch.tokens, &ForwardOptions::infer(), vec![])?;
        let best = trained.model.logits(out.last).argmax(2).into_data();
        for (best, label) in best.iter::<i64>().zip(&batch.labels) {
            if *label != NONE {
                asked += 1;
                right += usize::from(best == *label);
            }
        }
    }
    Ok(Learned { arm: arm.name.clone(), seed, found: right as f64 / f64::from(asked) })
}
