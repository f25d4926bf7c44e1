//! The loop: micro-batches → summed gradients → checks → one update → a report.

use super::burn_train::Session;
use super::optim::Optimizer;
use super::state::{Counters, TrainState, trainable};
use super::{
    BatchSource, EmptyStep, GradientSum, LossParts, Objective, TrainConfig, TrainStrategy,
};
use crate::models::{Blocks, ForwardOptions};
use crate::{Error, Result};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Tensor};
use burn_train::Interrupter;
use burn_train::renderer::MetricsRenderer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Instant;

/// What one step did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Optimizer step, from 1.
    pub step: u64,
    /// Mean loss per target, in nats for [`super::NextToken`], without auxiliary terms.
    pub loss: f64,
    /// Mean of the auxiliary terms, where there are any.
    pub aux: Option<f64>,
    /// Sum of the targets' weights.
    pub weight: f64,
    /// Tokens that went through the model in this step.
    pub tokens: u64,
    /// The same in the whole run so far.
    pub total_tokens: u64,
    /// Learning rate, before groups.
    pub lr: f64,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// Wall time of the step.
    pub seconds: f64,
    /// `tokens / seconds`
    pub tokens_per_second: f64,
    /// Whether no weight was changed, because of a NaN or infinite value or for want of targets.
    pub skipped: bool,
    /// Weighted means of the objective's metrics.
    pub metrics: BTreeMap<String, f64>,
}

/// A step as observers see it.
pub struct Step<'a, M> {
    /// What it did.
    pub report: &'a StepReport,
    /// The model after the update, with autodiff on; `valid()` gives one for evaluation.
    pub model: &'a M,
    /// The run's counters after the step; the cursor is filled in by [`Step::state`].
    counters: &'a Counters,
    optimizer: &'a Optimizer,
    cursor: &'a dyn Fn() -> serde_json::Value,
}

impl<M: Module> Step<'_, M> {
    /// Everything needed to go on after this step.
    ///
    /// # Errors
    /// When a value cannot be expressed.
    pub fn state(&self) -> Result<TrainState> {
        let counters = Counters { cursor: (self.cursor)(), ..self.counters.clone() };
        TrainState::of(&counters, self.model, self.optimizer)
    }
}

/// Why a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// All steps are done.
    Finished,
    /// The data was used up before.
    DataEnded,
    /// The interrupter was called; with the reason, if one was given.
    Interrupted(Option<String>),
}

/// Result of a run.
pub struct TrainOutcome<M> {
    /// The model, with autodiff off; `train()` turns it on again.
    pub model: M,
    /// Why the run ended.
    pub stop: Stop,
    counters: Counters,
    optimizer: Optimizer,
}

impl<M: Module> TrainOutcome<M> {
    /// What the run counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Everything needed to go on.
    ///
    /// # Errors
    /// When a value cannot be expressed.
    pub fn state(&self) -> Result<TrainState> {
        TrainState::of(&self.counters, &self.model, &self.optimizer)
    }
}

/// Trains any model by any objective and strategy.
///
/// ```
/// use longburn::attention::MixerConfig;
/// use longburn::datasets::{Side, TokenBatch};
/// use longburn::models::{Decoder, ModelConfig};
/// use longburn::training::{NextToken, TrainConfig, Trainer};
/// let device = burn::tensor::Device::default();
/// let model = Decoder::new(&ModelConfig::llama(16, 8, 1, 2), &MixerConfig::Dense, 0, &device)?;
/// let mut data = |_step: u64, _micro: u32| {
///     TokenBatch::from_rows(vec![vec![1, 2, 3, 1, 2, 3]], Side::Right, 0).map(Some)
/// };
/// let mut losses = Vec::new();
/// let trained = Trainer::new(TrainConfig::new(20, 1e-2))?.fit(
///     model,
///     &NextToken,
///     &mut data,
///     &mut |step| Ok(losses.push(step.report.loss)),
/// )?;
/// assert!(losses[19] < losses[0]);
/// # let _ = trained.model;
/// # Ok::<(), longburn::Error>(())
/// ```
pub struct Trainer {
    config: TrainConfig,
    state: Option<TrainState>,
    interrupter: Interrupter,
    renderer: Option<Box<dyn MetricsRenderer>>,
    options: ForwardOptions,
}

