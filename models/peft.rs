//! Adapters on disk, in the form of Hugging Face PEFT: `adapter_config.json` and
//! `adapter_model.safetensors`, which holds the low-rank updates *and* everything else that was
//! trained (`modules_to_save`), so that nothing is lost between training and merging.

mod config;

use super::keymap::{KeyMap, LlamaKeys, map_params, params, read_params};
use super::lora::{Role, Target, check_plain};
use super::weights::{RawTensor, SaveDtype, WeightFiles, write_atomic, write_safetensors};
use super::{Architecture, Blocks, Decoder};
use crate::attention::{HasProjections, Linear, Lora};
use crate::{Error, Result};
use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use config::AdapterConfig;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the names of the model that it wraps.
const PREFIX: &str = "base_model.model.";
const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";

/// Write the adapters and all other trained parameters of `model` into `dir` (made if need be).
/// `base` is the path or name of the checkpoint that they belong to.
///
/// Where a trained embedding is also the head, both are written, so that PEFT, which would
/// otherwise keep the old head, gives the same logits.
///
/// # Errors
/// [`Error::Unsupported`] when the model carries no adapters, when layers differ in what they
/// carry, or when parameters are trained that PEFT has no place for; or the disk.
pub fn save_adapter<M: HasProjections>(model: &Decoder<M>, dir: &Path, base: &str) -> Result<()> {
    check_family(model)?;
    let config = describe(model, base)?;
    let kept: Vec<String> = params(model)
        .into_iter()
        .filter(|p| p.trainable || p.path.contains(".lora."))
        .map(|p| p.path)
        .collect();
    let mut tensors = BTreeMap::new();
    for (path, shape, data) in read_params(model, |path| kept.iter().any(|k| k == path)) {
        let Some(key) = key_of(&path) else { continue };
        let tensor = RawTensor::from_f32(shape, &data, SaveDtype::F32)?;
        if config.ensure_weight_tying && path == "embed_tokens" {
            tensors.insert(key_of_module(HEAD), tensor.clone());
        }
        tensors.insert(key, tensor);
    }
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    write_safetensors(&dir.join(WEIGHTS), &tensors, &metadata)?;
    write_atomic(&dir.join(CONFIG), format!("{:#}\n", config.to_json()).as_bytes())
}

/// The base checkpoint that the adapter of a PEFT folder names: a path, or a name on a hub.
///
/// # Errors
/// Those of `adapter_config.json`, as in [`load_adapter`].
pub fn base_name(dir: &Path) -> Result<String> {
    Ok(AdapterConfig::read(&dir.join(CONFIG))?.base_model_name_or_path)
}

/// Whether [`save_adapter`] can write this model.
///
/// # Errors
/// [`Error::Unsupported`], as there.
pub fn check_adapter<M: HasProjections>(model: &Decoder<M>) -> Result<()> {
    describe(model, "").map(drop)
}

/// Put the adapters of a PEFT folder on `model` and replace the modules that it saves in full.
/// Both, and nothing else, train from here on. Dropout of the adapters is not taken over.
///
/// A folder that trains the embedding of a tied model without its head unties the model, as PEFT
/// does: the head keeps the old weights.
///
/// # Errors
/// [`Error::Config`] and [`Error::Unsupported`] name the field of `adapter_config.json` that is
/// wrong or cannot be honoured; [`Error::TensorMismatch`] lists all tensors that are missing,
/// unexpected or of another shape; [`Error::Weights`] tells of damaged files.
pub fn load_adapter<M: HasProjections>(model: Decoder<M>, dir: &Path) -> Result<Decoder<M>> {
    check_plain(&model)?;
    check_family(&model)?;
    let config = AdapterConfig::read(&dir.join(CONFIG))?;
    let files = open(dir)?;
    let surplus_head = find(&files, key_of_module(HEAD));
    let (mut model, tied) = match heads_part(&model, &config, &files)? {
        true => (model.untied(), false),
        false => (model, true),
    };
    check_modules(&model, &config, &dir.join(CONFIG))?;

    let mut expected = BTreeMap::new();
    let mut updates = Vec::new();
    for (layer, block) in model.layers.iter().enumerate() {
        for target in Target::ALL {
            let module = module_of(layer, target);
            if let Some(linear) = target.linear(block).filter(|_| config.targets(&module)) {
                let (from, to) = linear.features();
                let [a, b] = ["lora_A", "lora_B"]
                    .map(|part| find(&files, key_of_module(&format!("{module}.{part}"))));
                expected.insert(a.clone(), vec![config.r, from]);
                expected.insert(b.clone(), vec![to, config.r]);
                updates.push((layer, target, a, b));
            }
        }
    }
    let mut saved = HashMap::new();
    for p in params(&model) {
        if let Some(module) = saveable(&p.path).filter(|module| config.saves(module)) {
            let key = find(&files, key_of_module(&module));
            expected.insert(key.clone(), p.shape);
            saved.insert(p.path, key);
        }
    }
    files.check_names(&expected, |name| tied && name == surplus_head)?;

    for (layer, target, a, b) in updates {
        let Some(linear) = target.linear_mut(&mut model.layers[layer]) else { continue };
        let part = |key: &String| read_part(&files, key, &expected[key], linear);
        let (a, b) = (part(&a)?, part(&b)?);
        linear.lora = Some(Lora { a, b, alpha: config.lora_alpha, rslora: config.use_rslora });
    }
    let mut values = HashMap::new();
    for (path, key) in &saved {
        values.insert(path.clone(), files.load_f32(key)?);
    }
    let trains = |path: &str| path.contains(".lora.") || saved.contains_key(path);
    Ok(map_params(model, |path| values.remove(path), |path| Some(trains(path))))
}

