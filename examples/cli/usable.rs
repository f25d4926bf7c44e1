//! What can be done with a checkpoint: here, and in other programs.

use crate::output;
use longburn::attention::{
    LactConfig, LongGenConfig, LongLoraConfig, Mamba1Config, Mamba2Config, MixerConfig, SeerConfig,
};
use longburn::models::lora::{Role, Target};
use longburn::models::{Architecture, ModelConfig};
use longburn::positional::RopeKind;
use serde_json::{Map, Value, json};

/// Widths of heads that all attention code of vLLM takes.
const COMMON_WIDTHS: [usize; 3] = [64, 128, 256];

/// Verbs, mixers with the length they go to, ways to extend, layers that adapt.
pub fn usable_for(config: &ModelConfig) -> Value {
    let attends = config.architecture.has_attention();
    let extend: &[&str] = match config.rope.kind {
        _ if !attends => &[],
        RopeKind::Default => &["linear", "ntk", "dynamic", "yarn", "longrope", "llama3"],
        RopeKind::Linear { .. } => &["linear"],
        _ => &[],
    };
    // GPT-NeoX's feed-forward layer has no gate.
    let gated = config.architecture != Architecture::GptNeoX;
    let targets = Target::ALL.into_iter().filter(|target| match target {
        Target::Gate => attends && gated,
        Target::Up | Target::Down => attends,
        of_mixer => config.mixers.iter().any(|mixer| of_mixer.is_in(mixer)),
    });
    let targets: Vec<_> = targets.map(|target| output::value(&target)).collect();
    json!({
        "verbs": ["train", "eval", "generate", "logits", "merge"],
        "mixers": mixers(config),
        "extend": extend,
        "lora": { "targets": targets, "extra": roles(config) },
    })
}

/// Each mixer, and in how many layers it would begin with new weights.
fn mixers(config: &ModelConfig) -> Value {
    if !config.architecture.has_attention() {
        let own = config.mixers.first().map_or("none", MixerConfig::name);
        return json!({ own: { "for": "training and inference" } });
    }
    let (shape, layers) = (config.attention(), config.num_hidden_layers);
    let window = config.windows.iter().flatten().next().copied();
    let mut found = Map::new();
    for (mixer, use_for) in [
        (MixerConfig::Dense, "training and inference"),
        (MixerConfig::LongLora(LongLoraConfig::new()), "training; inference is dense"),
        (MixerConfig::LongGen(LongGenConfig::new()), "training and inference"),
        (MixerConfig::Anchor, "training; inference is dense"),
        (MixerConfig::Seer(SeerConfig::new()), "training of a gate; sparse inference with it"),
        (MixerConfig::Mamba1(Mamba1Config::new()), "training and inference"),
        (MixerConfig::Mamba2(Mamba2Config::new()), "training and inference"),
        (MixerConfig::Lact(LactConfig::new()), "training and inference"),
    ] {
        // The checkpoint's own settings, where it has this mixer.
        let own = config.mixers.iter().find(|own| own.name() == mixer.name());
        let mixer = own.cloned().unwrap_or(mixer);
        let new = config.mixers.iter().filter(|own| !mixer.shares_weights_with(own)).count();
        let mut entry = Map::from_iter([("for".to_string(), json!(use_for))]);
        match mixer.check((config.hidden_size, layers), shape.as_ref(), window) {
            Ok(()) => entry.insert("max_length".into(), json!(config.max_context())),
            Err(error) => {
                entry.clear();
                entry.insert("problem".into(), json!(error.to_string()))
            }
        };
        if new > 0 && entry.contains_key("for") {
            let new = format!("in {new} of {layers} layers, to be trained");
            entry.insert("new_weights".into(), json!(new));
        }
        found.insert(mixer.name().into(), Value::Object(entry));
    }
    Value::Object(found)
}

/// Parameters that can train in full beside low-rank updates.
fn roles(config: &ModelConfig) -> Vec<Value> {
    let mut roles: Vec<Role> = config
        .tensor_shapes()
        .keys()
        .filter_map(|name| Role::of(&config.architecture.keys().to_path(name)?))
        .collect();
    roles.sort_unstable();
    roles.dedup();
    roles.iter().map(output::value).collect()
}