impl Trainer {
    /// # Errors
    /// [`Error::Config`] when a setting cannot work.
    pub fn new(config: TrainConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            config,
            state: None,
            interrupter: Interrupter::new(),
            renderer: None,
            options: ForwardOptions::train(),
        })
    }

    /// Go on from a state.
    pub fn resume(mut self, state: TrainState) -> Self {
        self.state = Some(state);
        self
    }

    /// Stop after the step during which this is called.
    pub fn with_interrupter(mut self, interrupter: Interrupter) -> Self {
        self.interrupter = interrupter;
        self
    }

    /// Show loss and learning rate by one of burn-train's renderers; by default nothing is shown.
    pub fn with_renderer(mut self, renderer: Box<dyn MetricsRenderer>) -> Self {
        self.renderer = Some(renderer);
        self
    }

    /// How forward passes run, if not as [`ForwardOptions::train`].
    pub fn with_options(mut self, options: ForwardOptions) -> Self {
        self.options = options;
        self
    }

    /// Train by the configured strategy.
    ///
    /// # Errors
    /// As [`Trainer::fit_with`].
    pub fn fit<M, O, D>(
        self,
        model: M,
        objective: &O,
        data: &mut D,
        observer: &mut dyn FnMut(&Step<'_, M>) -> Result<()>,
    ) -> Result<TrainOutcome<M>>
    where
        M: Blocks,
        O: Objective<M>,
        D: BatchSource<O::Batch> + ?Sized,
    {
        let strategy = self.config.strategy;
        self.fit_with(model, objective, &strategy, data, observer)
    }

    /// Train by a strategy of your own, which need not want blocks.
    ///
    /// # Errors
    /// [`Error::NonFinite`] when a loss or gradient is NaN or infinite; what data, objective,
    /// strategy or observer return; [`Error::TensorMismatch`] when the state to resume from is
    /// not one of this model.
    pub fn fit_with<M, O, S, D>(
        mut self,
        model: M,
        objective: &O,
        strategy: &S,
        data: &mut D,
        observer: &mut dyn FnMut(&Step<'_, M>) -> Result<()>,
    ) -> Result<TrainOutcome<M>>
    where
        M: Module,
        O: Objective<M>,
        S: TrainStrategy<M, O>,
        D: BatchSource<O::Batch> + ?Sized,
    {
        let run = Run::begin(&self.config, model.train(), self.state.take())?;
        if run.counters.step > 0 {
            data.seek(&run.counters.cursor)?;
        }
        let renderer = self.renderer.take();
        let session = Session::start(self.interrupter.clone(), renderer, self.config.steps);
        let ended = self.steps(run, objective, strategy, data, &mut |step| {
            session.report(step.report);
            observer(step)
        });
        let finished = session.finish();
        let (run, stop) = ended?;
        finished?;
        let Run { model, optimizer, counters } = run;
        let counters = Counters { cursor: data.cursor(), ..counters };
        Ok(TrainOutcome { model: model.valid(), stop, counters, optimizer })
    }

    fn steps<M, O, S, D>(
        &self,
        mut run: Run<M>,
        objective: &O,
        strategy: &S,
        data: &mut D,
        observer: &mut dyn FnMut(&Step<'_, M>) -> Result<()>,
    ) -> Result<(Run<M>, Stop)>
    where
        M: Module,
        O: Objective<M>,
        S: TrainStrategy<M, O>,
        D: BatchSource<O::Batch> + ?Sized,
    {
        while run.counters.step < self.config.steps {
            let started = Instant::now();
            let Some(window) = self.window(&run, objective, strategy, data)? else {
                return Ok((run, Stop::DataEnded));
            };
            let mut report = StepReport::default();
            run = run.update(&self.config, window, &mut report)?;
            report.seconds = started.elapsed().as_secs_f64();
            report.tokens_per_second = report.tokens as f64 / report.seconds;
            observer(&Step {
                report: &report,
                model: &run.model,
                counters: &run.counters,
                optimizer: &run.optimizer,
                cursor: &|| data.cursor(),
            })?;
            if self.interrupter.should_stop() {
                let reason = self.interrupter.interruption().and_then(|i| i.reason);
                return Ok((run, Stop::Interrupted(reason)));
            }
        }
        Ok((run, Stop::Finished))
    }

    /// Gradients of the micro-batches of one step, summed; none when there is no data left.
    fn window<M, O, S, D>(
        &self,
        run: &Run<M>,
        objective: &O,
        strategy: &S,
        data: &mut D,
    ) -> Result<Option<Window>>
    where
        M: Module,
        O: Objective<M>,
        S: TrainStrategy<M, O>,
        D: BatchSource<O::Batch> + ?Sized,
    {
        let mut window = Window::default();
        let mut micro = 0;
        while micro < self.config.micro_batches {
            let end = (micro + self.config.workers).min(self.config.micro_batches);
            let mut batches = Vec::new();
            while micro < end {
                let Some(batch) = data.batch(run.counters.step + 1, micro)? else { break };
                batches.push(batch);
                micro += 1;
            }
            let work = |model: &M, batch: &O::Batch| {
                let mut gradients = GradientSum::new();
                let parts =
                    strategy.accumulate(model, objective, batch, &self.options, &mut gradients)?;
                Ok((parts, gradients))
            };
            for (done, batch) in at_once(&run.model, &batches, work).into_iter().zip(&batches) {
                let (parts, gradients) = done?;
                window.add(&run.model, parts, gradients, objective.source(batch));
            }
            if micro < end {
                break;
            }
        }
        Ok((!window.sources.is_empty()).then_some(window))
    }
}

/// `work` on every batch, on a thread each where there are several.
fn at_once<M: Module, B: Sync, R: Send>(
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
            let trained = x.is_require_grad();
            Tensor::from_inner(x.inner()).set_require_grad(trained)
        })
    }
}

