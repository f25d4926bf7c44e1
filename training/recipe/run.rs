//! From a recipe to a trained checkpoint with its metrics and its report.

use super::data::{Data, Texts};
use super::output::Folder;
use super::sections::Recipe;
use super::watch::{MemoryReport, Watch};
use super::{Evaluation, interpolated};
use crate::attention::{AttnProjections, HasProjections, MixerConfig};
use crate::datasets::{DataReport, Tokenizer};
use crate::models::keymap::params;
use crate::models::lora::{self, TrainableReport};
use crate::models::{Decoder, ForwardOptions, ModelConfig};
use crate::training::plan::{RecipePlan, Resident};
use crate::training::report::{EvalRecord, Progress, TrainRecord};
use crate::training::{NextToken, Step, Stop, TrainOutcome, Trainer};
use crate::{Error, Result};
use burn::tensor::Device;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// What a run is told beside its recipe.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Where it computes.
    pub device: Device,
    /// Instead of the recipe's seed.
    pub seed: Option<u64>,
    /// Instead of the recipe's output folder.
    pub out: Option<PathBuf>,
    /// Say which code runs in every layer.
    pub explain: bool,
    /// Memory that the run may take, bytes, instead of the recipe's.
    pub device_memory: Option<u64>,
}

impl RunOptions {
    /// As the recipe says, on `device`.
    pub fn new(device: Device) -> Self {
        Self { device, seed: None, out: None, explain: false, device_memory: None }
    }

    /// Replace the recipe's seed.
    pub fn with_seed(mut self, seed: Option<u64>) -> Self {
        self.seed = seed;
        self
    }

    /// Replace the recipe's output folder.
    pub fn with_out(mut self, out: Option<PathBuf>) -> Self {
        self.out = out;
        self
    }

    /// Say which code runs in every layer.
    pub fn with_explain(mut self, explain: bool) -> Self {
        self.explain = explain;
        self
    }

    /// Replace the recipe's budget of memory.
    pub fn with_device_memory(mut self, bytes: Option<u64>) -> Self {
        self.device_memory = bytes;
        self
    }
}

/// What a run did; `summary.json` in its folder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunSummary {
    /// Folder of the run.
    pub dir: PathBuf,
    /// Checkpoint in Hugging Face form, where one was written.
    pub model: Option<PathBuf>,
    /// Adapter in PEFT form, where one was written.
    pub adapter: Option<PathBuf>,
    /// Optimizer steps done.
    pub steps: u64,
    /// Whether all steps of the recipe are done; else the data ended before.
    pub finished: bool,
    /// Tokens that went through the model in training.
    pub tokens: u64,
    /// Wall time of training, s.
    pub seconds: f64,
    /// `tokens / seconds`
    pub tokens_per_second: f64,
    /// Loss of the first step, nats per token.
    pub first_loss: f64,
    /// Loss of the last step, nats per token.
    pub last_loss: f64,
    /// Memory of training, predicted and measured.
    pub memory: MemoryReport,
    /// What trains.
    pub trainable: TrainableReport,
    /// The model before training.
    pub before: Option<Evaluation>,
    /// The model after training.
    pub after: Option<Evaluation>,
    /// What became of the training documents.
    pub data: DataReport,
    /// What became of the held-out documents.
    pub held_out: DataReport,
}

/// Run a recipe with the mixer that it names.
///
/// # Errors
/// Whatever the recipe's files, the data, the model or the disk give reason for; what was
/// measured until then is in the run's folder.
pub fn run_recipe(
    recipe: &Recipe,
    options: &RunOptions,
    progress: &Progress,
) -> Result<RunSummary> {
    let run = Run::prepare(recipe, options, progress)?;
    let windows = run.config.windows.clone();
    run.train(|layer, proj| {
        recipe.mixer.init(proj, windows[layer]).map_err(|e| recipe.within("mixer", e))
    })
}

