//! Multi-query associative recall, after Zoology (arXiv 2312.04927, §3): pairs of a key and its
//! value come first, then, between tokens that mean nothing, every key again, each followed by the
//! value that it had.
//!
//! *Deviations.* The number of pairs is drawn per row, on a logarithmic scale, keys and values have
//! ids of their own, the places of the questions are uniform, and the value stands behind its question.

use super::questions::{Question, QuestionRow, QuestionTask, distinct};
use crate::error::check_sizes;
use crate::streams::{Draw, RngCore};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Sizes of [`MqarConfig::init`]'s task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MqarConfig {
    /// Tokens per row.
    pub length: usize,
    /// Fewest and most pairs of a row.
    pub pairs: (usize, usize),
    /// Keys there are; those of a row are different ones.
    pub keys: usize,
    /// Values there are, of which each pair has any.
    pub values: usize,
    /// Words between the questions.
    pub filler: usize,
}

impl MqarConfig {
    /// The task.
    ///
    /// # Errors
    /// A size of 0, more pairs than keys, or a row without room for pairs and questions.
    pub fn init(&self) -> Result<Mqar> {
        let (least, most) = self.pairs;
        let sizes = [
            ("length", self.length),
            ("pairs", least),
            ("keys", self.keys),
            ("values", self.values),
            ("filler", self.filler),
        ];
        check_sizes("mqar", &sizes)?;
        let bad =
            |value: usize, expected: String| Err(Error::config("mqar", "pairs", value, expected));
        if least > most {
            return bad(least, format!("at most the other end, {most}"));
        }
        if most > self.keys {
            return bad(most, format!("at most the {} keys", self.keys));
        }
        match most.checked_mul(4).is_some_and(|taken| taken <= self.length) {
            true => Ok(Mqar(self.clone())),
            false => bad(most, format!("at most a quarter of the {} tokens", self.length)),
        }
    }
}

/// The task. Ids: filler, then keys, then values.
#[derive(Clone, Debug)]
pub struct Mqar(MqarConfig);

impl QuestionTask for Mqar {
    fn vocabulary(&self) -> usize {
        self.0.filler + self.0.keys + self.0.values
    }

    fn answers(&self) -> Range<u32> {
        let first = self.0.filler + self.0.keys;
        first as u32..(first + self.0.values) as u32
    }

    fn chance(&self) -> f64 {
        1.0 / self.0.values as f64
    }

    fn row(&self, rng: &mut dyn RngCore) -> QuestionRow {
        let MqarConfig { length, pairs: (least, most), keys, values, filler } = self.0;
        // Evenly on a logarithmic scale: short lists are what is learned first.
        let span = (most + 1) as f64 / least as f64;
        let pairs = ((least as f64 * span.powf(rng.unit())) as usize).min(most);
        let chosen = distinct(keys, pairs, rng);
        let mut ids = Vec::with_capacity(length);
        for key in &chosen {
            ids.extend([filler + key, filler + keys + rng.below(values)]);
        }
        let rest = length - 2 * pairs;
        ids.extend((0..rest).map(|_| rng.below(filler)));
        // A question takes two tokens: cut the other ones at so many places, in any order.
        let mut gaps = distinct(rest - pairs, pairs, rng);
        gaps.sort_unstable();
        let order = distinct(pairs, pairs, rng);
        let question = |(i, (gap, pair)): (usize, (usize, usize))| {
            let at = 2 * pairs + gap + i;
            let evidence = 2 * pair + 1;
            (ids[at], ids[at + 1]) = (ids[evidence - 1], ids[evidence]);
            Question { at, evidence, answer: ids[evidence] as u32 }
        };
        let questions = gaps.into_iter().zip(order).enumerate().map(question).collect();
        QuestionRow { ids: ids.into_iter().map(|id| id as u32).collect(), questions }
    }
}
