//! Test-Time Training Done Right (arXiv 2505.23884).
//!
//! LaCT: a layer whose memory is the weights of a small gated network per head. A chunk of tokens
//! is first *read* with the weights as they are, `W1·(silu(W0·q) ⊙ W2·q)`, and then *learned* from:
//! one step up the gradient of `Σ η·⟨f(k), v⟩`, with three rates η per token that the layer computes,
//! with or without momentum and orthogonalisation (Muon), after which every row of the weights is
//! brought back to its initial length. The last chunk is only read. What happens inside a chunk is
//! the business of window attention, which shares q, k and v and is added. The form for sets, of
//! which no token comes first, is [`run_ops`].
//!
//! The layer is that of the authors' language models, which differs from their minimal examples
//! (there, attention gets the scaled q and k, and there is no rotation).
//!
//! *Deviations.* Every document of a packed row has weights and chunks of its own, and padding
//! teaches nothing; the authors' code ignores documents. Decoding goes on learning, with a state
//! that equals one pass; their cache restarts from the initial weights. The length of the initial
//! rows is not taken as a constant (as in their code; the set form of theirs, [`UpdateRule`] with
//! `detach_norms`, takes it so). Orthogonalisation runs in the dtype of the weights unless
//! [`LactConfig::bf16`] is set, and each matrix on its own, where their fused kernels stack two.

mod fast;
mod initial;
mod layer;
mod memory;
mod plan;
mod scan;
mod set;

pub use fast::{FastWeights, Learner, Triple, UpdateRule};
pub use initial::{InitialWeight, LowRank};
pub use layer::{Branches, Lact};
pub use memory::{LactState, Memory};
pub use scan::read_and_learn;
pub use set::{SetOp, run_ops};

use super::drawing::Drawing;
use super::newton_schulz::NewtonSchulz;
use super::{AttnShape, MixerSite, RmsNormConfig};
use crate::streams::Streams;
use crate::{Error, Result};
use burn::module::Param;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

/// How a step of the fast weights is made of their gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FastOptimizer {
    /// The gradient itself.
    Sgd,
    /// The gradient, orthogonalised.
    #[default]
    Muon,
}

/// Which weights are kept at the row lengths of the initial ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightNorm {
    /// Those that steps are added to.
    #[default]
    Post,
    /// A copy that tokens are read with and gradients are taken at; steps add up beside it.
    Pre,
}

/// Configuration of [`Lact`]; defaults as in the authors' 760M language models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LactConfig {
    /// Heads of the fast weights; their width is the model's over this.
    pub fast_heads: usize,
    /// Inner width of the fast weights, in widths of a head.
    pub inter_multi: f64,
    /// Tokens that are learned from together.
    pub chunk: usize,
    /// Positions up to its own that a token attends to.
    pub window: usize,
    /// How a step is made of the gradient.
    pub optimizer: FastOptimizer,
    /// Add a share of the step before, chosen per head and chunk.
    pub momentum: bool,
    /// Which weights are kept at their initial length.
    pub norm: WeightNorm,
    /// Rank of the initial W0 and W2, beside half of the identity; with 0, full matrices.
    pub low_rank: usize,
    /// Factor of the initial low-rank weights.
    pub init_gain: f64,
    /// Rate of a token about which the layer has nothing to say.
    pub base_lr: f64,
    /// Normalise q and k over the whole width.
    pub qk_norm: bool,
    /// Add a bias to q, k and v.
    pub qkv_bias: bool,
    /// Put values through a silu, as keys and queries are.
    pub silu_v: bool,
    /// Rotate the keys and queries of the fast weights as those of the attention.
    pub rotate: bool,
    /// Weigh what was read per head and token.
    pub learnable_scale: bool,
    /// Orthogonalise in bf16.
    pub bf16: bool,
}

impl Default for LactConfig {
    fn default() -> Self {
        Self {
            fast_heads: 4,
            inter_multi: 1.0,
            chunk: 2048,
            window: 2048,
            optimizer: FastOptimizer::Muon,
            momentum: true,
            norm: WeightNorm::Post,
            low_rank: 32,
            init_gain: 0.5,
            base_lr: 1e-3,
            qk_norm: false,
            qkv_bias: false,
            silu_v: true,
            rotate: true,
            learnable_scale: true,
            bf16: false,
        }
    }
}

impl LactConfig {
    /// The paper's settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Heads of the fast weights.
    pub fn with_fast_heads(mut self, heads: usize) -> Self {
        self.fast_heads = heads;
        self
    }

