//! SeerAttention: Learning Intrinsic Sparse Attention in Your LLMs (arXiv 2410.13276), and
//! SeerAttention-R (arXiv 2506.08889) for decoding.
//!
//! A small gate per layer predicts which blocks of keys matter: from pooled queries and keys, as
//! they are before rotation, it scores every pair of blocks. In training the model runs densely
//! and stays as it is; the gate alone learns, from the largest attention weight of every block.
//! In inference only chosen blocks are computed. The gate of SeerAttention-R scores blocks for
//! single queries, one choice per key head; prefill is dense, decoding sparse.
//!
//! A block of queries chooses as a whole, so that its first tokens attend to what the last ones
//! had a say in: sparse prefill is causal in what is attended to, not in what is chosen.
//!
//! *Deviations.* Blocks are counted within documents, so that packed rows and padding are right;
//! the authors pool rows. A row whose scores are all below the threshold keeps its best block
//! (`keep_best`). A block that is finished during decoding is rotated at its first token, as in training; the
//! authors' inference code does it at the current token (`rope_at = "current_token"`). Rows of
//! different lengths in one batch are averaged by their own numbers of blocks. A call that
//! continues a cache is dense with a prefill gate. Scores and loss are in f32 throughout. With
//! frequencies that follow the length, those of blocks follow the last block's start.

mod decode;
mod gate;
mod layout;
mod select;
mod target;

pub use decode::{GateCache, SeerCache};
pub use gate::{
    AttnGate, DecodeGate, GateShape, GroupLinear, HeadLinear, PrefillGate, QueryLinear,
};
pub use layout::BlockLayout;
pub use select::{Select, block_list, choose_blocks};
pub(crate) use target::PIECE as SCORES_OF_PIECE;
pub use target::Teacher;

use super::compute::wide;
use super::dense;
use super::projections::Projected;
use super::{AttnProjections, Compute, MixContext, MixOutput, Phase, SequenceMixer, State};
use crate::streams::Streams;
use crate::{Error, Result};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use longburn_kernels::{Branch, Mask, MaskSpec, masked_attention};
use serde::{Deserialize, Serialize};

/// What a block of tokens is pooled by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// Largest value.
    Max,
    /// Smallest value.
    Min,
    /// Mean.
    Avg,
}

impl Pool {
    /// All, in the order in which they lie side by side.
    pub const ALL: [Self; 3] = [Self::Max, Self::Min, Self::Avg];
}

/// For which queries the gate chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GateKind {
    /// For blocks of queries (SeerAttention).
    #[default]
    Prefill,
    /// For single queries, in decoding (SeerAttention-R).
    Decode,
}

/// How the query heads of a key head become one gate query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadPool {
    /// A projection of all of them.
    #[default]
    Qproj,
    /// Their average.
    Qavg,
    /// A projection of their average.
    Qavgproj,
    /// Not at all; their scores are averaged.
    Qorig,
}

/// What the divergences of all rows are divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// The number of all scores, as the authors have it: the longer, the smaller.
    #[default]
    Mean,
    /// The number of documents.
    BatchMean,
}

/// Where a block that is finished during decoding is rotated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeAt {
    /// At its first token.
    #[default]
    BlockStart,
    /// Compatibility with the authors' inference code: at its last.
    CurrentToken,
}

