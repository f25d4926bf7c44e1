//! How a sequence becomes a sequence: one file per paper, one trait for all.

pub mod anchor;
mod compute;
mod context;
pub mod dense;
mod drawing;
pub mod lact;
mod linear;
pub mod longgen;
pub mod longlora;
pub mod mamba1;
pub mod mamba2;
pub mod newton_schulz;
mod norm;
mod projections;
pub mod reference;
mod rows;
mod schedule;
pub mod seer;
mod site;
mod softplus;
mod state;
mod state_space;
mod weights;

pub use anchor::{Anchor, AnchorConfig};
pub use compute::Compute;
pub(crate) use compute::wide;
pub use context::{MixContext, MixOutput, Phase, Tap, Taps};
pub use dense::{Dense, DenseConfig};
pub(crate) use drawing::normal;
pub use lact::{Lact, LactConfig, LactState};
pub use linear::{Linear, LinearConfig, Lora};
pub use longgen::{LayerSchedule, LongGen, LongGenConfig};
pub use longlora::{LongLora, LongLoraConfig, LongLoraForm};
pub use mamba1::{Mamba1, Mamba1Config};
pub use mamba2::{Mamba2, Mamba2Config};
pub use norm::{RmsNorm, RmsNormConfig};
pub use projections::{AttnProjections, AttnShape, HasProjections};
pub use schedule::{LayerMixers, Layers, MixerSchedule};
pub use seer::{Seer, SeerCache, SeerConfig};
pub use site::MixerSite;
pub use state::{KvCache, Recurrent, State};
pub use state_space::{Conv1d, StepSizes};

use crate::streams::Streams;
use crate::{Error, Result};
use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Device, Tensor};
use longburn_kernels::MaskSpec;
use serde::{Deserialize, Deserializer, Serialize};

/// One mechanism that turns a sequence into a sequence of the same shape.
///
/// Implement it for a module of your own and put that into `Decoder<YourMixer>`; the mixers that
/// come with Longburn are chosen by [`MixerConfig`].
pub trait SequenceMixer: Module + ModuleDisplay {
    /// Mix the new tokens `x`, which follow those that `state` remembers.
    ///
    /// The state goes in and comes out *with gradient*. A mixer that cannot keep documents of a
    /// packed row apart must return an error.
    ///
    /// # Shapes
    /// x_BTD `[B, T, D]` -> y `[B, T, D]`
    ///
    /// # Errors
    /// [`crate::Error::Shape`] or [`crate::Error::Unsupported`] when the input cannot be honoured.
    fn forward(
        &self,
        x_BTD: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput>;

    /// Whether all documents of a row see its shared anchor
    /// ([`TokenMeta::ANCHOR`](longburn_kernels::TokenMeta::ANCHOR)). A decoder refuses rows that
    /// have one for a mixer that says no.
    fn sees_anchor(&self) -> bool {
        false
    }

    /// Whether the mixer takes input of the dtype of `compute` and gives output of it. A decoder hands
    /// f32 to a mixer that says no, and rounds what comes of it.
    fn computes_in(&self, compute: Compute) -> bool {
        compute == Compute::F32
    }

    /// The projections of a mixer that is causal attention over everything before a token, once it does not train: a
    /// decoder may then append tokens to a cache without calling it.
    fn plain_attention(&self) -> Option<&AttnProjections> {
        None
    }

    /// One sentence on the code that would run, for `--explain`.
    fn explain(&self, ctx: &MixContext<'_>, device: &Device) -> String {
        let _ = ctx;
        format!("{} on {device:?}", std::any::type_name::<Self>())
    }
}

/// Which mixer a layer has, as a recipe says it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
pub enum MixerConfig {
    /// Causal attention over everything (or the checkpoint's own sliding window).
    #[default]
    #[serde(deserialize_with = "no_settings")]
    Dense,
    /// Shifted sparse attention in training, dense attention in inference (LongLoRA).
    LongLora(LongLoraConfig),
    /// Near blocks with sinks or a stride, in training and in inference (LongGen).
    LongGen(LongGenConfig),
    /// Documents of a row with an anchor that all of them see (AnchorAttention).
    #[serde(deserialize_with = "no_settings")]
    Anchor,
    /// Fast weights that learn by chunks, beside window attention (LaCT).
    Lact(LactConfig),
    /// Selective state spaces (Mamba).
    Mamba1(Mamba1Config),
    /// State-space duality (Mamba-2).
    Mamba2(Mamba2Config),
    /// Blocks of keys that a learned gate chooses (SeerAttention); dense while the gate learns.
    Seer(SeerConfig),
}

/// Of a mixer without settings; serde alone would pass over fields that it does not have.
fn no_settings<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<(), D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    Nothing::deserialize(from).map(|Nothing {}| ())
}

