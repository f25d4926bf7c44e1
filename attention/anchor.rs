//! When Precision Meets Position: BFloat16 Breaks Down RoPE in Long-Context Training
//! (arXiv 2411.13476), AnchorAttention for short.
//!
//! Documents packed into a row do not see each other, but all of them see one shared first token,
//! the anchor: query i sees key j ≤ i when both are of one document, or j is the anchor. Rotary
//! positions go on through the row, with the anchor at 0, instead of beginning anew in every
//! document. Where an anchor lies is said by the tokens ([`TokenMeta::ANCHOR`]), which position a
//! token is rotated by, too ([`TokenMeta::rotary`]); `datasets::AnchorPacking` writes both. Without
//! an anchor in its row a document is attended to as by [`Dense`](super::Dense): in inference the
//! beginning-of-sequence token is the anchor of its own document.
//!
//! A row whose documents each begin with an anchor of their own needs no rule beside segments, so
//! any mixer that keeps documents apart trains on it. A shared one is refused by all mixers but this:
//! they would hide it.
//!
//! *Deviations.* A sliding window is refused, as in the authors' code. Rows may end in padding.
//!
//! [`TokenMeta::ANCHOR`]: longburn_kernels::TokenMeta::ANCHOR
//! [`TokenMeta::rotary`]: longburn_kernels::TokenMeta::rotary

use super::{AttnProjections, Compute, MixContext, MixOutput, SequenceMixer, State, dense};
use crate::{Error, Result};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use longburn_kernels::MaskSpec;

/// Configuration of [`Anchor`], which has no settings.
#[derive(Clone, Debug, Default)]
pub struct AnchorConfig;

impl AnchorConfig {
    /// The one there is.
    pub fn new() -> Self {
        Self
    }

    /// The rules as mask data.
    pub fn spec(&self) -> MaskSpec {
        MaskSpec::causal().with_anchor(true)
    }

    /// Build around projections; `window` is the checkpoint's own sliding window.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a window.
    pub fn init(&self, proj: AttnProjections, window: Option<usize>) -> Result<Anchor> {
        self.check(window)?;
        Ok(Anchor { proj })
    }

    /// Whether it goes into a layer.
    pub(super) fn check(&self, window: Option<usize>) -> Result<()> {
        match window {
            None => Ok(()),
            Some(window) => Err(Error::Unsupported {
                what: format!("a shared anchor in a layer with a sliding window of {window}"),
                remedy: "leave the mixer dense, and pack with an anchor in front of every document"
                    .into(),
            }),
        }
    }
}

/// Causal attention within documents, and to the anchor that they share.
#[derive(Module, Debug)]
pub struct Anchor {
    /// q, k, v, o
    pub proj: AttnProjections,
}

impl SequenceMixer for Anchor {
    fn forward(
        &self,
        x_BTD: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput> {
        dense::attend_under(AnchorConfig.spec(), &self.proj, x_BTD, ctx, state)
    }

    fn sees_anchor(&self) -> bool {
        true
    }

    fn computes_in(&self, _: Compute) -> bool {
        true
    }

    fn plain_attention(&self) -> Option<&AttnProjections> {
        Some(&self.proj)
    }

    fn explain(&self, ctx: &MixContext<'_>, device: &Device) -> String {
        format!(
            "causal attention with a shared anchor: {}",
            dense::code(ctx, self.proj.head_dim(), device)
        )
    }
}
