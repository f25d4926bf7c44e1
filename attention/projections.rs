//! The projections that all attention mixers share, so that swapping a mixer keeps names, shapes
//! and adapters.

use super::{Linear, LinearConfig, MixContext, RmsNorm, RmsNormConfig, SequenceMixer, Taps};
use crate::Result;
use crate::streams::Streams;
use burn::module::Module;
use burn::tensor::{Device, Tensor};

/// Sizes of an attention layer.
#[derive(Clone, Debug, PartialEq)]
pub struct AttnShape {
    /// Model width.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// Normalise q and k per head (Qwen3), with this epsilon.
    pub qk_norm: Option<f64>,
}

impl AttnShape {
    /// Build; streams `first .. first + 4` initialise q, k, v, o.
    pub fn init(
        &self,
        std: (f64, f64),
        streams: &Streams,
        first: u32,
        device: &Device,
    ) -> AttnProjections {
        let (q_width, kv_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let linear = |from, to, bias, std, index| {
            LinearConfig::new(from, to).with_bias(bias).with_std(std).init(
                streams,
                first + index,
                device,
            )
        };
        let norm = || self.qk_norm.map(|eps| RmsNormConfig::new(self.head_dim, eps).init(device));
        AttnProjections {
            q_proj: linear(self.hidden, q_width, self.qkv_bias, std.0, 0),
            k_proj: linear(self.hidden, kv_width, self.qkv_bias, std.0, 1),
            v_proj: linear(self.hidden, kv_width, self.qkv_bias, std.0, 2),
            o_proj: linear(q_width, self.hidden, self.o_bias, std.1, 3),
            q_norm: norm(),
            k_norm: norm(),
            heads: self.heads,
            kv_heads: self.kv_heads,
        }
    }
}

/// q, k, v and o.
#[derive(Module, Debug)]
pub struct AttnProjections {
    /// `hidden -> H·D`
    pub q_proj: Linear,
    /// `hidden -> K·D`
    pub k_proj: Linear,
    /// `hidden -> K·D`
    pub v_proj: Linear,
    /// `H·D -> hidden`
    pub o_proj: Linear,
    /// Per-head norm of queries.
    pub q_norm: Option<RmsNorm>,
    /// Per-head norm of keys.
    pub k_norm: Option<RmsNorm>,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    kv_heads: usize,
}

/// The linear layers of a mixer, around the shared projections or others: what low-rank adaptation
/// needs of it.
pub trait HasProjections: SequenceMixer {
    /// q, k, v and o, where the mixer has them.
    fn projections(&self) -> Option<&AttnProjections>;

    /// q, k, v and o, to be changed in place.
    fn projections_mut(&mut self) -> Option<&mut AttnProjections>;

    /// Another linear layer that an update can adapt, by its name in checkpoints.
    fn own_linear(&self, name: &str) -> Option<&Linear> {
        let _ = name;
        None
    }

    /// The same, to be changed in place.
    fn own_linear_mut(&mut self, name: &str) -> Option<&mut Linear> {
        let _ = name;
        None
    }
}

/// Rotated queries and keys, and values: `[B, H, T, D]`, `[B, K, T, D]`, `[B, K, T, D]`.
pub struct Projected {
    /// Queries, rotated.
    pub q: Tensor<4>,
    /// Keys, rotated.
    pub k: Tensor<4>,
    /// Values.
    pub v: Tensor<4>,
    /// q and k before rotation, where asked for.
    pub taps: Taps,
}

impl AttnProjections {
    /// Channels of a head.
    pub fn head_dim(&self) -> usize {
        self.q_proj.features().1 / self.heads
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Project, split into heads, normalise, rotate.
    ///
    /// # Shapes
    /// x_BTD `[B, T, D]`
    ///
    /// # Errors
    /// When the token attributes are not for this many rows and tokens.
    pub fn project(&self, x_BTD: Tensor<3>, ctx: &MixContext<'_>) -> Result<Projected> {
        let mut new = self.project_unrotated(x_BTD, ctx)?;
        if let Some(rope) = ctx.rope {
            (new.q, new.k) = (rope.rotate(new.q), rope.rotate(new.k));
        }
        Ok(new)
    }

    /// The same without the rotation.
    pub(crate) fn project_unrotated(
        &self,
        x_BTD: Tensor<3>,
        ctx: &MixContext<'_>,
    ) -> Result<Projected> {
        ctx.check_tokens("attention", &x_BTD)?;
        let mut q = split_heads(self.q_proj.forward(x_BTD.clone()), self.heads);
        let mut k = split_heads(self.k_proj.forward(x_BTD.clone()), self.kv_heads);
        let v = split_heads(self.v_proj.forward(x_BTD), self.kv_heads);
        if let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) {
            (q, k) = (q_norm.forward(q), k_norm.forward(k));
        }
        let taps = Taps::of(ctx, &q, &k);
        Ok(Projected { q, k, v, taps })
    }

    /// Join the heads and apply the output projection: `[B, H, T, D] -> [B, T, hidden]`.
    pub fn output(&self, mixed_BHTD: Tensor<4>) -> Tensor<3> {
        self.o_proj.forward(join_heads(mixed_BHTD))
    }
}

/// `[B, T, H·D] -> [B, H, T, D]`
pub(super) fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [b, t, width] = x.dims();
    x.reshape([b, t, heads, width / heads]).swap_dims(1, 2)
}

/// `[B, H, T, D] -> [B, T, H·D]`
pub(super) fn join_heads(x: Tensor<4>) -> Tensor<3> {
    let [b, h, t, d] = x.dims();
    x.swap_dims(1, 2).reshape([b, t, h * d])
}
