//! Steps of AdamW of many parameters, ready before the factor of their gradients is known.

use super::AdamWStep;
#[cfg(feature = "cuda-nvrtc")]
use super::adamw::check;
use burn::tensor::Tensor;

/// Steps that wait for the factor of all gradients, on NVIDIA cards: the host gets them ready while the card still
/// computes the gradients whose norm the factor depends on, and few launches do them.
#[derive(Default)]
#[must_use = "the new weights are not there before `finish` or `undo`"]
pub struct AdamWMany {
    #[cfg(feature = "cuda-nvrtc")]
    waiting: super::cuda::Waiting,
}

impl AdamWMany {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a weight with such a gradient can wait here; [`adamw_scaled`](super::adamw_scaled) is for all others.
    pub fn takes<const N: usize>(weight: &Tensor<N>, grad: &Tensor<N>) -> bool {
        #[cfg(feature = "cuda-nvrtc")]
        return super::cuda::Waiting::takes(weight, grad);
        #[cfg(not(feature = "cuda-nvrtc"))]
        {
            let _ = (weight, grad);
            false
        }
    }

    /// New weight and moments, as of [`adamw_scaled`](super::adamw_scaled). They are not to be looked at before
    /// [`finish`](Self::finish) or [`undo`](Self::undo); what was given and nobody else holds is written over.
    ///
    /// # Shapes
    /// all of one shape
    ///
    /// # Panics
    /// As [`adamw`](super::adamw), and for a weight that it does not [take](Self::takes).
    pub fn step<const N: usize>(
        &mut self,
        weight: Tensor<N>,
        grad: Tensor<N>,
        moments: [Tensor<N>; 2],
        step: &AdamWStep,
    ) -> (Tensor<N>, [Tensor<N>; 2]) {
        #[cfg(feature = "cuda-nvrtc")]
        {
            check(&weight, &grad, &moments, step);
            self.waiting.push((weight, grad, moments), step)
        }
        #[cfg(not(feature = "cuda-nvrtc"))]
        {
            let _ = (weight, grad, moments, step);
            panic!("AdamWMany: no weight can wait where no card is built for")
        }
    }

    /// Launches all by `scale` times their gradients.
    pub fn finish(self, scale: f32) {
        #[cfg(feature = "cuda-nvrtc")]
        self.waiting.launch(Some(scale));
        #[cfg(not(feature = "cuda-nvrtc"))]
        let _ = scale;
    }

    /// No step after all: new weights and moments are the old ones.
    pub fn undo(self) {
        #[cfg(feature = "cuda-nvrtc")]
        self.waiting.launch(None);
    }
}
