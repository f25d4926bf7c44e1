//! The micro-batches of one step: computed one after the other or at once, and summed.

use super::gradients::leaf;
use super::{GradientSum, LossParts};
use crate::{Error, Result};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Tensor};
use std::collections::BTreeMap;

/// `work` on every batch, on a thread each where there are several.
pub(super) fn at_once<M: Module, B: Sync, R: Send>(
    model: &M,
    batches: &[B],
    work: impl Fn(&M, &B) -> Result<R> + Sync,
) -> Vec<Result<R>> {
    if let [batch] = batches {
        return vec![work(model, batch)];
    }
    // Graphs that share a leaf are one graph with one lock: every thread gets leaves of its own.
    let models: Vec<M> = batches.iter().map(|_| model.clone().map(&mut OwnLeaves)).collect();
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = models
            .into_iter()
            .zip(batches)
            .map(|(model, batch)| scope.spawn(move || work(&model, batch)))
            .collect();
        let lost = || Err(Error::Training("a worker thread panicked".into()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| lost())).collect()
    })
}

/// The same parameters (by id and value) as new leaves.
struct OwnLeaves;

impl ModuleMapper for OwnLeaves {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|x| {
            let (trains, strategy) = (x.is_require_grad(), x.gradient_checkpointing_strategy());
            leaf(x.inner(), strategy, trains)
        })
    }
}

fn add(a: Option<Tensor<1>>, b: Option<Tensor<1>>) -> Option<Tensor<1>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}

/// Sums over the micro-batches of a step, not yet divided by its weight.
#[derive(Default)]
pub(super) struct Window {
    pub(super) gradients: GradientSum,
    sum: Option<Tensor<1>>,
    aux: Option<Tensor<1>>,
    pub(super) weight: f64,
    pub(super) tokens: u64,
    pub(super) metrics: BTreeMap<String, f64>,
    pub(super) sources: Vec<String>,
}

impl Window {
    pub(super) fn add<M: Module>(
        &mut self,
        model: &M,
        parts: LossParts,
        gradients: GradientSum,
        source: String,
    ) {
        self.sources.push(source);
        self.tokens += parts.tokens;
        if parts.weight == 0.0 {
            return;
        }
        self.gradients.merge(model, gradients);
        self.weight += parts.weight;
        self.sum = add(self.sum.take(), Some(parts.sum));
        self.aux = add(self.aux.take(), parts.aux.map(|aux| aux.mul_scalar(parts.weight)));
        for (name, value) in parts.metrics {
            *self.metrics.entry(name).or_default() += value * parts.weight;
        }
    }
}

/// The numbers of a step, all read from the device at once.
pub(super) struct Measured {
    pub(super) loss: f64,
    pub(super) aux: Option<f64>,
    pub(super) norm: f64,
    /// Squared norm of every gradient before division by the weight, in the module's order.
    squares: Vec<(String, f64)>,
}

/// The same while the device still computes them.
pub(super) struct Measuring {
    paths: Vec<String>,
    /// Loss and auxiliary loss, where there are any, then the gradients' squares.
    values: Tensor<1>,
}

impl Measuring {
    pub(super) fn begin<M: Module>(window: &Window, model: &M) -> Result<Self> {
        let (paths, squares) = window.gradients.squares(model);
        let Some(squares) = squares else {
            return Err(Error::Training(
                "the loss does not depend on any trainable parameter".into(),
            ));
        };
        let losses = [&window.sum, &window.aux].into_iter().flatten().cloned();
        let scalars: Vec<_> = losses.map(|x| x.cast(DType::F32)).chain([squares]).collect();
        Ok(Self { paths, values: Tensor::cat(scalars, 0) })
    }

    /// Waits for the device.
    pub(super) fn read(self, window: &Window) -> Measured {
        let values = self.values.into_data();
        let mut values = values.iter::<f32>().map(f64::from);
        let mut mean = |_: &Tensor<1>| values.next().map(|sum| sum / window.weight);
        let loss = window.sum.as_ref().and_then(&mut mean).unwrap_or(0.0);
        let aux = window.aux.as_ref().and_then(&mut mean);
        let squares: Vec<_> = self.paths.into_iter().zip(values).collect();
        let norm = squares.iter().map(|(_, square)| square).sum::<f64>().sqrt() / window.weight;
        Measured { loss, aux, norm, squares }
    }
}

impl Measured {
    /// The first number that is NaN or infinite: of the losses, then of the gradients in the
    /// order in which the backward pass reaches them, which is from the end of the module.
    pub(super) fn nonfinite<M: Module>(
        &self,
        grads: &GradientSum,
        model: &M,
    ) -> Option<(String, f64)> {
        if !self.loss.is_finite() {
            return Some(("loss".into(), self.loss));
        }
        if let Some(aux) = self.aux.filter(|aux| !aux.is_finite()) {
            return Some(("auxiliary loss".into(), aux));
        }
        let place = self.squares.iter().rposition(|(_, square)| !square.is_finite())?;
        let (path, square) = &self.squares[place];
        // The square of a large finite value is infinite, too.
        let value = grads.nonfinite(model, place).unwrap_or(*square);
        Some((format!("gradient of {path}"), value))
    }
}
