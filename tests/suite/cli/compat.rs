//! P8: runs that earlier versions began go on. `tests/fixtures/compat/vN` is kept for ever as
//! version N of the format was first written; a new one is made once, by the ignored test below.

use super::{Bench, longburn};
use longburn::training::checkpoint::FORMAT;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const FULL: &str = r#"
seed = 3
[model.new]
vocab_size = 264
hidden_size = 8
layers = 1
heads = 2
tied = true
[data]
train = "texts"
[train]
steps = 4
length = 16
micro_batches = 2
lr = 1e-2
schedule = { name = "linear" }
[checkpoints]
every = 2
[output]
dir = "full"
"#;

const ADAPTED: &str = r#"
seed = 3
[model]
path = "full/model"
[lora]
rank = 2
extra = ["norm"]
[data]
train = "texts"
[train]
steps = 4
length = 16
lr = 1e-2
[checkpoints]
every = 2
[output]
dir = "adapted"
"#;

fn fixture(version: u64) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/compat/v{version}"))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => _ = fs::copy(&path, target).unwrap(),
        }
    }
}

/// Loss of every step as `metrics.jsonl` has it.
fn losses(run: &Path) -> Vec<f64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter(|r| r["kind"] == "train").map(|r| r["loss"].as_f64().unwrap()).collect()
}

#[test]
fn p8_runs_of_every_earlier_format_go_on() {
    for version in 1..=FORMAT {
        let dir = tempfile::tempdir().unwrap();
        copy(&fixture(version), dir.path());
        let expected = fs::read_to_string(dir.path().join("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&expected).unwrap();
        // The adapted one first, as the other writes its base anew.
        for run in ["adapted", "full"] {
            let args = ["train", &format!("{run}.toml"), "--resume", "--json"];
            let out = longburn(dir.path(), &args).assert().success();
            let summary: Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
            assert_eq!((&summary["resumed"], &summary["steps"]), (&2.into(), &4.into()));
            // Steps 3 and 4 as they were computed when the fixture was made.
            let found = &losses(&dir.path().join(run))[2..];
            for (found, expected) in found.iter().zip(expected[run].as_array().unwrap()) {
                let expected = expected.as_f64().unwrap();
                assert!((found / expected - 1.0).abs() < 1e-4, "{run}: {found} {expected}");
            }
            assert_eq!(found.len(), 2);
        }
    }
}

#[test]
#[ignore = "makes tests/fixtures/compat/vN, once per format"]
fn make_the_fixture() {
    let to = fixture(FORMAT);
    assert!(!to.exists(), "{} is kept as it is", to.display());
    let bench = Bench::new();
    let mut expected = json!({});
    fs::create_dir_all(to.join("texts")).unwrap();
    for name in ["texts/0.txt", "texts/1.txt"] {
        fs::copy(bench.path(name), to.join(name)).unwrap();
    }
    for (run, recipe) in [("full", FULL), ("adapted", ADAPTED)] {
        fs::write(to.join(format!("{run}.toml")), recipe).unwrap();
        longburn(&to, &["train", &format!("{run}.toml")]).assert().success();
        expected[run] = json!(losses(&to.join(run))[2..]);
    }
    fs::write(to.join("expected.json"), format!("{expected:#}\n")).unwrap();
    // As both runs were after step 2; the model of the first stays as base of the second.
    for run in ["full", "adapted"] {
        let dir = to.join(run);
        fs::remove_dir_all(dir.join("checkpoints/step-000004")).unwrap();
        fs::write(dir.join("checkpoints/latest"), "step-000002").unwrap();
        let lines = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
        let kept = lines.lines().filter(|line| {
            let record: Value = serde_json::from_str(line).unwrap();
            record["name"] == "seed" || record["step"].as_u64().is_some_and(|step| step <= 2)
        });
        let kept: String = kept.map(|line| format!("{line}\n")).collect();
        fs::write(dir.join("metrics.jsonl"), kept).unwrap();
        for name in ["summary.json", "loss.svg", "report.html", ".lock"] {
            fs::remove_file(dir.join(name)).unwrap();
        }
        let _ = fs::remove_dir_all(dir.join("adapter"));
    }
}
