//! `longburn eval` on tasks and needles, and recipes with mixed and cached data.

use super::{Bench, TEXT};
use longburn::training::eval::Perplexity;
use serde_json::Value;

fn rows(bench: &Bench, name: &str, rows: &[Value]) {
    bench.write(name, &rows.iter().map(|row| format!("{row}\n")).collect::<String>());
}

/// A tokenizer that begins every text with a token of its own: what is measured begins with it.
#[test]
fn texts_are_scored_behind_the_token_that_begins_them() {
    let bench = Bench::new();
    let tokenizer = crate::data::sentencepiece(&bench.path("model"));
    let text = "ab a c ab ab a b c a ab c c ab a";
    std::fs::create_dir(bench.path("held")).unwrap();
    bench.write("held/t.txt", text);
    let score = |special: bool| {
        let ids = tokenizer.encode(text, special).unwrap();
        assert_eq!(ids[0] == 1, special);
        Perplexity::strided(16, 8).eval(&bench.decoder, &[ids]).unwrap()
    };
    let (expected, without) = (score(true), score(false));
    assert_eq!(expected.tokens, without.tokens + 1);
    assert!((expected.mean_nll - without.mean_nll).abs() > 1e-3);
    let same = |found: &Value| {
        assert_eq!(found["tokens"], expected.tokens);
        let mean = found["mean_nll"].as_f64().unwrap();
        assert!((mean / expected.mean_nll - 1.0).abs() < 1e-9, "{found}");
    };
    let args = ["eval", "model", "--data", "held/t.txt", "--max-len", "16", "--stride", "8"];
    same(&bench.json(&args)["perplexity"]);
    // In a recipe, and through a cache of its tokens.
    for cache in ["", "cache = \"cache\"\n"] {
        let out = if cache.is_empty() { "plain" } else { "cached" };
        let recipe = format!(
            "[model]\npath = \"model\"\n[data]\ntrain = \"texts\"\nheld_out = \"held\"\n{cache}\
             [train]\nsteps = 1\nlength = 16\nlr = 1e-3\n[eval]\n[output]\ndir = \"{out}\"\n"
        );
        bench.write("run.toml", &recipe);
        same(&bench.json(&["train", "run.toml"])["before"]);
    }
}

#[test]
fn tasks_are_scored_and_go_on_from_their_results() {
    let bench = Bench::new();
    let words: Vec<Value> = (0..40)
        .map(
            |i| serde_json::json!({"text": format!("{i} sacks, and the miller counted {}", i * 7)}),
        )
        .collect();
    rows(&bench, "words.jsonl", &words);
    let common = ["eval", "model", "--task", "lambada", "--data", "words.jsonl"];
    let whole = bench.json(&common);
    let report = &whole["task"]["report"];
    assert_eq!((report["items"].as_u64(), whole["task"]["max_len"].as_u64()), (Some(40), Some(32)));
    assert!(report["perplexity"].as_f64().unwrap() > 1.0);

    let with = [&common[..], &["--results", "r.jsonl", "--limit", "40"]].concat();
    assert_eq!(bench.json(&with), whole);
    // As if it had been stopped in the middle of an item.
    let file = std::fs::read_to_string(bench.path("r.jsonl")).unwrap();
    let kept: Vec<&str> = file.lines().take(20).collect();
    bench.write("r.jsonl", &format!("{}\n{{\"item\":", kept.join("\n")));
    let out = super::longburn(bench.dir.path(), &with).assert().success();
    let text = String::from_utf8(out.get_output().stderr.clone()).unwrap();
    assert!(text.contains("19 items are done"), "{text}");
    let again = std::fs::read_to_string(bench.path("r.jsonl")).unwrap();
    assert!(again.starts_with(&kept.join("\n")));
    assert_eq!(again.lines().count(), 41);
    let resumed = bench.json(&with);
    // Other neighbours in a batch may change the last bit.
    let apart = |name: &str| {
        let of = |result: &Value| result["task"]["report"][name].as_f64().unwrap();
        of(&resumed) / of(&whole) - 1.0
    };
    assert!(apart("perplexity").abs() < 1e-6, "{resumed} {whole}");
    let other = [&common[..], &["--results", "r.jsonl", "--limit", "39"]].concat();
    let text = bench.fails(&other);
    assert!(text.contains("settings.what.limit") && text.contains("39"), "{text}");
    let longer = [&with[..], &["--batch", "7"]].concat();
    assert_eq!(bench.json(&longer), resumed);

    let choices = [
        serde_json::json!({"query": "The river ran past the", "choices": ["mill", "zzz"], "gold": 0}),
        serde_json::json!({"query": "He counted the", "choices": ["xq", "boats"], "gold": 1}),
    ];
    rows(&bench, "choices.jsonl", &choices);
    let args = ["eval", "model", "--task", "choices", "--data", "choices.jsonl"];
    let report = bench.json(&args)["task"]["report"].clone();
    assert_eq!(report["items"], 2);
    assert!(bench.run(&args).contains("acc_bytes"));
    let rolling = ["eval", "model", "--task", "rolling", "--data", "texts"];
    assert!(bench.run(&rolling).contains("bits_per_byte"));
    rows(&bench, "choices.jsonl", &[serde_json::json!({"query": "x", "choices": [], "gold": 0})]);
    let text = bench.fails(&args);
    assert!(text.contains("choices.jsonl:1") && text.contains("number 0 of 0"), "{text}");
}

