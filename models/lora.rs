//! Low-rank adaptation (LoRA, Hu et al., arXiv 2106.09685): which layers get an update, which
//! other parameters train beside it, and merging.
//!
//! Parameters are chosen by role, never by parts of their names, so that "norm" means the norms
//! of the residual stream and not, by accident, those of queries and keys.

use super::keymap::{map_params, params};
use super::{Block, Decoder};
use crate::attention::{HasProjections, Linear, Lora, MixerConfig, SequenceMixer};
use crate::streams::{Draw, Purpose, Streams};
use crate::{Error, Result};
use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A linear layer of a block that can carry a low-rank update; a name without `_proj`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Output projection of attention.
    O,
    /// Gate of the feed-forward layer.
    Gate,
    /// Up projection of the feed-forward layer.
    Up,
    /// Down projection of the feed-forward layer.
    Down,
    /// Projection into a state-space layer (Mamba, Mamba-2).
    In,
    /// What Δ, B and C are made by (Mamba).
    X,
    /// Projection to Δ (Mamba).
    Dt,
    /// Projection out of a state-space layer (Mamba, Mamba-2).
    Out,
}

impl Target {
    /// Those of attention and feed-forward layers.
    pub const TRANSFORMER: [Self; 7] =
        [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];
    /// Those of state-space layers; Mamba-2 has the first and the last.
    pub const STATE_SPACE: [Self; 4] = [Self::In, Self::X, Self::Dt, Self::Out];
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::In,
        Self::X,
        Self::Dt,
        Self::Out,
    ];

    /// The layer's name in checkpoints.
    pub fn hf_name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
            Self::In => "in_proj",
            Self::X => "x_proj",
            Self::Dt => "dt_proj",
            Self::Out => "out_proj",
        }
    }

    /// Whether layers with this mixer have it, as a part of the mixer.
    pub fn is_in(self, mixer: &MixerConfig) -> bool {
        match self {
            Self::Q | Self::K | Self::V | Self::O => mixer.has_projections(),
            Self::In | Self::Out => {
                matches!(mixer, MixerConfig::Mamba1(_) | MixerConfig::Mamba2(_))
            }
            Self::X | Self::Dt => matches!(mixer, MixerConfig::Mamba1(_)),
            Self::Gate | Self::Up | Self::Down => false,
        }
    }

    /// The name in recipes.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Place of its random stream among those of a block's updates. A layer has either attention or
    /// a state, so that these share them.
    fn stream(self) -> u32 {
        match self {
            Self::In | Self::X | Self::Dt | Self::Out => self as u32 - Self::In as u32,
            _ => self as u32,
        }
    }

    /// The layer itself, where the block has it.
    pub fn linear<M: HasProjections>(self, block: &Block<M>) -> Option<&Linear> {
        let (proj, mlp) = (block.self_attn.projections(), block.mlp.as_ref());
        Some(match self {
            Self::Q => &proj?.q_proj,
            Self::K => &proj?.k_proj,
            Self::V => &proj?.v_proj,
            Self::O => &proj?.o_proj,
            Self::Gate => return mlp?.gate_proj.as_ref(),
            Self::Up => &mlp?.up_proj,
            Self::Down => &mlp?.down_proj,
            Self::In | Self::X | Self::Dt | Self::Out => {
                return block.self_attn.own_linear(self.hf_name());
            }
        })
    }

    /// The same, to be changed in place.
    pub fn linear_mut<M: HasProjections>(self, block: &mut Block<M>) -> Option<&mut Linear> {
        let (mixer, mlp) = (&mut block.self_attn, block.mlp.as_mut());
        Some(match self {
            Self::Q => &mut mixer.projections_mut()?.q_proj,
            Self::K => &mut mixer.projections_mut()?.k_proj,
            Self::V => &mut mixer.projections_mut()?.v_proj,
            Self::O => &mut mixer.projections_mut()?.o_proj,
            Self::Gate => return mlp?.gate_proj.as_mut(),
            Self::Up => &mut mlp?.up_proj,
            Self::Down => &mut mlp?.down_proj,
            Self::In | Self::X | Self::Dt | Self::Out => {
                return mixer.own_linear_mut(self.hf_name());
            }
        })
    }
}

