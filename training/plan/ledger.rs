//! Who holds how many bytes, and when it was most.

use serde::Serialize;

/// A part of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The token embedding (and the head, where they are one).
    Embedding,
    /// The mixers, attention with its four projections or others, all blocks together.
    Attention,
    /// The feed-forward layers, all blocks together.
    Mlp,
    /// The norms and the residual stream that they read, all blocks together.
    Norms,
    /// The head and the loss.
    Loss,
}

impl Part {
    /// All of them, in the order of the model.
    pub const ALL: [Self; 5] =
        [Self::Embedding, Self::Attention, Self::Mlp, Self::Norms, Self::Loss];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::Mlp => "mlp",
            Self::Norms => "norms",
            Self::Loss => "loss",
        }
    }
}

/// What bytes are held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Parameters,
    Gradients,
    Optimizer,
    Activations,
}

/// Bytes of one part of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PartBytes {
    /// Weights, trained or not.
    pub parameters: u64,
    /// Gradients of the weights that train.
    pub gradients: u64,
    /// Moments of the optimizer.
    pub optimizer: u64,
    /// What the graph keeps for the backward pass, gradients of activations, temporary results.
    pub activations: u64,
}

impl PartBytes {
    /// All four.
    pub fn total(&self) -> u64 {
        self.parameters + self.gradients + self.optimizer + self.activations
    }

    fn of(&mut self, what: Use) -> &mut u64 {
        match what {
            Use::Parameters => &mut self.parameters,
            Use::Gradients => &mut self.gradients,
            Use::Optimizer => &mut self.optimizer,
            Use::Activations => &mut self.activations,
        }
    }
}

/// An account of f32 numbers, walked through in the order in which a step allocates and frees.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    held: [PartBytes; Part::ALL.len()],
    /// What was held when it was most.
    pub(super) at_peak: [PartBytes; Part::ALL.len()],
    /// When that was.
    pub(super) moment: String,
}

impl Ledger {
    pub(super) fn keep(&mut self, part: Part, what: Use, floats: u64) {
        *self.held[part as usize].of(what) += 4 * floats;
    }

    pub(super) fn free(&mut self, part: Part, what: Use, floats: u64) {
        let held = self.held[part as usize].of(what);
        debug_assert!(*held >= 4 * floats, "{part:?} {what:?}: {held} - 4 * {floats}");
        *held = held.saturating_sub(4 * floats);
    }

    /// Bytes of activations that are held.
    pub(super) fn activations(&self) -> u64 {
        self.held.iter().map(|part| part.activations).sum()
    }

    /// Remember this moment if it is the fullest so far.
    pub(super) fn moment(&mut self, name: impl FnOnce() -> String) {
        if sum(&self.held) > sum(&self.at_peak) {
            (self.at_peak, self.moment) = (self.held, name());
        }
    }
}

/// Bytes of all parts.
pub(super) fn sum(parts: &[PartBytes]) -> u64 {
    parts.iter().map(PartBytes::total).sum()
}
