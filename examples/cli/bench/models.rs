//! Verbs that measure models.

use super::args::{MaskArgs, MeasureArgs};
use super::job::{self, GenerateJob, GrowthJob, Job, MaskKind, ModelJob, Numbers};
use super::table::measure;
use crate::Globals;
use crate::plan::StrategyName;
use burn::tensor::Device;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use longburn::attention::{LayerSchedule, MixerConfig};
use longburn::models::{Decoder, ModelConfig, SaveOptions};
use longburn::training::Strategy;
use longburn::{Error, Result};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Sizes of a Llama, but for its length and depth.
#[derive(Args)]
struct Shape {
    /// Rows
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: usize,
    /// Width of a token
    #[arg(long, default_value_t = 256, value_name = "N")]
    width: usize,
    /// Query heads
    #[arg(long, default_value_t = 4, value_name = "N")]
    heads: usize,
    /// Key and value heads; as many as query heads where not given
    #[arg(long, value_name = "N")]
    kv_heads: Option<usize>,
    /// Inner width of the feed-forward layer; 8/3 of the width where not given
    #[arg(long, value_name = "N")]
    inner: Option<usize>,
}

impl Shape {
    /// Dense in f32, by its plain gradients.
    fn job(&self, len: usize, layers: usize, vocab: usize) -> ModelJob {
        ModelJob {
            len,
            batch: self.batch,
            layers,
            width: self.width,
            heads: self.heads,
            kv_heads: self.kv_heads.unwrap_or(self.heads),
            vocab,
            inner: self.inner,
            mask: MaskKind::Dense,
            full_layers: Vec::new(),
            dtype: Numbers::F32,
            strategy: Strategy::Plain,
            deterministic: false,
        }
    }
}

/// What is trained.
#[derive(Args)]
struct Sizes {
    /// Tokens per row; a list gives a row of results each
    #[arg(long, value_delimiter = ',', default_value = "4096", value_name = "N,..")]
    len: Vec<usize>,
    #[command(flatten)]
    shape: Shape,
    /// What products and attention compute in; weights, gradients and optimizer are f32
    #[arg(long, default_value = "f32", value_name = "NAME", value_parser = of_steps())]
    dtype: Numbers,
    #[command(flatten)]
    mask: MaskArgs,
}

/// What training computes in: f16 would need a scaled loss.
fn of_steps() -> impl TypedValueParser<Value = Numbers> {
    PossibleValuesParser::new(["f32", "bf16"]).map(|name| match name.as_str() {
        "bf16" => Numbers::Bf16,
        _ => Numbers::F32,
    })
}

impl Sizes {
    fn jobs(&self, layers: usize, vocab: usize, strategy: Strategy) -> Vec<ModelJob> {
        let job = |len: &usize| ModelJob {
            mask: self.mask.kind(),
            dtype: self.dtype,
            strategy,
            ..self.shape.job(*len, layers, vocab)
        };
        self.len.iter().map(job).collect()
    }
}

/// Words of a model of which one block is measured.
const BLOCK_VOCAB: usize = 64;

/// One block of a Llama, forward and backward
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn bench block --len 4096 --width 256 --peer torch
  longburn bench block --len 4096 --mask longlora --peer dense")]
pub struct BlockArgs {
    #[command(flatten)]
    sizes: Sizes,
    #[command(flatten)]
    measure: MeasureArgs,
}

impl BlockArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let jobs = self.sizes.jobs(1, BLOCK_VOCAB, Strategy::Plain).into_iter().map(Job::Block);
        measure(&jobs.collect::<Vec<_>>(), &self.measure, globals)
    }
}

/// A whole training step of a Llama: forward, backward, AdamW
///
/// Longburn's side is the public trainer with everything that it checks and counts. The losses of
/// three steps from the same weights, and first gradients of values' weights in a layer of every kind, have to
/// agree before anything is timed.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn bench train-step --len 4096 --peer torch
  longburn bench train-step --len 4096 --mask longlora --peer torch --peer torch-dense
  longburn bench train-step --len 4096 --mask longgen --layers 6 --peer torch --peer dense
  longburn bench train-step --device cuda --dtype bf16 --width 768 --heads 12 --peer torch")]
