//! A decoder-only transformer of the families of [`Architecture`]: blocks of a sequence mixer and
//! a feed-forward layer, generic over the mixer.

use super::ModelConfig;
use super::mlp::{Mlp, MlpConfig};
use super::norm::{Norm, NormConfig};
use crate::attention::{
    AttnProjections, Compute, Linear, MixContext, MixOutput, Mixer, MixerConfig, MixerSchedule,
    MixerSite, Phase, SequenceMixer, State, Tap, Taps,
};
use crate::positional::{Positions, Rope, RopeTable};
use crate::streams::Streams;
use crate::{Error, Result};
use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use longburn_kernels::fused::{embed, linear, products_on};
use longburn_kernels::{Implementation, TokenMeta, TokenModel};
use std::collections::BTreeSet;

/// Random streams that one block's initialisation takes: four for attention, three for the MLP,
/// seven from the eighth on for low-rank updates.
pub(super) const STREAMS_PER_BLOCK: u32 = 16;

/// Embedding, blocks, final norm and head.
///
/// `M` is the mixer of the blocks: [`Mixer`], chosen per layer by configuration, or a type of your
/// own.
#[derive(Module, Debug)]
pub struct Decoder<M: SequenceMixer = Mixer> {
    /// `[V, D]`
    pub embed_tokens: Param<Tensor<2>>,
    /// The blocks.
    pub layers: Vec<Block<M>>,
    /// Final norm.
    pub norm: Norm,
    /// `[V, D]`; none where the embedding is the head.
    pub lm_head: Option<Linear>,
    #[module(skip)]
    config: ModelConfig,
    #[module(skip)]
    rope: Rope,
}

/// `x + mixer(norm(x))`, then, where there is a feed-forward layer, `x + mlp(norm(x))`; with
/// parallel residuals both of the same x.
#[derive(Module, Debug)]
pub struct Block<M: SequenceMixer> {
    /// Before the mixer.
    pub input_layernorm: Norm,
    /// The mixer.
    pub self_attn: M,
    /// Before the feed-forward layer.
    pub post_attention_layernorm: Option<Norm>,
    /// Feed-forward layer; none in the families that are mixers only.
    pub mlp: Option<Mlp>,
}

/// How a forward pass is to run.
#[derive(Clone, Debug)]
pub struct ForwardOptions {
    /// Training or inference.
    pub phase: Phase,
    /// Return states.
    pub keep_state: bool,
    /// Keep keys unrotated in the states and rotate all of them in every call, so that queries and
    /// keys have the frequencies of one length. Slower; the result is another only where those
    /// follow the length (dynamic, longrope).
    pub unrotated_cache: bool,
    /// Attention code.
    pub implementation: Implementation,
    /// Whether gradients are the same bits in every run, where faster code's are not: attention on NVIDIA's
    /// Hopper cards adds parts of them in the order in which they are done, unless this is set.
    pub deterministic: bool,
    /// What matrix products and attention compute in.
    pub compute: Compute,
    /// Tensors to return from every mixer.
    pub taps: Vec<Tap>,
    /// Return the input of every block and the final hidden states.
    pub keep_hidden: bool,
}

impl ForwardOptions {
    /// Training: no state, train-time-only attention on.
    pub fn train() -> Self {
        Self { phase: Phase::Train, ..Self::infer() }
    }

    /// Inference without a state.
    pub fn infer() -> Self {
        Self {
            phase: Phase::Infer,
            keep_state: false,
            unrotated_cache: false,
            implementation: Implementation::Auto,
            deterministic: false,
            compute: Compute::F32,
            taps: Vec::new(),
            keep_hidden: false,
        }
    }

    /// Return states for the next call.
    pub fn with_state(mut self, keep: bool) -> Self {
        self.keep_state = keep;
        self
    }

    /// Keep keys unrotated in the states; the same for all calls of a sequence.
    pub fn with_unrotated_cache(mut self, unrotated: bool) -> Self {
        self.unrotated_cache = unrotated;
        self
    }

    /// Choose the attention code.
    pub fn with_implementation(mut self, implementation: Implementation) -> Self {
        self.implementation = implementation;
        self
    }

    /// Choose whether gradients are the same bits in every run.
    pub fn with_deterministic(mut self, deterministic: bool) -> Self {
        self.deterministic = deterministic;
        self
    }

