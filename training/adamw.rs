//! AdamW (Loshchilov & Hutter, arXiv 1711.05101).

use crate::kernel::fused::{self, AdamWStep};
use crate::{Error, Result};
use burn::optim::{AdamWState, AdaptiveMomentumState, DynOptimizer, LearningRate, Optimizer};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

/// Settings of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamW {
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Added to the root of the mean square.
    pub eps: f32,
    /// Share of a weight taken off per step and unit of learning rate.
    pub weight_decay: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0 }
    }
}

impl AdamW {
    /// # Errors
    /// [`Error::Config`] for values that cannot work.
    pub(super) fn rule(&self) -> Result<Box<dyn DynOptimizer>> {
        let Self { beta1, beta2, eps, weight_decay } = *self;
        let finite = |x: f32, least: f32| x >= least && x.is_finite();
        for (field, value, good, expected) in [
            ("beta1", beta1, (0.0..1.0).contains(&beta1), "at least 0 and below 1"),
            ("beta2", beta2, (0.0..1.0).contains(&beta2), "at least 0 and below 1"),
            ("eps", eps, finite(eps, f32::MIN_POSITIVE), "a positive number"),
            ("weight_decay", weight_decay, finite(weight_decay, 0.0), "at least 0"),
        ] {
            if !good {
                return Err(Error::config("training", format!("adamw.{field}"), value, expected));
            }
        }
        Ok(Box::new(*self))
    }

    /// The same rule by `scale` times what it is given as the gradient.
    pub(super) fn scaled(self, scale: f64) -> impl DynOptimizer {
        Scaled { settings: self, scale: scale as f32 }
    }
}

impl Optimizer for AdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        weight: Tensor<D>,
        grad: Tensor<D>,
        state: Option<AdamWState<D>>,
    ) -> (Tensor<D>, Option<AdamWState<D>>) {
        Scaled { settings: *self, scale: 1.0 }.step(lr, weight, grad, state)
    }

    fn to_device<const D: usize>(state: AdamWState<D>, device: &Device) -> AdamWState<D> {
        AdamWState::new(state.momentum.to_device(device))
    }
}

/// A pass of its own for the factor would cost a third of the step.
#[derive(Clone, Copy)]
struct Scaled {
    settings: AdamW,
    scale: f32,
}

impl Optimizer for Scaled {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        weight: Tensor<D>,
        grad: Tensor<D>,
        state: Option<AdamWState<D>>,
    ) -> (Tensor<D>, Option<AdamWState<D>>) {
        let (time, moments) = match state {
            Some(AdamWState { momentum: state }) => {
                (state.time + 1, [state.moment_1, state.moment_2])
            }
            None => (1, [grad.zeros_like(), grad.zeros_like()]),
        };
        let step = AdamWStep {
            lr: lr as f32,
            beta1: self.settings.beta1,
            beta2: self.settings.beta2,
            eps: self.settings.eps,
            weight_decay: self.settings.weight_decay,
            time,
        };
        let (weight, [m, v]) = fused::adamw_scaled(weight, grad, moments, &step, self.scale);
        (weight, Some(AdamWState::new(AdaptiveMomentumState::new(time, m, v))))
    }

    fn to_device<const D: usize>(state: AdamWState<D>, device: &Device) -> AdamWState<D> {
        AdamWState::new(state.momentum.to_device(device))
    }
}