#[test]
fn needles_are_drawn_by_length_and_depth() {
    let bench = Bench::new();
    let args = ["eval", "model", "--data", "texts", "--needle", "260,300", "--depths", "3"];
    let args = [&args[..], &["--needle-samples", "2", "--svg", "n.svg"]].concat();
    let result = bench.json(&[&args[..], &["--results", "n.jsonl"]].concat());
    let cells = result["needle"]["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 6);
    assert!(cells.iter().all(|cell| cell["total"] == 2));
    assert_eq!((cells[0]["depth"].as_f64(), cells[2]["depth"].as_f64()), (Some(0.0), Some(1.0)));
    let svg = std::fs::read_to_string(bench.path("n.svg")).unwrap();
    assert_eq!(svg.matches("<rect").count(), 6);
    assert_eq!(std::fs::read_to_string(bench.path("n.jsonl")).unwrap().lines().count(), 13);
    assert!(bench.run(&args).contains("needles at length"));
    let text = bench.fails(&["eval", "model", "--data", "texts", "--svg", "n.svg"]);
    assert!(text.contains("svg"), "{text}");
    let short = bench.fails(&["eval", "model", "--data", "texts", "--needle", "20"]);
    assert!(short.contains("tokens of 20"), "{short}");
}

const MIXED: &str = r#"
[model]
path = "model"
[data]
train = "texts"
split = 2
cache = "tokens"
[[data.mix]]
path = "more.jsonl.zst"
text_field = "body"
weight = 0.5
[train]
steps = 4
length = 16
lr = 1e-2
batch = 3
schedule = { name = "wsd", decay = { steps = 2 } }
[eval]
[output]
dir = "run"
"#;

#[test]
fn a_recipe_mixes_sources_and_finds_its_tokens_again() {
    let bench = Bench::new();
    let line = |i: usize| format!("{}\n", serde_json::json!({ "body": TEXT.repeat(i) }));
    let lines: String = (1..5).map(line).collect();
    let packed = zstd::encode_all(lines.as_bytes(), 1).unwrap();
    std::fs::write(bench.path("more.jsonl.zst"), packed).unwrap();
    bench.write("run.toml", MIXED);
    bench.write("plain.toml", &MIXED.replace("cache = \"tokens\"\n", ""));
    let losses = |recipe: &str, out: &str| {
        let summary = bench.json(&["train", recipe, "--out", out]);
        assert_eq!(summary["steps"], 4);
        ["first_loss", "last_loss", "data", "held_out"].map(|name| summary[name].clone())
    };
    let stamps = || -> Vec<_> {
        let files = std::fs::read_dir(bench.path("tokens")).unwrap();
        let mut files: Vec<_> = files
            .map(|file| file.unwrap())
            .map(|file| (file.path(), file.metadata().unwrap().modified().unwrap()))
            .collect();
        files.sort();
        files
    };
    let plain = losses("plain.toml", "plain");
    assert_eq!(losses("run.toml", "one"), plain);
    let written = stamps();
    assert_eq!(written.len(), 2);
    assert_eq!(losses("run.toml", "two"), plain);
    assert_eq!(stamps(), written);
    // Half of the documents of both sources are held out.
    assert_eq!(plain[2]["kept"]["documents"], 4);
    assert_eq!(plain[3]["kept"]["documents"], 4);

    for (from, to, says) in [
        ("weight = 0.5", "weight = 0.0", "data.mix[0].weight"),
        ("split = 2", "split = 2\nrows = \"windows\"", "data.mix"),
        ("decay = { steps = 2 }", "decay = { steps = 5 }", "schedule.decay"),
        ("text_field = \"body\"", "text_field = \"text\"", "no field `text`"),
    ] {
        bench.write("bad.toml", &MIXED.replace(from, to));
        let text = bench.fails(&["train", "bad.toml", "--out", "bad"]);
        assert!(text.contains(says), "{text}");
    }
}