    /// Inner width, in widths of a head.
    pub fn with_inter_multi(mut self, times: f64) -> Self {
        self.inter_multi = times;
        self
    }

    /// Tokens per chunk.
    pub fn with_chunk(mut self, tokens: usize) -> Self {
        self.chunk = tokens;
        self
    }

    /// Reach of the attention.
    pub fn with_window(mut self, tokens: usize) -> Self {
        self.window = tokens;
        self
    }

    /// How a step is made.
    pub fn with_optimizer(mut self, optimizer: FastOptimizer) -> Self {
        self.optimizer = optimizer;
        self
    }

    /// Switch the momentum.
    pub fn with_momentum(mut self, momentum: bool) -> Self {
        self.momentum = momentum;
        self
    }

    /// Choose the norm.
    pub fn with_norm(mut self, norm: WeightNorm) -> Self {
        self.norm = norm;
        self
    }

    /// Rank of the initial W0 and W2; 0 for full matrices.
    pub fn with_low_rank(mut self, rank: usize) -> Self {
        self.low_rank = rank;
        self
    }

    /// Rate without advice.
    pub fn with_base_lr(mut self, rate: f64) -> Self {
        self.base_lr = rate;
        self
    }

    /// Normalise q and k.
    pub fn with_qk_norm(mut self, normalise: bool) -> Self {
        self.qk_norm = normalise;
        self
    }

    /// Add a bias to q, k and v.
    pub fn with_qkv_bias(mut self, bias: bool) -> Self {
        self.qkv_bias = bias;
        self
    }

    /// Put values through a silu.
    pub fn with_silu_v(mut self, silu: bool) -> Self {
        self.silu_v = silu;
        self
    }

    /// Rotate in the fast branch.
    pub fn with_rotate(mut self, rotate: bool) -> Self {
        self.rotate = rotate;
        self
    }

    /// Weigh what was read.
    pub fn with_learnable_scale(mut self, learnable: bool) -> Self {
        self.learnable_scale = learnable;
        self
    }

    /// How the fast weights learn.
    pub fn rule(&self) -> UpdateRule {
        let muon = self.optimizer == FastOptimizer::Muon;
        UpdateRule {
            orthogonal: muon.then(|| NewtonSchulz::LACT.with_bf16(self.bf16)),
            momentum: self.momentum,
            norm: self.norm,
            detach_norms: false,
        }
    }

    /// d and d_h: outer and inner width of the fast weights in a layer of this width.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that cannot work.
    pub fn widths(&self, hidden: usize) -> Result<(usize, usize)> {
        let bad = |field: &str, value: &dyn std::fmt::Display, expected: &str| {
            Err(Error::config("mixer lact", field, value, expected))
        };
        if self.fast_heads == 0 || !hidden.is_multiple_of(self.fast_heads) {
            let expected = format!("a divisor of the width {hidden}");
            return bad("fast_heads", &self.fast_heads, &expected);
        }
        if self.chunk == 0 {
            return bad("chunk", &0, "at least 1 token");
        }
        if self.window == 0 {
            return bad("window", &0, "at least 1, the token itself");
        }
        let d = hidden / self.fast_heads;
        let d_h = (d as f64 * self.inter_multi) as usize;
        if !(self.inter_multi.is_finite() && (1..=1 << 20).contains(&d_h)) {
            let expected = format!("a number that makes 1 to {} channels of {d}", 1 << 20);
            return bad("inter_multi", &self.inter_multi, &expected);
        }
        for (field, value) in [("base_lr", self.base_lr), ("init_gain", self.init_gain)] {
            if !(value > 0.0 && value.is_finite()) {
                return bad(field, &value, "a positive number");
            }
        }
        if self.low_rank > d.max(d_h) {
            let expected = format!("at most the {} channels of a head, or 0", d.max(d_h));
            return bad("low_rank", &self.low_rank, &expected);
        }
        Ok((d, d_h))
    }

    /// Whether a layer with `other` has the same weights.
    pub fn shares_weights_with(&self, other: &Self) -> bool {
        let weights = |c: &Self| {
            let Self { fast_heads, inter_multi, momentum, low_rank, qk_norm, .. } = *c;
            (fast_heads, inter_multi, momentum, low_rank, qk_norm, c.qkv_bias, c.learnable_scale)
        };
        weights(self) == weights(other)
    }

