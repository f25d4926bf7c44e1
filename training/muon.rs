//! Muon (Jordan et al., 2024): momentum whose every step is orthogonalised, for the matrices inside
//! the blocks.

use crate::attention::newton_schulz::NewtonSchulz;
use crate::models::lora::Role;
use crate::{Error, Result};
use burn::optim::{DynOptimizer, LearningRate, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

/// Settings of Muon, which updates the weights of the linear layers inside the blocks; everything
/// else stays with AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Muon {
    /// Decay of the mean of gradients.
    pub momentum: f32,
    /// Blend the gradient into the mean once more before the step is taken.
    pub nesterov: bool,
    /// Share of a weight taken off per step and unit of learning rate.
    pub weight_decay: f32,
    /// What the learning rate is multiplied by, by the shape of the matrix.
    pub scale: MuonScale,
    /// Another factor of the learning rate.
    pub lr_factor: f64,
}

/// The length of a step by the shape of its matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MuonScale {
    /// √max(1, rows/columns), of the first publication: learning rates are others than AdamW's.
    Original,
    /// 0.2·√max(rows, columns): steps as long as AdamW's, with its learning rates (Liu et al.,
    /// arXiv 2502.16982).
    #[default]
    MatchAdamw,
}

impl MuonScale {
    fn of(self, rows: usize, columns: usize) -> f64 {
        let (rows, columns) = (rows as f64, columns as f64);
        match self {
            Self::Original => (rows / columns).max(1.0).sqrt(),
            Self::MatchAdamw => 0.2 * rows.max(columns).sqrt(),
        }
    }
}

impl Default for Muon {
    fn default() -> Self {
        Self {
            momentum: 0.95,
            nesterov: true,
            weight_decay: 0.0,
            scale: MuonScale::default(),
            lr_factor: 1.0,
        }
    }
}

impl Muon {
    /// Whether the parameter at this module path is a matrix inside the blocks: the weight of a
    /// linear layer, and neither embedding nor head.
    pub fn updates(path: &str, rank: usize) -> bool {
        rank == 2 && path.ends_with(".weight") && Role::of(path).is_none()
    }

    /// # Errors
    /// [`Error::Config`] for values that cannot work.
    pub(super) fn rule(&self) -> Result<Box<dyn DynOptimizer>> {
        let bad = |field: &str, value: f64, expected: &str| {
            Err(Error::config("training", format!("muon.{field}"), value, expected))
        };
        if !(0.0..1.0).contains(&self.momentum) {
            return bad("momentum", self.momentum.into(), "at least 0 and below 1");
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return bad("weight_decay", self.weight_decay.into(), "at least 0");
        }
        if !(self.lr_factor >= 0.0 && self.lr_factor.is_finite()) {
            return bad("lr_factor", self.lr_factor, "a number of at least 0");
        }
        Ok(Box::new(*self))
    }
}

/// The mean of gradients of one matrix.
#[derive(Clone)]
pub struct MuonState<const D: usize>(Tensor<D>);

const MEAN: &str = "momentum";

impl<const D: usize> RecordState for MuonState<D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        out.push_tensor(prefix, MEAN, self.0.to_data());
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        Some(Self(Tensor::from_data(src.take_tensor(prefix, MEAN)?, device)))
    }
}

impl Optimizer for Muon {
    type State<const D: usize> = MuonState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        weight: Tensor<D>,
        grad: Tensor<D>,
        state: Option<MuonState<D>>,
    ) -> (Tensor<D>, Option<MuonState<D>>) {
        let keep = f64::from(self.momentum);
        let blend = |mean: Tensor<D>| mean.mul_scalar(keep) + grad.clone().mul_scalar(1.0 - keep);
        let mean = match state {
            Some(MuonState(mean)) => blend(mean),
            None => grad.clone().mul_scalar(1.0 - keep),
        };
        let step = if self.nesterov { blend(mean.clone()) } else { mean.clone() };
        let step = NewtonSchulz::MUON.orthogonalize(step);
        let [rows, columns] = [weight.dims()[D - 2], weight.dims()[D - 1]];
        let lr = lr * self.lr_factor;
        let kept = weight.mul_scalar(1.0 - lr * f64::from(self.weight_decay));
        let weight = kept - step.mul_scalar(lr * self.scale.of(rows, columns));
        (weight, Some(MuonState(mean)))
    }

    fn to_device<const D: usize>(state: MuonState<D>, device: &Device) -> MuonState<D> {
        MuonState(state.0.to_device(device))
    }
}