/// GPT-NeoX keeps q, k and v as one layer on disk; PEFT puts one update on it, and here each of
/// the three has its own.
fn check_family<M: HasProjections>(model: &Decoder<M>) -> Result<()> {
    if model.config().architecture != Architecture::GptNeoX {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: "adapters in PEFT form for gpt_neox".into(),
        remedy: "merge them and save, or load, the whole model".into(),
    })
}

fn read_part(
    files: &WeightFiles,
    key: &str,
    shape: &[usize],
    linear: &Linear,
) -> Result<Param<Tensor<2>>> {
    let data = TensorData::new(files.load_f32(key)?, [shape[0], shape[1]]);
    let (device, dtype) = (linear.weight.device(), linear.weight.dtype());
    Ok(Param::from_tensor(Tensor::from_data(data, (&device, dtype))))
}

fn open(dir: &Path) -> Result<WeightFiles> {
    let path = dir.join(WEIGHTS);
    if !path.is_file() && dir.join("adapter_model.bin").is_file() {
        return Err(Error::Weights {
            file: dir.into(),
            reason: "holds its adapter as pickle only (adapter_model.bin), which can run code"
                .into(),
            remedy: "save it again in Python, where you trust it: \
                     PeftModel.from_pretrained(BASE, DIR).save_pretrained(NEW_DIR)"
                .into(),
        });
    }
    WeightFiles::open_file(&path)
}

/// Whether embedding and head of the loaded model have weights of their own.
fn heads_part<M: HasProjections>(
    model: &Decoder<M>,
    config: &AdapterConfig,
    files: &WeightFiles,
) -> Result<bool> {
    if model.lm_head.is_some() {
        return Ok(true);
    }
    let (embedding, head) = (config.saves(EMBEDDING), config.saves(HEAD));
    if !embedding && !head {
        return Ok(false);
    }
    let [embedding_key, head_key] = [EMBEDDING, HEAD].map(|m| find(files, key_of_module(m)));
    match (files.shape(&embedding_key), files.shape(&head_key)) {
        (Some(_), Some(_)) => Ok(files.load_f32(&embedding_key)? != files.load_f32(&head_key)?),
        (_, Some(_)) => Ok(true),
        (_, None) => Ok(!config.ensure_weight_tying),
    }
}

/// Every name in the configuration must be one of the model's modules, and of the right kind.
fn check_modules<M: HasProjections>(
    model: &Decoder<M>,
    config: &AdapterConfig,
    file: &Path,
) -> Result<()> {
    let linears: Vec<String> = (0..model.layers.len())
        .flat_map(|layer| Target::ALL.map(|target| module_of(layer, target)))
        .collect();
    let saveable: Vec<String> =
        params(model).iter().filter_map(|p| saveable(&p.path)).chain([HEAD.to_string()]).collect();
    let unsupported = |field: &str, name: &str, expected: &str| {
        Err(Error::config(file.display().to_string(), field, format!("`{name}`"), expected))
    };
    for name in &config.target_modules {
        if !linears.iter().any(|module| config::is_target(module, name)) {
            let expected = "the name of a projection in the blocks: q_proj, k_proj, v_proj, \
                            o_proj, gate_proj, up_proj or down_proj";
            return unsupported("target_modules", name, expected);
        }
    }
    for name in &config.modules_to_save {
        let known = saveable.iter().any(|module| module.ends_with(name));
        if !known || linears.iter().any(|module| module.ends_with(name)) {
            let expected = "the embedding, the head or norms of this model";
            return unsupported("modules_to_save", name, expected);
        }
    }
    Ok(())
}

