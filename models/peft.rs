//! Adapters on disk, in the form of Hugging Face PEFT: `adapter_config.json` and
//! `adapter_model.safetensors`, which holds the low-rank updates *and* everything else that was
//! trained (`modules_to_save`), so that nothing is lost between training and merging.

mod config;
mod fused;
mod names;
mod summary;

pub use summary::AdapterSummary;

use super::keymap::{map_params, params, read_params};
use super::lora::{Target, check_plain};
use super::weights::{
    HostTensor, RawTensor, SaveDtype, WeightFiles, write_atomic, write_safetensors,
};
use super::{Blocks, Decoder, stored};
use crate::attention::{HasProjections, Linear, Lora};
use crate::{Error, Result};
use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use config::AdapterConfig;
use fused::{Fused, cut};
use names::{Names, weight_of, without_leaf};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

const CONFIG: &str = "adapter_config.json";
pub(crate) const WEIGHTS: &str = "adapter_model.safetensors";

/// Write the adapters and all other trained parameters of `model` into `dir` (made if need be).
/// `base` is the path or name of the checkpoint that they belong to.
///
/// Where a trained embedding is also the head, both are written, so that PEFT, which would
/// otherwise keep the old head, gives the same logits. GPT-NeoX has q, k and v in one layer, for
/// which PEFT has one update: those of the three are written as one, of the sum of their ranks
/// unless they have the same A.
///
/// # Errors
/// [`Error::Unsupported`] when the model carries no adapters, when layers differ in what they
/// carry, or when parameters are trained that PEFT has no place for; or the disk.
pub fn save_adapter<M: HasProjections>(model: &Decoder<M>, dir: &Path, base: &str) -> Result<()> {
    let (config, fused) = describe(model, base)?;
    let names = names(model);
    let kept: Vec<String> = params(model)
        .into_iter()
        .filter(|p| p.trainable || p.path.contains(".lora."))
        .map(|p| p.path)
        .collect();
    let named = read_params(model, |path| kept.iter().any(|k| k == path))
        .into_iter()
        .filter_map(|(path, shape, data)| {
            names.key(&path).map(|name| HostTensor { name, shape, data })
        })
        .collect();
    let (embedding, head) = (weight_of(&names.embedding()), weight_of(&names.head()));
    let mut tensors = BTreeMap::new();
    for HostTensor { name, shape, data } in fused.join(named, model.config().num_attention_heads) {
        let tensor = RawTensor::from_f32(shape, &data, SaveDtype::F32)?;
        if config.ensure_weight_tying && name == embedding {
            tensors.insert(head.clone(), tensor.clone());
        }
        tensors.insert(name, tensor);
    }
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let mut metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    metadata.extend(fused.to_metadata());
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
    let names = names(&model);
    let mut config = AdapterConfig::read(&dir.join(CONFIG))?;
    let older = names.older_head();
    config.modules_to_save.iter_mut().filter(|m| **m == older).for_each(|m| *m = names.head());
    let files = open(dir)?;
    let surplus_head = find(&files, weight_of(&names.head()));
    let (mut model, tied) = match heads_part(&model, &config, &files)? {
        true => (model.untied(), false),
        false => (model, true),
    };
    check_modules(&model, &config, &dir.join(CONFIG))?;
    let fused = read_fused(&files, &config, dir)?;

    let mut expected = BTreeMap::new();
    let mut updates = Vec::new();
    for (layer, block) in model.layers.iter().enumerate() {
        for target in Target::ALL {
            let (module, part) = names.projection(layer, target);
            if let Some(linear) = target.linear(block).filter(|_| config.targets(&module)) {
                let (from, to) = linear.features();
                let [a, b] = ["lora_A", "lora_B"]
                    .map(|factor| find(&files, weight_of(&format!("{module}.{factor}"))));
                let rank = config.rank(&module);
                expected.insert(a.clone(), vec![rank, from]);
                expected.insert(b.clone(), vec![part.map_or(to, |_| 3 * to), rank]);
                let (rows, alpha) = match (part, &fused) {
                    (Some(part), Fused::Blocks(_)) => {
                        (fused.rows(part, config.r), config.lora_alpha)
                    }
                    _ => (0..rank, config.alpha(&module)),
                };
                updates.push(Update { layer, target, a, b, rank, rows, alpha });
            }
        }
    }
    let mut saved = HashMap::new();
    for p in params(&model) {
        let Some(module) = names.saveable(&p.path) else { continue };
        if let Some(key) = names.key(&p.path).filter(|_| config.saves(&module)) {
            let key = match find(&files, key) {
                key if module == names.head() && files.shape(&key).is_none() => {
                    Some(find(&files, weight_of(&older)))
                        .filter(|old| files.shape(old).is_some())
                        .unwrap_or(key)
                }
                key => key,
            };
            expected.insert(key.clone(), p.shape);
            saved.insert(p.path, key);
        }
    }
    files.check_names(&expected, |name| tied && name == surplus_head)?;

    let heads = model.config().num_attention_heads;
    for Update { layer, target, a, b, rank, rows, alpha } in updates {
        let Some(linear) = target.linear_mut(&mut model.layers[layer]) else { continue };
        let own = names.factor(layer, target, "lora_B");
        let factors = (files.load_f32(&a)?, stored::part_of(&own, heads, |_| files.load_f32(&b))?);
        let (a, b) = cut(factors, rank, &rows, &b)?;
        if rows.is_empty() {
            continue;
        }
        let (from, to) = linear.features();
        let (a, b) = (param(a, [rows.len(), from], linear), param(b, [to, rows.len()], linear));
        linear.lora = Some(Lora { a, b, alpha, rslora: config.use_rslora });
    }
    let mut values = HashMap::new();
    for (path, key) in &saved {
        values.insert(path.clone(), files.load_f32(key)?);
    }
    let trains = |path: &str| path.contains(".lora.") || saved.contains_key(path);
    Ok(map_params(model, |path| values.remove(path), |path| Some(trains(path))))
}