    /// Choose what matrix products and attention compute in: in bf16, blocks and the final hidden states
    /// are of it, too, while weights and their gradients stay as they are.
    ///
    /// ```
    /// use burn::tensor::{DType, Device};
    /// use longburn::attention::{Compute, MixerConfig};
    /// use longburn::kernel::TokenMeta;
    /// use longburn::models::{Blocks, Decoder, ForwardOptions, ModelConfig, ids_tensor};
    /// let device = Device::default();
    /// let model = Decoder::new(&ModelConfig::llama(256, 32, 2, 4), &MixerConfig::Dense, 0, &device)?;
    /// let options = ForwardOptions::infer().with_compute(Compute::Bf16);
    /// let (ids, tokens) = (ids_tensor(&[1, 2, 3], 1, &device), TokenMeta::contiguous(1, 3, 0));
    /// let hidden = model.forward_ids(ids, &tokens, &options, vec![])?.last;
    /// assert_eq!((hidden.dtype(), model.head().dtype()), (DType::BF16, DType::F32));
    /// # Ok::<(), longburn::Error>(())
    /// ```
    pub fn with_compute(mut self, compute: Compute) -> Self {
        self.compute = compute;
        self
    }

    /// Ask every mixer for tensors.
    pub fn with_taps(mut self, taps: Vec<Tap>) -> Self {
        self.taps = taps;
        self
    }

    /// Return the residual stream before every block and after the final norm.
    pub fn with_hidden(mut self, keep: bool) -> Self {
        self.keep_hidden = keep;
        self
    }
}

/// Token attributes, positions and rotary tables of one pass, shared by all blocks.
#[derive(Clone, Debug)]
pub struct Place {
    /// Position and document of the new tokens.
    pub tokens: TokenMeta,
    /// Tables for the new tokens.
    pub rope: RopeTable,
}

/// Result of a pass through the blocks.
#[derive(Clone, Debug)]
pub struct Hidden {
    /// After the final norm, `[B, T, D]`
    pub last: Tensor<3>,
    /// One per block where states were asked for, else empty.
    pub states: Vec<State>,
    /// Sum of the mixers' loss terms.
    pub aux: Option<Tensor<1>>,
    /// One per block where taps were asked for, else empty.
    pub taps: Vec<Taps>,
    /// Input of every block, then the final hidden states, where asked for.
    pub hidden: Vec<Tensor<3>>,
}

/// A model that a strategy can run block by block.
pub trait Blocks: Module {
    /// `[B, T]` ids -> `[B, T, D]`
    fn embed(&self, ids_BT: Tensor<2, Int>) -> Tensor<3>;

    /// Attributes and tables that all blocks share.
    fn place(&self, tokens: &TokenMeta, device: &Device) -> Place;

    /// Number of blocks.
    fn num_blocks(&self) -> usize;

    /// Block `index` on `[B, T, D]`, which becomes of the dtype that the options compute in.
    ///
    /// # Errors
    /// What the mixer refuses.
    fn block(
        &self,
        index: usize,
        x_BTD: Tensor<3>,
        place: &Place,
        options: &ForwardOptions,
        state: Option<State>,
    ) -> Result<MixOutput>;

    /// Final norm, `[B, T, D]`.
    fn finish(&self, x_BTD: Tensor<3>) -> Tensor<3>;

    /// Weights of the head, `[V, D]`.
    fn head(&self) -> Tensor<2>;

    /// The model's configuration.
    fn config(&self) -> &ModelConfig;

    /// The weights of a model that can append tokens to caches in a few launches a layer.
    fn token_model(&self) -> Option<TokenModel> {
        None
    }

    /// The whole pass.
    ///
    /// # Shapes
    /// x_BTD `[B, T, D]` embeddings; `states` empty or one per block
    ///
    /// # Errors
    /// What a mixer refuses, or a wrong number of states.
    fn forward_embeds(
        &self,
        x_BTD: Tensor<3>,
        tokens: &TokenMeta,
        options: &ForwardOptions,
        states: Vec<State>,
    ) -> Result<Hidden> {
        if !states.is_empty() && states.len() != self.num_blocks() {
            return Err(Error::shape(
                "Decoder",
                format!("{} states for {} blocks", states.len(), self.num_blocks()),
            ));
        }
        let place = self.place(tokens, &x_BTD.device());
        let mut states = states.into_iter();
        let mut x = x_BTD;
        let (mut kept, mut taps, mut hidden, mut aux) = (vec![], vec![], vec![], None);
        for index in 0..self.num_blocks() {
            if options.keep_hidden {
                hidden.push(x.clone());
            }
            let out = self.block(index, x, &place, options, states.next())?;
            x = out.y;
            kept.extend(out.state);
            if !options.taps.is_empty() {
                taps.push(out.taps);
            }
            aux = match (aux, out.aux) {
                (Some(a), Some(b)) => Some(a + b),
                (a, b) => a.or(b),
            };
        }
        let last = self.finish(x);
        if options.keep_hidden {
            hidden.push(last.clone());
        }
        Ok(Hidden { last, states: kept, aux, taps, hidden })
    }

