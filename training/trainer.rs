//! The loop: micro-batches → summed gradients → checks → one update → a report.

use super::burn_train::{Session, terminal_view};
use super::optim::Optimizer;
use super::state::{Counters, TrainState, trainable};
use super::window::{Measuring, Window, at_once};
use super::{BatchSource, EmptyStep, GradientSum, Objective, TrainConfig, TrainStrategy};
use crate::attention::Compute;
use crate::models::{Blocks, ForwardOptions};
use crate::{Error, Result};
use burn::module::Module;
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

impl<M> Step<'_, M> {
    /// What is needed beside the model to go on after this step.
    ///
    /// # Errors
    /// When a value cannot be expressed.
    pub fn state(&self) -> Result<TrainState> {
        let counters = Counters { cursor: (self.cursor)(), ..self.counters.clone() };
        TrainState::of(&counters, self.optimizer)
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

impl<M> TrainOutcome<M> {
    /// What the run counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What is needed beside the model to go on.
    ///
    /// # Errors
    /// When a value cannot be expressed.
    pub fn state(&self) -> Result<TrainState> {
        TrainState::of(&self.counters, &self.optimizer)
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
    terminal_view: bool,
    renderer: Option<Box<dyn MetricsRenderer>>,
    options: ForwardOptions,
}

impl Trainer {
    /// # Errors
    /// [`Error::Config`] when a setting cannot work.
    pub fn new(config: TrainConfig) -> Result<Self> {
        config.validate()?;
        let options = config.options();
        Ok(Self {
            config,
            state: None,
            interrupter: Interrupter::new(),
            terminal_view: false,
            renderer: None,
            options,
        })
    }

    /// Go on from a state; the model to train must be that of the same step.
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

    /// Show them by burn-train's view in the terminal, from which the run can be stopped, too.
    /// Needs feature `tui` and a terminal; see [`super::terminal_view_available`].
    pub fn with_terminal_view(mut self, show: bool) -> Self {
        self.terminal_view = show;
        self
    }

    /// How forward passes run, if not as [`ForwardOptions::train`]; in bf16, and the same in
    /// every run, where these or the configuration say so.
    pub fn with_options(mut self, options: ForwardOptions) -> Self {
        let compute = match options.compute {
            Compute::F32 => self.config.compute,
            chosen => chosen,
        };
        let deterministic = options.deterministic || self.config.deterministic;
        self.options = options.with_compute(compute).with_deterministic(deterministic);
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
        let state = self.state.take();
        if let Some(state) = &state {
            data.seek(&state.counters.cursor)?;
        }
        let run = Run::begin(&self.config, model.train(), state)?;
        let renderer = match self.terminal_view {
            true => Some(terminal_view(&self.interrupter)?),
            false => self.renderer.take(),
        };
        let device = run.model.devices().into_iter().next().unwrap_or_default();
        let (interrupter, steps) = (self.interrupter.clone(), self.config.steps);
        let session = Session::start(interrupter, renderer, steps, device.inner());
        let ended = self.steps(run, objective, strategy, data, &mut |step| {
            if !session.report(step.report) {
                self.interrupter.stop(Some("the view of the training was closed"));
            }
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
        let mut optimizer = Optimizer::new(&config.adamw, config.muon.as_ref(), &config.groups)?;
        let Some(state) = state else {
            let counters = Counters { seed: config.seed, ..Counters::default() };
            return Ok(Self { model, optimizer, counters });
        };
        if state.counters.seed != config.seed {
            let expected = format!("{}, with which the run began", state.counters.seed);
            return Err(Error::config("training", "seed", config.seed, expected));
        }
        optimizer.load(&model, &state.optimizer)?;
        Ok(Self { model, optimizer, counters: state.counters })
    }

    /// Check everything, then change the weights: what a card is to do then is got ready while it computes.
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
        let measuring = Measuring::begin(&window, &self.model)?;
        let (model, begun) = self.optimizer.begin(self.model, &window.gradients, report.lr);
        self.model = model;
        let measured = measuring.read(&window);
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
            self.optimizer.undo(&self.model, begun);
            self.counters.skipped += 1;
            report.skipped = true;
            return Ok(self);
        }
        // As PyTorch's clip_grad_norm_ has it, epsilon included.
        let shrink = config.clip.map_or(1.0, |clip| (clip / (measured.norm + 1e-6)).min(1.0));
        let scale = shrink / window.weight;
        let by = (scale, report.lr);
        self.model = self.optimizer.finish(self.model, begun, window.gradients, by);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Options that say nothing of it leave what the configuration says.
    #[test]
    fn passes_run_as_configuration_or_options_say() {
        let of = |config: bool, options: Option<bool>| {
            let trainer =
                Trainer::new(TrainConfig::new(1, 0.1).with_deterministic(config)).unwrap();
            let options = options.map(|set| ForwardOptions::train().with_deterministic(set));
            match options {
                Some(options) => trainer.with_options(options),
                None => trainer,
            }
            .options
            .deterministic
        };
        assert!(of(true, None) && of(true, Some(false)) && of(false, Some(true)));
        assert!(!of(false, None) && !of(false, Some(false)));
    }
}
