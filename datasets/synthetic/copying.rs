//! Selective copying, after Mamba (arXiv 2312.00752, §4.1.1): tokens to remember lie at random places
//! among tokens to forget; at the end all of them are to be said in their order.
//!
//! *Deviations.* The end has the tokens themselves behind a sign, as a text would, and not signs alone:
//! each asks for the next one. For that the tokens of a row are different ones, so that the one before
//! decides.

use super::questions::{BehindSign, Question, QuestionRow, QuestionTask, distinct};
use crate::error::check_sizes;
use crate::streams::{Draw, RngCore};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Sizes of [`CopyingConfig::init`]'s task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyingConfig {
    /// Tokens per row.
    pub length: usize,
    /// Tokens of a row that are to be remembered.
    pub items: usize,
    /// Different ones that there are.
    pub values: usize,
    /// Different tokens to forget.
    pub filler: usize,
}

impl CopyingConfig {
    /// The task.
    ///
    /// # Errors
    /// A size of 0, as many items as values, or a row without room for all twice.
    pub fn init(&self) -> Result<Copying> {
        let sizes = [
            ("length", self.length),
            ("items", self.items),
            ("values", self.values),
            ("filler", self.filler),
        ];
        check_sizes("copying", &sizes)?;
        if self.items >= self.values {
            let expected = format!("below the {} values", self.values);
            return Err(Error::config("copying", "items", self.items, expected));
        }
        if self.items.saturating_mul(2) > self.length {
            let expected = format!("at most half of the {} tokens", self.length);
            return Err(Error::config("copying", "items", self.items, expected));
        }
        Ok(Copying(self.clone()))
    }
}

/// The task. Ids: filler, the sign in front of the copy, values.
#[derive(Clone, Debug)]
pub struct Copying(CopyingConfig);

impl Copying {
    fn ids(&self) -> BehindSign {
        let CopyingConfig { filler, values, items, .. } = self.0;
        BehindSign { filler, values, asked: items }
    }
}

impl QuestionTask for Copying {
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
        let CopyingConfig { length, items, values, filler } = self.0;
        // The last answer is no token of the row any more.
        let front = length - items;
        let mut ids: Vec<u32> = (0..length).map(|_| rng.below(filler) as u32).collect();
        let mut places = distinct(front, items, rng);
        places.sort_unstable();
        ids[front] = filler as u32;
        let mut questions = Vec::with_capacity(items);
        for (i, value) in distinct(values, items, rng).into_iter().enumerate() {
            let (at, evidence, answer) = (front + i, places[i], (filler + 1 + value) as u32);
            ids[evidence] = answer;
            if let Some(next) = ids.get_mut(at + 1) {
                *next = answer;
            }
            questions.push(Question { at, evidence, answer });
        }
        QuestionRow { ids, questions }
    }
}