pub struct TrainStepArgs {
    #[command(flatten)]
    sizes: Sizes,
    /// Blocks
    #[arg(long, default_value_t = 2, value_name = "N")]
    layers: usize,
    /// Words
    #[arg(long, default_value_t = 4096, value_name = "N")]
    vocab: usize,
    /// Layers in the middle that see all pairs (longgen); a third of them where not given
    #[arg(long, value_name = "N")]
    full_layers: Option<usize>,
    /// How gradients come about, on all sides
    #[arg(long, default_value = "plain")]
    strategy: StrategyName,
    /// The same bits in every run, on our side
    #[arg(long, hide = true)]
    deterministic: bool,
    #[command(flatten)]
    measure: MeasureArgs,
}

impl TrainStepArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let (full_layers, deterministic) = (self.full_layers()?, self.deterministic);
        let jobs = self.sizes.jobs(self.layers, self.vocab, self.strategy.strategy());
        let step = |job| ModelJob { full_layers: full_layers.clone(), deterministic, ..job };
        let jobs = jobs.into_iter().map(|job| Job::TrainStep(step(job)));
        measure(&jobs.collect::<Vec<_>>(), &self.measure, globals)
    }

    /// Layers that see all pairs.
    fn full_layers(&self) -> Result<Vec<usize>> {
        let bad = |value, expected: String| {
            Err(Error::config("command line", "full-layers", value, expected))
        };
        job::size("layers", self.layers)?;
        let MaskKind::Longgen { .. } = self.sizes.mask.kind() else {
            return match self.full_layers {
                Some(full) => bad(full, "nothing but with --mask longgen".into()),
                None => Ok(Vec::new()),
            };
        };
        let schedule = match self.full_layers {
            Some(full) if full > self.layers => {
                return bad(full, format!("at most the {} layers", self.layers));
            }
            Some(full) => LayerSchedule::middle_full(self.layers, full)?,
            None => LayerSchedule::middle_third(self.layers)?,
        };
        Ok((0..self.layers).filter(|layer| schedule.is_full(*layer)).collect())
    }
}

/// A token for every row behind a cache: the time of one step of generation
///
/// Weights and cache are random, in what passes compute in; what is counted is bytes that have to be read:
/// all weights and the cache, once. The rows come to the host as logits, as they do for whoever draws from them.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn bench decode --len 4096 --width 256
  longburn bench decode --device cuda --dtype bf16 --len 32768 --batch 16 --width 2048")]
pub struct DecodeArgs {
    /// Tokens of the cache; a list gives a row of results each
    #[arg(long, value_delimiter = ',', default_value = "4096", value_name = "N,..")]
    len: Vec<usize>,
    #[command(flatten)]
    shape: Shape,
    /// Blocks
    #[arg(long, default_value_t = 2, value_name = "N")]
    layers: usize,
    /// Words
    #[arg(long, default_value_t = 4096, value_name = "N")]
    vocab: usize,
    /// What weights, passes and the cache are in
    #[arg(long, default_value = "f32", value_name = "NAME", value_parser = of_steps())]
    dtype: Numbers,
    #[command(flatten)]
    measure: MeasureArgs,
}

impl DecodeArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let job = |len: &usize| {
            let job = self.shape.job(*len, self.layers, self.vocab);
            Job::Decode(ModelJob { dtype: self.dtype, ..job })
        };
        measure(&self.len.iter().map(job).collect::<Vec<_>>(), &self.measure, globals)
    }
}

/// Greedy generation with a cache: the time of a whole text, prompt and new tokens
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn bench generate MODEL --prompt 64 --new 128 --peer transformers
  longburn bench generate --random-llama 100m --peer transformers")]
