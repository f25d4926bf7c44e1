//! `run.toml`.

use longburn::{Error, Result};
use serde::Deserialize;

/// What the program does.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub seeds: Vec<u64>,
    pub cost: CostSettings,
    pub recall: RecallSettings,
}

/// Speed by the size of the chunk.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostSettings {
    pub width: usize,
    pub fast_heads: usize,
    pub length: usize,
    pub chunks: Vec<usize>,
}

/// Model, task and training.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecallSettings {
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
    pub fast_heads: usize,
    pub window: usize,
    pub chunk: usize,
    pub base_lr: f64,
    pub length: usize,
    pub pairs: usize,
    pub keys: usize,
    pub values: usize,
    pub filling: usize,
    pub batch: usize,
    pub steps: u64,
    pub lr: f64,
    pub tests: usize,
}

impl Settings {
    /// # Errors
    /// An unreadable file, unknown or missing fields, or pairs that do not fit.
    pub fn read(path: Option<&std::path::Path>) -> Result<Self> {
        let (file, text) = match path {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
                (path.display().to_string(), text)
            }
            None => ("run.toml".into(), include_str!("run.toml").to_string()),
        };
        let read: Self = toml::from_str(&text).map_err(|e| Error::Parse {
            file: file.clone(),
            message: e.message().into(),
            span: e.span(),
            text: Some(text.clone()),
        })?;
        let recall = &read.recall;
        if recall.pairs == 0 || recall.pairs > recall.keys || 4 * recall.pairs > recall.length {
            let expected = "at least 1, at most `keys` and a quarter of `length`";
            return Err(Error::config(file, "recall.pairs", recall.pairs, expected));
        }
        if recall.batch == 0 || recall.tests == 0 {
            return Err(Error::config(file, "recall.batch and recall.tests", 0, "at least 1"));
        }
        Ok(read)
    }
}
