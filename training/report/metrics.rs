//! `metrics.jsonl`: what a run measured, one JSON object a line, only ever appended to.

use std::collections::{BTreeMap, VecDeque};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::append::{Appender, Outage};
use super::number;
use crate::{Error, Result};

/// One line of the log, told apart by its `kind`.
///
/// JSON knows no NaN and no infinity: such values are written as the strings `"NaN"`,
/// `"Infinity"` and `"-Infinity"`, which the number parsers of Python, JavaScript and Rust read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// An optimizer step.
    Train(TrainRecord),
    /// A measured curve or set of values.
    Eval(EvalRecord),
    /// Anything else worth keeping.
    Note(NoteRecord),
}

/// What one optimizer step reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainRecord {
    /// Which training run, such as `base` or `longlora/seed1`.
    pub run: String,
    /// Optimizer step, from 1.
    pub step: u64,
    /// Tokens seen so far.
    pub tokens: u64,
    /// Mean loss per token of the step, in nats.
    #[serde(with = "number")]
    pub loss: f64,
    /// Learning rate of the first parameter group.
    #[serde(with = "number")]
    pub lr: f64,
    /// Norm of all gradients before clipping.
    #[serde(default, with = "number", skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Training speed of the step.
    #[serde(default, with = "number", skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Further values of the objective, by name.
    #[serde(default, with = "number", skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, f64>,
}

/// A measurement: `y` (with standard errors) over `x`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Which trained arm.
    pub run: String,
    /// What was measured, such as `perplexity_by_position`.
    pub name: String,
    /// Where: positions, lengths.
    #[serde(with = "number")]
    pub x: Vec<f64>,
    /// The values.
    #[serde(with = "number")]
    pub y: Vec<f64>,
    /// Standard errors of `y`; empty where unknown.
    #[serde(default, with = "number", skip_serializing_if = "Vec::is_empty")]
    pub se: Vec<f64>,
}

/// A named value of any form.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NoteRecord {
    /// The arm it belongs to; empty for the whole run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub run: String,
    /// What it is.
    pub name: String,
    /// The value.
    pub value: serde_json::Value,
}

/// Most lines that wait for room on the disk; later ones are lost, and counted.
const MOST_WAITING: usize = 100_000;

/// Appends records to a file, each handed to the system when the call returns.
///
/// A run is worth more than its log: where a line cannot be written, as on a full disk, a warning
/// says so once, and it waits, with those behind it, until there is room again. No line is ever
/// written in part.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    out: Appender,
    waiting: VecDeque<Vec<u8>>,
    lost: u64,
    outage: Outage,
}

impl MetricsLog {
    /// Opens `path` for appending, creating it where needed.
    ///
    /// A process that was killed while writing leaves a torn last line. It is cut off here, with
    /// a warning, so that it does not run into the next record.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let open = || {
            let waiting = mend_tail(&path)?;
            Ok((waiting, OpenOptions::new().append(true).create(true).open(&path)?))
        };
        let (waiting, file) = open().map_err(|e| Error::io(&path, e))?;
        Ok(Self {
            out: Appender::new(path.clone(), file),
            path,
            waiting: waiting.into_iter().collect(),
            lost: 0,
            outage: Outage::default(),
        })
    }

    /// Appends one record, after those that wait.
    ///
    /// # Errors
    /// A record that cannot be expressed in JSON.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record).map_err(|e| Error::io(&self.path, e.into()))?;
        line.push(b'\n');
        match self.waiting.len() < MOST_WAITING {
            true => self.waiting.push_back(line),
            false => self.lost += 1,
        }
        let done = self.write_waiting();
        self.outage.tell(&self.path.display().to_string(), done);
        match self.waiting.is_empty() {
            true if self.lost > 0 => {
                let lost = std::mem::take(&mut self.lost);
                self.note("records lost", lost)
            }
            _ => Ok(()),
        }
    }

    fn write_waiting(&mut self) -> Result<()> {
        while let Some(line) = self.waiting.front() {
            self.out.append(line)?;
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// Appends a training step.
    ///
    /// # Errors
    /// As [`MetricsLog::write`].
    pub fn train(&mut self, record: TrainRecord) -> Result<()> {
        self.write(&Record::Train(record))
    }

    /// Appends a measurement.
    ///
    /// # Errors
    /// As [`MetricsLog::write`].
    pub fn eval(&mut self, record: EvalRecord) -> Result<()> {
        self.write(&Record::Eval(record))
    }

    /// Appends a note that belongs to the whole run.
    ///
    /// # Errors
    /// As [`MetricsLog::write`].
    pub fn note(&mut self, name: &str, value: impl Into<serde_json::Value>) -> Result<()> {
        let record =
            NoteRecord { name: name.to_owned(), value: value.into(), ..Default::default() };
        self.write(&Record::Note(record))
    }
}

/// Makes the file end in a whole line: half an object is cut off, and for a complete one without
/// its line end that is what has to be written next.
fn mend_tail(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    let bytes = match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let start = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let tail = &bytes[start..];
    if tail.is_empty() {
        return Ok(None);
    }
    if is_json(tail) {
        return Ok(Some(b"\n".to_vec()));
    }
    tracing::warn!("{}: cut off a torn last line of {} bytes", path.display(), tail.len());
    OpenOptions::new().write(true).open(path)?.set_len(start as u64)?;
    Ok(None)
}

fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok()
}

/// What [`read_metrics`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// All whole records, in file order.
    pub records: Vec<Record>,
    /// Lines that are torn, in file order.
    pub torn: Vec<TornLine>,
}

/// A line that is not a whole JSON object: its writer was killed in the middle of it, or its disk
/// was full.
#[derive(Clone, Debug, PartialEq)]
pub struct TornLine {
    /// Line number, from 1.
    pub line: usize,
    /// Its length.
    pub bytes: usize,
}

impl Metrics {
    /// The training curve of `run`.
    ///
    /// A run that resumed from a checkpoint repeats the steps after it; only the last telling of
    /// each step counts.
    pub fn train(&self, run: &str) -> Vec<&TrainRecord> {
        let mut curve: Vec<&TrainRecord> = Vec::new();
        for record in &self.records {
            if let Record::Train(record) = record
                && record.run == run
            {
                while curve.last().is_some_and(|last| last.step >= record.step) {
                    curve.pop();
                }
                curve.push(record);
            }
        }
        curve
    }

    /// All measurements called `name`, in file order.
    pub fn eval<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a EvalRecord> {
        self.records.iter().filter_map(move |record| match record {
            Record::Eval(record) if record.name == name => Some(record),
            _ => None,
        })
    }
}

/// Reads a metrics file. Torn lines are reported in [`Metrics::torn`], not fatal.
///
/// # Errors
/// [`Error::Io`], or [`Error::Parse`] naming the line that is no record.
pub fn read_metrics(path: impl AsRef<Path>) -> Result<Metrics> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let lines = bytes.split(|b| *b == b'\n').enumerate();
    let mut metrics = Metrics::default();
    for (i, line) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let number = i + 1;
        match serde_json::from_slice(line) {
            Ok(record) => metrics.records.push(record),
            // Whole JSON that is no record is a fault of its writer, not of a kill.
            Err(_) if !is_json(line) => {
                metrics.torn.push(TornLine { line: number, bytes: line.len() });
            }
            Err(e) => {
                return Err(Error::Parse {
                    file: path.display().to_string(),
                    message: format!("line {number} is not a metrics record: {e}"),
                    text: None,
                    span: None,
                });
            }
        }
    }
    Ok(metrics)
}