/// Where else the folder runs as it is. `complete` says that no weight is missing.
pub fn runs_in(config: &ModelConfig, complete: bool) -> Value {
    if !complete {
        let no = "no: weights are missing or of the wrong shape";
        return json!({ "longburn": no, "transformers": no, "vllm": no });
    }
    if let Err(error) = fits(config) {
        let no = format!("no: config.json: {error}");
        return json!({ "longburn": no, "transformers": no, "vllm": no });
    }
    if !config.has_own_weights() {
        let no = "no: layers have a mixer with weights that only Longburn reads";
        return json!({ "longburn": "yes", "transformers": no, "vllm": no });
    }
    if !config.has_own_mixers() {
        let other = "no: it would load, and run attention over everything in every layer";
        return json!({ "longburn": "yes", "transformers": other, "vllm": other });
    }
    json!({
        "longburn": "yes",
        "transformers": format!("yes, {} or later", transformers(config)),
        "vllm": vllm(config),
    })
}

/// Whether the settings of all mixers can be, each by the name that it has in config.json.
fn fits(config: &ModelConfig) -> Result<(), String> {
    let size = (config.hidden_size, config.num_hidden_layers);
    for (layer, mixer) in config.mixers.iter().enumerate() {
        let window = config.windows.get(layer).copied().flatten();
        mixer
            .check(size, config.attention().as_ref(), window)
            .map_err(|error| format!("longburn.mixer[{layer}]: {error}"))?;
    }
    Ok(())
}

/// The same of an adapter in PEFT form, which `config`, where there is one beside it, says the model of.
pub fn adapter_runs_in(config: Option<&ModelConfig>, holds_modules: bool) -> Value {
    let longburn = "yes, beside its base";
    if config.is_some_and(|config| !config.has_own_weights()) {
        let no = "no: layers of its base have a mixer with weights that only Longburn reads";
        return json!({ "longburn": longburn, "transformers": no, "vllm": no });
    }
    if config.is_some_and(|config| !config.has_own_mixers()) {
        let no =
            "no: it would load beside its base, and run attention over everything in every layer";
        return json!({ "longburn": longburn, "transformers": no, "vllm": no });
    }
    let stretched = config.is_some_and(|config| config.rope.kind != RopeKind::Default);
    let with = if stretched { ", once that has the positions of this config.json" } else { "" };
    let vllm = match holds_modules {
        true => "no: it takes low-rank updates alone, and this adapter has modules in full".into(),
        false => format!("yes, beside its base{with}"),
    };
    json!({
        "longburn": longburn,
        "transformers": format!("yes, with peft, beside its base{with}"),
        "vllm": vllm,
    })
}

/// Lines for people.
pub fn lines(runs_in: &Value) -> String {
    let fields = runs_in.as_object().into_iter().flatten();
    let line = |(name, said): (&String, &Value)| {
        format!("runs in {name}: {}\n", said.as_str().unwrap_or_default())
    };
    fields.map(line).collect()
}

/// The first version of transformers that reads the family and the shape of its config.json.
fn transformers(config: &ModelConfig) -> &'static str {
    let raw = config.raw();
    if raw.contains_key("rope_parameters") && !raw.contains_key("rope_theta") {
        return "5.0";
    }
    match config.architecture {
        Architecture::Qwen3 => "4.51",
        Architecture::Mamba2 => "4.44",
        // Its rope type llama3 came with 4.43.
        _ => "4.43",
    }
}

fn vllm(config: &ModelConfig) -> String {
    let class = format!("{}ForCausalLM", config.architecture.class_prefix());
    let named = config.raw().get("architectures").and_then(Value::as_array);
    if !named.is_some_and(|list| list.iter().any(|name| name == &class)) {
        return format!("no: config.json does not name `architectures` [\"{class}\"]");
    }
    if !config.architecture.has_attention() {
        return "yes".into();
    }
    let windows = config.windows.iter().flatten().count();
    if windows > 0 && windows < config.num_hidden_layers {
        return "depends on its version: only some layers have a window".into();
    }
    if !COMMON_WIDTHS.contains(&config.head_dim) {
        return format!("depends on its attention code: heads of width {}", config.head_dim);
    }
    "yes".into()
}
