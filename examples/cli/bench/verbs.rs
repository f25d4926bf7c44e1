//! Verbs that measure single operations.

use super::args::{MaskArgs, MeasureArgs};
use super::job::{AttentionJob, Code, Job, Layout, LossJob, MatmulJob, Numbers, ScanJob, ScanKind};
use super::table::measure;
use crate::Globals;
use clap::Args;
use longburn::Result;

/// Attention: the kernel beside plain Burn and PyTorch
///
/// Forward, or forward and backward; the mask's visible pairs alone are counted as operations,
/// 4·D per pair forward and 2.5 times that backward.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn bench attention --len 4096 --backward --peer stock
  longburn bench attention --len 1024,4096 --heads 8 --kv-heads 2 --peer torch --json
  longburn bench attention --len 8192 --mask window --window 512 --sinks 4 --peer dense
  longburn bench attention --len 8192 --mask blocks --density 0.1 --backward --peer dense")]
pub struct AttentionArgs {
    /// Tokens; a list gives a row each
    #[arg(long, value_delimiter = ',', default_value = "4096", value_name = "N,..")]
    len: Vec<usize>,
    /// Rows
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: usize,
    /// Query heads
    #[arg(long, default_value_t = 8, value_name = "N")]
    heads: usize,
    /// Key and value heads; as many as query heads where not given
    #[arg(long, value_name = "N")]
    kv_heads: Option<usize>,
    /// Width of a head; a list gives a row each
    #[arg(long, value_delimiter = ',', default_value = "64", value_name = "N,..")]
    head_dim: Vec<usize>,
    #[command(flatten)]
    mask: MaskArgs,
    /// The backward pass, too
    #[arg(long)]
    backward: bool,
    /// What tensors are made of
    #[arg(long, default_value = "f32", value_name = "NAME", hide = true)]
    dtype: Numbers,
    /// Which of the kernels run
    #[arg(long, default_value = "auto", value_name = "NAME", hide = true)]
    implementation: Code,
    /// The same bits in every run
    #[arg(long, hide = true)]
    deterministic: bool,
    #[command(flatten)]
    measure: MeasureArgs,
}

impl AttentionArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let mut jobs = Vec::new();
        for &head_dim in &self.head_dim {
            for &len in &self.len {
                jobs.push(Job::Attention(AttentionJob {
                    len,
                    batch: self.batch,
                    heads: self.heads,
                    kv_heads: self.kv_heads.unwrap_or(self.heads),
                    head_dim,
                    mask: self.mask.kind(),
                    backward: self.backward,
                    dtype: self.dtype,
                    code: self.implementation,
                    deterministic: self.deterministic,
                }));
            }
        }
        measure(&jobs, &self.measure, globals)
    }
}

/// Products of matrices, as layers compute them
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn bench matmul --m 512 --k 512 --n 512 --peer torch
  longburn bench matmul --m 4096 --k 256 --n 688 --layout nt")]
pub struct MatmulArgs {
    /// Rows of the product
    #[arg(long, value_name = "N")]
    m: usize,
    /// Length of the sums
    #[arg(long, value_name = "N")]
    k: usize,
    /// Columns of the product
    #[arg(long, value_name = "N")]
    n: usize,
    /// Products at once
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: usize,
    /// How the factors lie in memory
    #[arg(long, default_value = "nn")]
    layout: Layout,
    /// What the matrices are made of
    #[arg(long, default_value = "f32", value_name = "NAME", hide = true)]
    dtype: Numbers,
    #[command(flatten)]
    measure: MeasureArgs,
}

impl MatmulArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let Self { m, k, n, batch, layout, dtype, .. } = *self;
        measure(&[Job::Matmul(MatmulJob { batch, m, k, n, layout, dtype })], &self.measure, globals)
    }
}

/// A linear layer and the cross-entropy of its output, forward and backward
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn bench linear-loss --tokens 4096 --width 256 --vocab 4096 --peer stock --peer torch")]
pub struct LossArgs {
    /// Tokens
    #[arg(long, default_value_t = 4096, value_name = "N")]
    tokens: usize,
    /// Width of a token
    #[arg(long, default_value_t = 256, value_name = "N")]
    width: usize,
    /// Words
    #[arg(long, default_value_t = 4096, value_name = "N")]
    vocab: usize,
    #[command(flatten)]
    measure: MeasureArgs,
}

impl LossArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let Self { tokens, width, vocab, .. } = *self;
        measure(&[Job::LinearLoss(LossJob { tokens, width, vocab })], &self.measure, globals)
    }
}

/// State-space scans: the kernels beside plain Burn and PyTorch
///
/// With a gate and softplus, as layers have them; operations are those of the recurrence.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn bench scan --len 4096 --width 256 --states 16 --backward --peer stock --peer torch
  longburn bench scan --kind ssd --width 512 --states 64 --backward --peer torch
  longburn bench scan --kind ssd --len 2048,8192 --width 512 --peer stock --peer recurrence")]
pub struct ScanArgs {
    /// Which scan
    #[arg(long, default_value = "selective", value_name = "NAME")]
    kind: ScanKind,
    /// Tokens; a list gives a row each. Chunks of 64 must be whole for peers' SSD
    #[arg(long, value_delimiter = ',', default_value = "4096", value_name = "N,..")]
    len: Vec<usize>,
    /// Rows
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: usize,
    /// Channels
    #[arg(long, default_value_t = 256, value_name = "N")]
    width: usize,
    /// Channels of a head (ssd)
    #[arg(long, default_value_t = 64, value_name = "N")]
    head_dim: usize,
    /// Numbers of state per channel
    #[arg(long, default_value_t = 16, value_name = "N")]
    states: usize,
    /// The backward pass, too
    #[arg(long)]
    backward: bool,
    #[command(flatten)]
    measure: MeasureArgs,
}

impl ScanArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let Self { kind, batch, width, states, backward, .. } = *self;
        // Every channel of a selective scan is its own head.
        let head_dim = if kind == ScanKind::Ssd { self.head_dim } else { 1 };
        let job = |&len: &usize| {
            Job::Scan(ScanJob { kind, batch, len, width, head_dim, states, backward })
        };
        let jobs: Vec<Job> = self.len.iter().map(job).collect();
        measure(&jobs, &self.measure, globals)
    }
}
