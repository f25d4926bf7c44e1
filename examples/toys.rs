//! Small models that several examples train on tasks whose answers are known.
#![allow(dead_code, reason = "each example uses a part")]

use crate::seeds::{by_seed, each_seed};
use longburn::attention::SequenceMixer;
use longburn::datasets::synthetic::{Question, QuestionBatch, TaskConfig};
use longburn::models::Decoder;
use longburn::training::eval::answered;
use longburn::training::report::{Cell, Progress, mean_se};
use longburn::training::{NextToken, Schedule, TrainConfig, Trainer, Warmup};
use longburn::{Error, Result};
use serde::Deserialize;

/// Rows that a model is asked about at once.
const AT_ONCE: usize = 8;
/// Seed of rows that no training sees.
const UNSEEN: u64 = 1 << 32;

/// Share of the questions of so many rows, of those for which `counts` holds, that the model
/// answers, in percent; no training of `seed` sees the rows.
///
/// # Errors
/// What the model refuses, and rows without such a question.
pub fn share<M: SequenceMixer>(
    task: &TaskConfig,
    model: &Decoder<M>,
    (seed, rows): (u64, usize),
    counts: impl Fn(&Question) -> bool,
) -> Result<f64> {
    let task = task.init()?;
    let (mut right, mut asked) = (0, 0);
    for n in 0..rows.div_ceil(AT_ONCE) as u64 {
        let batch = QuestionBatch::stack(&task.rows(UNSEEN + seed, n, AT_ONCE))?;
        let answers = answered(model, &batch, task.answers())?;
        for ((_, question), answer) in batch.questions.iter().zip(answers) {
            if counts(question) {
                (asked, right) = (asked + 1, right + usize::from(answer));
            }
        }
    }
    match asked {
        0 => Err(Error::Data("no row asks for what is to be counted".into())),
        _ => Ok(100.0 * right as f64 / f64::from(asked)),
    }
}

/// A training on a task.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    pub steps: u64,
    pub lr: f64,
    /// Rows per micro-batch; two make a step.
    pub batch: usize,
    /// Share of the steps.
    pub warmup: f64,
    /// Standard deviation of the initial embedding: words that differ more are told apart sooner.
    pub embedding: f64,
}

/// Models that are compared on a task, each once per seed.
pub struct Comparison<'a> {
    pub task: &'a TaskConfig,
    pub training: &'a Training,
    pub seeds: &'a [u64],
    /// Whether the models of all seeds are trained at the same time.
    pub at_once: bool,
    /// Rows that a trained model is asked about.
    pub rows: usize,
    pub progress: &'a Progress,
}

impl Comparison<'_> {
    /// The trained model.
    ///
    /// # Errors
    /// Settings that do not go together, or a run that fails.
    pub fn train<M: SequenceMixer>(
        &self,
        name: &str,
        seed: u64,
        model: Decoder<M>,
    ) -> Result<Decoder<M>> {
        let Training { steps, lr, batch, warmup, .. } = *self.training;
        let config = TrainConfig::new(steps, lr)
            .with_schedule(Schedule::Linear { warmup: Warmup::Fraction(warmup), last: 0.0 })
            .with_clip(1.0)
            .with_micro_batches(2)
            .with_workers(2);
        let task = self.task.init()?;
        let mut data = |step: u64, micro: u32| {
            let rows = task.rows(seed, 2 * step + u64::from(micro), batch);
            QuestionBatch::stack(&rows).map(|batch| Some(batch.batch))
        };
        let mut stage = self.progress.stage(&format!("{name}, seed {seed}"), Some(steps), "steps");
        let trained = Trainer::new(config)?.fit(model, &NextToken, &mut data, &mut |step| {
            stage.message(format!("loss {:.3}", step.report.loss));
            stage.advance(1);
            Ok(())
        })?;
        stage.finish();
        Ok(trained.model)
    }

    /// A row of a table: what the models of all seeds answer of the questions that count, in percent.
    ///
    /// # Errors
    /// As [`train`](Self::train) and [`share`].
    pub fn row<M: SequenceMixer>(
        &self,
        name: &str,
        model: impl Fn(u64) -> Result<Decoder<M>> + Sync,
        counts: impl Fn(&Question) -> bool + Sync,
    ) -> Result<[Cell; 3]> {
        let shares = each_seed(self.seeds, self.at_once, |seed| {
            let model = self.train(name, seed, model(seed)?)?;
            let share = share(self.task, &model, (seed, self.rows), &counts)?;
            self.progress.println(&format!("{name}, seed {seed}: {share:.1} %"));
            Ok(share)
        })?;
        let mean = mean_se(&shares).mean;
        Ok([Cell::from(name), Cell::from(mean), Cell::from(by_seed(&shares, 1))])
    }

    /// The last row: what is right without looking.
    ///
    /// # Errors
    /// As [`TaskConfig::init`].
    pub fn chance(&self) -> Result<[Cell; 2]> {
        Ok([Cell::from("chance"), Cell::from(100.0 * self.task.init()?.chance())])
    }
}
