//! Any of the tasks of recall with its sizes, as a file names it.

use super::{CopyingConfig, HiddenKeyConfig, MqarConfig, QuestionTask};
use crate::Result;
use serde::{Deserialize, Serialize};

/// A task of recall and its sizes; in a file `kind` says which, `"mqar"`, `"copying"` or `"passkey"`.
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
            Self::Passkey(config) => Box::new(config.init()?),
        })
    }

    /// Tokens per row.
    pub fn length(&self) -> usize {
        match self {
            Self::Mqar(config) => config.length,
            Self::Copying(config) => config.length,
            Self::Passkey(config) => config.length,
        }
    }

    /// The same with rows of another length.
    pub fn with_length(mut self, tokens: usize) -> Self {
        *match &mut self {
            Self::Mqar(config) => &mut config.length,
            Self::Copying(config) => &mut config.length,
            Self::Passkey(config) => &mut config.length,
        } = tokens;
        self
    }
}
