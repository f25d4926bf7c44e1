//! What `inspect` says of an adapter, which is no model without its base.

use crate::output;
use crate::usable::adapter_runs_in;
use longburn::Result;
use longburn::models::ModelConfig;
use longburn::models::gates::{GATE_FILE, GateSummary};
use longburn::models::peft::AdapterSummary;
use serde_json::{Value, json};
use std::path::Path;

/// Whether a folder holds an adapter, or gates, and no model.
pub fn is_adapter(dir: &Path) -> bool {
    let has = |name: &str| dir.join(name).is_file();
    (has("adapter_config.json") || has(GATE_FILE))
        && !has("model.safetensors")
        && !has("model.safetensors.index.json")
}

/// Whether what it holds are gates.
pub fn has_gates(dir: &Path) -> bool {
    dir.join(GATE_FILE).is_file()
}

/// The same as [`facts`] for gates, from the header of their file.
pub fn of_gates(dir: &Path, name: &Path) -> Result<Vec<(&'static str, Value)>> {
    let GateSummary { settings, layers, shapes } = GateSummary::read(dir)?;
    let mut gates = json!({ "form": "gates of SeerAttention", "layers": layers });
    if let (Value::Object(gates), Value::Object(fields)) = (&mut gates, output::value(&settings)) {
        gates.extend(fields);
    }
    let no = "no: the base alone does, and attends to everything";
    Ok(vec![
        ("gates", gates),
        (
            "weights",
            json!({ "tensors": shapes.len(), "parameters": super::parameters(shapes.iter()) }),
        ),
        (
            "usable_for",
            json!({
                "generate": format!("longburn generate BASE --adapter {} --prompt TEXT", name.display()),
                "eval": format!("longburn eval BASE --adapter {} --data TEXTS", name.display()),
            }),
        ),
        (
            "runs_in",
            json!({
                "longburn": "yes, beside its base",
                "transformers": no,
                "vllm": no,
            }),
        ),
    ])
}

/// What it is, what it holds, and the commands that take it; `name` is how it was named.
pub fn facts(dir: &Path, name: &Path) -> Result<Vec<(&'static str, Value)>> {
    let summary = AdapterSummary::read(dir)?;
    let mut adapter = json!({ "form": "PEFT, LoRA" });
    if let (Value::Object(adapter), Value::Object(fields)) = (&mut adapter, output::value(&summary))
    {
        adapter.extend(fields);
        let ranks = summary.other_ranks.iter().map(|(name, rank)| (name.clone(), json!(rank)));
        let ranks: serde_json::Map<_, _> = ranks.collect();
        adapter.insert(
            "other_ranks".into(),
            if ranks.is_empty() { Value::Null } else { ranks.into() },
        );
    }
    let file = dir.join("config.json");
    let config = file.is_file().then(|| ModelConfig::from_file(&file)).transpose()?;
    Ok(vec![
        ("adapter", adapter),
        ("usable_for", usable_for(&summary.base, name)),
        ("runs_in", adapter_runs_in(config.as_ref(), !summary.saved_whole.is_empty())),
    ])
}

/// Its tensors, from the header alone.
pub fn weights(dir: &Path) -> Value {
    match AdapterSummary::weights(dir) {
        Err(error) => json!({ "complete": false, "problem": error.to_string() }),
        Ok(files) => {
            let shapes = files.names().filter_map(|name| files.shape(name));
            json!({
                "tensors": files.names().count(),
                "parameters": super::parameters(shapes),
            })
        }
    }
}

fn usable_for(base: &str, name: &Path) -> Value {
    let adapter = name.display();
    let (base, named) = match base {
        "" => ("BASE", " --base BASE"),
        base => (base, ""),
    };
    json!({
        "generate": format!("longburn generate {base} --adapter {adapter} --prompt TEXT"),
        "eval": format!("longburn eval {base} --adapter {adapter} --data TEXTS"),
        "merge": format!("longburn merge {adapter}{named} --out DIR"),
        "other_base": "where the base lies elsewhere, name its folder in its place \
                       (merge: --base DIR)",
    })
}
