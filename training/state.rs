//! What a run needs beside its model to go on as if it had never stopped.

use super::optim::{Optimizer, OptimizerState};
use crate::models::keymap::{ParamInfo, params};
use crate::models::weights::{read_safetensors, read_text, write_atomic, write_safetensors};
use crate::{Error, Result};
use burn::module::Module;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Version of the files' layout.
const FORMAT: u32 = 1;
/// Largest `state.json` that is read, bytes.
const MAX_STATE: u64 = 256 << 20;
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
pub(super) const STATE: &str = "state.json";

/// What a run counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    /// Optimizer steps done, skipped ones included; the schedule follows from it.
    pub step: u64,
    /// Micro-batches of the next step that are done: 0, as states are taken between steps.
    pub micro_batch: u32,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Steps skipped because of NaN or infinite values.
    pub skipped: u64,
    /// Seed of the random streams; their counters are step, micro-batch and layer.
    pub seed: u64,
    /// Best value of what the caller measures; the trainer only carries it.
    pub best: Option<f64>,
    /// Where the data stands, in the words of its source.
    pub cursor: Value,
}

/// A run between two steps, on the host, without its model: weights are stored in Hugging Face
/// form, and whoever resumes loads them first.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainState {
    /// Counts and places.
    pub counters: Counters,
    /// Moments and step counts of the optimizer, by module path, which is the same in every
    /// process and for every mixer.
    pub optimizer: OptimizerState,
}

/// `state.json`
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile {
    format_version: u32,
    counters: Counters,
    optimizer: BTreeMap<String, Value>,
}

impl TrainState {
    /// Host copy of where a run stands.
    ///
    /// # Errors
    /// When a value cannot be expressed.
    pub(super) fn of(counters: &Counters, optimizer: &Optimizer) -> Result<Self> {
        Ok(Self { counters: counters.clone(), optimizer: optimizer.state()? })
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.optimizer.tensors.values().map(|tensor| tensor.data.len() as u64).sum()
    }

    /// Write into a folder, which is made if need be.
    ///
    /// # Errors
    /// The disk.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        // Every file names its step, so that files of two states cannot pass for one.
        let step = BTreeMap::from([("step".to_string(), self.counters.step.to_string())]);
        write_safetensors(&dir.join(OPTIMIZER), &self.optimizer.tensors, &step)?;
        let file = StateFile {
            format_version: FORMAT,
            counters: self.counters.clone(),
            optimizer: self.optimizer.scalars.clone(),
        };
        let path = dir.join(STATE);
        let text =
            serde_json::to_string_pretty(&file).map_err(|e| unusable(&path, e.to_string()))?;
        write_atomic(&path, text.as_bytes())
    }

    /// Read what [`TrainState::write`] wrote.
    ///
    /// # Errors
    /// Unreadable or damaged files, another format, or files of different steps.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(STATE);
        let text = read_text(&path, MAX_STATE)?;
        let file: StateFile =
            serde_json::from_str(&text).map_err(|e| unusable(&path, e.to_string()))?;
        if file.format_version != FORMAT {
            let reason =
                format!("format version {}; this program reads {FORMAT}", file.format_version);
            return Err(unusable(&path, reason));
        }
        let step = file.counters.step.to_string();
        let path = dir.join(OPTIMIZER);
        let (tensors, metadata) = read_safetensors(&path)?;
        if metadata.get("step") != Some(&step) {
            let found = metadata.get("step").map_or("none", String::as_str);
            return Err(unusable(&path, format!("is of step {found}, {STATE} of step {step}")));
        }
        let optimizer = OptimizerState { tensors, scalars: file.optimizer };
        Ok(Self { counters: file.counters, optimizer })
    }
}

fn unusable(file: &Path, reason: String) -> Error {
    let remedy = "resume from another state of the run".into();
    Error::Weights { file: file.into(), reason, remedy }
}

/// Shapes of the trainable parameters by path.
pub(super) fn trainable<M: Module>(model: &M) -> BTreeMap<String, Vec<usize>> {
    let of = |p: ParamInfo| p.trainable.then_some((p.path, p.shape));
    params(model).into_iter().filter_map(of).collect()
}
