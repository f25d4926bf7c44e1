//! The sections of a recipe.

use super::{ChatSection, ExtendSection};
use crate::attention::{Compute, MixerSchedule};
use crate::datasets::source::{BadLines, SourceOptions};
use crate::datasets::{AnchorEngine, Pack, PackPositions};
use crate::models::lora::LoraConfig;
use crate::models::weights::SaveDtype;
use crate::training::checkpoint::KEEP;
use crate::training::eval::Protocol;
use crate::training::plan::parse_bytes;
use crate::training::{AdamW, EmptyStep, Muon, ParamGroup, Schedule, Strategy, TrainConfig};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A training run in full. Paths count from the folder in which the program runs.
///
/// ```
/// let text = r#"
///     [model]
///     path = "checkpoints/base"
///     [extend]
///     to = 2048
///     [mixer]
///     name = "longlora"
///     [lora]
///     extra = ["embedding", "norm"]
///     [data]
///     train = "books"
///     [train]
///     steps = 1000
///     length = 2048
///     lr = 2e-5
///     [output]
///     dir = "runs/longlora"
/// "#;
/// let recipe = longburn::training::Recipe::parse(text, "run.toml")?;
/// assert_eq!(recipe.train.length, 2048);
/// # Ok::<(), longburn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Title of the report.
    #[serde(default)]
    pub title: String,
    /// What the run is expected to show, written down before it; the report repeats it.
    #[serde(default)]
    pub expected: String,
    /// Seed of everything random.
    #[serde(default)]
    pub seed: u64,
    /// The model to begin with.
    pub model: ModelSection,
    /// Longer positions, where wanted.
    #[serde(default)]
    pub extend: Option<ExtendSection>,
    /// How a sequence becomes a sequence: a table for all layers, or `[[mixer]]` tables that name
    /// their `layers`, as numbers or as a text such as "0, 4-7" or "middle third", but for one that
    /// has the rest; the model's own where not set.
    #[serde(default, skip_serializing_if = "MixerSchedule::is_own")]
    pub mixer: MixerSchedule,
    /// Low-rank adaptation; without it all parameters train. Its seed counts from the run's.
    #[serde(default)]
    pub lora: Option<LoraConfig>,
    /// The text.
    pub data: DataSection,
    /// The loop.
    pub train: TrainSection,
    /// What is measured, before and after: perplexity of the held-out documents, in conversations
    /// of the assistant's tokens.
    #[serde(default)]
    pub eval: Option<EvalSection>,
    /// What is saved on the way.
    #[serde(default)]
    pub checkpoints: CheckpointSection,
    /// Where everything goes.
    #[serde(default)]
    pub output: OutputSection,
    /// Folder that `model.path` stands for, where it has been looked for.
    #[serde(skip)]
    pub(super) base: Option<PathBuf>,
    /// The file this was read from.
    #[serde(skip)]
    pub(super) file: String,
    /// Its text.
    #[serde(skip)]
    pub(super) text: String,
}

/// `[model]`: either a checkpoint or a new model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// Folder of a checkpoint in Hugging Face form, or a repository of the Hub: `org/name`,
    /// `org/name@revision`.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Sizes of a new model with random weights.
    #[serde(default)]
    pub new: Option<NewModel>,
    /// `tokenizer.json`, where it is not that of the checkpoint. A new model without one gets a
    /// byte-level BPE of `new.vocab_size` tokens, learned from the training documents.
    #[serde(default)]
    pub tokenizer: Option<PathBuf>,
}

/// `[model.new]`: a Llama, or a model of state-space layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewModel {
    /// What its blocks are; of the state-space families, `[mixer]` has the settings.
    #[serde(default, skip_serializing_if = "Family::is_llama")]
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads; a Llama must have some.
    #[serde(default)]
    pub heads: Option<usize>,
    /// Key and value heads; as many as query heads where not set.
    #[serde(default)]
    pub kv_heads: Option<usize>,
    /// Inner width of the feed-forward layer; 8/3 of the width where not set.
    #[serde(default)]
    pub intermediate_size: Option<usize>,
    /// θ of the rotary encoding.
    #[serde(default = "theta")]
    pub rope_theta: f64,
    /// Longest sequence; `train.length` where not set. State-space layers have no such limit.
    #[serde(default)]
    pub max_positions: Option<usize>,
    /// Whether the head is the embedding.
    #[serde(default)]
    pub tied: bool,
}

/// What a new model is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Attention and feed-forward layers, any of whose mixers may be another.
    #[default]
    Llama,
    /// Layers of Mamba, nothing else.
    Mamba,
    /// Layers of Mamba-2, nothing else.
    Mamba2,
}

impl Family {
    fn is_llama(&self) -> bool {
        *self == Self::Llama
    }
}

