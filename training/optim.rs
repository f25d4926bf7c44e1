//! Groups of parameters, each updated by a rule of its own, and their state by module path.
//!
//! A rule is any optimizer of Burn's kind. Burn's `ModuleOptimizer` keys its state by parameter
//! ids, which are others in every process, so the walk over the module is ours.

use super::adamw::{AdamW, undone};
use super::gradients::{GradientSum, leaf};
use super::muon::Muon;
use super::state::trainable;
use crate::kernel::fused::AdamWMany;
use crate::models::keymap::PathStack;
use crate::models::lora::Role;
use crate::models::weights::{RawTensor, SaveDtype};
use crate::{Error, Result};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::{AdamWState, DynOptimizer, DynState, Optimizer as _, StateSink, StateSource};
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Parameters that are updated differently from the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParamGroup {
    /// Which parameters.
    pub roles: Vec<Role>,
    /// Factor of their learning rate.
    #[serde(default = "one")]
    pub lr_factor: f64,
    /// Their weight decay, where it differs.
    #[serde(default)]
    pub weight_decay: Option<f32>,
}

fn one() -> f64 {
    1.0
}

impl ParamGroup {
    /// These roles, for now updated like the rest.
    pub fn new(roles: &[Role]) -> Self {
        Self { roles: roles.to_vec(), lr_factor: 1.0, weight_decay: None }
    }

    /// Embedding, norms, biases and what shapes the state of state-space layers without weight
    /// decay, as is usual.
    pub fn no_decay() -> Self {
        let roles = [Role::Embedding, Role::Norm, Role::QkNorm, Role::Bias, Role::StateSpace];
        Self::new(&roles).with_weight_decay(0.0)
    }

    /// Factor of the learning rate.
    pub fn with_lr_factor(mut self, factor: f64) -> Self {
        self.lr_factor = factor;
        self
    }

    /// Weight decay of this group.
    pub fn with_weight_decay(mut self, decay: f32) -> Self {
        self.weight_decay = Some(decay);
        self
    }
}

/// State of an [`Optimizer`] on the host, under names that begin with the parameter's path.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OptimizerState {
    /// Moments.
    pub tensors: BTreeMap<String, RawTensor>,
    /// Step counts.
    pub scalars: BTreeMap<String, Value>,
}

/// Updates the trainable parameters of a module.
pub struct Optimizer {
    /// The first is for parameters that no other claims.
    rules: Vec<Rule>,
    /// For the matrices inside the blocks, where they have one of their own.
    matrices: Option<Rule>,
    states: HashMap<String, DynState>,
}

struct Rule {
    roles: Vec<Role>,
    lr_factor: f64,
    update: Box<dyn DynOptimizer>,
    /// What `update` is, where it scales gradients by itself.
    adamw: Option<AdamW>,
}

impl Rule {
    fn adamw(adamw: AdamW) -> Result<Self> {
        let update = adamw.rule()?;
        Ok(Self { roles: vec![], lr_factor: 1.0, update, adamw: Some(adamw) })
    }
}

impl Optimizer {
    /// AdamW, and Muon where it is set, for what [`Muon::updates`]. What shapes the state of state-space layers has
    /// no weight decay unless a group claims it.
    ///
    /// # Errors
    /// Settings that cannot work, or a role in two groups.
    pub fn new(adamw: &AdamW, muon: Option<&Muon>, groups: &[ParamGroup]) -> Result<Self> {
        let mut rules = vec![Rule::adamw(*adamw)?];
        for (i, group) in groups.iter().enumerate() {
            let at = |field: &str| format!("groups[{i}].{field}");
            let bad = |field: &str, value: String, expected: &str| {
                Err(Error::config("training", at(field), value, expected))
            };
            if group.roles.is_empty() {
                return bad("roles", "empty".into(), "at least one role");
            }
            let claimed = |role: &&Role| rules.iter().any(|rule| rule.roles.contains(role));
            if let Some(role) = group.roles.iter().find(claimed) {
                return bad("roles", format!("{role:?}"), "roles that no earlier group has");
            }
            if !(group.lr_factor >= 0.0 && group.lr_factor.is_finite()) {
                return bad("lr_factor", group.lr_factor.to_string(), "a number of at least 0");
            }
            let weight_decay = group.weight_decay.unwrap_or(adamw.weight_decay);
            rules.push(Rule {
                roles: group.roles.clone(),
                lr_factor: group.lr_factor,
                ..Rule::adamw(AdamW { weight_decay, ..*adamw })?
            });
        }
        let claimed = |rule: &Rule| rule.roles.contains(&Role::StateSpace);
        if adamw.weight_decay > 0.0 && !rules.iter().any(claimed) {
            // As the authors of Mamba train: rates of decay are not to be driven to one value.
            let adamw = AdamW { weight_decay: 0.0, ..*adamw };
            rules.push(Rule { roles: vec![Role::StateSpace], ..Rule::adamw(adamw)? });
        }
        let rule = |muon: &Muon| -> Result<Rule> {
            Ok(Rule { roles: vec![], lr_factor: 1.0, update: muon.rule()?, adamw: None })
        };
        let matrices = muon.map(rule).transpose()?;
        Ok(Self { rules, matrices, states: HashMap::new() })
    }

