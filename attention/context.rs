//! What a mixer is told beside its input, and what it returns beside its output.

use super::{Compute, State};
use crate::positional::{Rope, RopeTable};
use crate::{Error, Result};
use burn::tensor::Tensor;
use longburn_kernels::{AttentionOptions, Implementation, TokenMeta};

/// What the pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Gradients will be taken: train-time-only attention is on.
    Train,
    /// Evaluation, prefill and decoding.
    Infer,
}

/// Tensors that a caller asks a mixer for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tap {
    /// Queries and keys before rotation.
    QueriesAndKeys,
    /// The mixer's output before the output projection.
    Mixed,
}

/// Taps that were asked for, `[B, heads, T, D]` each.
#[derive(Clone, Debug, Default)]
pub struct Taps {
    /// Queries before rotation.
    pub q: Option<Tensor<4>>,
    /// Keys before rotation.
    pub k: Option<Tensor<4>>,
    /// Output of attention before the output projection.
    pub mixed: Option<Tensor<4>>,
}

impl Taps {
    /// Queries and keys, where they were asked for.
    pub(super) fn of(ctx: &MixContext<'_>, q: &Tensor<4>, k: &Tensor<4>) -> Self {
        match ctx.taps.contains(&Tap::QueriesAndKeys) {
            true => Self { q: Some(q.clone()), k: Some(k.clone()), mixed: None },
            false => Self::default(),
        }
    }

    /// With the output before its projection, where that was asked for.
    pub(super) fn with_mixed(
        mut self,
        ctx: &MixContext<'_>,
        mixed: impl FnOnce() -> Tensor<4>,
    ) -> Self {
        self.mixed = ctx.taps.contains(&Tap::Mixed).then(mixed);
        self
    }
}

/// Everything a mixer may look at.
#[derive(Clone, Debug)]
pub struct MixContext<'a> {
    /// Position and document of the new tokens.
    pub tokens: &'a TokenMeta,
    /// Rotary tables for the new tokens; none for a model without rotary positions.
    pub rope: Option<&'a RopeTable>,
    /// Set where a cache is to hold keys as they were before rotation. All of them are then rotated
    /// in every call, with the frequencies of the length that the sequence has by then.
    pub unrotated_cache: Option<&'a Rope>,
    /// Index of the layer, from 0.
    pub layer: usize,
    /// What the pass is for.
    pub phase: Phase,
    /// Whether a state is wanted back.
    pub keep_state: bool,
    /// Which attention code runs.
    pub implementation: Implementation,
    /// Whether attention's gradients are the same bits in every run.
    pub deterministic: bool,
    /// What the pass computes in, and so the dtype of the mixer's input and output.
    pub compute: Compute,
    /// Tensors asked for.
    pub taps: &'a [Tap],
}

impl<'a> MixContext<'a> {
    /// Inference over these tokens in the first layer, without rotation, state or taps, in f32: what a
    /// caller that needs something else begins with.
    pub fn infer(tokens: &'a TokenMeta) -> Self {
        Self {
            tokens,
            rope: None,
            unrotated_cache: None,
            layer: 0,
            phase: Phase::Infer,
            keep_state: false,
            implementation: Implementation::Auto,
            deterministic: false,
            compute: Compute::F32,
            taps: &[],
        }
    }

    /// How attention is to be computed.
    pub fn attention(&self) -> AttentionOptions {
        AttentionOptions::default()
            .with_implementation(self.implementation)
            .with_deterministic(self.deterministic)
    }

    /// Whether the attributes are those of an input of `layer`.
    ///
    /// # Shapes
    /// x_BTD `[B, T, D]`
    ///
    /// # Errors
    /// [`Error::Shape`] for other numbers of rows or tokens.
    pub fn check_tokens(&self, layer: &str, x_BTD: &Tensor<3>) -> Result<()> {
        let ([b, t, _], rows, len) = (x_BTD.dims(), self.tokens.batch(), self.tokens.len());
        if (rows, len) == (b, t) {
            return Ok(());
        }
        let reason = format!("{b} rows of {t} tokens with attributes for {rows} rows of {len}");
        Err(Error::shape(layer, reason))
    }

    /// Refuses a state, in a mixer that computes whole sequences only.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with `what` and `remedy` where something is remembered or to be.
    pub fn refuse_state(&self, state: Option<&State>, what: &str, remedy: &str) -> Result<()> {
        if self.keep_state || state.is_some_and(|state| !state.is_empty()) {
            return Err(Error::Unsupported { what: what.into(), remedy: remedy.into() });
        }
        Ok(())
    }
}

/// Result of a mixer.
#[derive(Clone, Debug)]
pub struct MixOutput {
    /// `[B, T, D]`
    pub y: Tensor<3>,
    /// What the next call needs; none unless [`MixContext::keep_state`].
    pub state: Option<State>,
    /// Loss terms that only the mixer can compute, already weighted.
    pub aux: Option<Tensor<1>>,
    /// Tensors asked for.
    pub taps: Taps,
}

impl MixOutput {
    /// An output without state, auxiliary loss or taps.
    pub fn new(y: Tensor<3>) -> Self {
        Self { y, state: None, aux: None, taps: Taps::default() }
    }
}
