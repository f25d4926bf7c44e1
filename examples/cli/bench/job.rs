//! What is measured, as data: one process describes it, another does the same.

pub use super::masks::MaskKind;
use super::masks::mask;
use super::room;
use burn::tensor::DType;
use longburn::attention::{Compute, LayerSchedule, MixerSchedule};
use longburn::kernel::{Implementation, Mask};
use longburn::models::ModelConfig;
use longburn::training::Strategy;
use longburn::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Largest size that a case may have along any axis.
const MOST: usize = 1 << 24;

/// A piece of work. The JSON form is also what the scripts of peers read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Job {
    Attention(AttentionJob),
    Matmul(MatmulJob),
    LinearLoss(LossJob),
    Scan(ScanJob),
    /// One block of a decoder, forward and backward.
    Block(ModelJob),
    /// Forward, backward and AdamW of a whole decoder.
    TrainStep(ModelJob),
    /// One token for every row behind a cache of the length.
    Decode(ModelJob),
    Generate(GenerateJob),
    Growth(GrowthJob),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionJob {
    pub len: usize,
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub mask: MaskKind,
    pub backward: bool,
    #[serde(default)]
    pub dtype: Numbers,
    #[serde(default)]
    pub code: Code,
    /// Whether gradients have the same bits in every run.
    #[serde(default)]
    pub deterministic: bool,
}

/// What tensors are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Numbers {
    #[default]
    F32,
    Bf16,
    F16,
}

impl Numbers {
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// Bytes of each.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// As rows have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

/// Which of the kernels run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    #[default]
    Auto,
    Tiled,
    Flex,
    Hopper,
}

