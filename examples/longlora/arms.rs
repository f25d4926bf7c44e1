//! The base model and its four extensions.

use crate::recipe::Recipe;
use crate::text::Text;
use burn::tensor::Device;
use longburn::Result;
use longburn::attention::{LongLoraConfig, MixerConfig};
use longburn::datasets::TokenBatch;
use longburn::models::lora::{self, LoraConfig, TrainableReport};
use longburn::models::{Decoder, SaveOptions, peft};
use longburn::training::report::{MetricsLog, Progress, TrainRecord};
use longburn::training::{NextToken, TrainConfig, Trainer};
use std::path::Path;

/// A way to make a model of 128 tokens one of 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// Positions squeezed, nothing trained.
    Interpolation,
    /// Low-rank updates alone, shifted sparse attention in training.
    Lora,
    /// The paper: low-rank updates, embedding and norms, shifted sparse attention in training.
    LongLora,
    /// The same parameters, dense attention in training: the yardstick.
    LongLoraDense,
}

impl Arm {
    pub const ALL: [Self; 4] =
        [Self::Interpolation, Self::Lora, Self::LongLora, Self::LongLoraDense];
    pub const TRAINED: [Self; 3] = [Self::Lora, Self::LongLora, Self::LongLoraDense];

    pub fn title(self) -> &'static str {
        match self {
            Self::Interpolation => "interpolation, untrained",
            Self::Lora => "plain LoRA",
            Self::LongLora => "LongLoRA",
            Self::LongLoraDense => "LongLoRA, trained densely",
        }
    }

    /// Name of its folder and in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interpolation => "interpolation",
            Self::Lora => "lora",
            Self::LongLora => "longlora",
            Self::LongLoraDense => "longlora-dense",
        }
    }

    fn mixer(self, recipe: &Recipe) -> MixerConfig {
        match self {
            Self::Interpolation | Self::LongLoraDense => MixerConfig::Dense,
            Self::Lora | Self::LongLora => MixerConfig::LongLora(
                LongLoraConfig::new().with_group_ratio(recipe.extend.group_ratio),
            ),
        }
    }

    fn policy(self, recipe: &Recipe, seed: u64) -> LoraConfig {
        let policy = match self {
            Self::Lora => LoraConfig::new(),
            _ => LoraConfig::longlora(),
        };
        policy.with_rank(recipe.extend.rank).with_alpha(recipe.extend.alpha).with_seed(seed)
    }
}

/// Everything that is evaluated for one seed; all mixers dense, all adapters merged.
pub struct Models {
    pub base: Decoder,
    pub arms: Vec<(Arm, Decoder)>,
    /// Parameters in all, and those that each arm trained.
    pub parameters: usize,
    pub trainable: Vec<(Arm, usize)>,
}

/// Train everything and write checkpoints, adapters and metrics below `folder`.
pub fn train(
    recipe: &Recipe,
    text: &Text,
    seed: u64,
    folder: &Path,
    progress: &Progress,
) -> Result<Models> {
    let device = Device::flex();
    std::fs::create_dir_all(folder).map_err(|e| longburn::Error::io(folder, e))?;
    let log = folder.join("metrics.jsonl");
    // A new run replaces the figures of an earlier one in the same folder.
    std::fs::write(&log, "").map_err(|e| longburn::Error::io(&log, e))?;
    let mut log = MetricsLog::open(log)?;
    let save = |model: &Decoder, name: &str| -> Result<()> {
        let dir = folder.join("checkpoints").join(name);
        model.save(&dir, &SaveOptions::default())?;
        text.tokenizer.save(&dir)
    };

    let config = recipe.model(text.tokenizer.vocab_size());
    let model = Decoder::new(&config, &MixerConfig::Dense, seed, &device)?;
    let parameters = TrainableReport::of(&model).total;
    let shape = (recipe.base.length, recipe.base.batch);
    let mut rows = text.rows(shape, |step| recipe.base_rows(step), seed)?;
    let training = recipe.base_training(seed);
    let title = format!("base model, {} tokens, seed {seed}", recipe.base.length);
    let base = fit(model, training, &mut rows, "base", &title, &mut log, progress)?;
    save(&base, "base")?;

    let factor = recipe.factor();
    let mut arms = Vec::new();
    let mut trainable = Vec::new();
    for arm in Arm::ALL {
        let model = base.clone().with_rope(recipe.rope(factor), recipe.base.length)?;
        let model = match arm {
            Arm::Interpolation => model,
            _ => {
                let model = model.swap_mixer(arm.mixer(recipe))?;
                let model = lora::apply(model, &arm.policy(recipe, seed))?;
                trainable.push((arm, TrainableReport::of(&model).trainable));
                let extend = &recipe.extend;
                let shape = (extend.length, extend.batch);
                // All arms see the same rows in the same order.
                let mut rows = text.rows(shape, |_| extend.rows, seed.wrapping_add(1000))?;
                let title = format!("{}, {} tokens, seed {seed}", arm.title(), extend.length);
                let training = recipe.extension(seed);
                let model =
                    fit(model, training, &mut rows, arm.name(), &title, &mut log, progress)?;
                let adapter = folder.join("adapters").join(arm.name());
                peft::save_adapter(&model, &adapter, "../../checkpoints/base")?;
                lora::merge(model).swap_mixer(&MixerConfig::Dense)?
            }
        };
        save(&model, arm.name())?;
        arms.push((arm, model));
    }
    Ok(Models { base, arms, parameters, trainable })
}

fn fit(
    model: Decoder,
    config: TrainConfig,
    rows: &mut impl FnMut(u64, u32) -> Result<Option<TokenBatch>>,
    run: &str,
    title: &str,
    log: &mut MetricsLog,
    progress: &Progress,
) -> Result<Decoder> {
    let mut stage = progress.stage(title, Some(config.steps), "steps");
    let mut smooth = None;
    let outcome = Trainer::new(config)?.fit(model, &NextToken, rows, &mut |step| {
        let report = step.report;
        let loss = smooth.map_or(report.loss, |old: f64| 0.98 * old + 0.02 * report.loss);
        smooth = Some(loss);
        stage.message(format!("loss {loss:.3}"));
        stage.work(report.tokens, "tokens");
        stage.advance(1);
        log.train(TrainRecord {
            run: run.into(),
            step: report.step,
            tokens: report.total_tokens,
            loss: report.loss,
            lr: report.lr,
            grad_norm: Some(report.grad_norm),
            tokens_per_second: Some(report.tokens_per_second),
            ..TrainRecord::default()
        })
    })?;
    stage.finish();
    Ok(outcome.model)
}
