//! Everything that a run needs to go on as if it had never stopped.

use super::optim::{Optimizer, OptimizerState};
use crate::models::keymap::{ParamInfo, map_params, params, read_params};
use crate::models::weights::{
    RawTensor, SaveDtype, read_safetensors, write_atomic, write_safetensors,
};
use crate::{Error, Result};
use burn::module::Module;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Version of the files' layout.
const FORMAT: u32 = 1;
const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

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

/// A run between two steps, on the host. Names are module paths, which are the same in every
/// process.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainState {
    /// Counts and places.
    pub counters: Counters,
    /// Trainable parameters; frozen ones are where the model came from.
    pub weights: BTreeMap<String, RawTensor>,
    /// Moments and step counts of the optimizer.
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
    /// Host copies of a run's model and optimizer.
    ///
    /// # Errors
    /// When a value cannot be expressed.
    pub(super) fn of<M: Module>(
        counters: &Counters,
        model: &M,
        optimizer: &Optimizer,
    ) -> Result<Self> {
        let shapes = trainable(model);
        let weight = |(path, shape, data): (String, Vec<usize>, Vec<f32>)| {
            Ok((path, RawTensor::from_f32(shape, &data, SaveDtype::F32)?))
        };
        Ok(Self {
            counters: counters.clone(),
            weights: read_params(model, |path| shapes.contains_key(path))
                .into_iter()
                .map(weight)
                .collect::<Result<_>>()?,
            optimizer: optimizer.state()?,
        })
    }

    /// Put the weights into a model with the same trainable parameters.
    ///
    /// # Errors
    /// [`Error::TensorMismatch`] with everything that differs; nothing is half-restored.
    pub fn restore<M: Module>(&self, model: M) -> Result<M> {
        let shapes = trainable(&model);
        let absent = |name: &&String| !self.weights.contains_key(*name);
        let missing: Vec<_> = shapes.keys().filter(absent).cloned().collect();
        let (mut unexpected, mut misshaped) = (vec![], vec![]);
        let mut values = BTreeMap::new();
        for (name, tensor) in &self.weights {
            match shapes.get(name) {
                None => unexpected.push(name.clone()),
                Some(shape) if *shape != tensor.shape => {
                    misshaped.push(format!("{name}: got {:?}, expected {shape:?}", tensor.shape));
                }
                Some(_) => _ = values.insert(name.as_str(), tensor.to_f32()?),
            }
        }
        if missing.is_empty() && unexpected.is_empty() && misshaped.is_empty() {
            return Ok(map_params(model, |path| values.remove(path), |_| None));
        }
        let what = "training state (trainable parameters)".into();
        Err(Error::TensorMismatch { what, missing, unexpected, misshaped })
    }

    /// Write into a folder, which is made if need be.
    ///
    /// # Errors
    /// The disk.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        // Every file names its step, so that files of two states cannot pass for one.
        let step = BTreeMap::from([("step".to_string(), self.counters.step.to_string())]);
        write_safetensors(&dir.join(WEIGHTS), &self.weights, &step)?;
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
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let file: StateFile =
            serde_json::from_str(&text).map_err(|e| unusable(&path, e.to_string()))?;
        if file.format_version != FORMAT {
            let reason =
                format!("format version {}; this program reads {FORMAT}", file.format_version);
            return Err(unusable(&path, reason));
        }
        let step = file.counters.step.to_string();
        let tensors = |name: &str| {
            let path = dir.join(name);
            let (tensors, metadata) = read_safetensors(&path)?;
            match metadata.get("step") {
                Some(found) if *found == step => Ok(tensors),
                found => {
                    let found = found.map_or("none", String::as_str);
                    Err(unusable(&path, format!("is of step {found}, {STATE} of step {step}")))
                }
            }
        };
        Ok(Self {
            weights: tensors(WEIGHTS)?,
            optimizer: OptimizerState { tensors: tensors(OPTIMIZER)?, scalars: file.optimizer },
            counters: file.counters,
        })
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
