//! `longburn inspect`

mod adapter;

use crate::usable::{runs_in, usable_for};
use crate::verify::verify;
use crate::{Globals, output};
use clap::Args;
use longburn::attention::MixerSchedule;
use longburn::datasets::Tokenizer;
use longburn::models::ModelConfig;
use longburn::models::hub::{Described, HubConfig, ListedFile};
use longburn::training::report::Progress;
use longburn::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Say what a checkpoint is, whether it is whole, what Longburn can do with it and where else it
/// runs
///
/// Reads config.json, the headers of the weight files and the tokenizer; no weights are loaded.
/// Of a repository of the Hub that is not in the cache, configuration, tokenizer and the list of
/// weights are downloaded. Of an adapter in PEFT form it says what it is and which base it belongs to, of gates of
/// SeerAttention what they were made with and where they run. With --verify all bytes are read and compared with the sums in the folder's
/// manifest.json, which checkpoints of training have, or with the digests that name them in the cache
/// of the Hub.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn inspect MODEL
  longburn inspect MODEL --verify
  longburn inspect org/name")]
pub struct InspectArgs {
    /// Folder of a checkpoint in Hugging Face form, or a repository of the Hub: org/name
    dir: PathBuf,
    /// Compare every file with its sum in manifest.json, or its digest in the cache of the Hub
    #[arg(long)]
    verify: bool,
}

/// Where the adapter or the gates of a folder run.
///
/// # Errors
/// Those of its files.
pub fn runs_in_of_adapter(dir: &Path) -> Result<Value> {
    let facts = match adapter::has_gates(dir) {
        true => adapter::of_gates(dir, dir)?,
        false => adapter::facts(dir, dir)?,
    };
    let found = facts.into_iter().find(|(name, _)| *name == "runs_in");
    Ok(found.map_or(Value::Null, |(_, runs_in)| runs_in))
}

impl InspectArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let mut watch = Progress::new(0).download();
        let Described { dir, listed } = HubConfig::new().init().describe(&self.dir, &mut watch)?;
        let mut facts = match adapter::is_adapter(&dir) {
            true => self.of_an_adapter(&dir, listed.as_deref())?,
            false => self.of_a_model(&dir, listed.as_deref())?,
        };
        if self.verify {
            facts.push(("verified", verify(&dir)?));
        }
        if globals.json {
            let facts = facts.into_iter().map(|(name, value)| (name.to_string(), value));
            return output::json(&Value::Object(facts.collect()));
        }
        let mut text = format!("{}\n", dir.display());
        for (name, value) in &facts {
            text += &format!("{}\n", name.replace('_', " "));
            if let Value::Object(fields) = value {
                for (field, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                    text += &format!("  {:<22} {}\n", field.replace('_', " "), plain(value));
                }
            }
        }
        output::print(&text)
    }

    fn of_a_model(
        &self,
        dir: &Path,
        listed: Option<&[ListedFile]>,
    ) -> Result<Vec<(&'static str, Value)>> {
        let config = ModelConfig::from_file(&dir.join("config.json"))?;
        let weights = match listed {
            None => weights(dir, &config),
            Some(listed) => self.on_the_hub(listed),
        };
        // Of weights elsewhere nothing is known that speaks against them.
        let runs_in = runs_in(&config, weights["complete"] != false);
        Ok(vec![
            ("model", model(&config)),
            ("positions", positions(&config)),
            ("weights", weights),
            ("tokenizer", tokenizer(dir, &config)),
            ("usable_for", usable_for(&config)),
            ("runs_in", runs_in),
        ])
    }

    /// Ours have the configuration of the adapted model beside them, others have none.
    fn of_an_adapter(
        &self,
        dir: &Path,
        listed: Option<&[ListedFile]>,
    ) -> Result<Vec<(&'static str, Value)>> {
        let mut facts = match adapter::has_gates(dir) {
            true => adapter::of_gates(dir, &self.dir)?,
            false => {
                let mut facts = adapter::facts(dir, &self.dir)?;
                facts.push(match listed {
                    None => ("weights", adapter::weights(dir)),
                    Some(listed) => ("weights", self.on_the_hub(listed)),
                });
                facts
            }
        };
        let file = dir.join("config.json");
        if file.is_file() {
            let config = ModelConfig::from_file(&file)?;
            facts.push(("adapted_model", model(&config)));
            facts.push(("positions", positions(&config)));
            facts.push(("tokenizer", tokenizer(dir, &config)));
        }
        Ok(facts)
    }

    fn on_the_hub(&self, listed: &[ListedFile]) -> Value {
        json!({
            "downloaded": false,
            "files": listed.len(),
            "bytes": listed.iter().map(|file| file.bytes).sum::<u64>(),
            "to_download": format!("longburn fetch {}", self.dir.display()),
        })
    }
}

