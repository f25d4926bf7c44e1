//! Needles farther away than the documents of training are long: associative recall, learned from
//! short documents in packed rows, with an anchor and without, and asked in long ones.

use super::coverage::Coverage;
use super::packing::Arm;
use super::parts::{ModelPart, TrainPart};
use super::seeds::{by_seed, each_seed};
use burn::tensor::Device;
use longburn::attention::MixerConfig;
use longburn::datasets::synthetic::{
    MqarConfig, Question, QuestionBatch, QuestionRow, QuestionTask,
};
use longburn::datasets::{IGNORE, Pack, TokenBatch, TokenDocument};
use longburn::models::Decoder;
use longburn::streams::{Draw, Purpose, Streams};
use longburn::training::eval::answered;
use longburn::training::report::{Cell, Plot, Series, Table, mean_se};
use longburn::training::{NextToken, Trainer};
use longburn::{Error, Result};
use serde::Deserialize;
use std::ops::Range;
use std::path::Path;

/// All have the same tokens and targets. Positions of the first are counted only: trained in f32, it
/// gives the model of the second.
const ARMS: [Arm; 3] = [Arm::Reset, Arm::Continuous, Arm::Anchor];
/// Percent of needles; of fewer nothing can be said about farther ones.
const LEARNED: f64 = 95.0;
/// Share of the pairs.
const FEW: f64 = 0.05;
/// Seed of rows that no training sees.
const UNSEEN: u64 = 1 << 32;
/// Rows that a model is asked about at once.
const AT_ONCE: usize = 8;
/// Points of a curve.
const BINS: usize = 16;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NeedlePart {
    /// Tokens of the shortest document of training and of the longest, with the BOS in front.
    shortest: usize,
    longest: usize,
    /// Rows that a model is asked about.
    rows: usize,
    /// Standard deviation of the initial embedding.
    embedding: f64,
    /// What documents hold; the length is that of the rows that models are asked about.
    task: MqarConfig,
    model: ModelPart,
    train: TrainPart,
}

impl NeedlePart {
    /// That documents have room for their pairs, and rows for documents.
    ///
    /// # Errors
    /// Sizes that do not go together.
    pub fn check(&self) -> Result<()> {
        self.task_of(self.shortest)?;
        let bad = |field, value, expected: &str| {
            Err(Error::config("run.toml", field, value, expected.to_string()))
        };
        if self.longest < self.shortest || self.train.length < self.longest {
            let expected = "at least `shortest`, and at most `train.length`";
            return bad("needle.longest", self.longest, expected);
        }
        if self.rows == 0 {
            return bad("needle.rows", 0, "at least 1");
        }
        if self.task.length <= self.longest {
            return bad("needle.task.length", self.task.length, "above `longest`");
        }
        Ok(())
    }

    /// Tokens of a document, on average.
    fn mean(&self) -> usize {
        (self.shortest + self.longest) / 2
    }

    /// The first that is none of the task's.
    fn bos(&self) -> u32 {
        (self.task.filler + self.task.keys + self.task.values) as u32
    }

    /// Distances to needles: such as a mean document has, as longer ones have, as none has.
    fn parts(&self) -> [Range<usize>; 3] {
        [1..self.mean(), self.mean()..self.longest, self.longest..self.task.length]
    }

    /// The task in so many tokens, one of which is the BOS.
    fn task_of(&self, tokens: usize) -> Result<impl QuestionTask + use<>> {
        MqarConfig { length: tokens.saturating_sub(1), ..self.task.clone() }.init()
    }

    /// With the BOS in front.
    fn led(&self, mut row: QuestionRow) -> QuestionRow {
        row.ids.insert(0, self.bos());
        for Question { at, evidence, .. } in &mut row.questions {
            (*at, *evidence) = (*at + 1, *evidence + 1);
        }
        row
    }