impl Code {
    pub fn implementation(self) -> Implementation {
        match self {
            Self::Auto => Implementation::Auto,
            Self::Tiled => Implementation::Tiled,
            Self::Flex => Implementation::Flex,
            Self::Hopper => Implementation::Hopper,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MatmulJob {
    pub batch: usize,
    pub m: usize,
    pub k: usize,
    pub n: usize,
    pub layout: Layout,
    #[serde(default)]
    pub dtype: Numbers,
}

/// How the two factors lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// `[m, k]` by `[k, n]`
    Nn,
    /// `[m, k]` by the transpose of `[n, k]`, as a linear layer has it
    Nt,
    /// The transpose of `[k, m]` by `[k, n]`, as the gradient of weights has it
    Tn,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossJob {
    pub tokens: usize,
    pub width: usize,
    pub vocab: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScanJob {
    pub kind: ScanKind,
    pub batch: usize,
    pub len: usize,
    /// Channels.
    pub width: usize,
    /// Channels of a head, where heads share a decay.
    pub head_dim: usize,
    /// Numbers of state per channel.
    pub states: usize,
    pub backward: bool,
}

impl ScanJob {
    pub fn heads(&self) -> usize {
        self.width / self.head_dim
    }
}

/// Which scan.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ScanKind {
    /// A decay per channel and state, Mamba-1's
    Selective,
    /// A decay per head, Mamba-2's
    Ssd,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelJob {
    pub len: usize,
    pub batch: usize,
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub vocab: usize,
    /// Inner width of the feed-forward layer; 8/3 of the width where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner: Option<usize>,
    pub mask: MaskKind,
    /// Layers that see all causal pairs, whatever the mask.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub full_layers: Vec<usize>,
    /// What products and attention compute in; weights and optimizer are f32.
    #[serde(default)]
    pub dtype: Numbers,
    /// How gradients come about.
    #[serde(default)]
    pub strategy: Strategy,
    /// Whether gradients have the same bits in every run.
    #[serde(default)]
    pub deterministic: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateJob {
    /// The checkpoint, as the row names it.
    pub name: String,
    pub folder: PathBuf,
    pub prompt: usize,
    pub new: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GrowthJob {
    pub steps: u64,
    /// Steps after which the first peak is read.
    pub early: u64,
    pub longest: usize,
    pub width: usize,
}

impl Job {
    /// The name that rows, tables and the command line use.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Attention(_) => "attention",
            Self::Matmul(_) => "matmul",
            Self::LinearLoss(_) => "linear-loss",
            Self::Scan(_) => "scan",
            Self::Block(_) => "block",
            Self::TrainStep(_) => "train-step",
            Self::Decode(_) => "decode",
            Self::Generate(_) => "generate",
            Self::Growth(_) => "growth",
        }
    }

    /// What tensors are made of.
    pub fn numbers(&self) -> Numbers {
        match self {
            Self::Attention(job) => job.dtype,
            Self::Matmul(job) => job.dtype,
            Self::Block(job) | Self::TrainStep(job) | Self::Decode(job) => job.dtype,
            _ => Numbers::F32,
        }
    }

    /// What is computed, apart from sizes.
    pub fn case(&self) -> String {
        match self {
            Self::Attention(job) => {
                let code = match job.code {
                    Code::Auto => String::new(),
                    code => format!(", {:?}", code.implementation()),
                };
                let order = if job.deterministic { ", deterministic" } else { "" };
                let backward = if job.backward { " + backward" } else { "" };
                format!("{}, forward{backward}{code}{order}", job.mask)
            }
            Self::Matmul(job) => output_name(&job.layout),
            Self::LinearLoss(_) => "forward + backward".into(),
            Self::Scan(job) => {
                let kind = match job.kind {
                    ScanKind::Selective => "selective",
                    ScanKind::Ssd => "SSD",
                };
                format!("{kind}, forward{}", if job.backward { " + backward" } else { "" })
            }
            Self::Block(job) => format!("{}, forward + backward", job.mask),
            Self::TrainStep(job) => {
                let full = match job.full_layers.len() {
                    0 => String::new(),
                    1 => ", 1 layer dense".into(),
                    full => format!(", {full} layers dense"),
                };
                let strategy = match job.strategy {
                    Strategy::Plain => "",
                    Strategy::Recompute => ", recompute",
                };
                let order = if job.deterministic { ", deterministic" } else { "" };
                format!("{}{full}{strategy}{order}", job.mask)
            }
            Self::Decode(_) => "a token behind a cache".into(),
            Self::Generate(job) => job.name.clone(),
            Self::Growth(job) => format!("{} steps over {}", job.steps, job.early),
        }
    }

    /// As people find it, and as rows have it.
    pub fn line(&self) -> String {
        format!("{}, {}, {}", self.what(), self.case(), self.shape())
    }

    /// Sizes: B batch, H heads, K key heads, D head width, T tokens, L layers, W width, I inner width,
    /// V words, N states.
    pub fn shape(&self) -> String {
        match self {
            Self::Attention(j) => {
                format!("B{} H{} K{} D{} T{}", j.batch, j.heads, j.kv_heads, j.head_dim, j.len)
            }
            Self::Matmul(j) if j.batch == 1 => format!("{} x {} x {}", j.m, j.k, j.n),
            Self::Matmul(j) => format!("{} of {} x {} x {}", j.batch, j.m, j.k, j.n),
            Self::LinearLoss(j) => format!("T{} W{} V{}", j.tokens, j.width, j.vocab),
            Self::Scan(j) => {
                let heads = match j.kind {
                    ScanKind::Selective => String::new(),
                    ScanKind::Ssd => format!(" D{}", j.head_dim),
                };
                format!("B{} T{} W{}{heads} N{}", j.batch, j.len, j.width, j.states)
            }
            Self::Block(j) => {
                let inner = j.inner.map(|inner| format!(" I{inner}")).unwrap_or_default();
                let (batch, len, width) = (j.batch, j.len, j.width);
                format!("B{batch} T{len} W{width}{inner} H{} K{}", j.heads, j.kv_heads)
            }
            Self::TrainStep(j) | Self::Decode(j) => {
                let inner = j.inner.map(|inner| format!(" I{inner}")).unwrap_or_default();
                format!(
                    "L{} W{}{inner} H{} K{} V{} B{} T{}",
                    j.layers, j.width, j.heads, j.kv_heads, j.vocab, j.batch, j.len
                )
            }
            Self::Generate(j) => format!("{} + {} tokens", j.prompt, j.new),
            Self::Growth(j) => format!("W{} up to T{}", j.width, j.longest),
        }
    }

    /// The same without the mask's gaps; none where there is no mask, or no gap.
    pub fn dense(&self) -> Option<Self> {
        let mut dense = self.clone();
        let mask = match &mut dense {
            Self::Attention(job) => &mut job.mask,
            Self::Block(job) | Self::TrainStep(job) => {
                job.full_layers.clear();
                &mut job.mask
            }
            _ => return None,
        };
        let sparse = *mask != MaskKind::Dense;
        *mask = MaskKind::Dense;
        sparse.then_some(dense)
    }

    /// The same in small: starts threads and loads code, so that what a process takes for these
    /// is not counted as memory of the work.
    pub fn tiny(&self) -> Self {
        let mut tiny = self.dense().unwrap_or_else(|| self.clone());
        match &mut tiny {
            Self::Attention(job) => job.len = job.len.min(64),
            Self::Matmul(job) => {
                (job.m, job.k, job.n) = (job.m.min(64), job.k.min(64), job.n.min(64));
            }
            Self::LinearLoss(job) => job.tokens = job.tokens.min(64),
            Self::Scan(job) => job.len = job.len.min(64),
            Self::Block(job) | Self::TrainStep(job) | Self::Decode(job) => {
                job.len = job.len.min(64);
            }
            Self::Generate(_) | Self::Growth(_) => {}
        }
        tiny
    }

    /// Whether its peak of memory is asked for.
    pub fn has_memory(&self) -> bool {
        matches!(
            self,
            Self::Attention(_)
                | Self::LinearLoss(_)
                | Self::Scan(_)
                | Self::Block(_)
                | Self::TrainStep(_)
        )
    }

    /// # Errors
    /// [`Error::Config`] for a size of 0, or too large for memory or time; what masks and models refuse.
    pub fn check(&self) -> Result<()> {
        for (field, value) in self.sizes() {
            size(field, value)?;
        }
        room::check(self)?;
        match self {
            Self::Attention(job) => {
                heads(job.heads, job.kv_heads)?;
                job.mask().map(drop)
            }
            Self::Block(job) | Self::TrainStep(job) | Self::Decode(job) => {
                heads(job.heads, job.kv_heads)?;
                if !job.width.is_multiple_of(job.heads) {
                    let expected = format!("a divisor of the width {}", job.width);
                    return Err(Error::config("command line", "heads", job.heads, expected));
                }
                job.compute()?;
                job.config().validate()?;
                job.mixers()?;
                mask(job.mask, job.batch, job.len, (job.heads, job.kv_heads)).map(drop)
            }
            Self::Generate(job) => {
                ModelConfig::from_file(&job.folder.join("config.json")).map(drop)
            }
            Self::Scan(job) if !job.width.is_multiple_of(job.head_dim) => {
                let expected = format!("a divisor of the width {}", job.width);
                Err(Error::config("command line", "head-dim", job.head_dim, expected))
            }
            Self::Growth(job) if job.early >= job.steps => {
                let expected = format!("below the {} steps of the run", job.steps);
                Err(Error::config("command line", "early", job.early, expected))
            }
            _ => Ok(()),
        }
    }

    /// Sizes by the names of their options.
    pub fn sizes(&self) -> Vec<(&'static str, usize)> {
        match self {
            Self::Attention(j) => vec![
                ("len", j.len),
                ("batch", j.batch),
                ("heads", j.heads),
                ("kv-heads", j.kv_heads),
                ("head-dim", j.head_dim),
            ],
            Self::Matmul(j) => vec![("batch", j.batch), ("m", j.m), ("k", j.k), ("n", j.n)],
            Self::LinearLoss(j) => {
                vec![("tokens", j.tokens), ("width", j.width), ("vocab", j.vocab)]
            }
            Self::Scan(j) => vec![
                ("batch", j.batch),
                ("len", j.len),
                ("width", j.width),
                ("head-dim", j.head_dim),
                ("states", j.states),
            ],
            Self::Block(j) | Self::TrainStep(j) | Self::Decode(j) => vec![
                ("len", j.len),
                ("batch", j.batch),
                ("layers", j.layers),
                ("width", j.width),
                ("heads", j.heads),
                ("kv-heads", j.kv_heads),
                ("vocab", j.vocab),
                ("inner", j.inner.unwrap_or(1)),
            ],
            Self::Generate(j) => vec![("prompt", j.prompt), ("new", j.new)],
            Self::Growth(j) => vec![
                ("steps", j.steps as usize),
                ("early", j.early as usize),
                ("longest", j.longest),
                ("width", j.width),
            ],
        }
    }
}

/// # Errors
/// [`Error::Config`] for a size of 0, or too large for anything.
pub fn size(field: &str, value: usize) -> Result<()> {
    if value > 0 && value <= MOST {
        return Ok(());
    }
    Err(Error::config("command line", field, value, format!("from 1 to {MOST}")))
}

fn heads(heads: usize, kv_heads: usize) -> Result<()> {
    if heads.is_multiple_of(kv_heads) {
        return Ok(());
    }
    let expected = format!("a divisor of the {heads} query heads");
    Err(Error::config("command line", "kv-heads", kv_heads, expected))
}

impl AttentionJob {
    /// # Errors
    /// What masks refuse.
    pub fn mask(&self) -> Result<Mask> {
        mask(self.mask, self.batch, self.len, (self.heads, self.kv_heads))
    }
}

impl ModelJob {
    /// The decoder: a Llama.
    pub fn config(&self) -> ModelConfig {
        let config = ModelConfig::llama(self.vocab, self.width, self.layers, self.heads)
            .with_kv_heads(self.kv_heads)
            .with_max_positions(self.len.max(2048));
        match self.inner {
            Some(inner) => config.with_intermediate(inner),
            None => config,
        }
    }

    /// One layer of it, with the mask.
    pub fn one_layer(&self) -> Self {
        Self { layers: 1, full_layers: Vec::new(), ..self.clone() }
    }

    /// The first layer with the mask, and the first that sees all pairs.
    pub fn kinds_of_layers(&self) -> Vec<usize> {
        let is_full = |layer: &usize| self.full_layers.contains(layer);
        let first = |full: bool| (0..self.layers).find(|layer| is_full(layer) == full);
        [false, true].into_iter().filter_map(first).collect()
    }

    /// The mixers of its layers: that of the mask but where all pairs are seen.
    ///
    /// # Errors
    /// As [`MaskKind::mixer`]; layers that are not there, or stand twice.
    pub fn mixers(&self) -> Result<MixerSchedule> {
        let full = LayerSchedule::from_list(self.layers, &self.full_layers)?;
        Ok(MixerSchedule::of(&full.mixers(&self.mask.mixer()?)))
    }

    /// What its passes compute in.
    ///
    /// # Errors
    /// [`Error::Config`] for f16.
    pub fn compute(&self) -> Result<Compute> {
        match self.dtype {
            Numbers::F32 => Ok(Compute::F32),
            Numbers::Bf16 => Ok(Compute::Bf16),
            Numbers::F16 => {
                Err(Error::config("command line", "dtype", "f16", "f32 or bf16, as in training"))
            }
        }
    }
}

fn output_name(layout: &Layout) -> String {
    match layout {
        Layout::Nn => "A·B",
        Layout::Nt => "A·Bᵀ",
        Layout::Tn => "Aᵀ·B",
    }
    .into()
}
