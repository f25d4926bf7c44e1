//! Sizes of the parts of a decoder: what each holds, what of it trains, and what its inputs must
//! be kept for.

use crate::models::lora::{LoraConfig, Role, Target};
use crate::models::{Activation, ModelConfig};

/// Numbers of a parameter or a group of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weights {
    pub all: u64,
    pub trained: u64,
    /// Numbers that the optimizer keeps of them.
    pub moments: u64,
    /// The largest single tensor that trains.
    pub largest: u64,
}

impl Weights {
    fn new(floats: usize, trains: bool) -> Self {
        let trained = if trains { floats as u64 } else { 0 };
        Self { all: floats as u64, trained, moments: 2 * trained, largest: trained }
    }

    /// With a mean of gradients alone.
    fn of_muon(self) -> Self {
        Self { moments: self.trained, ..self }
    }

    fn and(self, other: Self) -> Self {
        Self {
            all: self.all + other.all,
            trained: self.trained + other.trained,
            moments: self.moments + other.moments,
            largest: self.largest.max(other.largest),
        }
    }
}

/// A linear layer with its low-rank update.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    pub weights: Weights,
    /// Rank of its update; 0 without one.
    pub rank: u64,
    /// Whether a gradient is formed out of its input, which is then kept.
    pub learns: bool,
}

/// One block and what is around the blocks.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub hidden: u64,
    pub inner: u64,
    /// Width of all query heads together.
    pub q: u64,
    /// Width of all key heads together.
    pub kv: u64,
    pub heads: u64,
    pub head_dim: u64,
    pub vocab: u64,
    pub blocks: usize,
    pub tied: bool,
    pub qk_norm: bool,
    /// The norms of the residual stream are LayerNorms.
    pub layer_norm: bool,
    /// The feed-forward layer reads what attention reads.
    pub parallel: bool,
    pub embedding: Weights,
    /// None where the embedding is the head.
    pub head: Option<Weights>,
    /// One norm of the residual stream.
    pub norm: Weights,
    /// Norms of queries and keys.
    pub qk_norms: Weights,
    pub qkv: [Layer; 3],
    pub o: Layer,
    /// What reads the feed-forward layer's input: gate and up, or up alone.
    pub gate_up: Vec<Layer>,
    /// Numbers per inner channel that the activation keeps.
    pub activation: u64,
    pub down: Layer,
}

impl Layout {
    pub(super) fn new(config: &ModelConfig, lora: Option<&LoraConfig>, muon: bool) -> Self {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let in_full = |role| lora.is_none_or(|lora| lora.extra.contains(&role));
        let layer = |target: Target, from: usize, to: usize, bias: bool| {
            let update = lora.filter(|lora| lora.targets.contains(&target));
            let rank = update.map_or(0, |lora| lora.rank);
            let matrix = Weights::new(from * to, lora.is_none());
            Layer {
                weights: if muon { matrix.of_muon() } else { matrix }
                    .and(Weights::new(if bias { to } else { 0 }, in_full(Role::Bias)))
                    .and(Weights::new(rank * from, true))
                    .and(Weights::new(rank * to, true)),
                rank: rank as u64,
                learns: lora.is_none() || rank > 0,
            }
        };
        let table = config.vocab_size * hidden;
        Self {
            hidden: hidden as u64,
            inner: inner as u64,
            q: q as u64,
            kv: kv as u64,
            heads: config.num_attention_heads as u64,
            head_dim: config.head_dim as u64,
            vocab: config.vocab_size as u64,
            blocks: config.num_hidden_layers,
            tied: config.tie_word_embeddings,
            qk_norm: config.qk_norm,
            layer_norm: config.architecture.norms_have_bias(),
            parallel: config.parallel_residual,
            embedding: Weights::new(table, in_full(Role::Embedding)),
            head: (!config.tie_word_embeddings).then(|| Weights::new(table, in_full(Role::Head))),
            norm: {
                let one = Weights::new(hidden, in_full(Role::Norm));
                if config.architecture.norms_have_bias() { one.and(one) } else { one }
            },
            qk_norms: match config.qk_norm {
                true => {
                    let one = Weights::new(config.head_dim, in_full(Role::QkNorm));
                    one.and(one)
                }
                false => Weights::default(),
            },
            qkv: [
                layer(Target::Q, hidden, q, config.qkv_bias),
                layer(Target::K, hidden, kv, config.qkv_bias),
                layer(Target::V, hidden, kv, config.qkv_bias),
            ],
            o: layer(Target::O, q, hidden, config.o_bias),
            gate_up: {
                let gate = config.activation.is_gated().then_some(Target::Gate);
                let read = gate.into_iter().chain([Target::Up]);
                read.map(|target| layer(target, hidden, inner, config.mlp_bias)).collect()
            },
            activation: match config.activation {
                Activation::SwiGlu => 2,
                Activation::Gelu => 1,
                // Out of tensor ops: its input, the tangens, and one more than that.
                Activation::GeluTanh => 3,
            },
            down: layer(Target::Down, inner, hidden, config.mlp_bias),
        }
    }

    pub(super) fn attention(&self) -> Weights {
        self.qkv.iter().fold(self.o.weights.and(self.qk_norms), |sum, l| sum.and(l.weights))
    }

    pub(super) fn mlp(&self) -> Weights {
        self.gate_up.iter().fold(self.down.weights, |sum, l| sum.and(l.weights))
    }

    /// What a norm of the residual stream keeps, in numbers per token, where its input carries a
    /// gradient or not: an RMS norm its input; LayerNorm, made of tensor ops, the centred input,
    /// and for the gradient of its weight what that is multiplied with.
    pub(super) fn norm_keeps(&self, tracked: bool) -> u64 {
        let trains = self.norm.trained > 0;
        let kept = match self.layer_norm {
            true => u64::from(tracked) + u64::from(trains),
            false => u64::from(tracked || trains),
        };
        kept * self.hidden
    }

    /// Whether the head's weights train.
    pub(super) fn head_trains(&self) -> bool {
        self.head.unwrap_or(self.embedding).trained > 0
    }

    /// The largest single tensor that trains.
    pub(super) fn largest(&self) -> u64 {
        [self.embedding, self.head.unwrap_or_default(), self.norm, self.attention(), self.mlp()]
            .iter()
            .map(|weights| weights.largest)
            .max()
            .unwrap_or(0)
    }
}
