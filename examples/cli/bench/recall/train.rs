//! One cell: a model made, trained and asked.

use super::cell::{Cell, Key, Score};
use super::settings::{CellSettings, GatePart, ModelPart, TrainPart};
use burn::tensor::Device;
use longburn::Result;
use longburn::attention::{MixerConfig, MixerSchedule};
use longburn::datasets::synthetic::{QuestionBatch, QuestionTask};
use longburn::models::keymap::params;
use longburn::models::{Decoder, ModelConfig, gates};
use longburn::positional::RopeConfig;
use longburn::training::eval::answered;
use longburn::training::report::Progress;
use longburn::training::{NextToken, Schedule, TrainConfig, Trainer, Warmup};
use std::time::Instant;

/// Rows to evaluate by come from streams that training does not reach.
const HELD_OUT: u64 = 1 << 32;

/// The gate's rows are none of the model's.
const OF_GATE: u64 = 1 << 16;

/// Streams and counts of a cell in the making.
struct Making<'a> {
    key: Key,
    settings: &'a CellSettings,
    task: Box<dyn QuestionTask>,
    progress: &'a Progress,
    tokens: u64,
}

/// Make, train and ask.
///
/// # Errors
/// Settings that cannot work, and losses that are no numbers.
pub fn run(
    key: Key,
    settings: &CellSettings,
    device: &Device,
    progress: &Progress,
) -> Result<Cell> {
    let start = Instant::now();
    let task = settings.task.init()?;
    let chance = task.chance();
    let mut making = Making { key, settings, task, progress, tokens: 0 };
    let (model, loss) = making.trained(device)?;
    let (gate, weights): (Vec<_>, Vec<_>) =
        params(&model).into_iter().partition(|p| p.path.contains(".attn_gate."));
    let count = |params: Vec<longburn::models::keymap::ParamInfo>| -> usize {
        params.iter().map(|p| p.shape.iter().product::<usize>()).sum()
    };
    Ok(Cell {
        scores: making.scores(&model)?,
        key,
        settings: settings.clone(),
        parameters: count(weights),
        gate_parameters: count(gate),
        chance,
        loss,
        tokens: making.tokens,
        seconds: start.elapsed().as_secs_f64(),
    })
}

impl Making<'_> {
    /// The token behind the task's own.
    fn anchor(&self) -> Option<u32> {
        self.settings.mixer.documents.map(|_| self.task.vocabulary() as u32)
    }

    /// The model, and the mean loss of the last tenth of its steps.
    fn trained(&mut self, device: &Device) -> Result<(Decoder, f64)> {
        let CellSettings { model, train, evaluate, mixer, .. } = self.settings;
        let ModelPart { width, layers, heads, rope_theta } = *model;
        let seed = self.key.seed;
        let longest = evaluate.lengths.iter().max().copied().unwrap_or(0);
        let trained = evaluate.lengths[0] * mixer.documents.unwrap_or(1);
        // All models have a row for the anchor, so that they are of one size.
        let mut config = ModelConfig::llama(self.task.vocabulary() + 1, width, layers, heads)
            .with_intermediate(mixer.inner)
            .with_rope(RopeConfig::new(rope_theta, width / heads.max(1)))
            .with_max_positions(longest.max(trained) + 1);
        config.initializer_range = mixer.embedding;
        let dense = (mixer.dense_share * train.steps as f64).round() as u64;
        let mut first = MixerSchedule::new(MixerConfig::Dense);
        if dense == 0 {
            first = mixer.mixer.clone();
        }
        let mut model = Decoder::new(&config, first, seed, device)?;
        let mut loss = f64::NAN;
        if dense > 0 {
            (model, loss) = self.fit(model, dense, mixer.lr, 0)?;
            model = model.swap_mixer(mixer.mixer.clone())?;
        }
        if dense < train.steps {
            (model, loss) = self.fit(model, train.steps - dense, mixer.lr, dense)?;
        }
        if let Some(GatePart { steps, lr }) = mixer.gate {
            (model, _) = self.fit(gates::prepare(model, seed)?, steps, lr, OF_GATE)?;
        }
        Ok((model, loss))
    }

    /// Train by the rows from batch `first` on.
    fn fit(&mut self, model: Decoder, steps: u64, lr: f64, first: u64) -> Result<(Decoder, f64)> {
        let TrainPart { rows, warmup, clip, .. } = self.settings.train;
        let config = TrainConfig::new(steps, lr)
            .with_schedule(Schedule::Cosine { warmup: Warmup::Fraction(warmup), last: 0.0 })
            .with_clip(clip)
            .with_seed(self.key.seed);
        let (task, anchor) = (&self.task, self.anchor());
        let (seed, each) = (self.key.seed, self.settings.mixer.documents.unwrap_or(1));
        let mut data = |step: u64, _: u32| {
            let rows = task.rows(seed, first + step, rows);
            QuestionBatch::packed(&rows, each, anchor).map(|made| Some(made.batch))
        };
        let mut stage = self.progress.stage(&self.key.to_string(), Some(steps), "steps");
        let (mut losses, mut tokens) = (Vec::new(), 0);
        let outcome = Trainer::new(config)?.fit(model, &NextToken, &mut data, &mut |step| {
            let report = step.report;
            losses.push(report.loss);
            tokens += report.tokens;
            let gate = report.aux.map_or(String::new(), |aux| format!(", gate {aux:.4}"));
            stage.message(format!("loss {:.3}{gate}", report.loss));
            stage.work(report.tokens, "tokens");
            stage.advance(1);
            Ok(())
        })?;
        stage.finish();
        self.tokens += tokens;
        let last = &losses[losses.len() - losses.len().div_ceil(10)..];
        Ok((outcome.model, last.iter().sum::<f64>() / last.len() as f64))
    }

    fn scores(&self, model: &Decoder) -> Result<Vec<Score>> {
        let evaluate = &self.settings.evaluate;
        let mut scores = Vec::new();
        for (length, pairs, task) in self.settings.evaluations() {
            let task = task.init()?;
            let (mut right, mut asked) = (0, 0);
            let mut left = evaluate.rows;
            for n in 0.. {
                let rows = task.rows(
                    self.key.seed.wrapping_add(HELD_OUT),
                    n,
                    left.min(evaluate.rows_at_once),
                );
                if rows.is_empty() {
                    break;
                }
                left -= rows.len();
                // One document in each row; its anchor is the beginning of the text.
                let batch = QuestionBatch::packed(&rows, 1, self.anchor())?;
                let said = answered(model, &batch, task.answers())?;
                right += said.iter().filter(|is_right| **is_right).count();
                asked += said.len();
            }
            scores.push(Score { length, pairs, right, asked });
        }
        Ok(scores)
    }
}
