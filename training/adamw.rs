//! AdamW (Loshchilov & Hutter, arXiv 1711.05101).

use crate::kernel::fused::{AdamWMany, AdamWStep, adamw_scaled};
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
    /// Share of a weight taken off per step and unit of learning rate; none where it shapes the state of a
    /// state-space layer, unless a group says so.
    pub weight_decay: f32,
}

/// A weight, its gradient and what the optimizer has of it.
type Given<const D: usize> = (Tensor<D>, Tensor<D>, Option<AdamWState<D>>);

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

    /// A step by `scale` times the gradient, in the pass of the step: one of its own for the factor would cost
    /// a third of it.
    pub(super) fn scaled<const D: usize>(
        &self,
        lr: LearningRate,
        given: Given<D>,
        scale: f32,
    ) -> (Tensor<D>, AdamWState<D>) {
        self.with(lr, given, |w, g, moments, step| adamw_scaled(w, g, moments, step, scale))
    }

    /// A step whose factor comes later, among many.
    pub(super) fn waiting<const D: usize>(
        &self,
        many: &mut AdamWMany,
        lr: LearningRate,
        given: Given<D>,
    ) -> (Tensor<D>, AdamWState<D>) {
        self.with(lr, given, |w, g, moments, step| many.step(w, g, moments, step))
    }

    fn with<const D: usize>(
        &self,
        lr: LearningRate,
        (weight, grad, state): Given<D>,
        take: impl FnOnce(
            Tensor<D>,
            Tensor<D>,
            [Tensor<D>; 2],
            &AdamWStep,
        ) -> (Tensor<D>, [Tensor<D>; 2]),
    ) -> (Tensor<D>, AdamWState<D>) {
        let (time, moments) = match state {
            Some(AdamWState { momentum: state }) => {
                (state.time + 1, [state.moment_1, state.moment_2])
            }
            None => (1, [grad.zeros_like(), grad.zeros_like()]),
        };
        let step = AdamWStep {
            lr: lr as f32,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            weight_decay: self.weight_decay,
            time,
        };
        let (weight, [m, v]) = take(weight, grad, moments, &step);
        (weight, AdamWState::new(AdaptiveMomentumState::new(time, m, v)))
    }
}

/// The state before a step that was not made; none before the first.
pub(super) fn undone<const D: usize>(state: AdamWState<D>) -> Option<AdamWState<D>> {
    let momentum = state.momentum;
    let time = momentum.time.checked_sub(1).filter(|time| *time > 0)?;
    Some(AdamWState::new(AdaptiveMomentumState { time, ..momentum }))
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
        let (weight, state) = self.scaled(lr, (weight, grad, state), 1.0);
        (weight, Some(state))
    }

    fn to_device<const D: usize>(state: AdamWState<D>, device: &Device) -> AdamWState<D> {
        AdamWState::new(state.momentum.to_device(device))
    }
}
