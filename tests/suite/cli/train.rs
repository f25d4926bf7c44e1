//! `longburn train`: from a recipe to a folder with everything.

use super::Bench;
use serde_json::Value;

const ADAPT: &str = r#"
title = "Adaptation"
expected = "Loss falls."
seed = 5

[model]
path = "model"

[extend]
to = 48

[mixer]
name = "longlora"

[lora]
rank = 2
extra = ["embedding", "norm"]

[data]
train = "texts"
split = 4

[train]
steps = 6
length = 48
lr = 1e-2
batch = 2
schedule = { name = "linear", warmup = { steps = 2 } }
strategy = "recompute"

[eval]
protocol = { name = "strided", max_len = 48, stride = 24 }

[output]
dir = "run"
merge = true
"#;

fn file(bench: &Bench, name: &str) -> String {
    std::fs::read_to_string(bench.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn a_recipe_adapts_extends_and_measures() {
    let bench = Bench::new();
    bench.write("run.toml", ADAPT);
    let summary = bench.json(&["train", "run.toml"]);
    assert_eq!((summary["steps"].as_u64(), summary["tokens"].as_u64()), (Some(6), Some(576)));
    assert!(summary["last_loss"].as_f64() < summary["first_loss"].as_f64());
    let ppl = |when: &str| summary[when]["ppl"].as_f64().unwrap();
    assert!(ppl("after") < ppl("before"));
    assert_eq!(summary["data"]["kept"]["documents"], 3);
    assert_eq!(summary["held_out"]["kept"]["documents"], 1);
    assert_eq!(summary["held_out"]["truncated"]["documents"], 0);

    assert_eq!(file(&bench, "run/recipe.toml"), ADAPT);
    let metrics = file(&bench, "run/metrics.jsonl");
    let of_kind = |kind: &str| metrics.lines().filter(|l| l.contains(kind)).count();
    assert_eq!(of_kind(r#""kind":"train""#), 6);
    assert!(file(&bench, "run/loss.svg").starts_with("<svg"));
    assert!(file(&bench, "run/report.html").contains("Loss falls."));
    assert_eq!(file(&bench, "run/model/tokenizer.json"), file(&bench, "model/tokenizer.json"));

    // What was trained gives the same numbers from the adapter and from the merged model: 48
    // positions by a factor of 2, held out by name as in the run.
    std::fs::create_dir(bench.path("held")).unwrap();
    std::fs::copy(bench.path("texts/3.txt"), bench.path("held/3.txt")).unwrap();
    let eval = |args: &[&str]| -> f64 {
        let common = ["--data", "held", "--max-len", "48", "--stride", "24"];
        let result = bench.json(&[&["eval"], args, &common[..]].concat());
        result["perplexity"]["ppl"].as_f64().unwrap()
    };
    let adapter = eval(&["model", "--adapter", "run/adapter"]);
    let merged = eval(&["run/model"]);
    assert!((adapter / ppl("after") - 1.0).abs() < 1e-6, "{adapter} {}", ppl("after"));
    assert!((merged / adapter - 1.0).abs() < 1e-5, "{merged} {adapter}");
    let inspected = bench.json(&["inspect", "run/model"]);
    assert_eq!(inspected["positions"]["max_context"], 64);
    assert_eq!(inspected["weights"]["complete"], true);

    let counted = bench.json(&["mask", "show", "run.toml"]);
    assert_eq!((counted["length"].as_u64(), counted["heads"].as_u64()), (Some(48), Some(2)));
    // Four groups of 12 in one head, half groups at both ends in the other.
    assert_eq!(counted["pairs"], 4 * 78 + 3 * 78 + 2 * 21);

    // Nothing is overwritten.
    let message = bench.fails(&["train", "run.toml"]);
    assert!(message.contains("output.dir") && message.contains("empty folder"), "{message}");
    let again = bench.json(&["train", "run.toml", "--out", "again"]);
    assert_eq!(again["last_loss"], summary["last_loss"]);
    let other = bench.json(&["train", "run.toml", "--out", "other", "--seed", "6"]);
    assert_ne!(other["last_loss"], summary["last_loss"]);
}

#[test]
fn what_stops_a_run_stands_in_its_metrics() {
    let bench = Bench::new();
    bench.write("run.toml", &ADAPT.replace("lr = 1e-2", "lr = 1e38"));
    let message = bench.fails(&["train", "run.toml"]);
    assert!(message.contains("was not applied"), "{message}");
    let metrics = file(&bench, "run/metrics.jsonl");
    assert!(metrics.lines().last().unwrap().contains("not applied"), "{metrics}");
    let page = file(&bench, "run/report.html");
    for part in ["by an error: step ", "not applied", "no checkpoint", "run.toml --resume"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(!page.contains("http-equiv=\"refresh\""));
}

#[test]
fn a_recipe_makes_a_new_model() {
    let bench = Bench::new();
    bench.write(
        "run.toml",
        r#"
            [model.new]
            vocab_size = 280
            hidden_size = 16
            layers = 1
            heads = 2
            [data]
            train = "texts.jsonl"
            text_field = "body"
            rows = "windows"
            split = 2
            [train]
            steps = 3
            length = 24
            lr = 1e-2
            [eval]
            before = false
            documents = 1
            tokens = 30
            [output]
            dir = "run"
            dtype = "bf16"
        "#,
    );
    let lines = (0..5).map(|n| serde_json::json!({ "body": super::TEXT.repeat(n) }).to_string());
    bench.write("texts.jsonl", &lines.collect::<Vec<_>>().join("\n"));
    let summary = bench.json(&["train", "run.toml"]);
    assert_eq!(summary["before"], Value::Null);
    assert_eq!(summary["after"]["tokens"], 29);
    let held_out = &summary["held_out"];
    assert_eq!(held_out["truncated"]["documents"], 1);
    assert_eq!(held_out["dropped"]["more than eval.documents"]["documents"], 1);
    assert_eq!(summary["data"]["dropped"]["empty"]["documents"], 1);
    let facts = bench.json(&["inspect", "run/model"]);
    assert_eq!(facts["positions"]["max_context"], 24);
    assert_eq!(facts["model"]["vocab_size"], 280);
    assert_eq!(facts["weights"]["dtypes"]["BF16"], facts["weights"]["tensors"]);
    assert_eq!(facts["tokenizer"]["fits"], true);
    bench.run(&["generate", "run/model", "--prompt", "The", "--max-new-tokens", "2"]);
}

#[test]
fn the_command_line_may_name_the_folder_alone() {
    let bench = Bench::new();
    let (text, _) = ADAPT.split_once("[output]").unwrap();
    bench.write("run.toml", text);
    let message = bench.refusal(&["train", "run.toml"]);
    assert!(message.contains("output.dir") && message.contains("--out"), "{message}");
    bench.run(&["plan", "run.toml"]);
    let summary = bench.json(&["train", "run.toml", "--out", "here"]);
    assert_eq!(summary["dir"], "here");
    let again = bench.json(&["train", "run.toml", "--out", "here", "--resume"]);
    assert_eq!(again["resumed"], 6);
}

/// A learning rate of 0 leaves the first half of every update as it was drawn.
#[test]
fn the_seed_of_a_run_reaches_its_adapters() {
    let bench = Bench::new();
    bench.write("run.toml", &ADAPT.replace("lr = 1e-2", "lr = 0.0"));
    let adapter = |seed: &str, out: &str| {
        bench.run(&["train", "run.toml", "--seed", seed, "--out", out]);
        std::fs::read(bench.path(&format!("{out}/adapter/adapter_model.safetensors"))).unwrap()
    };
    let first = adapter("1", "a");
    assert_eq!(first, adapter("1", "b"));
    assert_ne!(first, adapter("2", "c"));
}

#[test]
fn files_of_the_held_out_documents_are_accounted_for() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("held")).unwrap();
    std::fs::copy(bench.path("texts/3.txt"), bench.path("held/3.txt")).unwrap();
    bench.write("held/empty.txt", "");
    bench.write("run.toml", &ADAPT.replace("split = 4", "held_out = \"held\""));
    let summary = bench.json(&["train", "run.toml"]);
    assert_eq!(summary["held_out"]["dropped"]["empty"]["documents"], 1);
}