    /// Rows of a micro-batch of a step, the same for each packing but for rotary positions.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn batch(&self, arm: Arm, seed: u64, (step, micro): (u64, u32)) -> Result<TokenBatch> {
        let n = 2 * step + u64::from(micro);
        let mut rng = Streams::new(seed).rng(Purpose::Synthetic, n, 0, 0);
        // Enough for rows of short ones; those that are left over are not used.
        let count = self.train.rows() * (self.train.length / self.shortest + 1);
        let documents = (0..count).map(|_| {
            let tokens = self.shortest + rng.below(self.longest - self.shortest + 1);
            Ok(self.led(self.task_of(tokens)?.row(&mut rng)))
        });
        let documents = documents.collect::<Result<Vec<_>>>()?;
        let packed = documents
            .iter()
            .map(|row| TokenDocument { id: "recall".into(), ids: row.ids.clone().into() });
        let packing = arm.packing(self.train.length, self.bos()).with_pack(Pack::Split);
        let mut source =
            packing.init(packed.collect::<Vec<_>>(), self.train.rows(), Streams::new(seed))?;
        let none = || Error::Data("no rows of documents".into());
        let mut batch = source.next_batch()?.ok_or_else(none)?;
        // Documents stay whole and in their order, and each begins with the only BOS that it has.
        batch.labels.fill(IGNORE);
        let starts = (0..batch.ids.len())
            .filter(|t| batch.ids[*t] == self.bos() && batch.tokens.segment()[*t] >= 0);
        for (start, row) in starts.zip(&documents) {
            for Question { at, answer, .. } in &row.questions {
                batch.labels[start + at] = i64::from(*answer);
            }
        }
        Ok(batch)
    }

    fn train(&self, arm: Arm, seed: u64, coverage: &mut Coverage) -> Result<Decoder> {
        let longest = self.train.length.max(self.task.length);
        let mut config = self.model.config(self.bos() as usize + 1, longest);
        config.initializer_range = self.embedding;
        let model = Decoder::new(&config, &MixerConfig::Dense, seed, &Device::flex())?;
        let mut data = |step: u64, micro: u32| {
            let batch = self.batch(arm, seed, (step, micro))?;
            coverage.add(&batch.tokens)?;
            Ok(Some(batch))
        };
        let trainer = Trainer::new(self.train.config())?;
        Ok(trainer.fit(model, &NextToken, &mut data, &mut |_| Ok(()))?.model)
    }

    /// Ask about single documents, by dense attention.
    fn ask(&self, model: &Decoder, seed: u64) -> Result<Answers> {
        let task = self.task_of(self.task.length)?;
        let mut all = Vec::new();
        for n in 0..self.rows.div_ceil(AT_ONCE) as u64 {
            let rows = task
                .rows(UNSEEN.wrapping_add(seed), n, AT_ONCE)
                .into_iter()
                .map(|row| self.led(row));
            let batch = QuestionBatch::stack(&rows.collect::<Vec<_>>())?;
            let said = answered(model, &batch, task.answers())?;
            let asked = batch.questions.iter().map(|(_, question)| question.at - question.evidence);
            all.extend(asked.zip(said));
        }
        Ok(all)
    }

    /// Train on each packing but the first, ask, and write what came out.
    ///
    /// # Errors
    /// A run that fails, or a folder that cannot be written to.
    pub fn run(&self, seeds: &[u64], at_once: bool, out: &Path) -> Result<Vec<Claim>> {
        let of_seeds = each_seed(seeds, at_once, |seed| {
            ARMS.into_iter().map(|arm| self.one(arm, seed)).collect::<Result<Vec<_>>>()
        })?;
        self.write_answers(&of_seeds, out)?;
        self.write_coverage(&of_seeds, out)?;
        let claims = self.claims(&of_seeds)?;
        for Claim { holds, text } in &claims {
            println!("{}: {text}", if *holds { "holds" } else { "**failed**" });
        }
        Ok(claims)
    }

    fn one(&self, arm: Arm, seed: u64) -> Result<Outcome> {
        let mut coverage = Coverage::new(self.train.length);
        if arm == Arm::Reset {
            // As a trainer counts.
            for (step, micro) in (1..=self.train.steps).flat_map(|step| [(step, 0), (step, 1)]) {
                coverage.add(&self.batch(arm, seed, (step, micro))?.tokens)?;
            }
            return Ok(Outcome { coverage, answers: None });
        }
        let model = self.train(arm, seed, &mut coverage)?;
        let answers = self.ask(&model, seed)?;
        let shares = self.parts().map(|part| format!("{:.1}", share(&answers, &part))).join(", ");
        println!("seed {seed}, {}: {shares} % of the needles", arm.name());
        Ok(Outcome { coverage, answers: Some(answers) })
    }

    /// `needle.md` and `needle.svg`.
    fn write_answers(&self, of_seeds: &[Vec<Outcome>], out: &Path) -> Result<()> {
        let parts = self.parts().map(|part| format!("{} to {}", part.start, part.end));
        let beyond = format!("all from {} on, by seed", self.mean());
        let columns = ["packing".to_string()].into_iter().chain(parts).chain([beyond]);
        let mut table = Table::new(columns);
        let mut plot = Plot::lines("Needles found by distance")
            .x("distance from needle to question (tokens)")
            .y("answers that are right (%)")
            .y_covers(0.0, 100.0)
            .marker_x(self.mean() as f64, "mean document")
            .marker_x(self.longest as f64, "longest");
        let width = self.task.length.div_ceil(BINS).max(1);
        for (i, arm) in ARMS.into_iter().enumerate().skip(1) {
            let means =
                self.parts().map(|part| Cell::from(mean_se(&shares(of_seeds, i, &part)).mean));
            let each = by_seed(&shares(of_seeds, i, &self.beyond()), 1);
            table.push([Cell::from(arm.name())].into_iter().chain(means).chain([Cell::from(each)]));
            let bins = || (0..BINS).map(|bin| bin * width..(bin + 1) * width);
            let x: Vec<f64> = bins().map(|bin| (bin.start + bin.end) as f64 / 2.0).collect();
            let found = bins().map(|bin| mean_se(&shares(of_seeds, i, &bin)));
            let (y, se): (Vec<f64>, Vec<f64>) =
                found.map(|found| (found.mean, found.se.unwrap_or(0.0))).unzip();
            plot = plot.series(Series::new(arm.name()).points(&x, &y).band(&se));
        }
        let chance = 100.0 * self.task_of(self.task.length)?.chance();
        let chances = self.parts().map(|_| Cell::from(chance));
        table.push([Cell::from("chance")].into_iter().chain(chances).chain([Cell::from("–")]));
        let table = table.decimals(1, 1).decimals(2, 1).decimals(3, 1);
        println!(
            "\nneedles found by distance, % (single documents of {} tokens)\n",
            self.task.length
        );
        println!("{}", table.to_markdown());
        table.save(out.join("needle.md"))?;
        plot.save(out.join("needle.svg"))
    }

    /// `coverage.md` and `coverage.svg`.
    fn write_coverage(&self, of_seeds: &[Vec<Outcome>], out: &Path) -> Result<()> {
        let mut table = Table::new([
            "packing".to_string(),
            "positions of tokens seen".into(),
            "relative positions seen".into(),
            format!("pairs at {} or more, %", self.longest),
        ]);
        let mut plot = Plot::lines("Positions in the rows of training")
            .x("rotary position")
            .y("share (%)")
            .log_y()
            .marker_x(self.longest as f64, "longest document");
        for (i, arm) in ARMS.into_iter().enumerate() {
            let Coverage { relative, absolute } = coverage(of_seeds, i, self.train.length);
            table.push([
                Cell::from(arm.name()),
                Cell::from(Coverage::seen(&absolute) as f64),
                Cell::from(Coverage::seen(&relative) as f64),
                Cell::from(100.0 * Coverage::share_from(&relative, self.longest)),
            ]);
            for (of, counts) in [("tokens", &absolute), ("queries less keys", &relative)] {
                let all = counts.iter().sum::<u64>() as f64;
                let y: Vec<f64> = counts.iter().map(|count| 100.0 * *count as f64 / all).collect();
                let x: Vec<f64> = (0..y.len()).map(|place| place as f64).collect();
                let name = format!("{}: {of}", arm.name());
                plot = plot.series(Series::new(name).points(&x, &y).binned(4 * BINS));
            }
        }
        let table = table.decimals(1, 0).decimals(2, 0).decimals(3, 2);
        println!("rotary positions that training saw, of {}\n", self.train.length);
        println!("{}", table.to_markdown());
        table.save(out.join("coverage.md"))?;
        plot.save(out.join("coverage.svg"))
    }

    fn beyond(&self) -> Range<usize> {
        self.mean()..self.task.length
    }

    /// What was expected before the run, on the means of the seeds.
    fn claims(&self, of_seeds: &[Vec<Outcome>]) -> Result<Vec<Claim>> {
        let mean = |i: usize, part: &Range<usize>| mean_se(&shares(of_seeds, i, part)).mean;
        let [near, ..] = self.parts();
        let counted = |i: usize| coverage(of_seeds, i, self.train.length);
        let (reset, apart, anchor) = (counted(0), counted(1), counted(2));
        let (a, b) = (mean(1, &near), mean(2, &near));
        let (far_a, far_b) = (mean(1, &self.beyond()), mean(2, &self.beyond()));
        let far = Coverage::share_from(&anchor.relative, self.longest);
        Ok(vec![
            Claim {
                holds: a.min(b) >= LEARNED,
                text: format!(
                    "both find at least {LEARNED} % within the mean length: {a:.1} % apart, {b:.1} % \
                     with an anchor"
                ),
            },
            Claim {
                holds: far_b >= far_a,
                text: format!(
                    "beyond the mean length, an anchor finds no fewer: {far_b:.1} %, {far_a:.1} % \
                     apart"
                ),
            },
            Claim {
                holds: reset.relative == apart.relative && reset.absolute != apart.absolute,
                text: "apart, continuous positions change those of tokens and no relative one"
                    .into(),
            },
            Claim {
                holds: far > 0.0
                    && far < FEW
                    && Coverage::share_from(&apart.relative, self.longest) == 0.0,
                text: format!(
                    "relative positions beyond the longest document: none apart; with an anchor \
                     under a twentieth of the pairs ({:.2} %)",
                    100.0 * far
                ),
            },
        ])
    }
}

