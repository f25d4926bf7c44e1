//! How a sequence becomes a sequence: one file per paper, one trait for all.

mod context;
pub mod dense;
mod linear;
pub mod longlora;
mod norm;
mod projections;
pub mod reference;
pub mod seer;
mod state;

pub use context::{MixContext, MixOutput, Phase, Tap, Taps};
pub use dense::{Dense, DenseConfig};
pub(crate) use linear::normal;
pub use linear::{Linear, LinearConfig, Lora};
pub use longlora::{LongLora, LongLoraConfig, LongLoraForm};
pub use norm::{RmsNorm, RmsNormConfig};
pub use projections::{AttnProjections, AttnShape, HasProjections};
pub use seer::{Seer, SeerCache, SeerConfig};
pub use state::{KvCache, State};

use crate::streams::Streams;
use crate::{Error, Result};
use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Device, Tensor};
use longburn_kernels::MaskSpec;
use serde::{Deserialize, Serialize};

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
    Dense,
    /// Shifted sparse attention in training, dense attention in inference (LongLoRA).
    LongLora(LongLoraConfig),
    /// Blocks of keys that a learned gate chooses (SeerAttention); dense while the gate learns.
    Seer(SeerConfig),
}

impl MixerConfig {
    /// Build for a layer with these projections.
    ///
    /// # Errors
    /// When the settings do not fit the layer (odd number of heads, a window beside groups ...).
    pub fn init(&self, proj: AttnProjections, window: Option<usize>) -> Result<Mixer> {
        Ok(match self {
            Self::Dense => Mixer::Dense(DenseConfig::new().with_window(window).init(proj)),
            Self::LongLora(config) => Mixer::LongLora(config.init(proj, window)?),
            Self::Seer(config) => Mixer::Seer(config.init(proj, window)?),
        })
    }

    /// Mask of a training pass in a layer with the checkpoint's own sliding `window`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what is no mask over positions.
    pub fn mask(&self, window: Option<usize>) -> Result<MaskSpec> {
        let own = MaskSpec::causal().with_window(window);
        match self {
            Self::Dense | Self::Seer(_) => Ok(own),
            Self::LongLora(config) if config.form == LongLoraForm::Segment => {
                Ok(own.with_groups(config.groups()))
            }
            Self::LongLora(_) => Err(Error::Unsupported {
                what: "the mask of LongLoRA's rolled form, which rolls tokens before it masks"
                    .into(),
                remedy: "use form = \"segment\"".into(),
            }),
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
    /// See [`seer`].
    Seer(Seer),
}

impl Mixer {
    /// The q, k, v, o projections, which all attention mixers share.
    pub fn projections(&self) -> &AttnProjections {
        match self {
            Self::Dense(m) => &m.proj,
            Self::LongLora(m) => &m.proj,
            Self::Seer(m) => &m.proj,
        }
    }

    /// Another mechanism around the same projections.
    ///
    /// # Errors
    /// As [`MixerConfig::init`].
    pub fn swap(self, config: &MixerConfig) -> Result<Self> {
        let (proj, window) = match self {
            Self::Dense(m) => (m.proj, m.window),
            Self::LongLora(m) => (m.proj, m.window),
            Self::Seer(m) => (m.proj, m.window),
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
    fn projections(&self) -> &AttnProjections {
        self.projections()
    }

    fn projections_mut(&mut self) -> &mut AttnProjections {
        match self {
            Self::Dense(m) => &mut m.proj,
            Self::LongLora(m) => &mut m.proj,
            Self::Seer(m) => &mut m.proj,
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
            Self::Seer(m) => m.forward(x_BTD, ctx, state),
        }
    }

    fn explain(&self, ctx: &MixContext<'_>, device: &Device) -> String {
        match self {
            Self::Dense(m) => m.explain(ctx, device),
            Self::LongLora(m) => m.explain(ctx, device),
            Self::Seer(m) => m.explain(ctx, device),
        }
    }
}