fn theta() -> f64 {
    10_000.0
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// What there is to learn from.
    #[serde(default)]
    pub kind: DataKind,
    /// A text file, a `.jsonl` (or `.jsonl.zst`) or `.parquet` file, or a folder of one kind; for
    /// conversations not of text files.
    pub train: PathBuf,
    /// Sources that are mixed with `train`, for packed rows.
    #[serde(default)]
    pub mix: Vec<MixSection>,
    /// Documents for evaluation.
    #[serde(default)]
    pub held_out: Option<PathBuf>,
    /// Instead of `held_out`: every so many-th document of `train`, by name, is held out.
    #[serde(default)]
    pub split: Option<usize>,
    /// Field of a `.jsonl` object, or column of a `.parquet` file, that holds the text; "text"
    /// where not set.
    #[serde(default)]
    pub text_field: Option<String>,
    /// Longest line, row or text file accepted, bytes; see [`SourceOptions::line_cap`].
    #[serde(default)]
    pub line_cap: Option<usize>,
    /// What becomes of lines, rows and files that give no document; see
    /// [`SourceOptions::bad_lines`].
    #[serde(default)]
    pub bad_lines: Option<BadLines>,
    /// Folder in which tokens are kept, so that the next run over the same text finds them.
    #[serde(default)]
    pub cache: Option<PathBuf>,
    /// How rows are made of documents.
    #[serde(default)]
    pub rows: Rows,
    /// For packed rows, what becomes of documents that do not fit; where not set, texts are joined
    /// and conversations truncated.
    #[serde(default)]
    pub pack: Option<Pack>,
    /// For packed rows, whether attention and positions know the documents; always for
    /// conversations.
    #[serde(default)]
    pub segments: bool,
    /// For rows with segments, which positions rotary encoding sees; continuous with an anchor and
    /// from 0 on in every document without, where not set.
    #[serde(default)]
    pub positions: Option<PackPositions>,
    /// For packed rows of texts, an anchor that the documents of a row begin from (AnchorAttention).
    #[serde(default)]
    pub anchor: Option<AnchorSection>,
    /// For packed rows, passes over the documents; without end where not set.
    #[serde(default)]
    pub epochs: Option<u64>,
    /// For `kind = "chat"`: how rows are conversations, and conversations text.
    #[serde(default)]
    pub chat: Option<ChatSection>,
}

impl DataSection {
    /// What becomes of documents that do not fit.
    pub fn pack(&self) -> Pack {
        self.pack.unwrap_or(match self.kind {
            DataKind::Text => Pack::Concat,
            DataKind::Chat => Pack::Truncate,
        })
    }

    /// Whether attention and positions know the documents of a row.
    pub fn segments(&self) -> bool {
        self.segments || self.anchor.is_some() || self.kind == DataKind::Chat
    }
}

/// `[data.anchor]`: the tokenizer's BOS, or its EOS where it has none, as the first token that
/// documents see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchorSection {
    /// One in front of every document, for any mixer, or one per row, for the mixer `anchor`.
    #[serde(default)]
    pub engine: AnchorEngine,
    /// Documents of fewer tokens, a first BOS included, are left out.
    #[serde(default = "three")]
    pub min_len: usize,
    /// Leave the last token of a document without a target.
    #[serde(default)]
    pub mask_borders: bool,
}

fn three() -> usize {
    3
}

/// What there is to learn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataKind {
    /// Documents, every token of which is predicted.
    #[default]
    Text,
    /// Conversations, of which the assistant's tokens are.
    Chat,
}

/// `[[data.mix]]`: a source beside `data.train`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixSection {
    /// What `data.train` may be.
    pub path: PathBuf,
    /// Rows per row of `data.train`, whose weight is 1.
    pub weight: f64,
    /// Instead of `data.text_field`.
    #[serde(default)]
    pub text_field: Option<String>,
}

impl Recipe {
    /// How the sources are read.
    pub(super) fn source_options(&self) -> SourceOptions {
        let data = &self.data;
        SourceOptions::new()
            .with_text_field(data.text_field.clone())
            .with_line_cap(data.line_cap)
            .with_bad_lines(data.bad_lines)
    }
}

/// How rows are made of documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rows {
    /// One document behind the other, in an order of its own per epoch, with the tokenizer's EOS
    /// between them.
    #[default]
    Packed,
    /// Windows drawn at random from documents that are long enough.
    Windows,
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSection {
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens per row.
    pub length: usize,
    /// Learning rate, before schedule and groups.
    pub lr: f64,
    /// Rows per micro-batch.
    #[serde(default = "one")]
    pub batch: usize,
    /// Micro-batches per step.
    #[serde(default = "one_u32")]
    pub micro_batches: u32,
    /// Micro-batches computed at the same time, on a thread each.
    #[serde(default = "one_u32")]
    pub workers: u32,
    /// Learning rate over the steps.
    #[serde(default)]
    pub schedule: Schedule,
    /// The optimizer.
    #[serde(default)]
    pub adamw: AdamW,
    /// Another optimizer for the matrices inside the blocks.
    #[serde(default)]
    pub muon: Option<Muon>,
    /// Parameters that are updated differently.
    #[serde(default)]
    pub groups: Vec<ParamGroup>,
    /// Norm to which gradients are clipped.
    #[serde(default)]
    pub clip: Option<f64>,
    /// Steps with a NaN or infinite loss or gradient that may be skipped.
    #[serde(default)]
    pub skip_nonfinite: u64,
    /// What becomes of a step without targets.
    #[serde(default)]
    pub empty_step: EmptyStep,
    /// How gradients come about.
    #[serde(default)]
    pub strategy: Strategy,
    /// What matrix products and attention compute in, in training and in `[eval]`; weights, gradients and
    /// optimizer are f32 in either. For graphics cards: on the CPU, bf16 is slower than f32.
    #[serde(default)]
    pub compute: Compute,
    /// Whether a run repeated on the same machine gives the same bits, where faster code does not: attention on
    /// NVIDIA's Hopper cards, whose backward pass then takes about a tenth longer.
    #[serde(default)]
    pub deterministic: bool,
    /// Memory that the run may take, bytes: a number, or a text such as "8GiB". A run whose plan
    /// exceeds it is refused.
    #[serde(default, deserialize_with = "device_memory")]
    pub device_memory: Option<u64>,
}

