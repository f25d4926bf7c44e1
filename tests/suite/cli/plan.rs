//! `longburn plan`, the budget of `longburn train`, and what a run says of its memory.

use super::Bench;
use crate::watching::scalars;
use serde_json::Value;

const RECIPE: &str = r#"
    title = "Watched"
    [model]
    path = "model"
    [data]
    train = "texts"
    [train]
    steps = 4
    length = 32
    lr = 1e-3
    batch = 3
    [output]
    dir = "run"
    tensorboard = true
"#;

#[test]
fn plan_prints_the_peak_and_what_would_lower_it() {
    let bench = Bench::new();
    bench.write("run.toml", RECIPE);
    let plan = bench.json(&["plan", "run.toml"]);
    let peak = |plan: &Value| plan["peak"].as_u64().unwrap();
    let values = |of: &Value| of.as_object().unwrap().values().cloned().collect::<Vec<_>>();
    let bytes = values(&plan["parts"]).into_iter().flat_map(|part| values(&part));
    let parts: u64 = bytes.map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(peak(&plan), parts + plan["working"].as_u64().unwrap());
    assert_eq!(plan["fits"], Value::Null);
    // 304 x 16 embedding, tied: weights, and two moments each.
    let embedding = &plan["parts"]["embedding"];
    assert_eq!(embedding["parameters"], 4 * 304 * 16);
    assert_eq!(embedding["optimizer"], 2 * 4 * 304 * 16);
    // Two layers of 2 x 16 numbers per token.
    assert_eq!(plan["kv_cache"], 2 * 2 * 16 * 32 * 4);

    let longer = ["plan", "run.toml", "--length", "3200", "--batch", "2"];
    let long = bench.json(&longer);
    let small = bench.json(&[&longer[..], &["--strategy", "recompute"]].concat());
    assert!(peak(&long) > 10 * peak(&plan) && peak(&small) < peak(&long));
    // What a remedy promises is what the plan with it says.
    let remedy = &long["remedies"][0];
    assert_eq!(remedy["change"], "train.strategy = \"recompute\"");
    assert_eq!(remedy["peak"], small["peak"]);

    let budget = peak(&small).to_string();
    let text = bench.run(&[&longer[..], &["--device-memory", &budget]].concat());
    assert!(text.contains("does NOT fit into"), "{text}");
    assert!(text.contains("fits  train.strategy = \"recompute\""), "{text}");
    let text = bench.run(&["plan", "run.toml", "--device-memory", "1GiB"]);
    assert!(text.contains("\nfits into 1.00 GiB"), "{text}");
    let bad = ["plan", "run.toml", "--device-memory", "many"];
    super::longburn(bench.dir.path(), &bad).assert().code(2);
}

#[test]
fn p6_a_run_that_would_not_fit_is_refused_before_anything_is_written() {
    let bench = Bench::new();
    let text = RECIPE.replace("batch = 3", "batch = 3\n    device_memory = \"64 KiB\"");
    bench.write("run.toml", &text);
    let message = bench.fails(&["train", "run.toml"]).replace(['\n', '│'], " ");
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in ["step 1", "3 x 32 tokens", "predicted", "64.0 KiB", "recompute", "train.batch = 1"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!bench.path("run").exists());
    // The command line has the last word, in both directions.
    bench.run(&["train", "run.toml", "--device-memory", "1GiB"]);
    bench.write("free.toml", &RECIPE.replace("\"run\"", "\"free\""));
    let message = bench.fails(&["train", "free.toml", "--device-memory", "1000", "--json"]);
    assert!(message.contains("1000 B"), "{message}");
    // A budget that is none.
    for (wrong, part) in [("0", "a number of bytes above 0"), ("\"many\"", "`many` is no size")] {
        bench.write("bad.toml", &text.replace("\"64 KiB\"", wrong));
        let message = bench.fails(&["train", "bad.toml"]);
        assert!(message.contains(part) && message.contains("line 12"), "{message}");
    }
}

#[test]
fn a_run_leaves_its_memory_and_its_curves() {
    let bench = Bench::new();
    bench.write("run.toml", RECIPE);
    let summary = bench.json(&["train", "run.toml"]);
    let plan = bench.json(&["plan", "run.toml"]);
    let memory = &summary["memory"];
    if cfg!(target_os = "linux") {
        let of = |name: &str| memory[name].as_u64().unwrap();
        assert_eq!(of("predicted"), of("before") + plan["peak"].as_u64().unwrap());
        assert!(of("measured") >= of("before"), "{memory}");
    }
    let metrics = std::fs::read_to_string(bench.path("run/metrics.jsonl")).unwrap();
    let note = metrics.lines().find(|line| line.contains(r#""name":"memory""#)).unwrap();
    let note: Value = serde_json::from_str(note).unwrap();
    assert_eq!(note["value"]["memory"], *memory);
    assert_eq!(note["value"]["plan"]["peak"], plan["peak"]);
    let page = std::fs::read_to_string(bench.path("run/report.html")).unwrap();
    assert!(page.contains("peak memory, predicted") && !page.contains("refresh"), "{page}");

    let events = std::fs::read_dir(bench.path("run/tensorboard")).unwrap().next().unwrap();
    let scalars = scalars(&events.unwrap().path());
    let losses: Vec<_> = scalars.iter().filter(|(_, tag, _)| tag == "train/loss").collect();
    assert_eq!(losses.iter().map(|(step, ..)| *step).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(losses[3].2, summary["last_loss"].as_f64().unwrap() as f32);
    assert!(scalars.iter().any(|(_, tag, norm)| tag == "train/grad_norm" && *norm > 0.0));
}
