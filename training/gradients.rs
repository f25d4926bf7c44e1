//! Gradients of all parameters, summed over graphs and micro-batches.

use crate::models::keymap::PathStack;
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Gradients, Tensor};

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

    /// Path and squared norm (`[1]`, f32, still on the device) of every gradient, in the
    /// module's order.
    pub(super) fn squares<M: Module>(&self, model: &M) -> (Vec<String>, Vec<Tensor<1>>) {
        let mut squares = Vec::new();
        let mut paths = Vec::new();
        self.each(model, |path, grad| {
            paths.push(path);
            squares.push(grad.square().sum());
        });
        (paths, squares)
    }

    /// The first NaN or infinite value in the gradient of the parameter at `path`.
    pub(super) fn nonfinite<M: Module>(&self, model: &M, path: &str) -> Option<f64> {
        let mut value = None;
        self.each(model, |at, grad| {
            if at == path {
                let data = grad.into_data();
                value = data.iter::<f32>().find(|x| !x.is_finite()).map(f64::from);
            }
        });
        value
    }

    /// Every gradient as a row of f32, with the path of its parameter.
    fn each<M: Module>(&self, model: &M, act: impl FnMut(String, Tensor<1>)) {
        struct Walk<'a, F> {
            stack: PathStack,
            grads: &'a GradientsParams,
            act: F,
        }
        impl<F: FnMut(String, Tensor<1>)> ModuleVisitor for Walk<'_, F> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if let Some(grad) = self.grads.get::<D>(param.id) {
                    let len = grad.shape().num_elements();
                    (self.act)(self.stack.path(), grad.reshape([len]).cast(DType::F32));
                }
            }
            fn enter_module(&mut self, name: &str, container: &str) {
                self.stack.enter(name, container);
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.stack.exit();
            }
        }
        model.visit(&mut Walk { stack: PathStack::default(), grads: &self.grads, act });
    }
}
