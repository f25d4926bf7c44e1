//! What decides the results: `settings.toml` beside this file, or another of its form.

use clap::ValueEnum;
use longburn::attention::MixerSchedule;
use longburn::datasets::synthetic::{CopyingConfig, HiddenKeyConfig, MqarConfig, TaskConfig};
use longburn::training::recipe::settings;
use longburn::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskName {
    /// Pairs of keys and values, then the keys again
    Mqar,
    /// Scattered tokens, to be said in their order
    Copying,
    /// A key between words that repeat
    Passkey,
}

/// A model, by its mixer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MixerName {
    Dense,
    Longlora,
    Longgen,
    Anchor,
    Seer,
    Mamba1,
    Mamba2,
    Lact,
}

impl TaskName {
    pub const ALL: [Self; 3] = [Self::Mqar, Self::Copying, Self::Passkey];

    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mqar => "mqar",
            Self::Copying => "copying",
            Self::Passkey => "passkey",
        }
    }

    /// As a page has it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Mqar => "recall",
            Self::Copying => "copying",
            Self::Passkey => "pass key",
        }
    }
}

impl MixerName {
    pub const ALL: [Self; 8] = [
        Self::Dense,
        Self::Longlora,
        Self::Longgen,
        Self::Anchor,
        Self::Seer,
        Self::Mamba1,
        Self::Mamba2,
        Self::Lact,
    ];

    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Longlora => "longlora",
            Self::Longgen => "longgen",
            Self::Anchor => "anchor",
            Self::Seer => "seer",
            Self::Mamba1 => "mamba1",
            Self::Mamba2 => "mamba2",
            Self::Lact => "lact",
        }
    }

    /// As a page has it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Longlora => "LongLoRA",
            Self::Longgen => "LongGen",
            Self::Anchor => "Anchor",
            Self::Seer => "Seer",
            Self::Mamba1 => "Mamba-1",
            Self::Mamba2 => "Mamba-2",
            Self::Lact => "LaCT",
        }
    }
}

/// The file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub seeds: Vec<u64>,
    pub model: ModelPart,
    pub train: TrainPart,
    pub evaluate: EvaluatePart,
    pub tasks: Tasks,
    pub mixers: Mixers,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPart {
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
    pub rope_theta: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainPart {
    pub steps: u64,
    /// Per step.
    pub rows: usize,
    /// Share of the steps.
    pub warmup: f64,
    pub clip: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluatePart {
    /// The first is that of training.
    pub lengths: Vec<usize>,
    /// Numbers of pairs, each alone.
    pub pairs: Vec<usize>,
    /// Per length and number of pairs.
    pub rows: usize,
    pub rows_at_once: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tasks {
    mqar: MqarConfig,
    copying: CopyingConfig,
    passkey: HiddenKeyConfig,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mixers {
    dense: Arm,
    longlora: Arm,
    longgen: Arm,
    anchor: Arm,
    seer: Arm,
    mamba1: Arm,
    mamba2: Arm,
    lact: Arm,
}

/// How a model is made and trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    pub lr: f64,
    /// Standard deviation of the first embeddings.
    pub embedding: f64,
    /// Inner width of the feed-forward layers.
    pub inner: usize,
    pub mixer: MixerSchedule,
    /// Share of the steps, at first, in which the model is dense.
    #[serde(default)]
    pub dense_share: f64,
    /// Rows of the task that are documents of one row in training, behind a shared anchor.
    #[serde(default)]
    pub documents: Option<usize>,
    /// Training of a gate with everything else frozen, after the steps.
    #[serde(default)]
    pub gate: Option<GatePart>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatePart {
    pub steps: u64,
    pub lr: f64,
}

/// What decides the result of one cell, beside its seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellSettings {
    pub model: ModelPart,
    pub train: TrainPart,
    pub evaluate: EvaluatePart,
    pub task: TaskConfig,
    pub mixer: Arm,
}

impl Settings {
    /// # Errors
    /// What cannot be read, and values that cannot work.
    pub fn load(path: Option<&Path>, steps: Option<u64>) -> Result<Self> {
        let built_in = ("settings.toml", include_str!("settings.toml"));
        let (mut settings, file): (Self, _) = settings(path, built_in)?;
        if let Some(steps) = steps {
            settings.train.steps = steps;
        }
        let bad = |field: &str, value: &dyn std::fmt::Display, expected: &str| {
            Err(Error::config(file.as_str(), field, value, expected))
        };
        let EvaluatePart { lengths, rows, rows_at_once, .. } = &settings.evaluate;
        for (field, value) in [
            ("seeds", settings.seeds.len()),
            ("train.rows", settings.train.rows),
            ("evaluate.lengths", lengths.len()),
            ("evaluate.rows", *rows),
            ("evaluate.rows_at_once", *rows_at_once),
        ] {
            if value == 0 {
                return bad(field, &0, "at least 1");
            }
        }
        for task in TaskName::ALL {
            let length = settings.task(task).length();
            if lengths.first() != Some(&length) {
                let field = format!("tasks.{}.length", task.name());
                return bad(&field, &length, "the first of evaluate.lengths");
            }
        }
        for name in MixerName::ALL {
            let arm = settings.arm(name);
            let field = |field: &str| format!("mixers.{}.{field}", name.name());
            if !(0.0..=1.0).contains(&arm.dense_share) {
                return bad(&field("dense_share"), &arm.dense_share, "a share from 0 to 1");
            }
            if arm.documents == Some(0) {
                return bad(&field("documents"), &0, "at least 1");
            }
        }
        Ok(settings)
    }

    fn task(&self, task: TaskName) -> TaskConfig {
        match task {
            TaskName::Mqar => TaskConfig::Mqar(self.tasks.mqar.clone()),
            TaskName::Copying => TaskConfig::Copying(self.tasks.copying.clone()),
            TaskName::Passkey => TaskConfig::Passkey(self.tasks.passkey.clone()),
        }
    }

    fn arm(&self, mixer: MixerName) -> &Arm {
        match mixer {
            MixerName::Dense => &self.mixers.dense,
            MixerName::Longlora => &self.mixers.longlora,
            MixerName::Longgen => &self.mixers.longgen,
            MixerName::Anchor => &self.mixers.anchor,
            MixerName::Seer => &self.mixers.seer,
            MixerName::Mamba1 => &self.mixers.mamba1,
            MixerName::Mamba2 => &self.mixers.mamba2,
            MixerName::Lact => &self.mixers.lact,
        }
    }

    /// Those of one cell.
    pub fn cell(&self, task: TaskName, mixer: MixerName) -> CellSettings {
        CellSettings {
            model: self.model.clone(),
            train: self.train.clone(),
            evaluate: self.evaluate.clone(),
            task: self.task(task),
            mixer: self.arm(mixer).clone(),
        }
    }
}

impl CellSettings {
    /// Tasks to evaluate by: a length and, for recall, a number of pairs.
    pub fn evaluations(&self) -> Vec<(usize, Option<usize>, TaskConfig)> {
        let Self { task, evaluate, .. } = self;
        let of_length = |length: &usize| (*length, None, task.clone().with_length(*length));
        let mut all: Vec<_> = evaluate.lengths.iter().map(of_length).collect();
        if let TaskConfig::Mqar(task) = task {
            all.extend(evaluate.pairs.iter().map(|&pairs| {
                let task = MqarConfig { pairs: (pairs, pairs), ..task.clone() };
                (task.length, Some(pairs), TaskConfig::Mqar(task))
            }));
        }
        all
    }
}
