//! Options that the measuring verbs share.

use super::job::{Job, MaskKind, Numbers};
use super::torch::Torch;
use super::work::Side;
use crate::device::DeviceName;
use clap::{Args, ValueEnum};
use longburn::attention::LongGenConfig;
use longburn::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Against whom, how often, and where to.
#[derive(Args, Clone, Debug)]
pub struct MeasureArgs {
    /// Who does the same in turn; may be given several times
    #[arg(long, value_name = "NAME")]
    pub peer: Vec<PeerName>,
    /// Samples per side; fewer, down to 5, where they would take more than a minute
    #[arg(long, default_value_t = 11, value_name = "N")]
    pub repeats: usize,
    /// Python that has torch, for peers in Python
    #[arg(long, default_value = "python3", value_name = "PATH")]
    pub python: PathBuf,
    /// Longest time that such a peer may take for an answer
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub peer_timeout: u64,
    /// Leave the peaks of memory out, which take a process per side
    #[arg(long)]
    pub no_memory: bool,
    /// Take the peaks on a card, too: what its allocator holds (not of peers in Python)
    #[arg(long, conflicts_with = "no_memory")]
    pub memory: bool,
    /// Write the rows to this file, too
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Name every kernel of one more run with its time: a table, and a drawing as SVG (CUDA)
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "profile.svg")]
    pub profile: Option<PathBuf>,
    /// Rows and columns of the product that the ceiling is taken from
    #[arg(long, default_value_t = 2048, value_name = "N", hide = true)]
    pub ceiling_side: usize,
}

impl MeasureArgs {
    /// # Errors
    /// [`Error::Config`]; [`Error::Io`] where rows or a drawing could not be written to the file.
    pub fn check(&self) -> Result<()> {
        let most = 1 << 20;
        if !(1..=most).contains(&self.peer_timeout) {
            let expected = format!("from 1 to {most}");
            return Err(Error::config("command line", "peer-timeout", self.peer_timeout, expected));
        }
        for file in [&self.out, &self.profile].into_iter().flatten() {
            writable(file)?;
        }
        for (field, value) in [("repeats", self.repeats), ("ceiling-side", self.ceiling_side)] {
            if value == 0 || value > 1 << 14 {
                let expected = format!("from 1 to {}", 1 << 14);
                return Err(Error::config("command line", field, value, expected));
            }
        }
        Ok(())
    }

    /// How peers in Python are started; they run on the same card, if it is one that they know.
    pub fn torch(&self, device: DeviceName) -> Torch {
        let device = match device {
            DeviceName::Cuda(_) => device.to_string(),
            DeviceName::Flex | DeviceName::Wgpu(_) => "cpu".into(),
        };
        Torch {
            python: self.python.clone(),
            threads: rayon::current_num_threads(),
            device,
            timeout: Duration::from_secs(self.peer_timeout),
        }
    }
}

/// Whether a file can be put there; what lies there stays as it is.
fn writable(out: &Path) -> Result<()> {
    if out.is_dir() {
        return Err(Error::io(out, std::io::ErrorKind::IsADirectory.into()));
    }
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    tempfile::tempfile_in(folder.unwrap_or(Path::new("."))).map_err(|e| Error::io(out, e))?;
    Ok(())
}

/// Another program, or another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PeerName {
    /// Tensor operations and autodiff of Burn alone (attention, linear-loss, scan)
    Stock,
    /// One token after another, in tensor operations of Burn (scan, forward)
    Recurrence,
    /// Longburn without the mask's gaps: what sparsity saves (attention, block, train-step)
    Dense,
    /// PyTorch: scaled_dot_product_attention and its own ops (all but generate)
    Torch,
    /// PyTorch without the mask's gaps (attention, block, train-step)
    TorchDense,
    /// PyTorch's compiled FlexAttention (attention, in f32 forward alone; block and train-step on a card)
    TorchFlex,
    /// transformers' generate with a cache (generate)
    Transformers,
}

impl PeerName {
    /// As the command line has it.
    pub fn name(self) -> String {
        self.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default()
    }

    /// Whose code in this program it is; none for a process in Python.
    pub fn side(self) -> Option<Side> {
        match self {
            Self::Stock => Some(Side::Stock),
            Self::Recurrence => Some(Side::Recurrence),
            Self::Dense => Some(Side::Longburn),
            Self::Torch | Self::TorchDense | Self::TorchFlex | Self::Transformers => None,
        }
    }

    /// Whether it is a process in Python.
    pub fn in_python(self) -> bool {
        self.side().is_none()
    }

    /// Whether it computes all causal pairs, whatever the mask.
    pub fn is_dense(self) -> bool {
        matches!(self, Self::Dense | Self::TorchDense)
    }