impl MixerConfig {
    /// Build for a layer of a model.
    ///
    /// # Errors
    /// As [`init`](Self::init), and for attention in a family without.
    pub fn build(&self, site: &MixerSite<'_>) -> Result<Mixer> {
        Ok(match self {
            Self::Lact(config) => Mixer::Lact(config.build(site)?),
            Self::Mamba1(config) => Mixer::Mamba1(config.build(site)?),
            Self::Mamba2(config) => Mixer::Mamba2(config.build(site)?),
            _ => self.init(site.projections()?, site.window)?,
        })
    }

    /// Whether it goes into a layer of a model of width `hidden` with so many layers, told without
    /// building one.
    ///
    /// # Errors
    /// As [`build`](Self::build), but for what only a gate's weights show.
    pub fn check(
        &self,
        (hidden, layers): (usize, usize),
        attention: Option<&AttnShape>,
        window: Option<usize>,
    ) -> Result<()> {
        self.check_sizes(hidden)?;
        match (self, attention) {
            (Self::Mamba1(config), _) => config.check(hidden, layers),
            (Self::Mamba2(config), _) => config.check(hidden, layers),
            (_, None) => Err(Error::Unsupported {
                what: format!("the mixer {} in a family without heads", self.name()),
                remedy: "take the checkpoint's own mixer, or a family with attention".into(),
            }),
            (Self::Dense, _) => Ok(()),
            (Self::LongLora(config), Some(shape)) => config.check(shape.heads),
            (Self::LongGen(config), Some(shape)) => config.check(shape.kv_heads, window),
            (Self::Anchor, _) => AnchorConfig::new().check(window),
            (Self::Lact(config), Some(shape)) => config.check(shape),
            (Self::Seer(config), _) => config.validate(),
        }
    }

    /// Build for a layer with these projections.
    ///
    /// # Errors
    /// When the settings do not fit the layer (odd number of heads, a window beside groups ...),
    /// and [`Error::Unsupported`] for a mixer that is not built around projections.
    pub fn init(&self, proj: AttnProjections, window: Option<usize>) -> Result<Mixer> {
        Ok(match self {
            Self::Dense => Mixer::Dense(DenseConfig::new().with_window(window).init(proj)),
            Self::LongLora(config) => Mixer::LongLora(config.init(proj, window)?),
            Self::LongGen(config) => Mixer::LongGen(config.init(proj, window)?),
            Self::Anchor => Mixer::Anchor(AnchorConfig::new().init(proj, window)?),
            Self::Lact(_) | Self::Mamba1(_) | Self::Mamba2(_) => {
                return Err(Error::Unsupported {
                    what: format!("{} around the projections of attention", self.name()),
                    remedy: "build it for a layer, with MixerConfig::build".into(),
                });
            }
            Self::Seer(config) => Mixer::Seer(config.init(proj, window)?),
        })
    }