/// Run a recipe with mixers of your own, which `mixer` builds from the layer's number and its
/// projections.
///
/// # Errors
/// As [`run_recipe`], and when the recipe names a mixer itself.
pub fn run_recipe_with<M: HasProjections>(
    recipe: &Recipe,
    options: &RunOptions,
    progress: &Progress,
    mixer: impl FnMut(usize, AttnProjections) -> Result<M>,
) -> Result<RunSummary> {
    if recipe.mixer != MixerConfig::Dense {
        let expected = "no [mixer] section in a run that brings its own";
        return Err(recipe.bad("mixer.name", recipe.mixer.name(), expected));
    }
    Run::prepare(recipe, options, progress)?.train(mixer)
}

/// A run whose files have been read and found to fit together.
struct Run<'a> {
    recipe: &'a Recipe,
    options: &'a RunOptions,
    progress: &'a Progress,
    seed: u64,
    dir: PathBuf,
    config: ModelConfig,
    tokenizer: Tokenizer,
    data: Data,
    plan: Option<RecipePlan>,
}

impl<'a> Run<'a> {
    fn prepare(
        recipe: &'a Recipe,
        options: &'a RunOptions,
        progress: &'a Progress,
    ) -> Result<Self> {
        let seed = options.seed.unwrap_or(recipe.seed);
        let dir = options.out.as_ref().unwrap_or(&recipe.output.dir).clone();
        if std::fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) {
            let expected = "a new or empty folder, so that nothing is overwritten";
            return Err(match &options.out {
                Some(_) => Error::config("command line", "out", dir.display(), expected),
                None => recipe.bad("output.dir", dir.display(), expected),
            });
        }
        let config = recipe.model_config()?;
        let plan = recipe.checked_plan(options.device_memory)?;
        let mut stage = progress.stage("Data", None, "documents");
        let texts = Texts::read(recipe)?;
        let tokenizer = match (&recipe.model.tokenizer, &recipe.model.path) {
            (Some(path), _) | (None, Some(path)) => Tokenizer::from_file(path)?,
            (None, None) => texts.learn_tokenizer(config.vocab_size)?,
        };
        tokenizer.check_model(config.vocab_size)?;
        let data = texts.prepare(recipe, &tokenizer, seed)?;
        stage.advance(data.report.kept.documents + data.held_out_report.kept.documents);
        stage.finish();
        progress.println(&format!("training documents: {}", data.closing_report()));
        Ok(Self { recipe, options, progress, seed, dir, config, tokenizer, data, plan })
    }

    fn train<M: HasProjections>(
        mut self,
        mixer: impl FnMut(usize, AttnProjections) -> Result<M>,
    ) -> Result<RunSummary> {
        let before = Resident::read();
        let model = self.model(mixer)?;
        let trainable = TrainableReport::of(&model);
        self.progress.println(&trainable.to_string());
        if self.options.explain {
            for line in model.explain(&ForwardOptions::train(), &self.options.device) {
                self.progress.println(&line);
            }
        }
        let mut folder = Folder::create(&self.dir, self.recipe)?;
        let mut watch =
            Watch::start(self.recipe, self.plan.take(), before, &self.dir, self.progress)?;
        folder.log.note("seed", self.seed)?;
        let measured = self.recipe.eval.as_ref().is_some_and(|eval| eval.before);
        let before = if measured { self.evaluate("before", &model, &mut folder)? } else { None };

        let started = Instant::now();
        let outcome = match self.fit(model, &mut folder, &mut watch) {
            Ok(outcome) => outcome,
            Err(error) => {
                folder.log.note("error", error.to_string())?;
                return Err(error);
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        let memory = watch.finish(&mut folder.log, self.progress)?;
        let counters = outcome.counters().clone();
        let finished = outcome.stop == Stop::Finished;
        if !finished {
            let line = format!("the data ended after step {}", counters.step);
            self.progress.println(&line);
        }
        // Saved before it is measured, so that a failing evaluation cannot cost the training.
        let (model, adapter) = folder.save(self.recipe, &outcome.model, &self.tokenizer)?;
        let after = self.evaluate("after", &outcome.model, &mut folder)?;
        let summary = RunSummary {
            dir: self.dir.clone(),
            model,
            adapter,
            steps: counters.step,
            finished,
            tokens: counters.tokens,
            seconds,
            tokens_per_second: counters.tokens as f64 / seconds,
            first_loss: folder.losses.first().copied().unwrap_or(f64::NAN),
            last_loss: folder.losses.last().copied().unwrap_or(f64::NAN),
            memory,
            trainable,
            before,
            after,
            data: self.data.closing_report(),
            held_out: self.data.held_out_report.clone(),
        };
        folder.close(self.recipe, self.seed, &summary)?;
        self.progress.println(&format!("training documents: {}", summary.data));
        Ok(summary)
    }

    fn model<M: HasProjections>(
        &self,
        mixer: impl FnMut(usize, AttnProjections) -> Result<M>,
    ) -> Result<Decoder<M>> {
        let device = &self.options.device;
        let mut stage = self.progress.stage("Model", None, "parameters");
        let model = match &self.recipe.model.path {
            Some(path) => Decoder::load_with(path, &self.config, device, mixer)?,
            None => Decoder::with_mixer(&self.config, self.seed, device, mixer)?,
        };
        stage.advance(params(&model).iter().map(|p| p.numel() as u64).sum());
        stage.finish();
        match &self.recipe.lora {
            Some(config) => {
                let seed = config.seed.wrapping_add(self.seed);
                let config = config.clone().with_seed(seed);
                lora::apply(model, &config).map_err(|e| self.recipe.within("lora", e))
            }
            None => Ok(model),
        }
    }

    fn fit<M: HasProjections>(
        &mut self,
        model: Decoder<M>,
        folder: &mut Folder,
        watch: &mut Watch,
    ) -> Result<TrainOutcome<Decoder<M>>> {
        let trainer = Trainer::new(self.recipe.train.config(self.seed))?;
        let mut stage = self.progress.stage("Training", Some(self.recipe.train.steps), "steps");
        watch.training();
        let mut observe = |step: &Step<'_, Decoder<M>>| {
            let report = step.report;
            folder.losses.push(report.loss);
            folder.log.train(TrainRecord {
                run: "train".into(),
                step: report.step,
                tokens: report.total_tokens,
                loss: report.loss,
                lr: report.lr,
                grad_norm: Some(report.grad_norm),
                tokens_per_second: Some(report.tokens_per_second),
                extra: report.metrics.clone(),
            })?;
            stage.message(watch.step(report, || folder.plot())?);
            stage.work(report.tokens, "tokens");
            stage.advance(1);
            Ok(())
        };
        let outcome = trainer.fit(model, &NextToken, &mut self.data.rows, &mut observe)?;
        stage.finish();
        Ok(outcome)
    }

    fn evaluate<M: HasProjections>(
        &self,
        when: &str,
        model: &Decoder<M>,
        folder: &mut Folder,
    ) -> Result<Option<Evaluation>> {
        if self.recipe.eval.is_none() {
            return Ok(None);
        }
        let title = format!("Evaluation {when} training");
        let mut stage = self.progress.stage(&title, None, "tokens");
        let evaluation = self.recipe.evaluate(model, &self.data.held_out)?;
        if let Some(e) = &evaluation {
            stage.advance(e.tokens as u64);
            stage.finish();
            let line = format!("perplexity {when} training: {:.3} ({})", e.ppl, e.protocol);
            self.progress.println(&line);
            folder.log.eval(EvalRecord {
                run: when.into(),
                name: "nll_by_position".into(),
                x: e.by_position.iter().map(|bucket| bucket.start as f64).collect(),
                y: e.by_position.iter().map(|bucket| bucket.mean_nll).collect(),
                se: Vec::new(),
            })?;
            folder.log.eval(EvalRecord {
                run: when.into(),
                name: "nll".into(),
                x: vec![0.0],
                y: vec![e.mean_nll],
                se: e.se.into_iter().collect(),
            })?;
        }
        Ok(evaluation)
    }
}

impl Recipe {
    /// The configuration of the model that trains, positions extended.
    ///
    /// # Errors
    /// When the checkpoint's configuration cannot be read or does not go with the recipe.
    pub fn model_config(&self) -> Result<ModelConfig> {
        let mut config = match &self.model.path {
            Some(path) => ModelConfig::from_file(&path.join("config.json"))?,
            None => self.new_config()?,
        };
        if let Some(extend) = &self.extend {
            config = interpolated(&config, extend.to)?;
        }
        self.check_length(&config)?;
        Ok(config)
    }
}
