//! Gates of SeerAttention beside a model: drawn, trained alone, saved and loaded without the
//! model's own weights.
//!
//! The file has the names that the authors' checkpoints use,
//! `model.layers.0.self_attn.attn_gate.mask_linear_k.weight` and so on; a model whose gates are
//! saved stays the checkpoint that it was.

use super::decoder::STREAMS_PER_BLOCK;
use super::keymap::{in_mixer, map_params, params, read_params};
use super::weights::{RawTensor, SaveDtype, WeightFiles, write_safetensors};
use super::{Block, Decoder};
use crate::attention::seer::Select;
use crate::attention::{Mixer, MixerConfig, MixerSchedule, SeerConfig, SequenceMixer};
use crate::streams::Streams;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Name of the file in a model's folder.
pub const GATE_FILE: &str = "attn_gate_weights.safetensors";
/// Entry of its header that holds the settings that the gates were made with.
const SETTINGS: &str = "seer";
/// Entry with the numbers of the layers that have gates.
const LAYERS: &str = "seer_layers";
/// Settings without which the weights mean nothing.
const MEANING: [&str; 8] =
    ["gate", "block", "gate_dim", "q_pool", "k_pool", "force_double", "head_pool", "qk_norm"];

/// Whether a parameter is one of a gate.
pub(crate) fn is_gate(path: &str) -> bool {
    path.contains(".attn_gate.")
}

/// Whether the model has gates.
pub fn has_gates<M: SequenceMixer>(model: &Decoder<M>) -> bool {
    params(model).iter().any(|p| is_gate(&p.path))
}

/// Give every layer of [`SeerConfig`] a gate with random weights, unless it has one, and let
/// nothing but gates train.
///
/// # Errors
/// [`Error::Unsupported`] where no layer takes a gate, [`Error::Config`] where one does not fit.
///
/// ```
/// use longburn::attention::{MixerConfig, SeerConfig};
/// use longburn::models::{Decoder, ModelConfig, gates};
/// let config = ModelConfig::llama(256, 32, 2, 4);
/// let seer = MixerConfig::Seer(SeerConfig::new());
/// let model = Decoder::new(&config, &seer, 0, &burn::tensor::Device::default())?;
/// let model = gates::prepare(model, 0)?;
/// assert!(gates::has_gates(&model));
/// # Ok::<(), longburn::Error>(())
/// ```
pub fn prepare(model: Decoder, seed: u64) -> Result<Decoder> {
    Ok(train_gates_only(with_gates(model, seed)?))
}

/// Let gates train, and nothing else.
pub fn train_gates_only<M: SequenceMixer>(model: Decoder<M>) -> Decoder<M> {
    map_params(model, |_| None, |path| Some(is_gate(path)))
}

fn with_gates(mut model: Decoder, seed: u64) -> Result<Decoder> {
    let streams = Streams::new(seed);
    let layers = std::mem::take(&mut model.layers).into_iter().enumerate();
    let add = |(layer, block): (usize, Block<Mixer>)| {
        let mixer = block.self_attn.with_gate(&streams, gate_stream(layer))?;
        Ok(Block { self_attn: mixer, ..block })
    };
    model.layers = layers.map(add).collect::<Result<_>>()?;
    if has_gates(&model) {
        return Ok(model);
    }
    Err(Error::Unsupported {
        what: "gates in a model without a layer that takes one".into(),
        remedy: "use the mixer \"seer\"".into(),
    })
}

/// Random stream of a layer's gate, between those of its projections and of low-rank updates.
pub(crate) fn gate_stream(layer: usize) -> u32 {
    STREAMS_PER_BLOCK * (layer as u32 + 1) + 7
}

/// Write the weights of all gates, and no others, into the folder `dir`.
///
/// # Errors
/// [`Error::Unsupported`] without gates; the disk.
pub fn save<M: SequenceMixer>(model: &Decoder<M>, config: &SeerConfig, dir: &Path) -> Result<()> {
    let found = read_params(model, is_gate);
    if found.is_empty() {
        return Err(Error::Unsupported {
            what: "saving the gates of a model that has none".into(),
            remedy: "prepare or load some first".into(),
        });
    }
    let layers: BTreeSet<usize> = found.iter().filter_map(|(path, ..)| in_mixer(path)).collect();
    let tensors: BTreeMap<String, RawTensor> = found
        .into_iter()
        .map(|(path, shape, data)| {
            Ok((format!("model.{path}"), RawTensor::from_f32(shape, &data, SaveDtype::F32)?))
        })
        .collect::<Result<_>>()?;
    let settings = serde_json::to_string(config).map_err(|e| Error::io(dir, e.into()))?;
    let layers = serde_json::to_string(&layers).map_err(|e| Error::io(dir, e.into()))?;
    let metadata = BTreeMap::from([
        ("format".to_string(), "pt".to_string()),
        (SETTINGS.to_string(), settings),
        (LAYERS.to_string(), layers),
    ]);
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    write_safetensors(&dir.join(GATE_FILE), &tensors, &metadata)
}

/// The settings that the gates of a file, or of the file of a folder, were saved with.
///
/// # Errors
/// As [`WeightFiles::open_file`]; [`Error::Parse`] where the file does not say, or says what is no
/// settings; [`Error::Config`] with the file's name for settings that cannot be used.
pub fn settings(path: &Path) -> Result<SeerConfig> {
    let file = file_of(path);
    settings_of(&file, &WeightFiles::open_file(&file)?)
}