    /// The whole pass from ids.
    ///
    /// # Errors
    /// As [`Blocks::forward_embeds`].
    fn forward_ids(
        &self,
        ids_BT: Tensor<2, Int>,
        tokens: &TokenMeta,
        options: &ForwardOptions,
        states: Vec<State>,
    ) -> Result<Hidden> {
        self.forward_embeds(self.embed(ids_BT), tokens, options, states)
    }

    /// Logits of hidden states: `[B, T, D] -> [B, T, V]`, in f32 for those of 16 bits. For few tokens at
    /// a time; losses over long sequences go through `kernel::linear_cross_entropy`.
    fn logits(&self, last_BTD: Tensor<3>) -> Tensor<3> {
        let ([b, t, d], dtype) = (last_BTD.dims(), last_BTD.dtype());
        let head = self.head();
        let v = head.dims()[0];
        let logits = linear(last_BTD.reshape([b * t, d]), head.cast(dtype));
        crate::attention::wide(logits).reshape([b, t, v])
    }
}

impl Decoder<Mixer> {
    /// A new model with random weights and the mixers that `mixer` names: a
    /// [`MixerConfig`](crate::attention::MixerConfig) for all layers, or a [`MixerSchedule`].
    ///
    /// # Errors
    /// When the configuration is inconsistent, the schedule does not fit the layers or a mixer
    /// refuses its layer.
    ///
    /// ```
    /// use longburn::{attention::MixerConfig, models::{Decoder, ModelConfig}};
    /// let config = ModelConfig::llama(256, 32, 2, 4);
    /// let model = Decoder::new(&config, &MixerConfig::Dense, 0, &burn::tensor::Device::default())?;
    /// assert_eq!(model.layers.len(), 2);
    /// # Ok::<(), longburn::Error>(())
    /// ```
    pub fn new(
        config: &ModelConfig,
        mixer: impl Into<MixerSchedule>,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let (config, mixers) = config.with_mixers(&mixer.into())?;
        Self::build(&config, &Draws::all(seed), device, |site| mixers[site.layer].build(site))
    }

    /// The same weights with other mixers.
    ///
    /// # Errors
    /// When a mixer refuses its layer, and [`Error::Unsupported`] for one that has other weights
    /// (see [`Decoder::convert`]).
    pub fn swap_mixer(mut self, mixer: impl Into<MixerSchedule>) -> Result<Self> {
        let (config, mixers) = self.config.with_mixers(&mixer.into())?;
        let fresh = config.new_mixers(&self.config);
        if let Some(layer) = fresh.first() {
            return Err(Error::Unsupported {
                what: format!(
                    "swapping the mixer of layer {layer}, {}, for {}, which has other weights",
                    self.config.mixers[*layer].name(),
                    mixers[*layer].name()
                ),
                remedy: "load the checkpoint with Decoder::convert, which draws new weights".into(),
            });
        }
        let swap = |(block, mixer): (Block<Mixer>, &MixerConfig)| {
            // What has weights of its own is the same before and after.
            match mixer.has_projections_only() {
                true => Ok(Block { self_attn: block.self_attn.swap(mixer)?, ..block }),
                false => Ok(block),
            }
        };
        self.layers = self.layers.into_iter().zip(&mixers).map(swap).collect::<Result<_>>()?;
        self.config = config;
        Ok(self)
    }
}

/// Which weights of a new model are drawn; the others are about to be read, and zero.
pub(super) struct Draws {
    pub seed: u64,
    pub all: bool,
    /// Layers whose mixer is drawn in any case.
    pub mixers: BTreeSet<usize>,
}

