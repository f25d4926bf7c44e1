//! Numbers in `config.json` that nothing can be built of: every verb names file and field.

use super::{Bench, longburn};
use serde_json::{Value, json};

/// Fields with values that overflow, or would fill any memory.
fn overflowing() -> Vec<(&'static str, Value)> {
    let fields = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
    ];
    let values = [json!(u64::MAX), json!(1_u64 << 63), json!(1e308), json!(1_u64 << 32)];
    let each = |field: &'static str| values.clone().map(|value| (field, value));
    fields.into_iter().flat_map(each).collect()
}

/// What the verb says to each of these numbers.
fn refusals(args: &[&str]) {
    let bench = Bench::new();
    let path = bench.path("model/config.json");
    let good: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for (field, value) in overflowing() {
        let mut config = good.clone();
        config[field] = value.clone();
        std::fs::write(&path, config.to_string()).unwrap();
        let message = bench.refusal(args);
        let place =
            format!("config.json: field `{field}` is {value}; expected an integer from 1 to");
        assert!(message.contains(&place), "{field} {value}: {message}");
    }
    // Beyond any float.
    let text = good.to_string().replace("\"hidden_size\":16", "\"hidden_size\":1e999");
    assert_ne!(text, good.to_string());
    std::fs::write(&path, text).unwrap();
    let message = bench.refusal(args);
    assert!(message.contains("config.json") && message.contains("remedy"), "{message}");
}

/// Each number is one that a field may have; all together are more than any memory.
fn largest(bench: &Bench) {
    let path = bench.path("model/config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for (field, value) in [
        ("vocab_size", 1 << 24),
        ("hidden_size", 1 << 20),
        ("intermediate_size", 1 << 24),
        ("num_attention_heads", 1 << 16),
        ("num_key_value_heads", 1 << 16),
        ("head_dim", 1 << 16),
        ("num_hidden_layers", 100),
        ("max_position_embeddings", 1 << 30),
    ] {
        config[field] = json!(value);
    }
    std::fs::write(&path, config.to_string()).unwrap();
}

/// What loads a model refuses the largest numbers, too.
fn refuses_all(args: &[&str]) {
    refusals(args);
    let bench = Bench::new();
    largest(&bench);
    let message = bench.refusal(args);
    assert!(message.contains("config.json") && message.contains("vocab_size"), "{message}");
}

#[test]
fn generate_meets_numbers_that_overflow() {
    refuses_all(&["generate", "model", "--prompt", "The", "--max-new-tokens", "1"]);
}

#[test]
fn eval_meets_numbers_that_overflow() {
    refuses_all(&["eval", "model", "--data", "texts"]);
}

#[test]
fn inspect_meets_numbers_that_overflow() {
    refusals(&["inspect", "model"]);
    // It loads nothing, and says what does not fit.
    let bench = Bench::new();
    largest(&bench);
    let facts = bench.json(&["inspect", "model"]);
    assert_eq!(facts["weights"]["complete"], false);
    assert!(facts["model"]["parameters"].as_u64().unwrap() > 1 << 45, "{}", facts["model"]);
    longburn(bench.dir.path(), &["inspect", "model"]).assert().success();
}