    /// Whether it does such a job, on a card that it knows or on the CPU.
    pub fn does(self, job: &Job, device: DeviceName) -> bool {
        let on_card = matches!(device, DeviceName::Cuda(_));
        match self {
            Self::Stock => {
                matches!(job, Job::Attention(_) | Job::LinearLoss(_) | Job::Scan(_))
            }
            // The gradient of a token's part is as long as the row, so that Burn's backward pass of
            // such a loop would take time quadratic in it, which the recurrence does not.
            Self::Recurrence => matches!(job, Job::Scan(scan) if !scan.backward),
            Self::Dense | Self::TorchDense => job.dense().is_some(),
            Self::Torch => match job {
                Job::Decode(_) | Job::Generate(_) | Job::Growth(_) => false,
                Job::Attention(job) => fits(job.mask, job.len, job.heads),
                Job::Block(job) | Job::TrainStep(job) => fits(job.mask, job.len, job.heads),
                _ => true,
            },
            // On the CPU it has no backward pass; on cards, where tensors are in 16 bits, it has.
            Self::TorchFlex => match job {
                Job::Attention(attention) if on_card && attention.dtype != Numbers::F32 => true,
                Job::Block(job) | Job::TrainStep(job) => on_card && job.dtype != Numbers::F32,
                Job::Attention(attention) => {
                    let rule = matches!(attention.mask, MaskKind::Dense | MaskKind::Window { .. });
                    rule && !attention.backward
                }
                _ => false,
            },
            Self::Transformers => matches!(job, Job::Generate(_)),
        }
    }

    /// # Errors
    /// [`Error::Unsupported`], with those that do.
    pub fn check(self, job: &Job, device: DeviceName) -> Result<()> {
        if self.does(job, device) {
            return Ok(());
        }
        let all = Self::value_variants().iter();
        let others: Vec<String> = all.filter(|p| p.does(job, device)).map(|p| p.name()).collect();
        let others = match others.as_slice() {
            [] => "leave --peer out".into(),
            names => format!("choose from {}", names.join(", ")),
        };
        let remedy = match (self, job) {
            (Self::TorchFlex, Job::Attention(_) | Job::Block(_) | Job::TrainStep(_)) => format!(
                "FlexAttention has a backward pass on cards alone: add --device cuda --dtype bf16, or {others}"
            ),
            _ => others,
        };
        let (what, case) = (job.what(), job.case());
        let what = format!(
            "peer {} for {what}, {case}, in {} on {device}",
            self.name(),
            job.numbers().name()
        );
        Err(Error::Unsupported { what, remedy })
    }
}

/// Most bytes of masks with a value per head and pair.
const MOST_OF_MASKS: usize = 4 << 30;

/// Whether PyTorch can hold the mask: where heads differ it takes one value per head and pair, a
/// boolean and the f32 that it makes of it.
fn fits(mask: MaskKind, len: usize, heads: usize) -> bool {
    let pairs = len.saturating_mul(len);
    let pairs = match mask {
        MaskKind::Stride { .. }
        | MaskKind::Blocks { .. }
        | MaskKind::Longgen { stride: Some(_), .. } => pairs.saturating_mul(heads),
        MaskKind::Documents { .. } | MaskKind::Longgen { .. } => pairs,
        _ => return true,
    };
    pairs.saturating_mul(1 + 4) <= MOST_OF_MASKS
}

/// Which causal pairs count.
#[derive(Args, Clone, Debug)]
pub struct MaskArgs {
    /// Which causal pairs count
    #[arg(long, default_value = "dense", value_name = "NAME")]
    mask: MaskName,
    /// Last positions that a query sees (window)
    #[arg(long, default_value_t = 512, value_name = "N")]
    window: usize,
    /// First positions that stay visible (window)
    #[arg(long, default_value_t = 0, value_name = "N")]
    sinks: usize,
    /// Groups of one part in so many of the length (longlora)
    #[arg(long, default_value_t = 4, value_name = "N")]
    groups: usize,
    /// Tokens per block (stride, blocks, longgen)
    #[arg(long, default_value_t = 64, value_name = "N")]
    block: usize,
    /// Nearest blocks, the query's own included (stride, where 8 if not given; longgen, where 31)
    #[arg(long, value_name = "N")]
    local_blocks: Option<usize>,
    /// One in so many of the blocks before them (stride, where 8 if not given; longgen, where none)
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// First blocks that stay visible (longgen); 1 where not given, 0 beside a stride
    #[arg(long, value_name = "N")]
    sink_blocks: Option<usize>,
    /// Share of the earlier blocks (blocks)
    #[arg(long, default_value_t = 0.1, value_name = "X")]
    density: f64,
    /// Tokens per document (documents)
    #[arg(long, default_value_t = 2048, value_name = "N", hide = true)]
    documents: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MaskName {
    /// All
    Dense,
    /// The last ones and the first few
    Window,
    /// Shifted groups
    Longlora,
    /// Near blocks and one in so many before them, with a phase per key head
    Stride,
    /// Random blocks, others for every head and block of queries
    Blocks,
    /// Documents that see nothing of each other
    Documents,
    /// Near blocks and the first ones, or one in so many with --stride; in models with dense layers in the middle
    Longgen,
}

impl MaskArgs {
    pub fn kind(&self) -> MaskKind {
        match self.mask {
            MaskName::Dense => MaskKind::Dense,
            MaskName::Window => MaskKind::Window { window: self.window, sinks: self.sinks },
            MaskName::Longlora => MaskKind::Longlora { parts: self.groups },
            MaskName::Stride => {
                let (local, stride) = (self.local_blocks.unwrap_or(8), self.stride.unwrap_or(8));
                MaskKind::Stride { block: self.block, local, stride }
            }
            MaskName::Blocks => MaskKind::Blocks { block: self.block, density: self.density },
            MaskName::Documents => MaskKind::Documents { tokens: self.documents },
            MaskName::Longgen => MaskKind::Longgen {
                block: self.block,
                local: self.local_blocks.unwrap_or(LongGenConfig::new().local_blocks),
                sinks: self.sink_blocks.unwrap_or(usize::from(self.stride.is_none())),
                stride: self.stride,
            },
        }
    }
}