impl Draws {
    /// All weights.
    pub fn all(seed: u64) -> Self {
        Self { seed, all: true, mixers: BTreeSet::new() }
    }

    /// Nothing but these layers' mixers.
    pub fn mixers(seed: u64, mixers: BTreeSet<usize>) -> Self {
        Self { seed, all: false, mixers }
    }
}

impl<M: SequenceMixer> Decoder<M> {
    /// A new model with random weights; `mixer` builds each layer's mixer around projections.
    ///
    /// Linear layers start at 0.6/√in, output projections at 1/√(2·in·layers), the embedding at
    /// `initializer_range`.
    ///
    /// # Errors
    /// When the configuration is inconsistent or without attention, or what `mixer` returns.
    pub fn with_mixer(
        config: &ModelConfig,
        seed: u64,
        device: &Device,
        mut mixer: impl FnMut(usize, AttnProjections) -> Result<M>,
    ) -> Result<Self> {
        Self::build(config, &Draws::all(seed), device, |site| {
            mixer(site.layer, site.projections()?)
        })
    }

    /// The same with mixers that are built for a place in the model.
    pub(crate) fn with_sites(
        config: &ModelConfig,
        seed: u64,
        device: &Device,
        mixer: impl FnMut(&MixerSite<'_>) -> Result<M>,
    ) -> Result<Self> {
        Self::build(config, &Draws::all(seed), device, mixer)
    }

    pub(super) fn build(
        config: &ModelConfig,
        draws: &Draws,
        device: &Device,
        mut mixer: impl FnMut(&MixerSite<'_>) -> Result<M>,
    ) -> Result<Self> {
        config.validate()?;
        let streams = Streams::new(draws.seed);
        let drawn = if draws.all { 1.0 } else { 0.0 };
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let layers = config.num_hidden_layers;
        let std = |width: usize| drawn * 0.6 / (width as f64).sqrt();
        let out_std = |width: usize| drawn / (2.0 * (width * layers) as f64).sqrt();
        let bias = config.architecture.norms_have_bias();
        let norm = NormConfig::new(hidden, config.rms_norm_eps).with_bias(bias);
        let norm = || norm.init(device);
        let shape = config.attention();
        let has_mlp = config.architecture.has_attention();
        let block = |layer: usize| {
            let first = STREAMS_PER_BLOCK * (layer as u32 + 1);
            let site = MixerSite {
                layer,
                layers,
                hidden,
                eps: config.rms_norm_eps,
                attention: shape.as_ref(),
                window: config.windows[layer],
                streams: &streams,
                first,
                drawn: draws.all || draws.mixers.contains(&layer),
                device,
            };
            let (bias, activation) = (config.mlp_bias, config.activation);
            let mlp = MlpConfig { hidden, inner, bias, activation };
            let mlp = || mlp.init((std(hidden), out_std(inner)), &streams, first + 4, device);
            Ok(Block {
                input_layernorm: norm(),
                self_attn: mixer(&site)?,
                post_attention_layernorm: has_mlp.then(norm),
                mlp: has_mlp.then(mlp),
            })
        };
        let embedding = |index, std| {
            let shape = [config.vocab_size, hidden];
            crate::attention::normal(shape, std, &streams, index, device)
        };
        let head = |weight| Linear { weight: Param::from_tensor(weight), bias: None, lora: None };
        Ok(Self {
            embed_tokens: Param::from_tensor(embedding(0, drawn * config.initializer_range)),
            layers: (0..layers).map(block).collect::<Result<_>>()?,
            norm: norm(),
            lm_head: (!config.tie_word_embeddings).then(|| head(embedding(1, std(hidden)))),
            config: config.clone(),
            rope: config.rope.init()?,
        })
    }

    /// Change what `config.json` says of positions, as extending a model does.
    ///
    /// # Errors
    /// When the rotary settings are invalid.
    pub fn with_rope(
        mut self,
        rope: crate::positional::RopeConfig,
        max_positions: usize,
    ) -> Result<Self> {
        self.rope = rope.init()?;
        self.config.rope = rope;
        self.config.max_position_embeddings = max_positions;
        Ok(self)
    }

    /// Give a head that is the embedding weights of its own, equal at first; nothing changes
    /// where it has them already.
    pub fn untied(mut self) -> Self {
        if self.lm_head.is_none() {
            let weight = Param::from_tensor(self.embed_tokens.val().detach());
            self.lm_head = Some(Linear { weight, bias: None, lora: None });
            self.config.tie_word_embeddings = false;
        }
        self
    }

    /// The rotary encoding.
    pub fn rope(&self) -> &Rope {
        &self.rope
    }

    fn context<'a>(
        &'a self,
        layer: usize,
        place: &'a Place,
        options: &'a ForwardOptions,
    ) -> MixContext<'a> {
        let in_it = self.layers[layer].self_attn.computes_in(options.compute);
        MixContext {
            tokens: &place.tokens,
            rope: self.config.architecture.has_attention().then_some(&place.rope),
            unrotated_cache: options.unrotated_cache.then_some(&self.rope),
            layer,
            phase: options.phase,
            keep_state: options.keep_state,
            implementation: options.implementation,
            deterministic: options.deterministic,
            compute: if in_it { options.compute } else { Compute::F32 },
            taps: &options.taps,
        }
    }