/// Configuration of [`Seer`]; defaults as in the authors' training scripts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SeerConfig {
    /// For which queries the gate chooses.
    pub gate: GateKind,
    /// Tokens per block.
    pub block: usize,
    /// Width of gate queries and keys; that of the heads where not set.
    pub gate_dim: Option<usize>,
    /// Poolings of queries (prefill).
    pub q_pool: Vec<Pool>,
    /// Poolings of keys.
    pub k_pool: Vec<Pool>,
    /// A layer for queries even where one pooling of the heads' width needs none (prefill).
    pub force_double: bool,
    /// How query heads become one gate query (decode).
    pub head_pool: HeadPool,
    /// Normalise gate queries and keys (decode).
    pub qk_norm: bool,
    /// Where a block that is finished during decoding is rotated (decode).
    pub rope_at: RopeAt,
    /// Blocks that inference computes, `{ threshold = 2e-3 }`, `{ nz_ratio = 0.1 }` (prefill) or
    /// `{ budget = 4096 }` tokens; where not set, inference is dense.
    pub select: Option<Select>,
    /// The last two blocks of queries of a document attend to everything (prefill).
    pub last_block_dense: bool,
    /// A block of queries of which no score is above the threshold keeps its best block; without
    /// this it sees nothing, as in the authors' code (prefill).
    pub keep_best: bool,
    /// Weight of the gate's loss.
    pub loss_scale: f64,
    /// What the divergences of all rows are divided by.
    pub reduction: Reduction,
    /// Share of each document, from its start, that the loss leaves out; a quarter for prefill,
    /// half for decode, where not set.
    pub skip: Option<f64>,
}

impl Default for SeerConfig {
    fn default() -> Self {
        Self {
            gate: GateKind::Prefill,
            block: 64,
            gate_dim: None,
            q_pool: vec![Pool::Avg],
            k_pool: Pool::ALL.to_vec(),
            force_double: false,
            head_pool: HeadPool::Qproj,
            qk_norm: true,
            rope_at: RopeAt::BlockStart,
            select: None,
            last_block_dense: true,
            keep_best: true,
            loss_scale: 10.0,
            reduction: Reduction::Mean,
            skip: None,
        }
    }
}

impl SeerConfig {
    /// SeerAttention as its authors train it.
    pub fn new() -> Self {
        Self::default()
    }

    /// SeerAttention-R as its authors train it.
    pub fn decode() -> Self {
        Self { gate: GateKind::Decode, ..Self::default() }
    }

    /// Tokens per block.
    pub fn with_block(mut self, block: usize) -> Self {
        self.block = block;
        self
    }

    /// Width of gate queries and keys.
    pub fn with_gate_dim(mut self, gate_dim: Option<usize>) -> Self {
        self.gate_dim = gate_dim;
        self
    }

    /// Poolings of queries and keys.
    pub fn with_pools(mut self, queries: &[Pool], keys: &[Pool]) -> Self {
        (self.q_pool, self.k_pool) = (queries.to_vec(), keys.to_vec());
        self
    }

    /// How query heads become one.
    pub fn with_head_pool(mut self, head_pool: HeadPool) -> Self {
        self.head_pool = head_pool;
        self
    }

    /// Blocks that inference computes; all of them for none.
    pub fn with_select(mut self, select: Option<Select>) -> Self {
        self.select = select;
        self
    }

    /// Whether the last two blocks of queries attend to everything.
    pub fn with_last_block_dense(mut self, dense: bool) -> Self {
        self.last_block_dense = dense;
        self
    }

    /// Whether settings can be used, whatever the layer.
    ///
    /// # Errors
    /// [`Error::Config`] with field, value and what is expected.
    pub fn validate(&self) -> Result<()> {
        let bad = |field: &str, value: String, expected: &str| {
            Err(Error::config("mixer", field, value, expected))
        };
        if self.block == 0 {
            return bad("block", "0".into(), "at least 1 token");
        }
        if let Some(width) = self.gate_dim.filter(|width| *width == 0 || width % 2 != 0) {
            return bad("gate_dim", width.to_string(), "an even width above 0");
        }
        for (field, pools) in [("q_pool", &self.q_pool), ("k_pool", &self.k_pool)] {
            let twice = Pool::ALL.iter().any(|p| pools.iter().filter(|q| *q == p).count() > 1);
            if pools.is_empty() || twice {
                let value = format!("{pools:?}").to_lowercase();
                return bad(field, value, "one, two or three of max, min, avg, each once");
            }
        }
        if let Some(select) = self.select {
            select.validate()?;
            if self.gate == GateKind::Decode && matches!(select, Select::NzRatio(_)) {
                let expected = "a threshold or a budget with gate = \"decode\"";
                return bad("select", format!("{select:?}"), expected);
            }
        }
        if !(self.loss_scale > 0.0 && self.loss_scale.is_finite()) {
            return bad("loss_scale", self.loss_scale.to_string(), "a positive number");
        }
        if let Some(skip) = self.skip.filter(|skip| !(0.0..1.0).contains(skip)) {
            return bad("skip", skip.to_string(), "a share of at least 0, below 1");
        }
        Ok(())
    }