    /// Mask of the attention of a training pass in a layer with `key_heads` and the checkpoint's own
    /// sliding `window`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what is no mask over positions.
    pub fn mask(&self, window: Option<usize>, key_heads: usize) -> Result<MaskSpec> {
        let own = MaskSpec::causal().with_window(window);
        match self {
            Self::Dense | Self::Seer(_) => Ok(own),
            Self::Lact(config) => Ok(MaskSpec::causal().with_window(Some(config.window))),
            Self::LongLora(config) if config.form == LongLoraForm::Segment => {
                Ok(own.with_groups(config.groups()))
            }
            Self::LongGen(config) => Ok(config.spec(key_heads)),
            Self::Anchor => Ok(AnchorConfig::new().spec()),
            Self::LongLora(_) => Err(Error::Unsupported {
                what: "the mask of LongLoRA's rolled form, which rolls tokens before it masks"
                    .into(),
                remedy: "use form = \"segment\"".into(),
            }),
            Self::Mamba1(_) | Self::Mamba2(_) => Err(Error::Unsupported {
                what: format!("the mask of {}, which has a state and no mask", self.name()),
                remedy: "look at a layer with attention".into(),
            }),
        }
    }

    /// What a checkpoint trained with this has in inference, and is remembered by.
    pub fn in_inference(&self) -> Self {
        match self {
            // A gate is no part of a checkpoint.
            Self::Dense | Self::LongLora(_) | Self::Anchor | Self::Seer(_) => Self::Dense,
            Self::LongGen(_) | Self::Lact(_) | Self::Mamba1(_) | Self::Mamba2(_) => self.clone(),
        }
    }

    /// Whether it is built around q, k, v and o.
    pub fn has_projections(&self) -> bool {
        match self {
            Self::Dense | Self::LongLora(_) | Self::LongGen(_) | Self::Anchor | Self::Seer(_) => {
                true
            }
            Self::Lact(_) | Self::Mamba1(_) | Self::Mamba2(_) => false,
        }
    }

    /// Whether q, k, v and o are all the weights it has.
    pub fn has_projections_only(&self) -> bool {
        self.has_projections() && self.own_weights(1).is_empty()
    }

    /// Whether a layer with `other` has the same weights.
    pub fn shares_weights_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Lact(a), Self::Lact(b)) => a.shares_weights_with(b),
            _ => self == other || (self.has_projections_only() && other.has_projections_only()),
        }
    }

    /// The settings of a gate, where there is one.
    pub fn seer(&self) -> Option<&SeerConfig> {
        match self {
            Self::Seer(config) => Some(config),
            _ => None,
        }
    }

    /// The name that recipes use.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::LongLora(_) => "longlora",
            Self::LongGen(_) => "longgen",
            Self::Anchor => "anchor",
            Self::Lact(_) => "lact",
            Self::Mamba1(_) => "mamba1",
            Self::Mamba2(_) => "mamba2",
            Self::Seer(_) => "seer",
        }
    }
}

/// The mixers that come with Longburn.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum Mixer {
    /// See [`dense`].
    Dense(Dense),
    /// See [`longlora`].
    LongLora(LongLora),
    /// See [`longgen`].
    LongGen(LongGen),
    /// See [`anchor`].
    Anchor(Anchor),
    /// See [`lact`].
    Lact(Lact),
    /// See [`mamba1`].
    Mamba1(Mamba1),
    /// See [`mamba2`].
    Mamba2(Mamba2),
    /// See [`seer`].
    Seer(Seer),
}

impl Mixer {
    /// The q, k, v, o projections, of a mixer that is built around them.
    pub fn projections(&self) -> Option<&AttnProjections> {
        match self {
            Self::Dense(m) => Some(&m.proj),
            Self::LongLora(m) => Some(&m.proj),
            Self::LongGen(m) => Some(&m.proj),
            Self::Anchor(m) => Some(&m.proj),
            Self::Seer(m) => Some(&m.proj),
            Self::Lact(_) | Self::Mamba1(_) | Self::Mamba2(_) => None,
        }
    }

    /// Another mechanism around the same projections, or with the same weights of its own.
    ///
    /// # Errors
    /// As [`MixerConfig::init`], and [`Error::Unsupported`] for a mixer without projections.
    pub fn swap(self, config: &MixerConfig) -> Result<Self> {
        let (proj, window) = match (self, config) {
            (Self::Dense(m), _) => (m.proj, m.window),
            (Self::LongLora(m), _) => (m.proj, m.window),
            (Self::LongGen(m), _) => (m.proj, None),
            (Self::Anchor(m), _) => (m.proj, None),
            (Self::Seer(m), _) => (m.proj, m.window),
            (Self::Lact(m), MixerConfig::Lact(config)) => {
                return Ok(Self::Lact(m.with_config(config)?));
            }
            (Self::Lact(_) | Self::Mamba1(_) | Self::Mamba2(_), _) => {
                return Err(Error::Unsupported {
                    what: format!("a layer with weights of its own as {}", config.name()),
                    remedy: "load the checkpoint with Decoder::convert, which draws new weights"
                        .into(),
                });
            }
        };
        config.init(proj, window)
    }
}