    /// Gets ready the steps of all parameters that can wait for the factor of their gradients, while the card
    /// still computes these; the model has their new weights once they are [finished](Self::finish) or
    /// [undone](Self::undo).
    pub(super) fn begin<M: Module>(
        &mut self,
        model: M,
        grads: &GradientSum,
        lr: f64,
    ) -> (M, Begun) {
        let (stack, begun) = (PathStack::default(), Begun::default());
        let mut walk = Begin { optimizer: self, stack, grads, lr, begun };
        let model = model.map(&mut walk);
        (model, walk.begun)
    }

    /// Updates every parameter that has a gradient, with `scale` times that gradient.
    pub(super) fn finish<M: Module>(
        &mut self,
        model: M,
        begun: Begun,
        grads: GradientSum,
        (scale, lr): (f64, f64),
    ) -> M {
        let Begun { many, params } = begun;
        many.finish(scale as f32);
        if params.len() == grads.len() {
            return model;
        }
        let stack = PathStack::default();
        model.map(&mut Walk { optimizer: self, stack, grads, begun: params, scale, lr })
    }

    /// No step after all.
    pub(super) fn undo<M: Module>(&mut self, model: &M, begun: Begun) {
        let Begun { many, params } = begun;
        many.undo();
        if !params.is_empty() {
            model.visit(&mut Undo { optimizer: self, stack: PathStack::default(), begun: params });
        }
    }

    fn rule(&self, path: &str, rank: usize) -> &Rule {
        if let Some(rule) = self.matrices.as_ref().filter(|_| Muon::updates(path, rank)) {
            return rule;
        }
        let role = Role::of(path);
        let of_role = |rule: &&Rule| role.is_some_and(|role| rule.roles.contains(&role));
        self.rules.iter().find(of_role).unwrap_or(&self.rules[0])
    }

    /// Host copy of the state.
    ///
    /// # Errors
    /// When a value cannot be expressed; not for AdamW.
    pub fn state(&self) -> Result<OptimizerState> {
        let mut sink = StateSink::default();
        for (path, state) in &self.states {
            self.rule(path, state.rank()).update.state_flatten(path, state, &mut sink);
        }
        let tensor = |(name, data): (String, TensorData)| {
            let values: Vec<f32> = data.iter::<f32>().collect();
            let shape = data.shape().to_vec();
            Ok((name, RawTensor::from_f32(shape, &values, SaveDtype::F32)?))
        };
        let scalar = |(name, value)| match serde_json::to_value(value) {
            Ok(value) => Ok((name, value)),
            Err(e) => Err(Error::Training(format!("optimizer state `{name}`: {e}"))),
        };
        Ok(OptimizerState {
            tensors: sink.tensors.into_iter().map(tensor).collect::<Result<_>>()?,
            scalars: sink.scalars.into_iter().map(scalar).collect::<Result<_>>()?,
        })
    }

    /// Take over a state for the trainable parameters of `model`.
    ///
    /// # Errors
    /// [`Error::TensorMismatch`] with everything that does not fit.
    pub fn load<M: Module>(&mut self, model: &M, state: &OptimizerState) -> Result<()> {
        let shapes = trainable(model);
        let (mut missing, mut unexpected, mut misshaped) = (vec![], vec![], vec![]);
        for (name, tensor) in &state.tensors {
            match owner(&shapes, name).map(|path| &shapes[path]) {
                None => unexpected.push(name.clone()),
                Some(shape) if *shape != tensor.shape => {
                    misshaped.push(format!("{name}: got {:?}, expected {shape:?}", tensor.shape));
                }
                Some(_) => {}
            }
        }

        let mut scalars = BTreeMap::new();
        for (name, value) in &state.scalars {
            let value = serde_json::from_value(value.clone()).map_err(|e| {
                Error::Training(format!("optimizer state `{name}` is {value}: {e}"))
            })?;
            scalars.insert(name.clone(), value);
        }
        let mut source = StateSource::new(scalars);
        for (name, tensor) in &state.tensors {
            let data = TensorData::new(tensor.to_f32()?, tensor.shape.clone());
            source.insert_tensor(name.clone(), data);
        }
        let device = model.devices().into_iter().next().unwrap_or_default().inner();
        let mut states = HashMap::new();
        // A parameter that never had a gradient has no state.
        let stated = |path: &&String| {
            state.tensors.keys().any(|name| owner(&shapes, name) == Some(path.as_str()))
        };
        for path in shapes.keys().filter(stated) {
            let rule = self.rule(path, shapes[path].len());
            match rule.update.state_unflatten(shapes[path].len(), path, &mut source, &device) {
                Some(state) => _ = states.insert(path.clone(), state),
                None => missing.push(format!("{path}: part of its state")),
            }
        }
        if missing.is_empty() && unexpected.is_empty() && misshaped.is_empty() {
            self.states = states;
            return Ok(());
        }
        let what = "optimizer state".into();
        Err(Error::TensorMismatch { what, missing, unexpected, misshaped })
    }
}

