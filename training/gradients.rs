//! Gradients of all parameters, summed over graphs and micro-batches.

use crate::kernel::fused::sums_of_squares;
use crate::models::keymap::PathStack;
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{GradientCheckpointingStrategy, Gradients, Tensor};

/// A running sum of gradients, one per parameter.
///
/// A parameter that takes part in several graphs (a head tied to the embedding, or any parameter
/// over several micro-batches) has their sum.
#[derive(Debug, Default)]
pub struct GradientSum {
    grads: GradientsParams,
}

impl GradientSum {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether no parameter has a gradient.
    pub fn is_empty(&self) -> bool {
        self.grads.is_empty()
    }

    /// How many parameters have one.
    pub fn len(&self) -> usize {
        self.grads.len()
    }

    /// The gradient of a parameter.
    pub fn get<const D: usize>(&self, id: ParamId) -> Option<Tensor<D>> {
        self.grads.get(id)
    }

    /// Take the gradient of a parameter out.
    pub fn remove<const D: usize>(&mut self, id: ParamId) -> Option<Tensor<D>> {
        self.grads.remove(id)
    }

    /// Add another sum over the same parameters.
    pub fn merge<M: Module>(&mut self, model: &M, other: Self) {
        struct Walk<'a>(&'a mut GradientsParams, GradientsParams);
        impl ModuleVisitor for Walk<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let Some(new) = self.1.remove::<D>(param.id) else { return };
                let sum = match self.0.remove::<D>(param.id) {
                    Some(old) => old + new,
                    None => new,
                };
                self.0.register(param.id, sum);
            }
        }
        model.visit(&mut Walk(&mut self.grads, other.grads));
    }

    /// Add what one backward pass found for the trainable parameters of `model`.
    pub fn add<M: Module>(&mut self, model: &M, found: &mut Gradients) {
        struct Walk<'a>(&'a mut GradientsParams, &'a mut Gradients);
        impl ModuleVisitor for Walk<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if !param.is_require_grad() {
                    return;
                }
                let Some(new) = param.val().grad_remove(self.1) else { return };
                let sum = match self.0.remove::<D>(param.id) {
                    Some(old) => old + new,
                    None => new,
                };
                self.0.register(param.id, sum);
            }
        }
        model.visit(&mut Walk(&mut self.grads, found));
    }

    /// Path of every gradient in the module's order, and their squared norms (f32, still on the
    /// device), if there are any.
    pub(super) fn squares<M: Module>(&self, model: &M) -> (Vec<String>, Option<Tensor<1>>) {
        struct Walk<'a> {
            stack: PathStack,
            grads: &'a GradientsParams,
            paths: Vec<String>,
            all: Vec<Tensor<1>>,
        }
        impl ModuleVisitor for Walk<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if let Some(grad) = self.grads.get::<D>(param.id) {
                    self.paths.push(self.stack.path());
                    let len = grad.shape().num_elements();
                    self.all.push(grad.reshape([len]));
                }
            }
            fn enter_module(&mut self, name: &str, container: &str) {
                self.stack.enter(name, container);
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.stack.exit();
            }
        }
        let stack = PathStack::default();
        let mut walk = Walk { stack, grads: &self.grads, paths: vec![], all: vec![] };
        model.visit(&mut walk);
        let squares = (!walk.all.is_empty()).then(|| sums_of_squares(walk.all));
        (walk.paths, squares)
    }

    /// The first NaN or infinite value in the gradient at `place` in the order of
    /// [`GradientSum::squares`].
    pub(super) fn nonfinite<M: Module>(&self, model: &M, place: usize) -> Option<f64> {
        struct Walk<'a> {
            grads: &'a GradientsParams,
            place: usize,
            seen: usize,
            value: Option<f64>,
        }
        impl ModuleVisitor for Walk<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let Some(grad) = self.grads.get::<D>(param.id) else { return };
                if self.seen == self.place {
                    let data = grad.into_data();
                    self.value = data.iter::<f32>().find(|x| !x.is_finite()).map(f64::from);
                }
                self.seen += 1;
            }
        }
        let mut walk = Walk { grads: &self.grads, place, seen: 0, value: None };
        model.visit(&mut walk);
        walk.value
    }
}

/// A value without autodiff as a leaf of its own, with the strategy of what it replaces: tensors
/// of two strategies cannot meet in an operation.
pub(super) fn leaf<const D: usize>(
    value: Tensor<D>,
    strategy: Option<GradientCheckpointingStrategy>,
    trains: bool,
) -> Tensor<D> {
    let value = value.autodiff();
    match strategy {
        Some(strategy) => value.with_gradient_checkpointing_strategy(strategy),
        None => value,
    }
    .set_require_grad(trains)
}