pub struct GenerateArgs {
    /// Folder of a checkpoint in Hugging Face form
    #[arg(required_unless_present = "random_llama")]
    model: Option<PathBuf>,
    /// A Llama with random weights instead
    #[arg(long, value_name = "SIZE", conflicts_with = "model")]
    random_llama: Option<RandomLlama>,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 64, value_name = "N")]
    prompt: usize,
    /// New tokens
    #[arg(long, default_value_t = 64, value_name = "N")]
    new: usize,
    #[command(flatten)]
    measure: MeasureArgs,
}

/// How large a random Llama is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RandomLlama {
    /// 100 million parameters
    #[value(name = "100m")]
    Large,
    /// 20 thousand, for a look
    #[value(name = "20k")]
    Small,
}

impl RandomLlama {
    fn config(self) -> ModelConfig {
        match self {
            Self::Large => ModelConfig::llama(20_480, 768, 12, 12).with_tied(true),
            Self::Small => ModelConfig::llama(64, 32, 2, 2).with_tied(true),
        }
    }

    /// Written to a folder that is gone with the returned value, so that all sides load it.
    ///
    /// # Errors
    /// [`Error::Io`]
    pub fn save(self, device: &Device) -> Result<TempDir> {
        let dir = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?;
        Decoder::new(&self.config(), &MixerConfig::Dense, 0, device)?
            .save(dir.path(), &SaveOptions::default())?;
        Ok(dir)
    }

    /// As rows have it.
    pub fn name(self) -> String {
        let size = self.to_possible_value().map(|v| v.get_name().to_string());
        format!("random Llama {}", size.unwrap_or_default())
    }
}

/// A checkpoint's name in rows: its folder's, whatever lies above.
pub fn checkpoint(folder: &Path, prompt: usize, new: usize) -> Job {
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(|| "checkpoint".into());
    Job::Generate(GenerateJob { name, folder: folder.to_path_buf(), prompt, new })
}

impl GenerateArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let (prompt, new) = (self.prompt, self.new);
        if let Some(llama) = self.random_llama {
            let dir = llama.save(&globals.device.open()?)?;
            let folder = dir.path().to_path_buf();
            let job = GenerateJob { name: llama.name(), folder, prompt, new };
            return measure(&[Job::Generate(job)], &self.measure, globals);
        }
        let folder = self.model.clone().unwrap_or_default();
        measure(&[checkpoint(&folder, prompt, new)], &self.measure, globals)
    }
}

/// Whether a training run takes more and more memory, over rows of varying lengths
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn bench growth --steps 300")]
pub struct GrowthArgs {
    /// Steps of the run
    #[arg(long, default_value_t = 300, value_name = "N")]
    steps: u64,
    /// Steps after which the first peak is read
    #[arg(long, default_value_t = 30, value_name = "N")]
    early: u64,
    /// Longest row, tokens; the shortest has half as many
    #[arg(long, default_value_t = 512, value_name = "N")]
    longest: usize,
    /// Width of a token
    #[arg(long, default_value_t = 64, value_name = "N")]
    width: usize,
    #[command(flatten)]
    measure: MeasureArgs,
}

impl GrowthArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let Self { steps, early, longest, width, .. } = *self;
        let job = Job::Growth(GrowthJob { steps, early, longest, width });
        measure(&[job], &self.measure, globals)
    }
}

/// A model of one block with a small vocabulary, which a block does not see.
pub fn one_block(job: &ModelJob) -> ModelJob {
    ModelJob { vocab: BLOCK_VOCAB, ..job.one_layer() }
}

/// The training step that targets speak of.
pub fn two_layers(len: usize, mask: MaskKind) -> ModelJob {
    let (width, heads) = (256, 4);
    ModelJob {
        len,
        batch: 1,
        layers: 2,
        width,
        heads,
        kv_heads: heads,
        vocab: 4096,
        inner: None,
        mask,
        full_layers: Vec::new(),
        dtype: Numbers::F32,
        strategy: Strategy::Plain,
        deterministic: false,
    }
}