/// Numbers in tensors of these shapes, or the largest that is counted.
fn parameters(shapes: impl Iterator<Item = impl AsRef<[usize]>>) -> u64 {
    let numbers = |shape: &[usize]| shape.iter().map(|n| *n as u128).product::<u128>();
    u64::try_from(shapes.map(|shape| numbers(shape.as_ref())).sum::<u128>()).unwrap_or(u64::MAX)
}

fn model(config: &ModelConfig) -> Value {
    let mixers = MixerSchedule::of(&config.mixers);
    let attends = config.architecture.has_attention();
    let mixers = (!attends || !config.has_own_mixers()).then(|| mixers.to_string());
    json!({
        "architecture": config.architecture.model_type(),
        "parameters": parameters(config.tensor_shapes().values()),
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": attends.then_some(config.intermediate_size),
        "heads": attends.then_some(config.num_attention_heads),
        "kv_heads": attends.then_some(config.num_key_value_heads),
        "head_dim": attends.then_some(config.head_dim),
        "vocab_size": config.vocab_size,
        "tied_head": config.tie_word_embeddings,
        "mixers": mixers,
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "bos_token_id": config.bos_token_id,
        "eos_token_ids": config.eos_token_ids,
    })
}

fn positions(config: &ModelConfig) -> Value {
    let windows: Vec<usize> = config.windows.iter().flatten().copied().collect();
    if !config.architecture.has_attention() {
        return json!({ "max_context": null, "limit": "none: state-space layers have no positions" });
    }
    json!({
        "max_context": config.max_context(),
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope.theta,
        "rope": output::value(&config.rope.kind),
        "window": windows.first(),
        "window_layers": (!windows.is_empty()).then_some(windows.len()),
    })
}

/// Whether every tensor is there with the right shape, from the headers alone.
fn weights(dir: &Path, config: &ModelConfig) -> Value {
    let files = match config.open_weights(dir) {
        Ok(files) => files,
        Err(error) => return json!({ "complete": false, "problem": error.to_string() }),
    };
    let mut dtypes: BTreeMap<String, usize> = BTreeMap::new();
    let mut shards: Vec<PathBuf> = Vec::new();
    for name in files.names() {
        if let Some(dtype) = files.dtype(name) {
            *dtypes.entry(dtype.to_string()).or_default() += 1;
        }
        shards.extend(files.file(name).map(Path::to_path_buf));
    }
    shards.sort();
    shards.dedup();
    let mut facts = Map::new();
    facts.insert("complete".into(), json!(true));
    facts.insert("files".into(), json!(shards.len()));
    facts.insert("tensors".into(), json!(files.names().count()));
    facts.insert("dtypes".into(), json!(dtypes));
    match files.check_names(&config.tensor_shapes(), |name| config.may_hold(name)) {
        Ok(()) => {}
        Err(Error::TensorMismatch { missing, unexpected, misshaped, .. }) => {
            facts.insert("complete".into(), json!(false));
            facts.insert("missing".into(), json!(missing));
            facts.insert("unexpected".into(), json!(unexpected));
            facts.insert("wrong_shape".into(), json!(misshaped));
        }
        Err(other) => {
            facts.insert("complete".into(), json!(false));
            facts.insert("problem".into(), json!(other.to_string()));
        }
    }
    Value::Object(facts)
}

fn tokenizer(dir: &Path, config: &ModelConfig) -> Value {
    if !dir.join("tokenizer.json").exists() {
        return json!({ "present": false });
    }
    match Tokenizer::from_file(dir) {
        Ok(tokenizer) => {
            let fits = tokenizer.check_model(config.vocab_size);
            json!({
                "present": true,
                "vocab_size": tokenizer.vocab_size(),
                "fits": fits.is_ok(),
                "problem": fits.err().map(|e| e.to_string()),
            })
        }
        Err(error) => json!({ "present": true, "fits": false, "problem": error.to_string() }),
    }
}

/// A value in words.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.into(),
        Value::Array(items) => match items.is_empty() {
            true => "none".into(),
            false => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        },
        Value::Object(map) => {
            let words = |v: &Value| match v {
                Value::Object(_) => format!("({})", plain(v)),
                other => plain(other),
            };
            let pairs = map.iter().map(|(k, v)| format!("{} {}", k.replace('_', " "), words(v)));
            pairs.collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}
