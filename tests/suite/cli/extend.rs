//! Stretching positions without training.

use super::Bench;
use longburn::datasets::source::Document;
use longburn::models::weights::read_safetensors;
use longburn::models::{Extension, ModelConfig};
use longburn::training::eval::{EvalWindow, by_position};
use serde_json::{Value, json};

const METHODS: [&str; 6] = ["linear", "ntk", "dynamic", "yarn", "longrope", "llama3"];

/// `extend` with what the method needs, to 64 tokens: twice the model's own 32.
fn args<'a>(method: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["extend", "model", "--method", method, "--to", "64"];
    if method == "longrope" {
        args.extend(["--factors", "factors.json"]);
    }
    args.extend(more);
    args
}

fn bench() -> Bench {
    let bench = Bench::new();
    bench.write("factors.json", r#"{"long_factor": [1.0, 1.5, 2.0, 2.0]}"#);
    let long = std::fs::read_to_string(bench.path("texts/3.txt")).unwrap().repeat(6);
    bench.write("long.txt", &long);
    bench
}

fn extended(bench: &Bench, method: &str) -> ModelConfig {
    let config = ModelConfig::from_file(&bench.path("model/config.json")).unwrap();
    let method = match method {
        "linear" => Extension::Linear,
        "ntk" => Extension::Ntk,
        "dynamic" => Extension::Dynamic,
        "yarn" => Extension::Yarn,
        "llama3" => Extension::Llama3,
        _ => Extension::LongRope {
            short_factor: vec![1.0; 4],
            long_factor: vec![1.0, 1.5, 2.0, 2.0],
        },
    };
    config.extended(&method, 64).unwrap()
}

#[test]
fn every_method_is_written_into_a_copy() {
    let bench = bench();
    for method in METHODS {
        let facts = bench.json(&args(method, &["--out", method]));
        assert_eq!((&facts["from"], &facts["to"]), (&json!(32), &json!(64)), "{method}");
        let copy = ModelConfig::from_file(&bench.path(method).join("config.json")).unwrap();
        assert_eq!(copy.rope, extended(&bench, method).rope, "{method}");
        assert_eq!(copy.max_context(), 64, "{method}");
        let text = std::fs::read_to_string(bench.path(method).join("config.json")).unwrap();
        let written: Value = serde_json::from_str(&text).unwrap();
        for (field, value) in facts["changed"].as_object().unwrap() {
            assert_eq!(&written[field], value, "{method}");
        }
        let read = |dir: &str| read_safetensors(&bench.path(dir).join("model.safetensors"));
        assert!(read(method).unwrap().0 == read("model").unwrap().0);
        assert!(bench.path(method).join("tokenizer.json").is_file());
        assert_eq!(bench.json(&["inspect", method])["positions"]["max_context"], 64);
    }
    // Static NTK is another base, and nothing else but the length.
    let ntk = bench.json(&args("ntk", &[]));
    let mut fields: Vec<_> = ntk["changed"].as_object().unwrap().keys().collect();
    fields.sort();
    assert_eq!(fields, ["max_position_embeddings", "rope_theta"]);
    assert!(
        (ntk["changed"]["rope_theta"].as_f64().unwrap() - 1e4 * 2f64.powf(8.0 / 6.0)).abs() < 1e-6
    );
}

/// A recipe trains at the positions that `extend` writes, and saves them, whole or beside an
/// adapter, so that a program that reads one reads the other.
#[test]
fn recipes_extend_by_the_same_methods() {
    let bench = bench();
    let recipe = |method: &str, lora: bool| {
        let factors = if method == "longrope" { "factors = \"factors.json\"\n" } else { "" };
        let lora = if lora { "[lora]\nrank = 2\n" } else { "" };
        format!(
            "[model]\npath = \"model\"\n[extend]\nto = 64\nmethod = \"{method}\"\n{factors}{lora}\
             [data]\ntrain = \"texts\"\n[train]\nsteps = 1\nlength = 40\nlr = 1e-3\n\
             [output]\ndir = \"run-{method}\"\n"
        )
    };
    let config = |dir: &str| ModelConfig::from_file(&bench.path(dir).join("config.json")).unwrap();
    let mut losses = Vec::new();
    for (i, method) in METHODS.into_iter().enumerate() {
        bench.run(&args(method, &["--out", method]));
        let adapter = i % 2 == 0;
        bench.write("run.toml", &recipe(method, adapter));
        let summary = bench.json(&["train", "run.toml"]);
        losses.push(summary["first_loss"].as_f64().unwrap());
        let folder = if adapter { "adapter" } else { "model" };
        let (trained, written) = (config(&format!("run-{method}/{folder}")), config(method));
        assert_eq!(trained.rope, written.rope, "{method}");
        let lengths = [&trained, &written].map(|c| (c.max_position_embeddings, c.max_context()));
        assert_eq!(lengths[0], lengths[1], "{method}");
        if adapter {
            bench.run(&[
                "merge",
                &format!("run-{method}/adapter"),
                "--out",
                &format!("m-{method}"),
            ]);
            assert_eq!(config(&format!("m-{method}")).rope, written.rope, "{method}");
        }
    }
    // Every method has positions of its own.
    losses.sort_by(f64::total_cmp);
    losses.dedup();
    assert_eq!(losses.len(), METHODS.len(), "{losses:?}");

    let refused = |text: String| {
        bench.write("bad.toml", &text.replace("run-", "bad-"));
        bench.refusal(&["train", "bad.toml"])
    };
    let without = recipe("longrope", false).replace("factors = \"factors.json\"\n", "");
    let message = refused(without);
    assert!(message.contains("extend.factors") && message.contains("rotary pair"), "{message}");
    let message = refused(recipe("yarn", false).replace("to = 64", "to = 64\nfactors = \"f\""));
    assert!(message.contains("extend.factors") && message.contains("longrope"), "{message}");
    let message = refused(recipe("spiral", false));
    assert!(message.contains("spiral") && message.contains("llama3"), "{message}");
    let scaled = recipe("yarn", false).replace("\"model\"", "\"yarn\"").replace("64", "128");
    assert!(refused(scaled).contains("rope type yarn"));
    // Other divisors are another run.
    bench.write("run.toml", &recipe("longrope", true).replace("run-", "again-"));
    bench.run(&["train", "run.toml"]);
    bench.write("factors.json", r#"{"long_factor": [1.0, 1.5, 2.0, 2.5]}"#);
    let message = bench.refusal(&["train", "run.toml", "--resume"]);
    assert!(message.contains("factors.json has other contents"), "{message}");
    bench.write("factors.json", r#"{"long_factor": [1.0, 1.5]}"#);
    let message = refused(recipe("longrope", false));
    assert!(message.contains("factors.json") && message.contains("4 numbers"), "{message}");
}

#[test]
fn preview_is_the_loss_of_both_models_by_position() {
    let bench = bench();
    let more = ["--text", "long.txt", "--windows", "3", "--svg", "preview.svg"];
    let preview = bench.json(&args("yarn", &more))["preview"].clone();
    let text = std::fs::read_to_string(bench.path("long.txt")).unwrap();
    let document = Document { id: "long".into(), text };
    let (documents, _) = longburn::datasets::tokenize(&[document], &bench.tokenizer, true).unwrap();
    let windows: Vec<_> = documents[0]
        .ids
        .chunks_exact(64)
        .take(3)
        .enumerate()
        .map(|(i, ids)| EvalWindow { document: 0, start: 64 * i, ids, first: 1 })
        .collect();
    assert_eq!(windows.len(), 3);
    let rope = extended(&bench, "yarn").rope;
    let stretched = bench.decoder.clone().with_rope(rope, 64).unwrap();
    let rows = preview["by_position"].as_array().unwrap();
    assert_eq!(rows.len(), 16);
    let buckets: Vec<_> = rows
        .iter()
        .map(|row| row["start"].as_u64().unwrap() as usize..row["end"].as_u64().unwrap() as usize)
        .collect();
    assert_eq!((buckets[0].clone(), buckets[15].clone()), (1..4, 60..64));
    for (side, model) in [("before", &bench.decoder), ("after", &stretched)] {
        let expected = by_position(model, &windows, &buckets, 1).unwrap().buckets;
        for (row, expected) in rows.iter().zip(expected) {
            assert_eq!(row[side]["mean_nll"].as_f64().unwrap(), expected.mean_nll);
            assert_eq!(row[side]["ppl"].as_f64().unwrap(), expected.mean_nll.exp());
        }
    }
    assert_ne!(rows[12]["before"], rows[12]["after"]);
    let svg = std::fs::read_to_string(bench.path("preview.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("yarn") && svg.contains("present reach"));

    // Up to its own length, dynamic scaling changes nothing: the sequence is as short there.
    let short = ["--text", "short.txt"];
    bench.write("short.txt", "The river ran past the mill");
    let text = bench.run(&args("dynamic", &short));
    assert!(text.contains("no document has 64 tokens"), "{text}");
    let rows = bench.json(&args("dynamic", &short))["preview"]["by_position"].clone();
    for row in rows.as_array().unwrap() {
        assert_eq!(row["before"], row["after"]);
    }
}

#[test]
fn wrong_wishes_are_named() {
    let bench = bench();
    for (args, says) in [
        (vec!["extend", "model", "--method", "yarn", "--to", "32"], "32 tokens"),
        (vec!["extend", "model", "--method", "linear", "--to", "31"], "`to` is 31"),
        (vec!["extend", "model", "--method", "ntk", "--to", "9000000000"], "at most"),
        (
            vec!["extend", "model", "--method", "longrope", "--to", "64"],
            "one number per rotary pair",
        ),
        (args("yarn", &["--factors", "factors.json"]), "longrope"),
        (args("yarn", &["--out", "model"]), "`out` is model (it holds"),
        (args("yarn", &["--out", "long.txt"]), "`out` is long.txt"),
        (args("yarn", &["--text", "nowhere.txt"]), "nowhere.txt"),
    ] {
        let error = bench.fails(&args);
        assert!(error.contains(says), "{args:?}: {error}");
    }
    bench.write("factors.json", r#"{"long_factor": [1.0, 2.0]}"#);
    let error = bench.refusal(&args("longrope", &[]));
    assert!(error.contains("long_factor") && error.contains("4 numbers"), "{error}");
    bench.write("factors.json", r#"{"long_factor": "all"}"#);
    assert!(bench.fails(&args("longrope", &[])).contains("factors.json"));

    // Scaled positions are not scaled again by another method.
    bench.run(&args("yarn", &["--out", "yarn"]));
    let again = ["extend", "yarn", "--method", "ntk", "--to", "128"];
    assert!(bench.fails(&again).contains("rope type yarn"));
    bench.run(&args("linear", &["--out", "linear"]));
    let twice = bench.json(&["extend", "linear", "--method", "linear", "--to", "128"]);
    assert_eq!(twice["changed"]["rope_scaling"]["factor"], 4.0);
}
