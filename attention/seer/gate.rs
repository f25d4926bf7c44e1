//! The gate: pooled queries and keys, a linear layer per head, block positions, scores.
//!
//! It reads queries and keys as they are *before* rotation. Weights have the names and shapes of
//! the authors' checkpoints, in which every head has a matrix `[in, out]` of its own.

use super::{BlockLayout, GateKind, HeadPool, Pool, SeerConfig};
use crate::attention::{RmsNorm, RmsNormConfig, normal};
use crate::positional::{Positions, Rope, RopeConfig, RopeTable};
use crate::streams::Streams;
use crate::{Error, Result};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

/// Standard deviation of the first weights.
const STD: f64 = 0.02;
/// ε of the norms of gate queries and keys.
const NORM_EPS: f64 = 1e-6;

/// Heads of a layer, as the gate needs to know them.
#[derive(Clone, Copy, Debug)]
pub struct GateShape {
    /// Query heads, H.
    pub heads: usize,
    /// Key heads, K.
    pub kv_heads: usize,
    /// Width of a head, D.
    pub head_dim: usize,
}

/// The gate of one layer.
#[derive(Module, Debug)]
pub enum AttnGate {
    /// Scores blocks of keys for blocks of queries.
    Prefill(PrefillGate),
    /// Scores blocks of keys for single queries.
    Decode(DecodeGate),
}

/// Scores blocks of keys for blocks of queries, per query head.
#[derive(Module, Debug)]
pub struct PrefillGate {
    /// `[H, pools · D, G]`; none where queries are pooled once and G = D.
    pub mask_linear_q: Option<HeadLinear>,
    /// `[K, pools · D, G]`, or `[H, ..]` where queries have no layer.
    pub mask_linear_k: HeadLinear,
    #[module(skip)]
    q_pool: Vec<Pool>,
    #[module(skip)]
    k_pool: Vec<Pool>,
}

/// Scores blocks of keys for single queries, per key head.
#[derive(Module, Debug)]
pub struct DecodeGate {
    /// `[K, H/K, D, G]` or `[K, D, G]`; none where query heads are averaged only, or left alone.
    pub attngate_linear_q: Option<QueryLinear>,
    /// `[K, pools · D, G]`
    pub attngate_linear_k: HeadLinear,
    /// Norm of gate queries, over G.
    pub attngate_qnorm: Option<RmsNorm>,
    /// Norm of gate keys, over G.
    pub attngate_knorm: Option<RmsNorm>,
    #[module(skip)]
    head_pool: HeadPool,
    #[module(skip)]
    k_pool: Vec<Pool>,
}

/// A matrix per head, no bias.
#[derive(Module, Debug)]
pub struct HeadLinear {
    /// `[heads, in, out]`
    pub weight: Param<Tensor<3>>,
}

/// A matrix per query head; the results of a group are added up.
#[derive(Module, Debug)]
pub struct GroupLinear {
    /// `[K, H/K, in, out]`
    pub weight: Param<Tensor<4>>,
}

/// How the queries of a group become one.
#[derive(Module, Debug)]
pub enum QueryLinear {
    /// Of all heads of the group.
    Group(GroupLinear),
    /// Of their average.
    Mean(HeadLinear),
}

impl HeadLinear {
    fn new(shape: [usize; 3], seed: (&Streams, u32), device: &Device) -> Self {
        Self { weight: Param::from_tensor(normal(shape, STD, seed.0, seed.1, device)) }
    }

    fn heads(&self) -> usize {
        self.weight.dims()[0]
    }

    /// `[B, heads, N, in]` -> `[B, heads, N, out]`
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        x.matmul(self.weight.val().unsqueeze::<4>())
    }
}

