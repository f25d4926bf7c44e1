//! A pass key in token ids, for models too small to read: the test of
//! [`Passkey`](super::Passkey) without words.
//!
//! A few words repeat over and over; somewhere between them stands the key behind a sign. At the end
//! the sign comes again and asks for the key, whose tokens ask for each other: no two of them are the same,
//! so that the one before decides.

use super::questions::{BehindSign, Question, QuestionRow, QuestionTask, distinct};
use crate::error::check_sizes;
use crate::streams::{Draw, RngCore};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Sizes of [`HiddenKeyConfig::init`]'s task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HiddenKeyConfig {
    /// Tokens per row.
    pub length: usize,
    /// Tokens of the key.
    pub digits: usize,
    /// Different digits that there are.
    pub values: usize,
    /// Words of the line that repeats.
    pub filler: usize,
}

impl HiddenKeyConfig {
    /// The task.
    ///
    /// # Errors
    /// A size of 0, as many digits as values, or a row without room for the key twice.
    pub fn init(&self) -> Result<HiddenKey> {
        let sizes = [
            ("length", self.length),
            ("digits", self.digits),
            ("values", self.values),
            ("filler", self.filler),
        ];
        check_sizes("passkey", &sizes)?;
        if self.digits >= self.values {
            let expected = format!("below the {} values", self.values);
            return Err(Error::config("passkey", "digits", self.digits, expected));
        }
        // Twice a sign and a key, but for the last digit.
        if self.digits.saturating_mul(2) >= self.length {
            let expected = format!("below half of the {} tokens", self.length);
            return Err(Error::config("passkey", "digits", self.digits, expected));
        }
        Ok(HiddenKey(self.clone()))
    }
}

/// The task. Ids: filler, the sign in front of the key, digits.
#[derive(Clone, Debug)]
pub struct HiddenKey(HiddenKeyConfig);

impl HiddenKey {
    fn ids(&self) -> BehindSign {
        let HiddenKeyConfig { filler, values, digits, .. } = self.0;
        BehindSign { filler, values, asked: digits }
    }
}

impl QuestionTask for HiddenKey {
    fn vocabulary(&self) -> usize {
        self.ids().vocabulary()
    }

    fn answers(&self) -> Range<u32> {
        self.ids().answers()
    }

    fn chance(&self) -> f64 {
        self.ids().chance()
    }

    fn row(&self, rng: &mut dyn RngCore) -> QuestionRow {
        let HiddenKeyConfig { length, digits, values, filler } = self.0;
        let key: Vec<u32> = distinct(values, digits, rng)
            .into_iter()
            .map(|digit| (filler + 1 + digit) as u32)
            .collect();
        let end = length - digits;
        let start = rng.below(end - digits);
        let first = rng.below(filler);
        let mut ids: Vec<u32> = (first..first + length).map(|i| (i % filler) as u32).collect();
        for place in [start, end] {
            ids[place] = filler as u32;
            for (id, digit) in ids[place + 1..].iter_mut().zip(&key) {
                *id = *digit;
            }
        }
        let question = |(i, answer): (usize, &u32)| Question {
            at: end + i,
            evidence: start + 1 + i,
            answer: *answer,
        };
        let questions = key.iter().enumerate().map(question).collect();
        QuestionRow { ids, questions }
    }
}
