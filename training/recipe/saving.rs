//! What the checkpoint of a recipe's run holds: the trained weights in Hugging Face or PEFT form
//! with configuration and tokenizer, the recipe, and the training state.

use super::output::{self, companions};
use super::resume::{Origin, Place, RECIPE, as_run};
use super::sections::Recipe;
use crate::attention::{HasProjections, MixerSite};
use crate::datasets::Tokenizer;
use crate::models::keymap::params;
use crate::models::weights::SaveDtype;
use crate::models::{Blocks, Decoder, ModelConfig, SaveOptions, gates, lora, peft};
use crate::training::TrainState;
use crate::{Error, Result};
use burn::tensor::Device;
use std::path::{Path, PathBuf};

/// Saves the checkpoints of one run.
pub(super) struct Saver<'a> {
    recipe: &'a Recipe,
    seed: u64,
    tokenizer: &'a Tokenizer,
    place: &'a Place,
    /// Least loss of the held-out documents so far.
    best: Option<f64>,
    /// Step and folder of the newest checkpoint.
    pub newest: Option<(u64, PathBuf)>,
}

impl<'a> Saver<'a> {
    pub fn new(
        recipe: &'a Recipe,
        seed: u64,
        tokenizer: &'a Tokenizer,
        place: &'a Place,
        origin: Option<&Origin>,
    ) -> Self {
        let best = origin.and_then(|origin| origin.state.counters.best);
        let newest = origin.map(|o| (o.checkpoint.step(), o.checkpoint.dir.clone()));
        Self { recipe, seed, tokenizer, place, best, newest }
    }

    /// The run stops here.
    pub fn interrupted(&self) -> Error {
        let (step, checkpoint) = self.newest.clone().unzip();
        Error::Interrupted { step: step.unwrap_or(0), checkpoint }
    }

    /// Whether the step is one to save after.
    pub fn due(&self, step: u64) -> bool {
        let every = self.recipe.checkpoints.every;
        step == self.recipe.train.steps || (every > 0 && step.is_multiple_of(every))
    }

    /// Save a run where it stands; `score` is the loss of the held-out documents, where measured.
    pub fn save<M: HasProjections>(
        &mut self,
        model: &Decoder<M>,
        mut state: TrainState,
        score: Option<f64>,
    ) -> Result<()> {
        let step = state.counters.step;
        if self.newest.as_ref().is_some_and(|(newest, _)| *newest == step) {
            return Ok(());
        }
        self.best = self.best.into_iter().chain(score).reduce(f64::min);
        state.counters.best = self.best;
        let adapted = self.recipe.lora.is_some() || self.recipe.mixer.seer().is_some();
        let stored = params(model).into_iter().filter(|p| p.trainable || !adapted);
        let bytes = 4 * stored.map(|p| p.numel() as u64).sum::<u64>() + state.bytes();
        let saved = self.place.checkpoints.save(step, bytes, score, |dir| {
            trained(self.recipe, model, self.tokenizer, dir, SaveDtype::F32)?;
            let path = dir.join(RECIPE);
            let recipe = serde_json::to_value(as_run(self.recipe, self.seed));
            output::write_json(&path, &recipe.map_err(|e| Error::io(&path, e.into()))?)?;
            state.write(dir)
        })?;
        self.newest = Some((step, saved.dir));
        Ok(())
    }
}

/// Write what a run trained into `dir`: the whole model, its adapter, or its gates. All with the
/// model's configuration, as the form of an adapter has no place for positions, which training may
/// have stretched, and with the tokenizer.
pub(super) fn trained<M: HasProjections>(
    recipe: &Recipe,
    model: &Decoder<M>,
    tokenizer: &Tokenizer,
    dir: &Path,
    dtype: SaveDtype,
) -> Result<()> {
    if let Some(config) = recipe.mixer.seer() {
        gates::save(model, config, dir)?;
        output::write_json(&dir.join("config.json"), &model.config().to_json(SaveDtype::F32))?;
    } else if recipe.lora.is_none() {
        let max_shard_bytes = recipe.output.max_shard_bytes;
        model.save(dir, &SaveOptions { dtype, max_shard_bytes })?;
    } else {
        let base = recipe.model.path.as_deref().unwrap_or(Path::new(""));
        peft::save_adapter(model, dir, &base.display().to_string())?;
        output::write_json(&dir.join("config.json"), &model.config().to_json(SaveDtype::F32))?;
    }
    companions(recipe, tokenizer, dir)
}

/// The model that a run begins or goes on with: from the checkpoint `from`, else from the
/// recipe's, or with new weights.
pub(super) fn load<M: HasProjections>(
    recipe: &Recipe,
    seed: u64,
    config: &ModelConfig,
    from: Option<&Path>,
    device: &Device,
    mixer: impl FnMut(&MixerSite<'_>) -> Result<M>,
) -> Result<Decoder<M>> {
    let gated = recipe.mixer.seer();
    let frozen = match gated {
        Some(_) => Some("a gate"),
        None => recipe.lora.as_ref().map(|_| "[lora]"),
    };
    if let (Some(dir), None) = (from, frozen) {
        return Decoder::load_sites(dir, config, seed, device, mixer);
    }
    if let (Some(trained), Some(path)) = (frozen, recipe.base()) {
        let stored = ModelConfig::from_file(&path.join("config.json"))?;
        if let Some(layer) = config.new_mixers(&stored).first() {
            let name = config.mixers[*layer].name();
            return Err(Error::Unsupported {
                what: format!(
                    "{trained} with a mixer whose weights {} does not have ({name}, layer {layer})",
                    path.display()
                ),
                remedy: format!(
                    "train the new mixer first, without {trained}, which would leave it as it was \
                     drawn"
                ),
            });
        }
    }
    let model = match recipe.base() {
        Some(path) => Decoder::load_sites(path, config, seed, device, mixer)?,
        None => Decoder::with_sites(config, seed, device, mixer)?,
    };
    if let Some(config) = gated {
        let model = gates::train_gates_only(model);
        return match from {
            Some(dir) => gates::fill(model, config, dir),
            None => Ok(model),
        };
    }
    match (&recipe.lora, from) {
        (None, _) => Ok(model),
        (Some(config), None) => {
            let config = config.clone().with_seed(config.seed.wrapping_add(seed));
            lora::apply(model, &config).map_err(|e| recipe.within("lora", e))
        }
        (Some(_), Some(dir)) => peft::load_adapter(model, dir),
    }
}
