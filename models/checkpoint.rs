//! Decoders from and to folders in Hugging Face form.

use super::decoder::Draws;
use super::keymap::{PROJ, in_mixer, map_params, params, read_params};
use super::weights::{HostTensor, SaveDtype, WeightFiles, save_weights, write_atomic};
use super::{Blocks, Decoder, ModelConfig, stored};
use crate::attention::{AttnProjections, Mixer, MixerSchedule, MixerSite, SequenceMixer};
use crate::{Error, Result};
use burn::tensor::Device;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// How a checkpoint is written.
#[derive(Clone, Debug)]
pub struct SaveOptions {
    /// Number format of the weights.
    pub dtype: SaveDtype,
    /// Split into files of at most this many bytes.
    pub max_shard_bytes: Option<u64>,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self { dtype: SaveDtype::F32, max_shard_bytes: None }
    }
}

impl Decoder<Mixer> {
    /// Read `config.json` and the weights of a folder, with the mixers that `mixer` names;
    /// [`MixerSchedule::Own`] are the checkpoint's.
    ///
    /// # Errors
    /// Unreadable, damaged or mismatching files: see [`crate::Error`]; nothing is half-loaded.
    /// [`Error::Unsupported`] where a layer would need weights that the folder does not have.
    pub fn load(dir: &Path, mixer: impl Into<MixerSchedule>, device: &Device) -> Result<Self> {
        let own = ModelConfig::from_file(&dir.join("config.json"))?;
        let (config, mixers) = own.with_mixers(&mixer.into())?;
        if let Some(layer) = config.new_mixers(&own).first() {
            return Err(Error::Unsupported {
                what: format!(
                    "{} has no weights for the mixer {} of layer {layer}",
                    dir.display(),
                    mixers[*layer].name()
                ),
                remedy: "take the checkpoint's own mixers, or train new ones (longburn train, \
                         Decoder::convert)"
                    .into(),
            });
        }
        Self::load_sites(dir, &config, 0, device, |site| mixers[site.layer].build(site))
    }

    /// The same with the configuration `config` in the place of the folder's (other positions,
    /// say), and with new weights, drawn with `seed`, for mixers that the folder has none for. Of
    /// what is replaced, q, k, v and o stay where the new mixer has them, too.
    ///
    /// # Errors
    /// As [`Decoder::load`], and when `config` has other sizes than the weights.
    pub fn convert(
        dir: &Path,
        config: &ModelConfig,
        mixer: impl Into<MixerSchedule>,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let (config, mixers) = config.with_mixers(&mixer.into())?;
        Self::load_sites(dir, &config, seed, device, |site| mixers[site.layer].build(site))
    }
}