/// What `adapter_config.json` must say for this model.
fn describe<M: HasProjections>(model: &Decoder<M>, base: &str) -> Result<AdapterConfig> {
    let refuse = |what: String| {
        Err(Error::Unsupported {
            what: format!("a PEFT folder for {what}"),
            remedy: "merge the adapters and save the whole model".into(),
        })
    };
    let mut found: Option<&Lora> = None;
    let mut target_modules = Vec::new();
    for target in Target::ALL {
        let update = |block| target.linear::<M>(block)?.lora.as_ref();
        let updates: Vec<&Lora> = model.layers.iter().filter_map(update).collect();
        if updates.is_empty() {
            continue;
        }
        let name = target.hf_name();
        let first = *found.get_or_insert(updates[0]);
        let differs =
            |l: &&Lora| (l.rank(), l.alpha, l.rslora) != (first.rank(), first.alpha, first.rslora);
        if updates.len() != model.layers.len() || updates.iter().any(differs) {
            return refuse(format!("adapters that differ between layers ({name})"));
        }
        target_modules.push(name.to_string());
    }
    let Some(lora) = found else {
        return refuse("a model without adapters".into());
    };
    // Per kind of module, whether it trains; the same in all layers.
    let mut kinds: BTreeMap<String, bool> = BTreeMap::new();
    for p in params(model) {
        let Some(module) = saveable(&p.path) else {
            if p.trainable && !p.path.contains(".lora.") {
                return refuse(format!("a model whose `{}` was trained in full", p.path));
            }
            continue;
        };
        let kind = kind_of(&module);
        if *kinds.entry(kind.clone()).or_insert(p.trainable) != p.trainable {
            return refuse(format!("a model of which some `{kind}` were trained and some not"));
        }
    }
    let mut modules_to_save: Vec<String> =
        kinds.into_iter().filter_map(|(kind, trains)| trains.then_some(kind)).collect();
    let trains_head =
        model.lm_head.is_none() && modules_to_save.iter().any(|m| m == "embed_tokens");
    if trains_head {
        modules_to_save.push(HEAD.into());
    }
    Ok(AdapterConfig {
        r: lora.rank(),
        lora_alpha: lora.alpha,
        use_rslora: lora.rslora,
        target_modules,
        modules_to_save,
        ensure_weight_tying: trains_head,
        base_model_name_or_path: base.into(),
    })
}

/// Name of a layer's projection without `.weight`.
fn module_of(layer: usize, target: Target) -> String {
    let part = match target {
        Target::Q | Target::K | Target::V | Target::O => "self_attn",
        Target::Gate | Target::Up | Target::Down => "mlp",
    };
    format!("model.layers.{layer}.{part}.{}", target.hf_name())
}

/// Name of the module that a parameter makes up, where `modules_to_save` can hold it.
fn saveable(path: &str) -> Option<String> {
    match Role::of(path)? {
        Role::Embedding | Role::Norm | Role::QkNorm | Role::Head => {
            LlamaKeys.to_hf(path)?.strip_suffix(".weight").map(Into::into)
        }
        Role::Bias => None,
    }
}

/// The name in `modules_to_save`, which PEFT compares with the ends of module names: a bare
/// "norm" would catch every norm there is.
fn kind_of(module: &str) -> String {
    match module.rsplit_once('.') {
        Some((_, last)) if last != "norm" => last.into(),
        _ => module.into(),
    }
}

/// Name in the file of what is stored for the parameter at `path`.
fn key_of(path: &str) -> Option<String> {
    for (end, part) in [(".lora.a", ".lora_A"), (".lora.b", ".lora_B")] {
        if let Some(linear) = path.strip_suffix(end) {
            let weight = LlamaKeys.to_hf(&format!("{linear}.weight"))?;
            return Some(key_of_module(&format!("{}{part}", weight.strip_suffix(".weight")?)));
        }
    }
    saveable(path).map(|module| key_of_module(&module))
}

fn key_of_module(module: &str) -> String {
    format!("{PREFIX}{module}.weight")
}

/// The spelling of `key` that the file has: older versions of PEFT left the adapter's name in,
/// and the wrapper around saved modules.
fn find(files: &WeightFiles, key: String) -> String {
    let stem = key.strip_suffix(".weight").unwrap_or(&key);
    [".default", ".modules_to_save", ".modules_to_save.default"]
        .map(|infix| format!("{stem}{infix}.weight"))
        .into_iter()
        .find(|old| files.shape(&key).is_none() && files.shape(old).is_some())
        .unwrap_or(key)
}