/// A target's update and where it lies: rows of A, columns of B.
struct Update {
    layer: usize,
    target: Target,
    a: String,
    b: String,
    /// In the file.
    rank: usize,
    rows: Range<usize>,
    alpha: f64,
}

fn names<M: HasProjections>(model: &Decoder<M>) -> Names {
    Names(model.config().architecture.keys())
}

/// How the file holds updates of q, k and v; the configuration must agree with it.
fn read_fused(files: &WeightFiles, config: &AdapterConfig, dir: &Path) -> Result<Fused> {
    let wrong = |value: String, expected: String| {
        let (file, field) = (dir.join(WEIGHTS), format!("metadata {}", fused::METADATA));
        Err(Error::config(file.display().to_string(), field, value, expected))
    };
    let Some(fused) = Fused::read(files.metadata()) else {
        let value = files.metadata().get(fused::METADATA).cloned().unwrap_or_default();
        return wrong(value, "q, k and v, or two or one of them in this order".into());
    };
    if let Some((_, parts)) = fused.to_metadata() {
        let module = "query_key_value";
        let (rank, alpha) = (config.rank(module), config.alpha(module));
        let wanted = fused.alpha(config.lora_alpha, config.use_rslora);
        let sum = config.r.saturating_mul(fused.times());
        if rank != sum || (alpha / wanted - 1.0).abs() > 1e-9 {
            return wrong(
                format!("{parts}, with a rank of {rank} and an alpha of {alpha}"),
                format!("a rank of {sum} and an alpha of {wanted}"),
            );
        }
    }
    Ok(fused)
}