/// Parameters that can be trained in full beside the low-rank updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The token embedding. Where it is also the head (tied), this trains the head with it.
    Embedding,
    /// Norms of the residual stream: before the mixer, before the feed-forward layer, the last.
    Norm,
    /// Norms inside mixers: of queries and keys, with what scales and shifts them, of what a
    /// state-space layer or fast weights say.
    QkNorm,
    /// The head, where it has weights of its own.
    Head,
    /// Biases of linear layers and convolutions.
    Bias,
    /// What shapes the state of state-space layers: decays, skips, biases of step sizes.
    StateSpace,
}

impl Role {
    /// Role of the parameter at a module path; none for the weights of linear layers inside
    /// the blocks and for low-rank updates.
    pub fn of(path: &str) -> Option<Self> {
        let (module, leaf) = path.rsplit_once('.').unwrap_or(("", path));
        let layer = module.rsplit_once('.').map_or(module, |(_, last)| last);
        match (layer, leaf) {
            (_, "embed_tokens") => Some(Self::Embedding),
            ("input_layernorm" | "post_attention_layernorm", _) => Some(Self::Norm),
            // Mixers may have a norm of their own.
            ("norm", _) if module == "norm" => Some(Self::Norm),
            (_, "bias") => Some(Self::Bias),
            ("lm_head", "weight") => Some(Self::Head),
            ("q_norm" | "k_norm" | "norm_q" | "norm_k" | "ttt_norm", "weight") => {
                Some(Self::QkNorm)
            }
            ("self_attn", "qk_scale" | "qk_offset") => Some(Self::QkNorm),
            ("norm", "weight") if module.ends_with(".self_attn.norm") => Some(Self::QkNorm),
            ("self_attn", "A_log" | "D" | "dt_bias") => Some(Self::StateSpace),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Norm => "norm",
            Self::QkNorm => "qk_norm",
            Self::Head => "head",
            Self::Bias => "bias",
            Self::StateSpace => "state_space",
        }
    }
}

/// What is adapted and how; `rank` 8, `alpha` 16 and all four attention projections by default.
///
/// ```
/// use longburn::attention::MixerConfig;
/// use longburn::models::lora::{self, LoraConfig, TrainableReport};
/// use longburn::models::{Decoder, ModelConfig};
/// let config = ModelConfig::llama(256, 32, 2, 4);
/// let model = Decoder::new(&config, &MixerConfig::Dense, 0, &burn::tensor::Device::default())?;
/// let model = lora::apply(model, &LoraConfig::longlora().with_rank(4))?;
/// println!("{}", TrainableReport::of(&model));
/// let merged = lora::merge(model);
/// # Ok::<(), longburn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// r, the rank of every update.
    pub rank: usize,
    /// α; the update is scaled by α/r.
    pub alpha: f64,
    /// Layers that get an update, in every block that has them.
    pub targets: Vec<Target>,
    /// Parameters trained in full beside the updates.
    pub extra: Vec<Role>,
    /// Scale by α/√r instead (rsLoRA, 2312.03732).
    pub rslora: bool,
    /// Of the initial A.
    pub seed: u64,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            targets: vec![Target::Q, Target::K, Target::V, Target::O],
            extra: Vec::new(),
            rslora: false,
            seed: 0,
        }
    }
}

impl LoraConfig {
    /// Plain LoRA on q, k, v and o.
    pub fn new() -> Self {
        Self::default()
    }

    /// LongLoRA's policy (2309.12307 §3.3): LoRA on q, k, v and o, with embedding and norms
    /// trained in full.
    pub fn longlora() -> Self {
        Self::default().with_extra(&[Role::Embedding, Role::Norm])
    }