    /// Build around projections, without a gate yet; `window` is the checkpoint's own sliding
    /// window.
    ///
    /// # Errors
    /// As [`validate`](Self::validate), and for a gate that does not fit the heads.
    pub fn init(&self, proj: AttnProjections, window: Option<usize>) -> Result<Seer> {
        self.validate()?;
        Ok(Seer { proj, attn_gate: None, window, config: self.clone() })
    }

    /// Share of each document that the loss leaves out.
    pub(super) fn skipped(&self) -> f64 {
        self.skip.unwrap_or(match self.gate {
            GateKind::Prefill => 0.25,
            GateKind::Decode => 0.5,
        })
    }
}

/// Attention with a gate: dense with the gate's loss in training, sparse in inference.
#[derive(Module, Debug)]
pub struct Seer {
    /// q, k, v, o
    pub proj: AttnProjections,
    /// The gate; none in a model that was neither prepared for training nor given its weights.
    pub attn_gate: Option<AttnGate>,
    #[module(skip)]
    pub(crate) window: Option<usize>,
    #[module(skip)]
    pub(crate) config: SeerConfig,
}

impl SequenceMixer for Seer {
    fn forward(
        &self,
        x_BTD: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput> {
        let Some(select) = self.config.select.filter(|_| ctx.phase == Phase::Infer) else {
            return match ctx.phase {
                Phase::Train => self.distill(x_BTD, ctx, state),
                Phase::Infer => dense::attend(&self.proj, self.window, x_BTD, ctx, state),
            };
        };
        match (self.gate()?, state) {
            (AttnGate::Prefill(gate), None) => {
                self.prefill(gate, select, self.proj.project_unrotated(x_BTD, ctx)?, ctx)
            }
            (AttnGate::Prefill(_), state) => {
                dense::attend(&self.proj, self.window, x_BTD, ctx, state)
            }
            // Nothing to choose from, and nothing to remember.
            (AttnGate::Decode(_), None) if !ctx.keep_state => {
                dense::attend(&self.proj, self.window, x_BTD, ctx, None)
            }
            (AttnGate::Decode(gate), state) => {
                let (kv, old) = match state {
                    None => (None, None),
                    Some(State::Seer(SeerCache { kv, gate })) => (Some(kv), Some(gate)),
                    Some(other) => return Err(other.foreign("seer")),
                };
                let new = self.proj.project_unrotated(x_BTD, ctx)?;
                self.decode(gate, select, new, (kv, old), ctx)
            }
        }
    }

    fn computes_in(&self, _: Compute) -> bool {
        true
    }

    fn explain(&self, ctx: &MixContext<'_>, device: &Device) -> String {
        let code = dense::code(ctx, self.proj.head_dim(), device);
        match (ctx.phase, self.config.select, self.config.gate) {
            (Phase::Train, ..) => format!("causal attention that the gate learns from: {code}"),
            (_, None, _) => format!("causal attention: {code}"),
            (_, Some(select), GateKind::Prefill) => {
                format!("blocks of keys chosen by a gate ({select:?}), then dense: {code}")
            }
            (_, Some(select), GateKind::Decode) => {
                format!("causal prefill, then blocks chosen by a gate ({select:?}): {code}")
            }
        }
    }
}

impl Seer {
    /// The settings.
    pub fn config(&self) -> &SeerConfig {
        &self.config
    }

    /// With a gate of random weights, from the random streams `first` and `first + 8`.
    ///
    /// # Errors
    /// [`Error::Config`] for a gate that does not fit the heads.
    pub fn with_gate(mut self, streams: &Streams, first: u32) -> Result<Self> {
        let (heads, kv_heads) = (self.proj.heads(), self.proj.kv_heads());
        let head_dim = self.proj.q_proj.features().1 / heads;
        let shape = GateShape { heads, kv_heads, head_dim };
        let device = self.proj.q_proj.weight.device();
        self.attn_gate = Some(AttnGate::new(&self.config, shape, (streams, first), &device)?);
        Ok(self)
    }