fn param(data: Vec<f32>, shape: [usize; 2], linear: &Linear) -> Param<Tensor<2>> {
    let (device, dtype) = (linear.weight.device(), linear.weight.dtype());
    Param::from_tensor(Tensor::from_data(TensorData::new(data, shape), (&device, dtype)))
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
    let modules = [names(model).embedding(), names(model).head()];
    if !modules.iter().any(|module| config.saves(module)) {
        return Ok(false);
    }
    let [embedding_key, head_key] = modules.map(|module| find(files, weight_of(&module)));
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
    let names = names(model);
    let linears: Vec<String> = (0..)
        .zip(&model.layers)
        .flat_map(|(layer, block)| {
            let there = Target::ALL.into_iter().filter(|target| target.linear(block).is_some());
            there.map(move |target| names.projection(layer, target).0)
        })
        .collect();
    let saveable: Vec<String> = params(model)
        .iter()
        .filter_map(|p| names.saveable(&p.path))
        .chain([names.head()])
        .collect();
    let unsupported = |field: &str, name: &str, expected: &str| {
        Err(Error::config(file.display().to_string(), field, format!("`{name}`"), expected))
    };
    for name in &config.target_modules {
        if !linears.iter().any(|module| config::is_target(module, name)) {
            let mut known: Vec<&str> = Vec::new();
            for name in linears.iter().map(|module| without_leaf(module).1) {
                if !known.contains(&name) {
                    known.push(name);
                }
            }
            let known = known.join(", ");
            let expected = format!("the name of a projection in the blocks, one of {known}");
            return unsupported("target_modules", name, &expected);
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

/// What `adapter_config.json` must say for this model, and how updates of q, k and v are written
/// where they are one layer.
fn describe<M: HasProjections>(model: &Decoder<M>, base: &str) -> Result<(AdapterConfig, Fused)> {
    let names = names(model);
    let refuse = |what: String| {
        Err(Error::Unsupported {
            what: format!("a PEFT folder for {what}"),
            remedy: "merge the adapters and save the whole model".into(),
        })
    };
    let mut found: Option<&Lora> = None;
    let mut target_modules: Vec<String> = Vec::new();
    let mut parts: Vec<(usize, Vec<&Lora>)> = Vec::new();
    for target in Target::ALL {
        let update = |block| target.linear::<M>(block)?.lora.as_ref();
        let updates: Vec<&Lora> = model.layers.iter().filter_map(update).collect();
        if updates.is_empty() {
            continue;
        }
        let (module, part) = names.projection(0, target);
        let name = without_leaf(&module).1;
        let first = *found.get_or_insert(updates[0]);
        let differs =
            |l: &&Lora| (l.rank(), l.alpha, l.rslora) != (first.rank(), first.alpha, first.rslora);
        let there = model.layers.iter().filter(|block| target.linear(block).is_some()).count();
        if updates.len() != there || updates.iter().any(differs) {
            return refuse(format!("adapters that differ between layers ({name})"));
        }
        if !target_modules.iter().any(|known| known == name) {
            target_modules.push(name.to_string());
        }
        parts.extend(part.map(|part| (part, updates)));
    }
    let Some(lora) = found else {
        return refuse("a model without adapters".into());
    };
    // Per kind of module, whether it trains; the same in all layers.
    let mut kinds: BTreeMap<String, bool> = BTreeMap::new();
    for p in params(model) {
        let Some(module) = names.saveable(&p.path) else {
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
    let embedding = kind_of(&names.embedding());
    let trains_head = model.lm_head.is_none() && modules_to_save.contains(&embedding);
    if trains_head {
        modules_to_save.push(names.head());
    }
    let fused = one_update(&parts);
    let (mut rank_pattern, mut alpha_pattern) = (Vec::new(), Vec::new());
    if fused.times() != 1 {
        let (module, _) = names.projection(0, Target::Q);
        let name = without_leaf(&module).1.to_string();
        rank_pattern.push((name.clone(), fused.times() * lora.rank()));
        alpha_pattern.push((name, fused.alpha(lora.alpha, lora.rslora)));
    }
    let config = AdapterConfig {
        r: lora.rank(),
        lora_alpha: lora.alpha,
        rank_pattern,
        alpha_pattern,
        use_rslora: lora.rslora,
        target_modules,
        modules_to_save,
        ensure_weight_tying: trains_head,
        base_model_name_or_path: base.into(),
    };
    Ok((config, fused))
}

/// How the updates of parts of one layer, each with those of all blocks, become one.
fn one_update(parts: &[(usize, Vec<&Lora>)]) -> Fused {
    let values = |lora: &Lora| lora.a.val().inner().into_data().iter::<f32>().collect::<Vec<_>>();
    let same = |(a, b): (&&Lora, &&Lora)| values(a) == values(b);
    let shared = match parts {
        [] => true,
        [(_, q), (_, k), (_, v)] => q.iter().zip(k).all(same) && q.iter().zip(v).all(same),
        _ => false,
    };
    match shared {
        true => Fused::Shared,
        false => Fused::Blocks(parts.iter().map(|(part, _)| *part).collect()),
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

/// The spelling of `key` that the file has: older versions of PEFT left the adapter's name in,
/// and the wrapper around saved modules.
fn find(files: &WeightFiles, key: String) -> String {
    let (stem, leaf) = without_leaf(&key);
    [".default", ".modules_to_save", ".modules_to_save.default"]
        .map(|infix| format!("{stem}{infix}.{leaf}"))
        .into_iter()
        .find(|old| files.shape(&key).is_none() && files.shape(old).is_some())
        .unwrap_or(key)
}