/// The parameter to which a part of the state belongs.
fn owner<'a>(shapes: &BTreeMap<String, Vec<usize>>, name: &'a str) -> Option<&'a str> {
    name.match_indices('.').map(|(at, _)| &name[..at]).find(|path| shapes.contains_key(*path))
}

/// Steps that wait for the factor of their gradients.
#[derive(Default)]
pub(super) struct Begun {
    many: AdamWMany,
    params: HashSet<ParamId>,
}

struct Begin<'a> {
    optimizer: &'a mut Optimizer,
    stack: PathStack,
    grads: &'a GradientSum,
    lr: f64,
    begun: Begun,
}

impl ModuleMapper for Begin<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let grad = self.grads.get::<D>(param.id);
        // A parameter that stands in several places has one step.
        let Some(grad) = grad.filter(|_| !self.begun.params.contains(&param.id)) else {
            return param;
        };
        let path = self.stack.path();
        let rule = self.optimizer.rule(&path, D);
        let lr = self.lr * rule.lr_factor;
        let Some(adamw) = rule.adamw.filter(|_| AdamWMany::takes(&param.val(), &grad)) else {
            return param;
        };
        let state = self.optimizer.states.remove(&path);
        let state = state.map(|state| AdamW::to_device(state.downcast(), &grad.device()));
        self.begun.params.insert(param.id);
        update(param, |weight| {
            let (new, state) = adamw.waiting(&mut self.begun.many, lr, (weight, grad, state));
            self.optimizer.states.insert(path, DynState::create(state, D));
            new
        })
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.stack.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.stack.exit();
    }
}

struct Undo<'a> {
    optimizer: &'a mut Optimizer,
    stack: PathStack,
    begun: HashSet<ParamId>,
}

impl ModuleVisitor for Undo<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !self.begun.contains(&param.id) {
            return;
        }
        let (path, states) = (self.stack.path(), &mut self.optimizer.states);
        let state = states.remove(&path);
        if let Some(state) = state.and_then(|state| undone(state.downcast::<AdamWState<D>>())) {
            states.insert(path, DynState::create(state, D));
        }
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.stack.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.stack.exit();
    }
}

struct Walk<'a> {
    optimizer: &'a mut Optimizer,
    stack: PathStack,
    grads: GradientSum,
    /// What has had its step.
    begun: HashSet<ParamId>,
    scale: f64,
    lr: f64,
}

impl ModuleMapper for Walk<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let grad = self.grads.remove::<D>(param.id);
        let Some(grad) = grad.filter(|_| !self.begun.contains(&param.id)) else { return param };
        let path = self.stack.path();
        let state = self.optimizer.states.remove(&path);
        let rule = self.optimizer.rule(&path, D);
        let state = state.map(|state| rule.update.to_device_dyn(state, &grad.device()));
        let (lr, scale) = (self.lr * rule.lr_factor, self.scale);
        let mut kept = None;
        let param = update(param, |weight| {
            let (new, state) = match rule.adamw {
                Some(adamw) => {
                    let state = state.map(|state| state.downcast::<AdamWState<D>>());
                    let (new, state) = adamw.scaled(lr, (weight, grad, state), scale as f32);
                    (new, Some(DynState::create(state, D)))
                }
                None => {
                    let (weight, grad) =
                        (weight.into_bridge(), grad.mul_scalar(scale).into_bridge());
                    let (new, state) = rule.update.step_dyn(D, lr, weight, grad, state);
                    (Tensor::from_bridge(new), state)
                }
            };
            kept = state;
            new
        });
        if let Some(state) = kept {
            self.optimizer.states.insert(path, state);
        }
        param
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.stack.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.stack.exit();
    }
}

/// The parameter with the weight that `step` makes of its own.
fn update<const D: usize>(
    param: Param<Tensor<D>>,
    step: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Param<Tensor<D>> {
    param.map(|weight| {
        let strategy = weight.gradient_checkpointing_strategy();
        leaf(step(weight.inner()), strategy, true)
    })
}