fn add(a: Option<Tensor<1>>, b: Option<Tensor<1>>) -> Option<Tensor<1>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}

/// Sums over the micro-batches of a step.
#[derive(Default)]
struct Window {
    gradients: GradientSum,
    sum: Option<Tensor<1>>,
    aux: Option<Tensor<1>>,
    weight: f64,
    tokens: u64,
    metrics: BTreeMap<String, f64>,
    sources: Vec<String>,
}

impl Window {
    fn add<M: Module>(
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

/// What changes from step to step.
struct Run<M> {
    model: M,
    optimizer: Optimizer,
    counters: Counters,
}

impl<M: Module> Run<M> {
    fn begin(config: &TrainConfig, model: M, state: Option<TrainState>) -> Result<Self> {
        if trainable(&model).is_empty() {
            let expected = "a model with at least one trainable parameter";
            return Err(Error::config("training", "model", "frozen throughout", expected));
        }
        let mut optimizer = Optimizer::new(&config.adamw, &config.groups)?;
        let Some(state) = state else {
            let counters = Counters { seed: config.seed, ..Counters::default() };
            return Ok(Self { model, optimizer, counters });
        };
        if state.counters.seed != config.seed {
            let expected = format!("{}, with which the run began", state.counters.seed);
            return Err(Error::config("training", "seed", config.seed, expected));
        }
        optimizer.load(&model, &state.optimizer)?;
        let model = state.restore(model)?;
        Ok(Self { model, optimizer, counters: state.counters })
    }

    /// Check everything, then change the weights.
    fn update(
        mut self,
        config: &TrainConfig,
        window: Window,
        report: &mut StepReport,
    ) -> Result<Self> {
        self.counters.step += 1;
        self.counters.tokens += window.tokens;
        let step = self.counters.step;
        report.step = step;
        report.weight = window.weight;
        report.tokens = window.tokens;
        report.total_tokens = self.counters.tokens;
        report.lr = config.lr_at(step);
        if window.weight == 0.0 {
            report.skipped = true;
            return match config.empty_step {
                EmptyStep::Skip => Ok(self),
                EmptyStep::Error => Err(Error::Data(format!(
                    "step {step} has no target at all (batch: {}; remedy: check the labels, or \
                     set empty_step = \"skip\")",
                    window.sources.join(", ")
                ))),
            };
        }
        let measured = Measured::read(&window, &self.model)?;
        report.loss = measured.loss;
        report.aux = measured.aux;
        report.grad_norm = measured.norm;
        report.metrics = window.metrics;
        report.metrics.values_mut().for_each(|value| *value /= window.weight);
        if let Some((what, value)) = measured.nonfinite(&window.gradients, &self.model) {
            if self.counters.skipped >= config.skip_nonfinite {
                let batch = window.sources.join(", ");
                return Err(Error::NonFinite { step, what, value, batch });
            }
            self.counters.skipped += 1;
            report.skipped = true;
            return Ok(self);
        }
        // As PyTorch's clip_grad_norm_ has it, epsilon included.
        let shrink = config.clip.map_or(1.0, |clip| (clip / (measured.norm + 1e-6)).min(1.0));
        let scale = shrink / window.weight;
        self.model = self.optimizer.step(self.model, window.gradients, scale, report.lr);
        Ok(self)
    }
}

/// The numbers of a step, all read from the device at once.
struct Measured {
    loss: f64,
    aux: Option<f64>,
    norm: f64,
    /// Squared norm of every gradient before division by the weight, in the module's order.
    squares: Vec<(String, f64)>,
}

impl Measured {
    fn read<M: Module>(window: &Window, model: &M) -> Result<Self> {
        let (paths, squares) = window.gradients.squares(model);
        if squares.is_empty() {
            return Err(Error::Training(
                "the loss does not depend on any trainable parameter".into(),
            ));
        }
        let losses = [&window.sum, &window.aux].into_iter().flatten().cloned();
        let scalars: Vec<_> = losses.map(|x| x.cast(DType::F32)).chain(squares).collect();
        let values = Tensor::cat(scalars, 0).into_data();
        let mut values = values.iter::<f32>().map(f64::from);
        let mut mean = |_: &Tensor<1>| values.next().map(|sum| sum / window.weight);
        let loss = window.sum.as_ref().and_then(&mut mean).unwrap_or(0.0);
        let aux = window.aux.as_ref().and_then(&mut mean);
        let squares: Vec<_> = paths.into_iter().zip(values).collect();
        let norm = squares.iter().map(|(_, square)| square).sum::<f64>().sqrt() / window.weight;
        Ok(Self { loss, aux, norm, squares })
    }

    /// The first number that is NaN or infinite: of the losses, then of the gradients in the
    /// order in which the backward pass reaches them, which is from the end of the module.
    fn nonfinite<M: Module>(&self, grads: &GradientSum, model: &M) -> Option<(String, f64)> {
        if !self.loss.is_finite() {
            return Some(("loss".into(), self.loss));
        }
        if let Some(aux) = self.aux.filter(|aux| !aux.is_finite()) {
            return Some(("auxiliary loss".into(), aux));
        }
        let (path, square) = self.squares.iter().rev().find(|(_, square)| !square.is_finite())?;
        // The square of a large finite value is infinite, too.
        let value = grads.nonfinite(model, path).unwrap_or(*square);
        Some((format!("gradient of {path}"), value))
    }
}