impl<M: SequenceMixer> Decoder<M> {
    /// Read the weights of a folder into a model whose mixers `mixer` builds.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_with(
        dir: &Path,
        config: &ModelConfig,
        device: &Device,
        mut mixer: impl FnMut(usize, AttnProjections) -> Result<M>,
    ) -> Result<Self> {
        Self::load_sites(dir, config, 0, device, |site| mixer(site.layer, site.projections()?))
    }

    /// The same for mixers that are built for a place in the model. Those that differ in their
    /// weights from what the folder remembers are drawn with `seed`.
    pub(crate) fn load_sites(
        dir: &Path,
        config: &ModelConfig,
        seed: u64,
        device: &Device,
        mixer: impl FnMut(&MixerSite<'_>) -> Result<M>,
    ) -> Result<Self> {
        let files = config.open_weights(dir)?;
        let file = dir.join("config.json");
        let mixers = match file.is_file() {
            true => ModelConfig::from_file(&file)?.mixers,
            false => config.mixers.clone(),
        };
        let mut before = config.clone();
        before.mixers = mixers;
        let fresh = config.new_mixers(&before);
        check_sizes(&before, &files)?;
        let draws = Draws::mixers(seed, fresh.clone());
        Self::build(config, &draws, device, mixer)?.take_weights(&files, &fresh)
    }

    /// Replace all stored weights by those of `files`.
    ///
    /// # Errors
    /// [`Error::TensorMismatch`] with all missing, unexpected and mis-shaped names.
    pub fn load_weights(self, files: &WeightFiles) -> Result<Self> {
        self.take_weights(files, &BTreeSet::new())
    }

    /// The same; the mixers of the layers `fresh` keep what the files do not have for them.
    fn take_weights(self, files: &WeightFiles, fresh: &BTreeSet<usize>) -> Result<Self> {
        let config = self.config();
        let (keys, heads) = (config.architecture.keys(), config.num_attention_heads);
        let is_fresh = |path: &str| in_mixer(path).is_some_and(|layer| fresh.contains(&layer));
        let all: BTreeMap<String, Vec<usize>> = params(&self)
            .into_iter()
            .filter_map(|p| keys.to_hf(&p.path).map(|name| (name, p.shape)))
            .collect();
        let stored = stored::shapes(all.clone());
        // Of a replaced mixer, the projections that all attention shares are taken over.
        let there = |name: &str| {
            let path = keys.to_path(name).unwrap_or_default();
            let (name, _) = stored::place(name);
            let same = || files.shape(&name) == stored.get(&name).map(Vec::as_slice);
            !is_fresh(&path) || (path.contains(PROJ) && same())
        };
        let named: BTreeMap<String, Vec<usize>> =
            all.into_iter().filter(|(name, _)| there(name)).collect();
        let left = |name: &str| {
            let (whole, _) = stored::place(name);
            let of = |name: &str| keys.to_path(name).is_some_and(|path| is_fresh(&path));
            config.may_hold(name) || of(&whole) || of(name)
        };
        files.check_names(&stored::shapes(named.clone()), left)?;
        let mut values = HashMap::new();
        for name in named.keys() {
            let value = stored::part_of(name, heads, |name| files.load_f32(name))?;
            values.insert(name.clone(), value);
        }
        let value = |path: &str| keys.to_hf(path).and_then(|name| values.remove(&name));
        Ok(map_params(self, value, |_| None))
    }

    /// Weights under their Hugging Face names, adapters left out.
    pub fn hf_tensors(&self) -> Vec<HostTensor> {
        let config = self.config();
        let keys = config.architecture.keys();
        let named = read_params(self, |path| keys.to_hf(path).is_some())
            .into_iter()
            .filter_map(|(path, shape, data)| {
                keys.to_hf(&path).map(|name| HostTensor { name, shape, data })
            })
            .collect();
        stored::join(named, config.num_attention_heads)
    }

    /// Write `config.json` and the weights in a form that `transformers` loads. Gates are no part
    /// of a checkpoint; [`gates::save`](super::gates::save) writes them.
    ///
    /// # Errors
    /// When the folder cannot be written, or the model still carries adapters (merge them or
    /// write them as adapters).
    pub fn save(&self, dir: &Path, options: &SaveOptions) -> Result<()> {
        if params(self).iter().any(|p| p.path.contains(".lora.")) {
            return Err(Error::Unsupported {
                what: "saving a model that carries LoRA adapters as a plain checkpoint".into(),
                remedy: "merge the adapters first, or save them as a PEFT folder".into(),
            });
        }
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        save_weights(dir, &self.hf_tensors(), options.dtype, options.max_shard_bytes)?;
        let config = self.config().to_json(options.dtype);
        let text = serde_json::to_string_pretty(&config).map_err(|e| Error::Parse {
            file: "config.json".into(),
            message: e.to_string(),
            text: None,
            span: None,
        })?;
        write_atomic(&dir.join("config.json"), text.as_bytes())
    }
}

impl ModelConfig {
    /// Open the weights of a folder under the names that `transformers` has for this family.
    ///
    /// # Errors
    /// As [`WeightFiles::open`].
    pub fn open_weights(&self, dir: &Path) -> Result<WeightFiles> {
        WeightFiles::open(dir)?.renamed(|name| self.architecture.present_name(name))
    }
}

/// The sizes that a configuration declares must be those of the embedding on disk, and those of
/// all layers about what the files hold, before anything of those sizes is allocated.
fn check_sizes(config: &ModelConfig, files: &WeightFiles) -> Result<()> {
    let name = config.architecture.keys().to_hf("embed_tokens").unwrap_or_default();
    let declared = [config.vocab_size, config.hidden_size];
    if let Some(shape) = files.shape(&name).filter(|s| *s != declared) {
        return Err(Error::config(
            "config.json",
            "vocab_size, hidden_size",
            format!("{declared:?}"),
            format!("{shape:?}, the shape of {name}"),
        ));
    }
    let elements = |shape: &[usize]| shape.iter().fold(1usize, |n, axis| n.saturating_mul(*axis));
    let expected = config.tensor_shapes();
    let declared = expected.values().fold(0usize, |n, shape| n.saturating_add(elements(shape)));
    let stored = files.names().filter_map(|name| files.shape(name)).map(elements).sum::<usize>();
    // Mixers of one's own may have fewer weights than attention, but not by so much.
    if declared / 4 > stored {
        files.check_names(&expected, |name| config.may_hold(name))?;
    }
    Ok(())
}