impl Mixer {
    /// With a gate of random weights where the mixer takes one and has none; see
    /// [`Seer::with_gate`].
    ///
    /// # Errors
    /// When the gate does not fit the layer.
    pub fn with_gate(self, streams: &Streams, first: u32) -> Result<Self> {
        match self {
            Self::Seer(m) if m.attn_gate.is_none() => Ok(Self::Seer(m.with_gate(streams, first)?)),
            other => Ok(other),
        }
    }

    /// The settings of a layer with a gate.
    pub fn seer(&self) -> Option<&SeerConfig> {
        match self {
            Self::Seer(m) => Some(m.config()),
            _ => None,
        }
    }
}

impl HasProjections for Mixer {
    fn projections(&self) -> Option<&AttnProjections> {
        self.projections()
    }

    fn projections_mut(&mut self) -> Option<&mut AttnProjections> {
        match self {
            Self::Dense(m) => Some(&mut m.proj),
            Self::LongLora(m) => Some(&mut m.proj),
            Self::LongGen(m) => Some(&mut m.proj),
            Self::Anchor(m) => Some(&mut m.proj),
            Self::Seer(m) => Some(&mut m.proj),
            Self::Lact(_) | Self::Mamba1(_) | Self::Mamba2(_) => None,
        }
    }

    fn own_linear(&self, name: &str) -> Option<&Linear> {
        match self {
            Self::Mamba1(m) => m.linear(name),
            Self::Mamba2(m) => m.linear(name),
            _ => None,
        }
    }

    fn own_linear_mut(&mut self, name: &str) -> Option<&mut Linear> {
        match self {
            Self::Mamba1(m) => m.linear_mut(name),
            Self::Mamba2(m) => m.linear_mut(name),
            _ => None,
        }
    }
}

impl SequenceMixer for Mixer {
    fn forward(
        &self,
        x_BTD: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput> {
        match self {
            Self::Dense(m) => m.forward(x_BTD, ctx, state),
            Self::LongLora(m) => m.forward(x_BTD, ctx, state),
            Self::LongGen(m) => m.forward(x_BTD, ctx, state),
            Self::Anchor(m) => m.forward(x_BTD, ctx, state),
            Self::Lact(m) => m.forward(x_BTD, ctx, state),
            Self::Mamba1(m) => m.forward(x_BTD, ctx, state),
            Self::Mamba2(m) => m.forward(x_BTD, ctx, state),
            Self::Seer(m) => m.forward(x_BTD, ctx, state),
        }
    }

    fn computes_in(&self, _: Compute) -> bool {
        true
    }

    fn explain(&self, ctx: &MixContext<'_>, device: &Device) -> String {
        match self {
            Self::Dense(m) => m.explain(ctx, device),
            Self::LongLora(m) => m.explain(ctx, device),
            Self::LongGen(m) => m.explain(ctx, device),
            Self::Anchor(m) => m.explain(ctx, device),
            Self::Lact(m) => m.explain(ctx, device),
            Self::Mamba1(m) => m.explain(ctx, device),
            Self::Mamba2(m) => m.explain(ctx, device),
            Self::Seer(m) => m.explain(ctx, device),
        }
    }

    fn sees_anchor(&self) -> bool {
        matches!(self, Self::Anchor(m) if m.sees_anchor())
    }

    fn plain_attention(&self) -> Option<&AttnProjections> {
        match self {
            Self::Dense(m) => m.plain_attention(),
            Self::LongLora(m) => m.plain_attention(),
            Self::Anchor(m) => m.plain_attention(),
            _ => None,
        }
    }
}