    /// Set r.
    pub fn with_rank(mut self, rank: usize) -> Self {
        self.rank = rank;
        self
    }

    /// Set α.
    pub fn with_alpha(mut self, alpha: f64) -> Self {
        self.alpha = alpha;
        self
    }

    /// Choose the layers.
    pub fn with_targets(mut self, targets: &[Target]) -> Self {
        self.targets = targets.to_vec();
        self
    }

    /// Choose what trains in full.
    pub fn with_extra(mut self, extra: &[Role]) -> Self {
        self.extra = extra.to_vec();
        self
    }

    /// Scale by α/√r.
    pub fn with_rslora(mut self, rslora: bool) -> Self {
        self.rslora = rslora;
        self
    }

    /// Set the seed of A.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Whether rank, α and targets can be used.
    ///
    /// # Errors
    /// [`Error::Config`] with field, value and what is expected.
    pub fn validate(&self) -> Result<()> {
        let bad = |field: &str, value: String, expected: &str| {
            Err(Error::config("lora", field, value, expected))
        };
        if self.rank == 0 {
            return bad("rank", "0".into(), "at least 1");
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return bad("alpha", self.alpha.to_string(), "a positive number");
        }
        if self.targets.is_empty() {
            let all = Target::ALL.map(Target::name).join(", ");
            return bad("targets", "empty".into(), &format!("at least one of {all}"));
        }
        Ok(())
    }
}

/// Freeze the model, put an update that starts at zero (A uniform in ±1/√in, B zero) beside every
/// target and let the roles in `extra` train.
///
/// # Errors
/// [`Error::Config`] for unusable settings, a rank above both sides of a layer, or a role that
/// this model does not have,
/// [`Error::Unsupported`] when the model already carries updates.
pub fn apply<M: HasProjections>(mut model: Decoder<M>, config: &LoraConfig) -> Result<Decoder<M>> {
    config.validate()?;
    check_plain(&model)?;
    let all = params(&model);
    let present = |role: &Role| all.iter().any(|p| Role::of(&p.path) == Some(*role));
    if let Some(role) = config.extra.iter().find(|role| !present(role)) {
        let expected = match role {
            Role::Head => "roles that this model has (its head is its embedding: `embedding`)",
            _ => "roles that this model has",
        };
        return Err(Error::config("lora", "extra", role.name(), expected));
    }
    let sides = |block: &Block<M>, target: &Target| {
        let (from, to) = target.linear(block)?.features();
        Some(from.max(to))
    };
    let widest = |block| config.targets.iter().filter_map(|t| sides(block, t)).min();
    let most = model.layers.iter().filter_map(widest).min();
    if let Some(most) = most.filter(|most| config.rank > *most) {
        let expected = format!("at most {most}, the longer side of a target's weights");
        return Err(Error::config("lora", "rank", config.rank, expected));
    }
    let streams = Streams::new(config.seed);
    for target in &config.targets {
        if !model.layers.iter().any(|block| target.linear(block).is_some()) {
            let has = |target: &Target| model.layers.iter().any(|b| target.linear(b).is_some());
            let why = match target {
                Target::Gate if has(&Target::Up) => "its feed-forward layer has no gate",
                Target::Gate | Target::Up | Target::Down => "it has no feed-forward layers",
                _ => "its mixers have no such projection",
            };
            let there: Vec<_> = Target::ALL.into_iter().filter(has).map(Target::name).collect();
            let there = there.join(", ");
            let expected = format!("layers that this model has: {there} ({why})");
            return Err(Error::config("lora", "targets", target.name(), expected));
        }
    }
    for (layer, block) in model.layers.iter_mut().enumerate() {
        for target in &config.targets {
            let block_streams = super::decoder::STREAMS_PER_BLOCK * (layer as u32 + 1);
            let index = block_streams + 8 + target.stream();
            let Some(linear) = target.linear_mut(block) else { continue };
            linear.lora = Some(new_update(linear, config, &streams, index));
        }
    }
    let trains = |path: &str| {
        path.contains(".lora.") || Role::of(path).is_some_and(|role| config.extra.contains(&role))
    };
    Ok(map_params(model, |_| None, |path| Some(trains(path))))
}