impl AttnGate {
    /// A gate with random weights, from the random streams `first` and `first + 8`.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that do not fit.
    pub fn new(
        config: &SeerConfig,
        shape: GateShape,
        (streams, first): (&Streams, u32),
        device: &Device,
    ) -> Result<Self> {
        config.validate()?;
        let GateShape { heads, kv_heads, head_dim } = shape;
        let wide = config.gate_dim.unwrap_or(head_dim);
        if !wide.is_multiple_of(2) {
            let expected = "an even width, since positions of blocks are rotary";
            return Err(Error::config("mixer", "gate_dim", wide, expected));
        }
        let linear = |shape, stream| HeadLinear::new(shape, (streams, first + stream), device);
        let (q_in, k_in) = (config.q_pool.len() * head_dim, config.k_pool.len() * head_dim);
        Ok(match config.gate {
            GateKind::Prefill => {
                let single = config.q_pool.len() == 1 && wide == head_dim && !config.force_double;
                let k_heads = if single { heads } else { kv_heads };
                Self::Prefill(PrefillGate {
                    mask_linear_q: (!single).then(|| linear([heads, q_in, wide], 0)),
                    mask_linear_k: linear([k_heads, k_in, wide], 8),
                    q_pool: config.q_pool.clone(),
                    k_pool: config.k_pool.clone(),
                })
            }
            GateKind::Decode => {
                let projects = matches!(config.head_pool, HeadPool::Qproj | HeadPool::Qavgproj);
                if !projects && wide != head_dim {
                    let expected = format!("{head_dim}, the width of a head, without a projection");
                    return Err(Error::config("mixer", "gate_dim", wide, expected));
                }
                let group = [kv_heads, heads / kv_heads, head_dim, wide];
                let attngate_linear_q = match config.head_pool {
                    HeadPool::Qproj => {
                        let weight = normal(group, STD, streams, first, device);
                        let weight = Param::from_tensor(weight);
                        Some(QueryLinear::Group(GroupLinear { weight }))
                    }
                    HeadPool::Qavgproj => {
                        Some(QueryLinear::Mean(linear([kv_heads, head_dim, wide], 0)))
                    }
                    HeadPool::Qavg | HeadPool::Qorig => None,
                };
                let norm =
                    || config.qk_norm.then(|| RmsNormConfig::new(wide, NORM_EPS).init(device));
                Self::Decode(DecodeGate {
                    attngate_linear_q,
                    attngate_linear_k: linear([kv_heads, k_in, wide], 8),
                    attngate_qnorm: norm(),
                    attngate_knorm: norm(),
                    head_pool: config.head_pool,
                    k_pool: config.k_pool.clone(),
                })
            }
        })
    }
}

impl PrefillGate {
    /// Gate queries and keys of blocks, keys repeated for every query head.
    ///
    /// # Shapes
    /// q_BHTD `[B, H, T', D]` and k_BKTD `[B, K, T', D]` unrotated, as `layout` lays them out ->
    /// `[B, H, N, G]` each
    ///
    /// # Errors
    /// When `rope` cannot be had in the gate's width.
    pub fn blocks(
        &self,
        q_BHTD: Tensor<4>,
        k_BKTD: Tensor<4>,
        layout: &BlockLayout,
        rope: Option<&Rope>,
    ) -> Result<(Tensor<4>, Tensor<4>)> {
        let ([_, heads, _, d], kv_heads) = (q_BHTD.dims(), k_BKTD.dims()[1]);
        let mut q = layout.pool(q_BHTD, &self.q_pool);
        let mut k = layout.pool(k_BKTD, &self.k_pool);
        if self.mask_linear_k.heads() != kv_heads {
            k = repeat(k, heads);
        }
        if let Some(linear) = &self.mask_linear_q {
            q = linear.forward(q);
        }
        k = self.mask_linear_k.forward(k);
        if let Some(rope) = rope {
            let table = of_width(rope, d, q.dims()[3])?.table(&layout.starts()?, &q.device());
            (q, k) = (table.rotate(q), table.rotate(k));
        }
        Ok((q, repeat(k, heads)))
    }

    /// Logits of all pairs of blocks, those included that no query sees through.
    ///
    /// # Shapes
    /// As [`blocks`](Self::blocks) -> `[B, H, N, N]`
    ///
    /// # Errors
    /// When `rope` cannot be had in the gate's width.
    pub fn logits(
        &self,
        q_BHTD: Tensor<4>,
        k_BKTD: Tensor<4>,
        layout: &BlockLayout,
        rope: Option<&Rope>,
    ) -> Result<Tensor<4>> {
        let (q, k) = self.blocks(q_BHTD, k_BKTD, layout, rope)?;
        Ok(scores(q, k))
    }
}

impl DecodeGate {
    /// Gate queries of tokens.
    ///
    /// # Shapes
    /// q_BHTD `[B, H, T, D]` unrotated -> `[B, K, T, G]`, or `[B, H, T, G]` where heads are left
    /// alone; `table` for the positions of the tokens, in the gate's width
    pub fn queries(&self, q_BHTD: Tensor<4>, table: Option<&RopeTable>) -> Tensor<4> {
        let [b, heads, t, d] = q_BHTD.dims();
        let kv = self.attngate_linear_k.heads();
        let group = heads / kv;
        let mean = |q: Tensor<4>| {
            let q: Tensor<5> = q.reshape([b, kv, group, t, d]);
            q.mean_dim(2).reshape([b, kv, t, d])
        };
        let q = match (&self.attngate_linear_q, self.head_pool) {
            (Some(QueryLinear::Group(linear)), _) => {
                let q: Tensor<5> = q_BHTD.reshape([b, kv, group, t, d]);
                let q = q.swap_dims(2, 3).reshape([b, kv, t, group * d]);
                let to = linear.weight.dims()[3];
                q.matmul(linear.weight.val().reshape([1, kv, group * d, to]))
            }
            (Some(QueryLinear::Mean(linear)), _) => linear.forward(mean(q_BHTD)),
            (None, HeadPool::Qorig) => q_BHTD,
            (None, _) => mean(q_BHTD),
        };
        placed(q, self.attngate_qnorm.as_ref(), table)
    }

