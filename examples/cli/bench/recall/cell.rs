//! One cell of the grid, as a file.

use super::settings::{CellSettings, MixerName, TaskName};
use longburn::models::weights::write_atomic;
use longburn::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};

/// Which cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    pub task: TaskName,
    pub mixer: MixerName,
    pub seed: u64,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, seed {}", self.task.name(), self.mixer.name(), self.seed)
    }
}

/// Right answers of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// Tokens per row.
    pub length: usize,
    /// Pairs per row, where rows of this number were evaluated alone.
    pub pairs: Option<usize>,
    pub right: usize,
    pub asked: usize,
}

impl Score {
    /// Share of right answers.
    pub fn share(&self) -> f64 {
        self.right as f64 / self.asked as f64
    }
}

/// What came of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    #[serde(flatten)]
    pub key: Key,
    /// What decided it.
    pub settings: CellSettings,
    /// Of the model.
    pub parameters: usize,
    /// Of its gates, which are beside the model; else 0.
    pub gate_parameters: usize,
    /// Share of right answers without looking.
    pub chance: f64,
    /// Mean of the last tenth of the steps, nats per answer.
    pub loss: f64,
    pub scores: Vec<Score>,
    /// Of all training.
    pub tokens: u64,
    /// Of training and evaluation.
    pub seconds: f64,
}

impl Key {
    /// The file of the cell in a folder of results.
    pub fn file(&self, folder: &Path) -> PathBuf {
        let Self { task, mixer, seed } = self;
        folder.join(format!("{}-{}-{seed}.json", task.name(), mixer.name()))
    }
}

impl Cell {
    /// # Errors
    /// [`Error::Io`]; [`Error::Parse`] for anything but a cell.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        serde_json::from_str(&text).map_err(|e| Error::Parse {
            file: path.display().to_string(),
            message: format!("no cell of `longburn bench recall`: {e}"),
            text: None,
            span: None,
        })
    }

    /// The finished cell of a folder, where there is one.
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`Error::Config`] for a cell that was made with other settings.
    pub fn finished(folder: &Path, key: Key, settings: &CellSettings) -> Result<Option<Self>> {
        let path = key.file(folder);
        if !path.exists() {
            return Ok(None);
        }
        let cell = Self::read(&path)?;
        let said = |of: &CellSettings| serde_json::to_value(of).unwrap_or(Value::Null);
        let remedy = "this run's settings (remedy: another folder, or the same settings)";
        same(&path, "settings", &said(&cell.settings), &said(settings), remedy)?;
        Ok(Some(cell))
    }

    /// # Errors
    /// [`Error::Io`]
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        write_atomic(&self.key.file(folder), text.as_bytes())
    }

    /// Share of right answers at a length and, where given, a number of pairs.
    pub fn share(&self, length: usize, pairs: Option<usize>) -> Option<f64> {
        let found = self.scores.iter().find(|s| s.length == length && s.pairs == pairs);
        found.map(Score::share)
    }
}

/// That what a file says is what was expected, down to the first field that is not.
///
/// # Errors
/// [`Error::Config`] with file and field.
pub fn same(file: &Path, field: &str, found: &Value, wanted: &Value, whose: &str) -> Result<()> {
    if let (Value::Object(a), Value::Object(b)) = (found, wanted) {
        for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
            let value = |of: &serde_json::Map<String, Value>| of.get(key).cloned();
            let (found, wanted) = (value(a).unwrap_or_default(), value(b).unwrap_or_default());
            same(file, &format!("{field}.{key}"), &found, &wanted, whose)?;
        }
        return Ok(());
    }
    match found == wanted {
        true => Ok(()),
        false => {
            let expected = format!("{wanted}, as in {whose}");
            Err(Error::config(file.display().to_string(), field, found, expected))
        }
    }
}
