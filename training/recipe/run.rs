//! From a recipe to a trained checkpoint with its metrics and its report.

use super::data::{Data, HeldOut, Texts};
use super::output::Folder;
use super::resume::{Origin, Place, Tracked, check_vacant};
use super::saving::{Saver, load};
use super::sections::Recipe;
use super::watch::Watch;
use super::{Evaluation, RunOptions, RunSummary};
use crate::attention::{AttnProjections, HasProjections, MixerConfig, MixerSite};
use crate::datasets::Tokenizer;
use crate::models::gates::gate_stream;
use crate::models::hub::Need;
use crate::models::keymap::params;
use crate::models::lora::TrainableReport;
use crate::models::weights::obstacle;
use crate::models::{Decoder, ModelConfig, peft};
use crate::training::checkpoint::{Inputs, RunLock};
use crate::training::plan::{RecipePlan, Resident};
use crate::training::report::{EvalRecord, Progress, TrainRecord};
use crate::training::{NextToken, Step, Stop, TrainOutcome, Trainer, terminal_view_available};
use crate::{Error, Result};
use burn::module::Module;
use std::path::PathBuf;
use std::time::Instant;

/// Run a recipe with the mixer that it names.
///
/// # Errors
/// Whatever the recipe's files, the data, the model or the disk give reason for; what was
/// measured until then is in the run's folder. [`crate::Error::Interrupted`] when the options'
/// interrupter stopped it.
pub fn run_recipe(
    recipe: &Recipe,
    options: &RunOptions,
    progress: &Progress,
) -> Result<RunSummary> {
    let mut recipe = recipe.located(Need::Model, progress)?;
    if let Some(mixer) = &options.mixer {
        recipe.mixer = mixer.into();
        recipe.check()?;
    }
    let recipe = &recipe;
    let (run, start) = Run::prepare(recipe, options, progress)?;
    let mixers = recipe.mixers(&run.config)?;
    run.train(start, |site| {
        let built = mixers[site.layer].build(site);
        let built = built.and_then(|mixer| mixer.with_gate(site.streams, gate_stream(site.layer)));
        built.map_err(|e| match recipe.mixer.place(site.layer, site.layers) {
            Ok(place) => recipe.within(&place, e),
            Err(other) => other,
        })
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
    mut mixer: impl FnMut(usize, AttnProjections) -> Result<M>,
) -> Result<RunSummary> {
    let named = !recipe.mixer.is_own() && recipe.mixer != MixerConfig::Dense.into();
    if named || options.mixer.is_some() {
        let expected = "no [mixer] section in a run that brings its own";
        return Err(recipe.bad("mixer.name", &recipe.mixer, expected));
    }
    let recipe = &recipe.located(Need::Model, progress)?;
    let (run, start) = Run::prepare(recipe, options, progress)?;
    run.train(start, |site| mixer(site.layer, site.projections()?))
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
    inputs: Inputs,
}

/// What a run uses up.
struct Start {
    data: Data,
    /// The folder, which a resumed run takes before it reads anything.
    place: Option<Place>,
    origin: Option<Origin>,
    plan: Option<RecipePlan>,
}

/// What follows the training.
struct Hooks<'a, 'r> {
    folder: &'a mut Folder,
    saver: &'a mut Saver<'r>,
    watch: &'a mut Watch,
}

impl<'a> Run<'a> {
    fn prepare(
        recipe: &'a Recipe,
        options: &'a RunOptions,
        progress: &'a Progress,
    ) -> Result<(Self, Start)> {
        if options.terminal_view {
            terminal_view_available()?;
        }
        let seed = options.seed.unwrap_or(recipe.seed);
        let dir = options.out.as_deref().map_or_else(|| recipe.output_dir(), Ok)?.to_path_buf();
        let (place, origin) = match options.resume {
            true => Place::resume(&dir, recipe)?.unzip(),
            false => (None, None),
        };
        let origin = origin.flatten();
        if place.is_none() {
            RunLock::check(&dir)?;
            check_vacant(&dir, recipe, options)?;
        }
        if let Some(found) = recipe.data.cache.as_deref().and_then(obstacle) {
            return Err(recipe.bad("data.cache", found, "a folder that can be written in"));
        }
        if let Some(origin) = &origin {
            origin.check_recipe(recipe, seed, options.allow_changes)?;
            progress.println(&format!("resuming from {}", origin.checkpoint.dir.display()));
        } else if options.resume {
            progress.println(&format!("no checkpoint in {}: a new run begins", dir.display()));
        }
        let config = recipe.model_config()?;
        let plan = recipe.checked_plan(options.device_memory)?;
        let before = origin.as_ref().map(Origin::inputs).transpose()?;
        let inputs = Inputs::since(&recipe.input_paths(), before.as_ref())?;
        if let (Some(origin), Some(before)) = (&origin, &before) {
            origin.check_inputs(before, inputs.clone(), recipe, options.allow_changes)?;
        }
        let mut stage = progress.stage("Data", None, "documents");
        let texts = Texts::read(recipe)?;
        let tokenizer = match (recipe.model.tokenizer.as_deref(), recipe.base(), &origin) {
            (Some(path), ..) | (None, Some(path), _) => Tokenizer::from_file(path)?,
            (None, None, Some(origin)) => Tokenizer::from_file(&origin.checkpoint.dir)?,
            (None, None, None) => texts.learn_tokenizer(config.vocab_size)?,
        };
        tokenizer.check_model(config.vocab_size)?;
        let data = texts.prepare(recipe, &tokenizer, seed)?;
        stage.advance(data.report.kept.documents + data.held_out_report.kept.documents);
        stage.finish();
        progress.println(&format!("training documents: {}", data.closing_report()));
        let run = Self { recipe, options, progress, seed, dir, config, tokenizer, inputs };
        Ok((run, Start { data, place, origin, plan }))
    }

    fn train<M: HasProjections>(
        &self,
        start: Start,
        mixer: impl FnMut(&MixerSite<'_>) -> Result<M>,
    ) -> Result<RunSummary> {
        let Start { mut data, place, origin, plan } = start;
        let memory = Resident::read();
        let compute = self.recipe.train.compute;
        if !compute.runs_on(&self.options.device) {
            return Err(Error::Unsupported {
                what: format!("{} on {:?}", compute.name(), self.options.device),
                remedy: "leave out `compute` of [train], or choose a device that has it".into(),
            });
        }
        let model = self.model(origin.as_ref(), mixer)?;
        let trainable = TrainableReport::of(&model);
        self.progress.println(&trainable.to_string());
        if self.options.explain {
            let options = self.recipe.train.config(self.seed).options();
            for line in model.explain(&options, &self.options.device) {
                self.progress.println(&line);
            }
            self.progress.println(&model.explain_products(&options, &self.options.device));
        }
        let place = match place {
            Some(place) => place,
            None => Place::new_run(&self.dir, self.recipe, self.options)?,
        };
        let resumed = origin.as_ref().map(|origin| origin.checkpoint.step());
        let mut folder = Folder::open(&self.dir, self.recipe, resumed)?;
        let mut watch = Watch::start(self.recipe, plan, memory, &self.dir, self.progress);
        let mut saver =
            Saver::new(self.recipe, self.seed, &self.tokenizer, &place, origin.as_ref());
        let mut hooks = Hooks { folder: &mut folder, saver: &mut saver, watch: &mut watch };
        let done = self.work(model, origin, &mut data, trainable, &mut hooks);
        if let Err(error) = &done {
            if !matches!(error, Error::Interrupted { .. }) {
                folder.log.note("error", error.to_string())?;
            }
            let newest = saver.newest.map(|(step, _)| step);
            watch.stopped(error, newest, &self.again(), &folder.plot());
        }
        done
    }

    /// The command that goes on with this run.
    fn again(&self) -> String {
        let word = |word: String| if word.contains(' ') { format!("'{word}'") } else { word };
        let mut command = format!("longburn train {} --resume", word(self.recipe.file.clone()));
        if let Some(out) = &self.options.out {
            command += &format!(" --out {}", word(out.display().to_string()));
        }
        if let Some(seed) = self.options.seed {
            command += &format!(" --seed {seed}");
        }
        if let Some(mixer) = &self.options.mixer {
            command += &format!(" --mixer {}", mixer.name());
        }
        command
    }

    /// From the evaluation before training to the report.
    fn work<M: HasProjections>(
        &self,
        model: Decoder<M>,
        origin: Option<Origin>,
        data: &mut Data,
        trainable: TrainableReport,
        hooks: &mut Hooks<'_, '_>,
    ) -> Result<RunSummary> {
        for remark in self.recipe.remarks() {
            tracing::warn!("{remark}");
        }
        let resumed = origin.as_ref().map(|origin| origin.checkpoint.step());
        hooks.folder.log.note("seed", self.seed)?;
        let before = match resumed {
            Some(step) => {
                hooks.folder.log.note("resumed", step)?;
                hooks.folder.load_before()
            }
            None if self.recipe.eval.as_ref().is_some_and(|eval| eval.before) => {
                let before = self.evaluate("before", &model, &data.held_out, hooks.folder)?;
                hooks.folder.save_before(&before)?;
                before
            }
            None => None,
        };
        if self.options.interrupter.should_stop() {
            return Err(hooks.saver.interrupted());
        }

        let tokens_before = origin.as_ref().map_or(0, |origin| origin.state.counters.tokens);
        let started = Instant::now();
        let outcome = self.fit(model, origin, data, hooks)?;
        let Hooks { folder, saver, watch } = hooks;
        let seconds = started.elapsed().as_secs_f64();
        let memory = watch.finish(&mut folder.log, self.progress)?;
        let counters = outcome.counters();
        // The last step of the recipe has been saved by the observer.
        let finished = outcome.stop == Stop::Finished;
        if !finished {
            let saved = saver.save(&outcome.model, outcome.state()?, None);
            if let Stop::Interrupted(_) = outcome.stop {
                saved?;
                return Err(saver.interrupted());
            }
            self.tell_unsaved(saved, counters.step, folder)?;
            let line = format!("the data ended after step {}", counters.step);
            self.progress.println(&line);
        }
        // Saved before it is measured, so that a failing evaluation cannot cost the training.
        let (model, adapter) = folder.save(self.recipe, &outcome.model, &self.tokenizer)?;
        let after = self.evaluate("after", &outcome.model, &data.held_out, folder)?;
        let summary = RunSummary {
            dir: self.dir.clone(),
            model,
            adapter,
            checkpoint: saver.newest.as_ref().map(|(_, dir)| dir.clone()),
            resumed,
            steps: counters.step,
            finished,
            tokens: counters.tokens,
            seconds,
            tokens_per_second: (counters.tokens - tokens_before) as f64 / seconds,
            first_loss: folder.losses.first().map_or(f64::NAN, |(_, loss)| *loss),
            last_loss: folder.losses.last().map_or(f64::NAN, |(_, loss)| *loss),
            memory,
            trainable,
            before,
            after,
            data: data.closing_report(),
            held_out: data.held_out_report.clone(),
        };
        folder.close(self.recipe, self.seed, &summary)?;
        self.progress.println(&format!("training documents: {}", summary.data));
        Ok(summary)
    }

    fn model<M: HasProjections>(
        &self,
        origin: Option<&Origin>,
        mixer: impl FnMut(&MixerSite<'_>) -> Result<M>,
    ) -> Result<Decoder<M>> {
        let mut stage = self.progress.stage("Model", None, "parameters");
        let from = origin.map(|origin| &*origin.checkpoint.dir);
        let device = &self.options.device;
        let model = load(self.recipe, self.seed, &self.config, from, device, mixer)?;
        stage.advance(params(&model).iter().map(|p| p.numel() as u64).sum());
        stage.finish();
        if self.recipe.lora.is_some() {
            // Better refused now than at the first save.
            peft::check_adapter(&model)?;
        }
        Ok(model)
    }

    fn fit<M: HasProjections>(
        &self,
        model: Decoder<M>,
        origin: Option<Origin>,
        data: &mut Data,
        Hooks { folder, saver, watch }: &mut Hooks<'_, '_>,
    ) -> Result<TrainOutcome<Decoder<M>>> {
        let mut trainer = Trainer::new(self.recipe.train.config(self.seed))?
            .with_interrupter(self.options.interrupter.clone())
            .with_terminal_view(self.options.terminal_view);
        let mut left = self.recipe.train.steps;
        if let Some(origin) = origin {
            left = left.saturating_sub(origin.checkpoint.step());
            trainer = trainer.resume(origin.state);
        }
        let mut stage = self.progress.stage("Training", Some(left), "steps");
        let Data { rows, held_out, .. } = data;
        watch.training();
        let mut observe = |step: &Step<'_, Decoder<M>>| {
            let report = step.report;
            folder.losses.push((report.step, report.loss));
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
            stage.message(watch.step(report, || folder.plot()));
            stage.work(report.tokens, "tokens");
            stage.advance(1);
            if !saver.due(report.step) {
                return Ok(());
            }
            let score = match self.recipe.checkpoints.evaluate {
                true => self.score(step, held_out, folder)?,
                false => None,
            };
            let saved = saver.save(step.model, step.state()?, score);
            self.tell_unsaved(saved, report.step, folder)
        };
        let mut rows = Tracked { rows, inputs: &self.inputs };
        let outcome = trainer.fit(model, &NextToken, &mut rows, &mut observe)?;
        stage.finish();
        Ok(outcome)
    }

    /// A run goes on without the checkpoint that it could not save: the earlier ones are intact,
    /// and the next may find room.
    fn tell_unsaved(&self, saved: Result<()>, step: u64, folder: &mut Folder) -> Result<()> {
        let Err(error) = saved else { return Ok(()) };
        self.progress.println(&format!("warning: no checkpoint of step {step}: {error}"));
        folder.log.note("checkpoint failed", format!("step {step}: {error}"))
    }

    /// Loss of the held-out documents in the middle of training. A failure is told, and costs
    /// nothing else.
    fn score<M: HasProjections>(
        &self,
        step: &Step<'_, Decoder<M>>,
        held_out: &[HeldOut],
        folder: &mut Folder,
    ) -> Result<Option<f64>> {
        let at = step.report.step;
        match self.recipe.evaluate(&step.model.valid(), held_out) {
            Ok(evaluation) => {
                if let Some(e) = &evaluation {
                    folder.log.eval(EvalRecord {
                        run: "train".into(),
                        name: "held_out_nll".into(),
                        x: vec![at as f64],
                        y: vec![e.mean_nll],
                        se: e.se.into_iter().collect(),
                    })?;
                }
                Ok(evaluation.map(|e| e.mean_nll))
            }
            Err(error) => {
                let line = format!("warning: no evaluation after step {at}: {error}");
                self.progress.println(&line);
                folder.log.note("evaluation failed", line)?;
                Ok(None)
            }
        }
    }

    fn evaluate<M: HasProjections>(
        &self,
        when: &str,
        model: &Decoder<M>,
        held_out: &[HeldOut],
        folder: &mut Folder,
    ) -> Result<Option<Evaluation>> {
        if self.recipe.eval.is_none() {
            return Ok(None);
        }
        let title = format!("Evaluation {when} training");
        let mut stage = self.progress.stage(&title, None, "tokens");
        let evaluation = self.recipe.evaluate(model, held_out)?;
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
    /// The configuration of the model that trains, positions extended and mixers swapped.
    ///
    /// # Errors
    /// When the checkpoint's configuration cannot be read or does not go with the recipe.
    pub fn model_config(&self) -> Result<ModelConfig> {
        let mut config = match self.base() {
            Some(path) => ModelConfig::from_file(&path.join("config.json"))?,
            None => self.new_config()?,
        };
        if let Some(extend) = &self.extend {
            config = extend.apply(&config).map_err(|e| self.about_extend(e))?;
        }
        self.check_length(&config)?;
        config.mixers = self.mixers(&config)?.iter().map(MixerConfig::in_inference).collect();
        Ok(config)
    }

    /// The mixer of each layer of the model that trains.
    ///
    /// # Errors
    /// [`Error::Parse`], pointing into the line, for a list that does not fit the layers, and for a
    /// mixer that does not fit its layer.
    pub fn mixers(&self, config: &ModelConfig) -> Result<Vec<MixerConfig>> {
        for (place, mixer) in self.mixer.named() {
            mixer.check_sizes(config.hidden_size).map_err(|e| self.within(&place, e))?;
        }
        let mixers = self.mixer.resolve(&config.mixers).map_err(|e| match e {
            Error::Config { field, value, expected, .. } => self.bad(&field, value, expected),
            other => other,
        })?;
        let (sizes, shape) = ((config.hidden_size, mixers.len()), config.attention());
        for (layer, mixer) in mixers.iter().enumerate() {
            let window = config.windows.get(layer).copied().flatten();
            if let Err(error) = mixer.check(sizes, shape.as_ref(), window) {
                return Err(self.within(&self.mixer.place(layer, mixers.len())?, error));
            }
        }
        Ok(mixers)
    }

    /// What is wrong with the section is said of the recipe, the rest of the file it is in.
    fn about_extend(&self, error: Error) -> Error {
        match error {
            Error::Config { ref file, .. } if file == "extend" => self.within("extend", error),
            other => other,
        }
    }
}