fn new_update(linear: &Linear, config: &LoraConfig, streams: &Streams, index: u32) -> Lora {
    let (from, to) = linear.features();
    let (device, dtype) = (linear.weight.device(), linear.weight.dtype());
    let mut rng = streams.rng(Purpose::Init, 0, 0, index);
    let bound = 1.0 / (from as f64).sqrt();
    let uniform = (0..config.rank * from).map(|_| ((2.0 * rng.unit() - 1.0) * bound) as f32);
    let a = TensorData::new(uniform.collect::<Vec<_>>(), [config.rank, from]);
    Lora {
        a: Param::from_tensor(Tensor::from_data(a, (&device, dtype))),
        b: Param::from_tensor(Tensor::zeros([to, config.rank], (&device, dtype))),
        alpha: config.alpha,
        rslora: config.rslora,
    }
}

pub(crate) fn check_plain<M: SequenceMixer>(model: &Decoder<M>) -> Result<()> {
    if is_adapted(model) {
        return Err(Error::Unsupported {
            what: "low-rank updates on a model that already carries some".into(),
            remedy: "merge them first".into(),
        });
    }
    Ok(())
}

/// Whether the model carries low-rank updates.
pub fn is_adapted<M: SequenceMixer>(model: &Decoder<M>) -> bool {
    params(model).iter().any(|p| p.path.contains(".lora."))
}

/// Add every update to its weights, W + scale·B·A in f32, and remove it. The result is a plain
/// model, all of whose parameters train.
pub fn merge<M: HasProjections>(mut model: Decoder<M>) -> Decoder<M> {
    for block in &mut model.layers {
        for target in Target::ALL {
            let Some(linear) = target.linear_mut(block) else { continue };
            let Some(lora) = linear.lora.take() else { continue };
            let wide = |x: &Param<Tensor<2>>| x.val().detach().cast(DType::F32);
            let update = wide(&lora.b).matmul(wide(&lora.a)).mul_scalar(lora.scale());
            linear.weight = linear.weight.clone().map(|weight| {
                let dtype = weight.dtype();
                (weight.detach().cast(DType::F32) + update).cast(dtype).detach()
            });
        }
    }
    map_params(model, |_| None, |_| Some(true))
}

/// How many parameters train, in all and by role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrainableReport {
    /// Parameters that train.
    pub trainable: usize,
    /// All parameters, updates included.
    pub total: usize,
    /// Parameters that train, per role: "lora", the names of [`Role`], "weight" for the rest.
    pub by_role: Vec<(&'static str, usize)>,
}

impl TrainableReport {
    /// Count.
    pub fn of<M: SequenceMixer>(model: &Decoder<M>) -> Self {
        let mut report = Self { trainable: 0, total: 0, by_role: Vec::new() };
        for p in params(model) {
            report.total += p.numel();
            if !p.trainable {
                continue;
            }
            report.trainable += p.numel();
            let name = match Role::of(&p.path) {
                Some(role) => role.name(),
                None if p.path.contains(".lora.") => "lora",
                None => "weight",
            };
            match report.by_role.iter_mut().find(|(known, _)| *known == name) {
                Some((_, count)) => *count += p.numel(),
                None => report.by_role.push((name, p.numel())),
            }
        }
        report
    }
}

impl fmt::Display for TrainableReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = 100.0 * self.trainable as f64 / self.total.max(1) as f64;
        let (some, all) = (grouped(self.trainable), grouped(self.total));
        write!(f, "trainable {some} of {all} ({share:.1} %)")?;
        for (i, (role, count)) in self.by_role.iter().enumerate() {
            write!(f, "{} {role} {}", if i == 0 { ":" } else { "," }, grouped(*count))?;
        }
        Ok(())
    }
}

/// 12345 -> "12,345"
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
