//! How a sequence becomes a sequence: one file per paper, one trait for all.

mod context;
pub mod dense;
pub mod lact;
mod linear;
pub mod longlora;
pub mod newton_schulz;
mod norm;
mod projections;
pub mod reference;
mod state;

pub use context::{MixContext, MixOutput, Phase, Tap, Taps};
pub use dense::{Dense, DenseConfig};
pub use lact::{Lact, LactConfig, LactState};
pub(crate) use linear::normal;
pub use linear::{Linear, LinearConfig, Lora};
pub use longlora::{LongLora, LongLoraConfig, LongLoraForm};
pub use norm::{RmsNorm, RmsNormConfig};
pub use projections::{AttnProjections, AttnShape, HasProjections};
pub use state::{KvCache, State};

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
        })
    }

    /// Mask of a training pass in a layer with the checkpoint's own sliding `window`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what is no mask over positions.
    pub fn mask(&self, window: Option<usize>) -> Result<MaskSpec> {
        let own = MaskSpec::causal().with_window(window);
        match self {
            Self::Dense => Ok(own),
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

    /// The name that recipes use.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::LongLora(_) => "longlora",
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
}

impl Mixer {
    /// The q, k, v, o projections, which all attention mixers share.
    pub fn projections(&self) -> &AttnProjections {
        match self {
            Self::Dense(m) => &m.proj,
            Self::LongLora(m) => &m.proj,
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
        };
        config.init(proj, window)
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
        }
    }

    fn explain(&self, ctx: &MixContext<'_>, device: &Device) -> String {
        match self {
            Self::Dense(m) => m.explain(ctx, device),
            Self::LongLora(m) => m.explain(ctx, device),
        }
    }
}