    /// Gate keys of blocks from their pooled keys.
    ///
    /// # Shapes
    /// pooled `[B, K, N, pools · D]` -> `[B, K, N, G]`; `table` for positions of the blocks, in
    /// the gate's width
    pub fn keys(&self, pooled: Tensor<4>, table: Option<&RopeTable>) -> Tensor<4> {
        let k = self.attngate_linear_k.forward(pooled);
        placed(k, self.attngate_knorm.as_ref(), table)
    }

    /// Gate queries of all tokens, and gate keys of all blocks.
    ///
    /// # Shapes
    /// q_BHTD `[B, H, T', D]` and k_BKTD `[B, K, T', D]` unrotated, as `layout` lays them out ->
    /// `[B, K or H, T', G]`, `[B, K, N, G]`
    ///
    /// # Errors
    /// When `rope` cannot be had in the gate's width.
    pub fn tokens_and_blocks(
        &self,
        q_BHTD: Tensor<4>,
        k_BKTD: Tensor<4>,
        layout: &BlockLayout,
        rope: Option<&Rope>,
    ) -> Result<(Tensor<4>, Tensor<4>)> {
        let (d, device) = (q_BHTD.dims()[3], q_BHTD.device());
        let rope = rope.map(|rope| of_width(rope, d, self.width())).transpose()?;
        let table = |positions| rope.as_ref().map(|rope| rope.table(&positions, &device));
        let q = self.queries(q_BHTD, table(Positions::of(layout.tokens())).as_ref());
        let pooled = layout.pool(k_BKTD, &self.k_pool);
        Ok((q, self.keys(pooled, table(layout.starts()?).as_ref())))
    }

    /// Logits of gate queries and keys, one row per key head.
    ///
    /// # Shapes
    /// `[B, K or H, T, G]`, `[B, K, N, G]` -> `[B, K, T, N]`
    pub fn logits(&self, q: Tensor<4>, k: Tensor<4>) -> Tensor<4> {
        let ([b, heads, t, _], [_, kv, n, _]) = (q.dims(), k.dims());
        let all = scores(q, repeat(k, heads));
        if heads == kv {
            return all;
        }
        let all: Tensor<5> = all.reshape([b, kv, heads / kv, t, n]);
        all.mean_dim(2).reshape([b, kv, t, n])
    }

    /// Poolings of keys.
    pub(super) fn pools(&self) -> &[Pool] {
        &self.k_pool
    }

    /// G
    pub(super) fn width(&self) -> usize {
        self.attngate_linear_k.weight.dims()[2]
    }
}

/// Normalised and rotated, where there is a norm and where there are positions.
fn placed(x: Tensor<4>, norm: Option<&RmsNorm>, table: Option<&RopeTable>) -> Tensor<4> {
    let x = match norm {
        Some(norm) => norm.forward(x),
        None => x,
    };
    match table {
        Some(table) => table.rotate(x),
        None => x,
    }
}

/// `q·kᵀ / sqrt(G)`
pub(super) fn scores(q: Tensor<4>, k: Tensor<4>) -> Tensor<4> {
    let width = q.dims()[3] as f64;
    q.matmul(k.transpose()).div_scalar(width.sqrt())
}

/// Every key head as often as query heads share it.
fn repeat(x: Tensor<4>, heads: usize) -> Tensor<4> {
    let [b, kv, n, d] = x.dims();
    if kv == heads {
        return x;
    }
    let x: Tensor<5> = x.reshape([b, kv, 1, n, d]);
    x.repeat_dim(2, heads / kv).reshape([b, heads, n, d])
}

/// The model's rotary encoding for heads of the gate's width: the same base and scaling, and the
/// same share of the channels.
pub(super) fn of_width(rope: &Rope, head_dim: usize, gate_dim: usize) -> Result<Rope> {
    let config = rope.config();
    if head_dim == gate_dim {
        // One of its own, which remembers its own tables.
        return config.init();
    }
    RopeConfig { dim: config.dim * gate_dim / head_dim, ..config.clone() }.init().map_err(|error| {
        Error::config(
            "mixer",
            "gate_dim",
            gate_dim,
            format!("a width that the model's rotary encoding can be had in ({error})"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GPT-NeoX rotates a share of each head: the gate rotates that share of its own width.
    #[test]
    fn partial_rotation_stays_partial() {
        let rope = RopeConfig::new(1e4, 4).init().unwrap();
        for (gate_dim, expected) in [(16, 4), (32, 8), (8, 2)] {
            assert_eq!(of_width(&rope, 16, gate_dim).unwrap().config().dim, expected);
        }
        let error = of_width(&rope, 16, 4).unwrap_err().to_string();
        assert!(error.contains("gate_dim"), "{error}");
    }
}