fn device_memory<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a number of bytes above 0, or a text such as \"8GiB\"")]
    enum Form {
        Bytes(std::num::NonZeroU64),
        Text(String),
    }
    match Option::<Form>::deserialize(from)? {
        None => Ok(None),
        Some(Form::Bytes(bytes)) => Ok(Some(bytes.get())),
        Some(Form::Text(text)) => parse_bytes(&text).map(Some).map_err(serde::de::Error::custom),
    }
}

fn one() -> usize {
    1
}

fn one_u32() -> u32 {
    1
}

impl Recipe {
    /// Folder of the tokenizer, where it is not learned.
    pub(super) fn tokenizer_dir(&self) -> Option<&Path> {
        let own = self.model.tokenizer.as_deref();
        let own = own.map(|path| if path.is_dir() { path } else { path.parent().unwrap_or(path) });
        own.or(self.base())
    }
}

impl TrainSection {
    /// The trainer's settings.
    pub fn config(&self, seed: u64) -> TrainConfig {
        TrainConfig {
            steps: self.steps,
            lr: self.lr,
            micro_batches: self.micro_batches,
            workers: self.workers,
            schedule: self.schedule,
            adamw: self.adamw,
            muon: self.muon,
            groups: self.groups.clone(),
            clip: self.clip,
            skip_nonfinite: self.skip_nonfinite,
            empty_step: self.empty_step,
            strategy: self.strategy,
            compute: self.compute,
            deterministic: self.deterministic,
            seed,
        }
    }
}

/// `[eval]`: perplexity of the held-out documents; of conversations, that of the assistant's
/// tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalSection {
    /// Which windows are scored; strided by half of `train.length` where not set.
    #[serde(default)]
    pub protocol: Option<Protocol>,
    /// Measure the model before training, too.
    #[serde(default = "yes")]
    pub before: bool,
    /// At most so many held-out documents, in order of their names.
    #[serde(default)]
    pub documents: Option<usize>,
    /// At most so many tokens from the beginning of each.
    #[serde(default)]
    pub tokens: Option<usize>,
}

fn yes() -> bool {
    true
}

/// `[checkpoints]`: places in the run that `--resume` can go on from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSection {
    /// Steps from one save to the next; with 0, only the end of the run is saved, and where it
    /// is interrupted.
    pub every: u64,
    /// Newest checkpoints that are kept, at least 2.
    pub keep: usize,
    /// With `[eval]`, measure the held-out documents before each save, and keep the checkpoint
    /// with the least loss, too.
    pub evaluate: bool,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        Self { every: 500, keep: KEEP, evaluate: false }
    }
}

/// `[output]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputSection {
    /// Folder of the run; new or empty, unless a run is resumed. Needed where `--out` does not
    /// name one.
    pub dir: PathBuf,
    /// Number format of the weights in `model/`.
    pub dtype: SaveDtype,
    /// Largest weight file, bytes; one file where not set.
    pub max_shard_bytes: Option<u64>,
    /// With `[lora]`: beside `adapter/`, write the whole model with the updates merged.
    pub merge: bool,
    /// Write `tensorboard/` with the training curves, for TensorBoard.
    pub tensorboard: bool,
    /// While the run is under way, `report.html` is written every so many seconds, and reloads
    /// itself; with 0, only at the end.
    pub refresh_seconds: u64,
}

impl Default for OutputSection {
    fn default() -> Self {
        Self {
            dir: PathBuf::new(),
            dtype: SaveDtype::F32,
            max_shard_bytes: None,
            merge: false,
            tensorboard: false,
            refresh_seconds: 10,
        }
    }
}

impl Recipe {
    /// Folder of the run where the command line names none.
    pub(super) fn output_dir(&self) -> crate::Result<&Path> {
        if self.output.dir.as_os_str().is_empty() {
            return Err(self.bad("output.dir", "missing", "the folder of the run, or --out DIR"));
        }
        Ok(&self.output.dir)
    }
}
