//! Sizes of the parts of a decoder: what each holds, what of it trains, and what its inputs must
//! be kept for.

use super::PlanConfig;
use super::own::Own;
use crate::Result;
use crate::attention::MixerConfig;
use crate::models::Activation;
use crate::models::lora::{LoraConfig, Role, Target};
use std::rc::Rc;

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
    pub(super) fn new(floats: usize, trains: bool) -> Self {
        let trained = if trains { floats as u64 } else { 0 };
        Self { all: floats as u64, trained, moments: 2 * trained, largest: trained }
    }

    /// With a mean of gradients alone.
    fn of_muon(self) -> Self {
        Self { moments: self.trained, ..self }
    }

    pub(super) fn and(self, other: Self) -> Self {
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
    pub matrix: Weights,
    /// Nothing where there is none.
    pub bias: Weights,
    /// The two factors of its update.
    pub update: Option<[Weights; 2]>,
    /// Rank of its update; 0 without one.
    pub rank: u64,
    /// Width of what it makes.
    pub width: u64,
}

impl Layer {
    pub(super) fn weights(&self) -> Weights {
        let update = self.update.iter().flatten();
        update.fold(self.matrix.and(self.bias), |sum, factor| sum.and(*factor))
    }

    /// Whether a gradient is formed out of its input, which is then kept.
    pub(super) fn learns(&self) -> bool {
        self.matrix.trained > 0 || self.update.is_some()
    }
}

/// What of a model trains, and how.
pub(super) struct Training<'a> {
    lora: Option<&'a LoraConfig>,
    /// Gates alone.
    gates: bool,
    muon: bool,
}

impl<'a> Training<'a> {
    /// With gates that learn, or without.
    pub(super) fn of(plan: &'a PlanConfig, gates: bool) -> Self {
        Self { lora: plan.lora.as_ref(), gates, muon: plan.muon }
    }

    /// Everything that has neither a role nor an update.
    pub(super) fn matrix(&self, floats: usize) -> Weights {
        Weights::new(floats, self.lora.is_none() && !self.gates)
    }

    pub(super) fn of_role(&self, role: Role, floats: usize) -> Weights {
        let trains = self.lora.is_none_or(|lora| lora.extra.contains(&role));
        Weights::new(floats, trains && !self.gates)
    }

    pub(super) fn gate(&self, floats: usize) -> Weights {
        Weights::new(floats, self.gates)
    }

    /// A linear layer, adapted where `target` is.
    pub(super) fn layer(
        &self,
        target: Option<Target>,
        (from, to): (usize, usize),
        bias: bool,
    ) -> Layer {
        let adapts = |lora: &&LoraConfig| target.is_some_and(|t| lora.targets.contains(&t));
        let rank = self.lora.filter(adapts).map_or(0, |lora| lora.rank);
        let factor = |side: usize| Weights::new(rank * side, true);
        let matrix = self.matrix(from * to);
        Layer {
            matrix: if self.muon { matrix.of_muon() } else { matrix },
            bias: self.of_role(Role::Bias, if bias { to } else { 0 }),
            update: (rank > 0).then(|| [factor(from), factor(to)]),
            rank: rank as u64,
            width: to as u64,
        }
    }
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
    /// The mixers of the blocks; none for attention, as it is laid out below.
    pub mixers: Vec<Option<Rc<Own>>>,
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
    /// Whether blocks have a feed-forward layer.
    pub has_mlp: bool,
    /// What reads the feed-forward layer's input: gate and up, or up alone.
    pub gate_up: Vec<Layer>,
    /// Numbers per inner channel that the activation keeps.
    pub activation: u64,
    pub down: Layer,
}

impl Layout {
    /// `mixers` are those of the blocks.
    ///
    /// # Errors
    /// For a mixer whose memory is not known.
    pub(super) fn new(plan: &PlanConfig, mixers: &[MixerConfig]) -> Result<Self> {
        let config = &plan.model;
        let gates = mixers.iter().any(|mixer| mixer.seer().is_some());
        let training = Training::of(plan, gates);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let layer = |target, from, to, bias| training.layer(Some(target), (from, to), bias);
        let table = config.vocab_size * hidden;
        let mut layout = Self {
            hidden: hidden as u64,
            inner: inner as u64,
            q: q as u64,
            kv: kv as u64,
            heads: config.num_attention_heads as u64,
            head_dim: config.head_dim as u64,
            vocab: config.vocab_size as u64,
            mixers: Vec::new(),
            has_mlp: config.architecture.has_attention(),
            tied: config.tie_word_embeddings,
            qk_norm: config.qk_norm,
            layer_norm: config.architecture.norms_have_bias(),
            parallel: config.parallel_residual,
            embedding: training.of_role(Role::Embedding, table),
            head: (!config.tie_word_embeddings).then(|| training.of_role(Role::Head, table)),
            norm: {
                let one = training.of_role(Role::Norm, hidden);
                if config.architecture.norms_have_bias() { one.and(one) } else { one }
            },
            qk_norms: match config.qk_norm {
                true => {
                    let one = training.of_role(Role::QkNorm, config.head_dim);
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
        };
        layout.mixers = Own::of_layers(plan, &training, &layout, mixers)?;
        Ok(layout)
    }

    /// Weights of the mixer of a block.
    pub(super) fn mixer(&self, own: Option<&Own>) -> Weights {
        own.map_or_else(|| self.attention(), |own| own.weights)
    }

    fn attention(&self) -> Weights {
        self.qkv.iter().fold(self.o.weights().and(self.qk_norms), |sum, l| sum.and(l.weights()))
    }

    pub(super) fn mlp(&self) -> Weights {
        self.gate_up.iter().fold(self.down.weights(), |sum, l| sum.and(l.weights()))
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
        let around = [self.embedding, self.head.unwrap_or_default(), self.norm, self.mlp()];
        let mixers = self.mixers.iter().map(|own| self.mixer(own.as_deref()));
        around.into_iter().chain(mixers).map(|weights| weights.largest).max().unwrap_or(0)
    }
}