    fn gate(&self) -> Result<&AttnGate> {
        self.attn_gate.as_ref().ok_or_else(|| Error::Unsupported {
            what: "SeerAttention without weights of its gate".into(),
            remedy: "load them beside the model, or train a gate first; without `select`, \
                     inference is dense and needs none"
                .into(),
        })
    }

    /// The dense output, and the gate's loss, whose gradients reach the gate alone.
    fn distill(
        &self,
        x_BTD: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput> {
        let what = "training SeerAttention's gate with a cache";
        ctx.refuse_state(state.as_ref(), what, "train on whole sequences")?;
        let gate = self.gate()?;
        let new = self.proj.project_unrotated(x_BTD, ctx)?;
        let unrotated = (new.q.clone(), new.k.clone());
        let (q, cache, taps) = dense::rotated(new, ctx);
        let k = dense::keys(&cache, ctx);
        let spec = MaskSpec::causal().with_window(self.window);
        let (heads, tokens) = (self.proj.heads(), ctx.tokens.clone());
        let mask = Mask::new(spec.clone(), tokens.clone(), tokens, heads)?;
        let options = ctx.attention();
        let branch = Branch { q: q.clone(), k: k.clone(), mask };
        let done = masked_attention(&[branch], cache.v, &options)?;
        let mut mixed = dense::output(&self.proj, done.out, ctx, taps, None);

        let layout = BlockLayout::of(ctx.tokens, self.config.block)?;
        // The gate learns in f32, whatever the attention that it learns from is in.
        let spread = |x: Tensor<4>| layout.spread(wide(x.detach()));
        let tokens = layout.tokens().clone();
        let mask = Mask::new(spec, tokens.clone(), tokens, heads)?;
        let teacher = Teacher {
            branch: Branch { q: spread(q), k: spread(k), mask },
            lse: spread(done.lse.unsqueeze_dim::<4>(3)).squeeze_dim::<3>(3),
            layout: &layout,
            options,
        };
        let (q, k) = (spread(unrotated.0), spread(unrotated.1));
        let rope = ctx.rope.map(|table| table.rope());
        let loss = match gate {
            AttnGate::Prefill(gate) => {
                teacher.block_loss(&self.config, gate.blocks(q, k, &layout, rope)?)?
            }
            AttnGate::Decode(gate) => {
                let scored = gate.tokens_and_blocks(q, k, &layout, rope)?;
                teacher.token_loss(&self.config, gate, scored)?
            }
        };
        mixed.aux = Some(loss.mul_scalar(self.config.loss_scale));
        Ok(mixed)
    }

    /// A whole sequence, of which only chosen blocks are computed.
    fn prefill(
        &self,
        gate: &PrefillGate,
        select: Select,
        new: Projected,
        ctx: &MixContext<'_>,
    ) -> Result<MixOutput> {
        let layout = BlockLayout::of(ctx.tokens, self.config.block)?;
        let [q, k] = [&new.q, &new.k].map(|x| layout.spread(wide(x.clone().detach())));
        let logits = gate.logits(q, k, &layout, ctx.rope.map(|table| table.rope()))?;
        let list = block_list(&self.config, select, logits, &layout)?;
        let spec = MaskSpec::causal().with_window(self.window);
        let tokens = layout.tokens().clone();
        let mask = Mask::new(spec, tokens.clone(), tokens, self.proj.heads())?.with_blocks(list)?;
        let (q, cache, taps) = dense::rotated(new, ctx);
        let [q, k, v] = [q, dense::keys(&cache, ctx), cache.v.clone()].map(|x| layout.spread(x));
        let out = masked_attention(&[Branch { q, k, mask }], v, &ctx.attention())?.out;
        let state = ctx.keep_state.then_some(State::Kv(cache));
        Ok(dense::output(&self.proj, layout.collect(out), ctx, taps, state))
    }
}
