//! Rows of retrieval: needles in filler, and one query for each at the end.

use longburn::datasets::synthetic::{Question, QuestionRow, QuestionTask};
use longburn::streams::{Draw, RngCore};
use longburn::{Error, Result};
use serde::Deserialize;
use std::ops::Range;

/// Sizes of a row. A needle is one token that stands for a key and a value; a query is one that
/// stands for a key, and what follows it is to be the value.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Tokens per row.
    pub length: usize,
    /// Needles per row, each with another key.
    pub keys: usize,
    /// Values of a key.
    pub values: usize,
    /// Words that mean nothing.
    pub filler: usize,
    /// Last tokens of a row, which hold its queries and no needle.
    pub front: usize,
}

impl Task {
    pub fn check(&self) -> Result<()> {
        for (field, value) in
            [("keys", self.keys), ("values", self.values), ("filler", self.filler)]
        {
            if value == 0 {
                return Err(Error::config("task", field, 0, "at least 1"));
            }
        }
        if self.front < 2 * self.keys || self.length < self.front + self.keys {
            let expected = "room for every query with its answer, and a row with room for needles";
            return Err(Error::config("task", "front", self.front, expected));
        }
        Ok(())
    }
}

/// Ids: filler, values, queries, needles, in this order.
impl QuestionTask for Task {
    fn vocabulary(&self) -> usize {
        self.filler + self.values + self.keys + self.keys * self.values
    }

    fn answers(&self) -> Range<u32> {
        self.filler as u32..(self.filler + self.values) as u32
    }

    fn chance(&self) -> f64 {
        1.0 / self.values as f64
    }

    fn row(&self, rng: &mut dyn RngCore) -> QuestionRow {
        let mut ids: Vec<u32> = (0..self.length).map(|_| rng.below(self.filler) as u32).collect();
        let mut places: Vec<usize> = (0..self.length - self.front).collect();
        rng.shuffle(&mut places);
        let mut order: Vec<usize> = (0..self.keys).collect();
        rng.shuffle(&mut order);
        let mut questions = Vec::with_capacity(self.keys);
        let first = self.length - 2 * self.keys;
        for (i, key) in order.into_iter().enumerate() {
            let (value, evidence, at) = (rng.below(self.values), places[i], first + 2 * i);
            let (of_values, of_queries) = (self.filler, self.filler + self.values);
            let of_needles = of_queries + self.keys;
            let answer = (of_values + value) as u32;
            ids[evidence] = (of_needles + key * self.values + value) as u32;
            (ids[at], ids[at + 1]) = ((of_queries + key) as u32, answer);
            questions.push(Question { at, evidence, answer });
        }
        QuestionRow { ids, questions }
    }
}