    /// What runs in every layer, one line each, for `--explain`.
    pub fn explain(&self, options: &ForwardOptions, device: &Device) -> Vec<String> {
        let place = self.place(&TokenMeta::contiguous(1, 1, 0), device);
        let line = |(i, block): (usize, &Block<M>)| {
            let ctx = self.context(i, &place, options);
            format!("layer {i}: {}", block.self_attn.explain(&ctx, device))
        };
        self.layers.iter().enumerate().map(line).collect()
    }

    /// Whose products linear layers run on a device, one line for `--explain`.
    pub fn explain_products(&self, options: &ForwardOptions, device: &Device) -> String {
        let dtype = match options.compute {
            Compute::F32 => self.embed_tokens.val().dtype(),
            compute => compute.dtype(),
        };
        format!("linear layers: {} in {dtype:?}", products_on(device, dtype))
    }
}

impl<M: SequenceMixer> Blocks for Decoder<M> {
    fn embed(&self, ids_BT: Tensor<2, Int>) -> Tensor<3> {
        let [b, t] = ids_BT.dims();
        let rows = embed(self.embed_tokens.val(), ids_BT.reshape([b * t]));
        let d = rows.dims()[1];
        rows.reshape([b, t, d])
    }

    fn place(&self, tokens: &TokenMeta, device: &Device) -> Place {
        let rope = self.rope.table(&Positions::of(tokens), device);
        Place { tokens: tokens.clone(), rope }
    }

    fn num_blocks(&self) -> usize {
        self.layers.len()
    }

    fn block(
        &self,
        index: usize,
        x_BTD: Tensor<3>,
        place: &Place,
        options: &ForwardOptions,
        state: Option<State>,
    ) -> Result<MixOutput> {
        let block = &self.layers[index];
        let ctx = self.context(index, place, options);
        if place.tokens.has_anchor() && !block.self_attn.sees_anchor() {
            return Err(Error::Unsupported {
                what: format!("rows with a shared anchor, which the mixer of layer {index} hides"),
                remedy: "use the mixer `anchor`, or pack an anchor in front of every document"
                    .into(),
            });
        }
        let x_BTD = options.compute.of(x_BTD);
        let normed = block.input_layernorm.forward(x_BTD.clone());
        let mixed = block.self_attn.forward(ctx.compute.of(normed), &ctx, state)?;
        let x = x_BTD.clone() + options.compute.of(mixed.y);
        let (Some(norm), Some(mlp)) = (&block.post_attention_layernorm, &block.mlp) else {
            return Ok(MixOutput { y: x, ..mixed });
        };
        let seen = if self.config.parallel_residual { x_BTD } else { x.clone() };
        let y = x + mlp.forward(norm.forward(seen));
        Ok(MixOutput { y, ..mixed })
    }

    fn finish(&self, x_BTD: Tensor<3>) -> Tensor<3> {
        self.norm.forward(x_BTD)
    }

    fn head(&self) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => head.weight.val(),
            None => self.embed_tokens.val(),
        }
    }

    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn token_model(&self) -> Option<TokenModel> {
        super::token::model(self, self.rope.config().dim)
    }
}

/// `[B, T]` ids on the device.
pub fn ids_tensor(ids: &[u32], batch: usize, device: &Device) -> Tensor<2, Int> {
    let data: Vec<i32> = ids.iter().map(|i| *i as i32).collect();
    let len = ids.len() / batch.max(1);
    Tensor::from_data(TensorData::new(data, [batch, len]), device)
}