    /// Names and shapes of all weights in a layer of this width, which must be one that goes.
    pub(super) fn own_weights(&self, hidden: usize) -> Vec<(&'static str, Vec<usize>)> {
        let heads = self.fast_heads;
        let (d, d_h) = self.widths(hidden).unwrap_or_default();
        let mut all = vec![
            ("qkv.weight", vec![3 * hidden, hidden]),
            ("out_proj.weight", vec![hidden, hidden]),
            ("qk_scale", vec![hidden, 2]),
            ("qk_offset", vec![hidden, 2]),
            ("w1", vec![heads, d, d_h]),
            ("lr_proj.weight", vec![3 * heads, hidden]),
            ("lr_proj.bias", vec![3 * heads]),
            ("ttt_norm.weight", vec![d]),
        ];
        all.extend(match self.low_rank {
            0 => vec![("w0", vec![heads, d_h, d]), ("w2", vec![heads, d_h, d])],
            r => vec![
                ("w0.w_left", vec![heads, d_h, r]),
                ("w0.w_right", vec![heads, r, d]),
                ("w2.w_left", vec![heads, d_h, r]),
                ("w2.w_right", vec![heads, r, d]),
            ],
        });
        if self.qk_norm {
            all.extend([("norm_q.weight", vec![hidden]), ("norm_k.weight", vec![hidden])]);
        }
        if self.qkv_bias {
            all.push(("qkv.bias", vec![3 * hidden]));
        }
        if self.momentum {
            all.push(("momentum_proj.weight", vec![heads, hidden]));
            all.push(("momentum_proj.bias", vec![heads]));
        }
        if self.learnable_scale {
            all.push(("ttt_scale_proj.weight", vec![heads, hidden]));
            all.push(("ttt_scale_proj.bias", vec![heads]));
        }
        all
    }

    /// Build for a layer of a model.
    ///
    /// # Errors
    /// As [`LactConfig::init`], and [`Error::Unsupported`] in a family without attention.
    pub fn build(&self, site: &MixerSite<'_>) -> Result<Lact> {
        let shape = site.heads("LaCT")?;
        let std = (site.std(site.hidden), site.out_std(site.hidden));
        self.init(shape, std, site.streams, site.own_streams(), site.device)
    }

    /// Whether it goes into a layer of this shape. Of its heads, those of the queries count: the
    /// window attention has as many keys as queries, of a projection of its own.
    pub(super) fn check(&self, shape: &AttnShape) -> Result<()> {
        self.widths(shape.hidden)?;
        if shape.heads == 0 || shape.heads.checked_mul(shape.head_dim) != Some(shape.hidden) {
            let expected = format!("heads that make up the width {} together", shape.hidden);
            return Err(Error::config("mixer lact", "heads", shape.heads, expected));
        }
        Ok(())
    }

    /// Build for a layer of this shape. `std` are the standard deviations of q, k, v and of the
    /// output projection; stream `first` initialises.
    ///
    /// # Errors
    /// Settings that cannot work, or heads that do not make up the width.
    pub fn init(
        &self,
        shape: &AttnShape,
        std: (f64, f64),
        streams: &Streams,
        first: u32,
        device: &Device,
    ) -> Result<Lact> {
        self.check(shape)?;
        let hidden = shape.hidden;
        let (d, d_h) = self.widths(hidden)?;
        let drawing = Drawing { streams, first, device, drawn: std.0 != 0.0 };
        let inner = |part| match self.low_rank {
            0 => drawing.full([self.fast_heads, d_h, d], part),
            r => drawing.low_rank([self.fast_heads, d_h, d], r, self.init_gain, part),
        };
        let advice = |each: usize, part| {
            drawing.normal_linear((hidden, each * self.fast_heads), true, std.0, part)
        };
        let norm = || self.qk_norm.then(|| RmsNormConfig::new(hidden, fast::EPS).init(device));
        Ok(Lact {
            qkv: drawing.normal_linear((hidden, 3 * hidden), self.qkv_bias, std.0, 0),
            out_proj: drawing.normal_linear((hidden, hidden), false, std.1, 1),
            norm_q: norm(),
            norm_k: norm(),
            qk_scale: Param::from_tensor(Tensor::ones([hidden, 2], device)),
            qk_offset: Param::from_tensor(Tensor::zeros([hidden, 2], device)),
            w0: inner(2),
            w1: drawing.full([self.fast_heads, d, d_h], 4),
            w2: inner(5),
            lr_proj: advice(3, 7),
            momentum_proj: self.momentum.then(|| advice(1, 8)),
            ttt_norm: RmsNormConfig::new(d, fast::EPS).init(device),
            ttt_scale_proj: self.learnable_scale.then(|| advice(1, 9)),
            heads: shape.heads,
            config: self.clone(),
        })
    }
}