fn settings_of(file: &Path, files: &WeightFiles) -> Result<SeerConfig> {
    let Some(text) = files.metadata().get(SETTINGS) else {
        return Err(Error::Parse {
            file: file.display().to_string(),
            message: format!(
                "the header has no entry `{SETTINGS}` with the settings of the gates (remedy: load \
                 such a file with models::gates::load, which takes the model's settings)"
            ),
            text: None,
            span: None,
        });
    };
    let config: SeerConfig =
        serde_json::from_str(text).map_err(|e| parse_error(file, SETTINGS, &e))?;
    let sizes = || MixerConfig::Seer(config.clone()).check_sizes(1);
    config.validate().and_then(|()| sizes()).map_err(|e| match e {
        Error::Config { field, value, expected, .. } => {
            let file = file.display().to_string();
            Error::config(file, format!("{SETTINGS}.{field}"), value, expected)
        }
        other => other,
    })?;
    Ok(config)
}

/// Layers that the file has gates for: those that it says, else those of its tensors.
fn layers(file: &Path, files: &WeightFiles) -> Result<BTreeSet<usize>> {
    let of_name = |name: &str| in_mixer(name.strip_prefix("model.")?);
    let Some(text) = files.metadata().get(LAYERS) else {
        return Ok(files.names().filter_map(of_name).collect());
    };
    serde_json::from_str(text).map_err(|e| parse_error(file, LAYERS, &e))
}

/// The mixers of a model that has `own`, with those that take gates in the layers for which the
/// file, or the file of the folder, was saved with some. `select` takes the place of the rule that they were
/// saved with.
///
/// # Errors
/// As [`settings`]; [`Error::Config`] for a rule that they do not have, and for layers that the model does not have, or has without
/// attention.
pub fn mixers(path: &Path, own: &[MixerConfig], select: Option<Select>) -> Result<MixerSchedule> {
    let GateSummary { settings, layers, .. } = GateSummary::read(path)?;
    let select = select.or(settings.select);
    let settings = settings.with_select(select);
    settings.validate()?;
    for layer in &layers {
        let expected = match own.get(*layer) {
            None => format!("layers below {}, as many as the model has", own.len()),
            Some(own) if own.has_projections_only() => continue,
            Some(own) => format!("layers with attention; the model's is {}", own.name()),
        };
        let file = file_of(path).display().to_string();
        return Err(Error::config(file, "layers with gates", layer, expected));
    }
    let mixers = own.iter().enumerate().map(|(layer, own)| match layers.contains(&layer) {
        true => MixerConfig::Seer(settings.clone()),
        false => own.clone(),
    });
    Ok(MixerSchedule::of(&mixers.collect::<Vec<_>>()))
}

/// What a file of gates says of itself, from its header.
#[derive(Clone, Debug)]
pub struct GateSummary {
    /// What the gates were made with.
    pub settings: SeerConfig,
    /// Layers that have one.
    pub layers: BTreeSet<usize>,
    /// Shapes of all tensors.
    pub shapes: Vec<Vec<usize>>,
}

impl GateSummary {
    /// Of a file, or of the file of a folder.
    ///
    /// # Errors
    /// As [`settings`].
    pub fn read(path: &Path) -> Result<Self> {
        let file = file_of(path);
        let files = WeightFiles::open_file(&file)?;
        Ok(Self {
            settings: settings_of(&file, &files)?,
            layers: layers(&file, &files)?,
            shapes: files.names().filter_map(|name| Some(files.shape(name)?.to_vec())).collect(),
        })
    }
}

fn file_of(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(GATE_FILE) } else { path.into() }
}

fn parse_error(file: &Path, entry: &str, error: &serde_json::Error) -> Error {
    Error::Parse {
        file: file.display().to_string(),
        message: format!("header entry `{entry}`: {error}"),
        text: None,
        span: None,
    }
}

/// The model with the gates of a file, or of the file of a folder.
///
/// # Errors
/// As [`WeightFiles::open_file`]; [`Error::Config`] where the file says that its gates were made
/// with other settings; [`Error::TensorMismatch`] for missing, unexpected or mis-shaped weights.
pub fn load(model: Decoder, path: &Path) -> Result<Decoder> {
    let model = with_gates(model, 0)?;
    let config = model.layers.iter().find_map(|block| block.self_attn.seer()).cloned();
    fill(model, &config.unwrap_or_default(), path)
}

/// The same for a model that has its gates.
pub(crate) fn fill<M: SequenceMixer>(
    model: Decoder<M>,
    config: &SeerConfig,
    path: &Path,
) -> Result<Decoder<M>> {
    let file = file_of(path);
    let files = WeightFiles::open_file(&file)?;
    if let Some(text) = files.metadata().get(SETTINGS) {
        check_settings(&file, text, config)?;
    }
    let named: BTreeMap<String, Vec<usize>> = params(&model)
        .into_iter()
        .filter(|p| is_gate(&p.path))
        .map(|p| (format!("model.{}", p.path), p.shape))
        .collect();
    files.check_names(&named, |_| false)?;
    let mut values = HashMap::new();
    for name in named.keys() {
        values.insert(name.clone(), files.load_f32(name)?);
    }
    Ok(map_params(model, |path| values.remove(&format!("model.{path}")), |_| None))
}

fn meaning(config: &SeerConfig) -> serde_json::Map<String, Value> {
    let all = serde_json::to_value(config).unwrap_or(Value::Null);
    MEANING.iter().map(|field| (field.to_string(), all[*field].clone())).collect()
}

fn check_settings(file: &Path, text: &str, config: &SeerConfig) -> Result<()> {
    let stored: Value = serde_json::from_str(text).map_err(|e| parse_error(file, SETTINGS, &e))?;
    for (field, wanted) in meaning(config) {
        let found = &stored[&field];
        if *found != wanted {
            let expected = format!("{wanted}, as the mixer's settings have it");
            let file = file.display().to_string();
            return Err(Error::config(file, format!("{SETTINGS}.{field}"), found, expected));
        }
    }
    Ok(())
}
