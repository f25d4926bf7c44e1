//! What a run is told beside its recipe, and what it tells.

use super::{Evaluation, MemoryReport};
use crate::attention::MixerConfig;
use crate::datasets::DataReport;
use crate::models::lora::TrainableReport;
use crate::training::Interrupter;
use burn::tensor::Device;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// What a run is told beside its recipe.
#[derive(Clone)]
pub struct RunOptions {
    /// Where it computes.
    pub device: Device,
    /// Instead of the recipe's seed.
    pub seed: Option<u64>,
    /// Instead of the recipe's output folder.
    pub out: Option<PathBuf>,
    /// Instead of the recipe's mixers, this one in all layers.
    pub mixer: Option<MixerConfig>,
    /// Say which code runs in every layer.
    pub explain: bool,
    /// Memory that the run may take, bytes, instead of the recipe's.
    pub device_memory: Option<u64>,
    /// Go on from the newest checkpoint in the folder, where there is one.
    pub resume: bool,
    /// Resume although recipe or data have changed in what decides the result.
    pub allow_changes: bool,
    /// Stops the run after the step that it is in, with a checkpoint.
    pub interrupter: Interrupter,
    /// Show training by burn-train's view in the terminal.
    pub terminal_view: bool,
}

impl RunOptions {
    /// As the recipe says, on `device`.
    pub fn new(device: Device) -> Self {
        Self {
            device,
            seed: None,
            out: None,
            mixer: None,
            explain: false,
            device_memory: None,
            resume: false,
            allow_changes: false,
            interrupter: Interrupter::new(),
            terminal_view: false,
        }
    }

    /// Replace the recipe's seed.
    pub fn with_seed(mut self, seed: Option<u64>) -> Self {
        self.seed = seed;
        self
    }

    /// Replace the recipe's output folder.
    pub fn with_out(mut self, out: Option<PathBuf>) -> Self {
        self.out = out;
        self
    }

    /// Replace the recipe's mixers.
    pub fn with_mixer(mut self, mixer: Option<MixerConfig>) -> Self {
        self.mixer = mixer;
        self
    }

    /// Say which code runs in every layer.
    pub fn with_explain(mut self, explain: bool) -> Self {
        self.explain = explain;
        self
    }

    /// Replace the recipe's budget of memory.
    pub fn with_device_memory(mut self, bytes: Option<u64>) -> Self {
        self.device_memory = bytes;
        self
    }

    /// Go on from the newest checkpoint in the folder; a new run begins where there is none.
    pub fn with_resume(mut self, resume: bool) -> Self {
        self.resume = resume;
        self
    }

    /// Resume although recipe or data have changed; what has is said in warnings.
    pub fn with_allow_changes(mut self, allow: bool) -> Self {
        self.allow_changes = allow;
        self
    }

    /// Whoever holds a clone of `interrupter` can stop the run between two steps.
    pub fn with_interrupter(mut self, interrupter: Interrupter) -> Self {
        self.interrupter = interrupter;
        self
    }

    /// Show training by burn-train's view in the terminal; needs feature `tui`.
    pub fn with_terminal_view(mut self, show: bool) -> Self {
        self.terminal_view = show;
        self
    }
}

impl fmt::Debug for RunOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunOptions")
            .field("device", &self.device)
            .field("seed", &self.seed)
            .field("out", &self.out)
            .field("mixer", &self.mixer)
            .field("explain", &self.explain)
            .field("device_memory", &self.device_memory)
            .field("resume", &self.resume)
            .field("allow_changes", &self.allow_changes)
            .field("terminal_view", &self.terminal_view)
            .finish_non_exhaustive()
    }
}

/// What a run did; `summary.json` in its folder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunSummary {
    /// Folder of the run.
    pub dir: PathBuf,
    /// Checkpoint in Hugging Face form, where one was written.
    pub model: Option<PathBuf>,
    /// Adapter in PEFT form, where one was written.
    pub adapter: Option<PathBuf>,
    /// The newest place that the run can go on from.
    pub checkpoint: Option<PathBuf>,
    /// Step after which this process took the run over; none where it began it.
    pub resumed: Option<u64>,
    /// Optimizer steps done.
    pub steps: u64,
    /// Whether all steps of the recipe are done; else the data ended before.
    pub finished: bool,
    /// Tokens that went through the model in training.
    pub tokens: u64,
    /// Wall time of training in this process, s.
    pub seconds: f64,
    /// Tokens of this process per second.
    pub tokens_per_second: f64,
    /// Loss of the first step, nats per token.
    pub first_loss: f64,
    /// Loss of the last step, nats per token.
    pub last_loss: f64,
    /// Memory of training, predicted and measured.
    pub memory: MemoryReport,
    /// What trains.
    pub trainable: TrainableReport,
    /// The model before training.
    pub before: Option<Evaluation>,
    /// The model after training.
    pub after: Option<Evaluation>,
    /// What became of the training documents.
    pub data: DataReport,
    /// What became of the held-out documents.
    pub held_out: DataReport,
}
