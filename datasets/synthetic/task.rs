//! Any of the tasks of recall with its sizes, as a file names it.

use super::{Copying, CopyingConfig, HiddenKeyConfig, MqarConfig, QuestionRow, QuestionTask};
use crate::Result;
use crate::streams::RngCore;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A task of recall and its sizes; in a file `kind` says which, `"mqar"`, `"copying"`,
/// `"signs"` or `"passkey"`.
///
/// ```
/// use longburn::datasets::synthetic::{CopyingConfig, TaskConfig};
/// let copying = CopyingConfig { length: 64, items: 4, values: 16, filler: 4 };
/// let task = TaskConfig::Copying(copying).with_length(128);
/// assert_eq!(task.length(), 128);
/// assert_eq!(task.init()?.vocabulary(), 4 + 1 + 16);
/// # Ok::<(), longburn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum TaskConfig {
    /// Pairs of keys and values, then the keys again.
    Mqar(MqarConfig),
    /// Scattered tokens, to be said in their order.
    Copying(CopyingConfig),
    /// Copying of which the end has signs alone: each asks for the next token, and none is given.
    Signs(CopyingConfig),
    /// A key between words that repeat.
    Passkey(HiddenKeyConfig),
}

impl TaskConfig {
    /// The task.
    ///
    /// # Errors
    /// Sizes that do not go together.
    pub fn init(&self) -> Result<Box<dyn QuestionTask>> {
        Ok(match self {
            Self::Mqar(config) => Box::new(config.init()?),
            Self::Copying(config) => Box::new(config.init()?),
            Self::Signs(config) => Box::new(Signs(config.init()?)),
            Self::Passkey(config) => Box::new(config.init()?),
        })
    }

    /// Tokens per row.
    pub fn length(&self) -> usize {
        match self {
            Self::Mqar(config) => config.length,
            Self::Copying(config) | Self::Signs(config) => config.length,
            Self::Passkey(config) => config.length,
        }
    }

    /// The same with rows of another length.
    pub fn with_length(mut self, tokens: usize) -> Self {
        *match &mut self {
            Self::Mqar(config) => &mut config.length,
            Self::Copying(config) | Self::Signs(config) => &mut config.length,
            Self::Passkey(config) => &mut config.length,
        } = tokens;
        self
    }
}

/// Copying without the values at the end.
struct Signs(Copying);

impl QuestionTask for Signs {
    fn vocabulary(&self) -> usize {
        self.0.vocabulary()
    }

    fn answers(&self) -> Range<u32> {
        self.0.answers()
    }

    fn chance(&self) -> f64 {
        1.0 / self.0.answers().len() as f64
    }

    fn row(&self, rng: &mut dyn RngCore) -> QuestionRow {
        let mut row = self.0.row(rng);
        let sign = row.questions.first().map(|question| row.ids[question.at]);
        for question in row.questions.iter().skip(1) {
            row.ids[question.at] = sign.unwrap_or_default();
        }
        row
    }
}