/// An expectation, and whether it came true.
#[derive(Clone, Debug)]
pub struct Claim {
    pub holds: bool,
    pub text: String,
}

/// A packing with one seed.
struct Outcome {
    /// What its training saw.
    coverage: Coverage,
    /// How far the evidence of each question lies, and whether the model answers; of a trained one.
    answers: Option<Answers>,
}

type Answers = Vec<(usize, bool)>;

/// Right answers in percent, of questions whose evidence is so far away.
fn share(answers: &Answers, part: &Range<usize>) -> f64 {
    let of = || answers.iter().filter(|(distance, _)| part.contains(distance));
    100.0 * of().filter(|(_, is_right)| *is_right).count() as f64 / of().count() as f64
}

/// The same by seed, of packing `i`.
fn shares(of_seeds: &[Vec<Outcome>], i: usize, part: &Range<usize>) -> Vec<f64> {
    of_seeds
        .iter()
        .filter_map(|outcomes| outcomes[i].answers.as_ref())
        .map(|answers| share(answers, part))
        .collect()
}

/// What packing `i` saw with all seeds together.
fn coverage(of_seeds: &[Vec<Outcome>], i: usize, length: usize) -> Coverage {
    let mut all = Coverage::new(length);
    for outcomes in of_seeds {
        all.join(&outcomes[i].coverage);
    }
    all
}
