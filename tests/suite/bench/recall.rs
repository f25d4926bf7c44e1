//! `longburn bench recall`: cells, going on, what is refused, the page.

use super::bench;
use burn::tensor::Device;
use longburn::attention::{MixerConfig, MixerSchedule};
use longburn::datasets::synthetic::{MqarConfig, QuestionBatch, QuestionTask, TaskConfig};
use longburn::models::keymap::{ParamInfo, params};
use longburn::models::{Decoder, ModelConfig};
use longburn::positional::RopeConfig;
use longburn::training::eval::answered;
use longburn::training::{NextToken, Schedule, TrainConfig, Trainer, Warmup};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SETTINGS: &str = include_str!("../../../examples/cli/bench/recall/settings.toml");
const TASKS: [&str; 3] = ["mqar", "copying", "passkey"];
const MIXERS: [&str; 8] =
    ["dense", "longlora", "longgen", "anchor", "seer", "mamba1", "mamba2", "lact"];

/// A folder with small settings: all that is said of the mixers stays as it is.
struct Folder(TempDir);

impl Folder {
    fn new(steps: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut text = SETTINGS.to_string();
        for (field, value) in [
            ("width", "32".to_string()),
            ("steps", steps.to_string()),
            ("rows", "4".to_string()),
            ("lengths", "[128, 160]".to_string()),
        ] {
            let lines = text.lines().map(|line| match line.split_once(" = ") {
                Some((name, _)) if name == field => format!("{field} = {value}\n"),
                _ => format!("{line}\n"),
            });
            text = lines.collect::<String>().replace("gate = { steps = 300", "gate = { steps = 2");
        }
        fs::write(dir.path().join("settings.toml"), text).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn args<'a>(&self, out: &str, args: &[&'a str]) -> Vec<String> {
        let given = args.iter().map(|arg: &&'a str| (*arg).to_string());
        let path = |name: &str| self.path(name).to_str().unwrap().to_string();
        let common = ["recall".into(), "--json".into(), "--settings".into(), path("settings.toml")];
        common.into_iter().chain(["--out".into(), path(out)]).chain(given).collect()
    }

    fn run(&self, out: &str, args: &[&str]) -> Value {
        let args = self.args(out, args);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let done = bench(&args).assert().success();
        serde_json::from_slice(&done.get_output().stdout).unwrap()
    }

    fn refusal(&self, out: &str, args: &[&str]) -> (String, String) {
        let args = self.args(out, args);
        refusal(&args.iter().map(String::as_str).filter(|arg| *arg != "--json").collect::<Vec<_>>())
    }

    fn read(&self, cell: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(cell)).unwrap()).unwrap()
    }

    fn write(&self, cell: &str, value: &Value) {
        fs::write(self.path(cell), value.to_string()).unwrap();
    }

    fn page(&self, from: &str) -> String {
        let image = self.path("page.svg");
        let (from, image) = (self.path(from), image.to_str().unwrap());
        let args = ["recall-page", "--from", from.to_str().unwrap(), "--image", image];
        let done = bench(&args).assert().success();
        assert!(fs::read_to_string(image).unwrap().starts_with("<svg"));
        String::from_utf8(done.get_output().stdout.clone()).unwrap()
    }
}

fn refusal(args: &[&str]) -> (String, String) {
    let out = bench(&[args, &["--json"]].concat()).assert().code(1);
    let said: Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
    let text = |field: &str| said["error"][field].as_str().unwrap().to_string();
    (text("kind"), text("message"))
}

/// Without what differs from run to run.
fn timeless(mut cell: Value) -> Value {
    cell["seconds"] = Value::Null;
    cell
}

#[test]
fn cells_that_are_there_are_not_computed_again_and_those_of_other_settings_are_refused() {
    let folder = Folder::new(2);
    let first = folder.run("a", &["--task", "mqar", "--mixer", "dense,mamba2", "--seed", "0"]);
    assert_eq!((&first["skipped"], &first["computed"]), (&json!(0), &json!(2)));
    let cell = &first["cells"][0];
    assert_eq!((&cell["task"], &cell["mixer"]), (&json!("mqar"), &json!("dense")));
    let scores = cell["scores"].as_array().unwrap();
    let kinds: Vec<(u64, Option<u64>)> = scores
        .iter()
        .map(|score| (score["length"].as_u64().unwrap(), score["pairs"].as_u64()))
        .collect();
    let pairs = [1, 4, 8, 16].map(|pairs| (128, Some(pairs)));
    assert_eq!(kinds, [&[(128, None), (160, None)][..], &pairs].concat());
    assert_eq!(scores[5]["asked"], 4 * 16);
    assert_eq!(cell["tokens"], 2 * 4 * 128);
    assert_eq!(folder.read("a/mqar-dense-0.json"), *cell);

    let more = folder.run("a", &["--task", "mqar", "--mixer", "dense,mamba1", "--seed", "0"]);
    assert_eq!((&more["skipped"], &more["computed"]), (&json!(1), &json!(1)));
    // The same cell in a process of its own.
    let jobs = ["--task", "mqar", "--mixer", "dense,mamba1", "--seed", "0", "--jobs", "2"];
    let apart = folder.run("b", &jobs);
    assert_eq!(timeless(apart["cells"][0].clone()), timeless(cell.clone()));
    assert_eq!(timeless(apart["cells"][1].clone()), timeless(more["cells"][1].clone()));

    let fewer = [&jobs[..], &["--steps", "1"]].concat();
    let fewer = folder.run("c", &fewer);
    assert_eq!(fewer["cells"][1]["settings"]["train"]["steps"], 1);
    assert_eq!(fewer["cells"][1]["tokens"], 4 * 128);

    let (kind, message) = folder.refusal("a", &["--task", "mqar", "--seed", "0", "--steps", "3"]);
    assert_eq!(kind, "config", "{message}");
    for part in ["mqar-dense-0.json", "`settings.train.steps` is 2", "3, as in", "another folder"] {
        assert!(message.contains(part), "{message}");
    }
    fs::write(folder.path("a/mqar-dense-0.json"), "{").unwrap();
    let (kind, message) = folder.refusal("a", &["--task", "mqar", "--seed", "0"]);
    assert_eq!(kind, "parse", "{message}");
    assert!(message.contains("mqar-dense-0.json"), "{message}");
}

/// The same by hand: rows of the seed in their order, in a second part of the training those behind the
/// first part's, and questions in rows that no training sees.
#[test]
fn a_cell_equals_its_training_by_hand() {
    const STEPS: u64 = 20;
    let folder = Folder::new(STEPS);
    let asked = ["--task", "mqar", "--mixer", "dense,longlora", "--seed", "3"];
    for cell in folder.run("a", &asked)["cells"].as_array().unwrap() {
        let (seed, of) = (3, &cell["settings"]);
        let number = |value: &Value| value.as_f64().unwrap();
        let own: MixerSchedule = serde_json::from_value(of["mixer"]["mixer"].clone()).unwrap();
        let TaskConfig::Mqar(task) = serde_json::from_value(of["task"].clone()).unwrap() else {
            panic!("another task: {of}")
        };
        let made = task.init().unwrap();
        let mut config = ModelConfig::llama(made.vocabulary() + 1, 32, 2, 2)
            .with_intermediate(of["mixer"]["inner"].as_u64().unwrap() as usize)
            .with_rope(RopeConfig::new(number(&of["model"]["rope_theta"]), 16))
            .with_max_positions(161);
        config.initializer_range = number(&of["mixer"]["embedding"]);
        let dense = (number(&of["mixer"]["dense_share"]) * STEPS as f64).round() as u64;
        assert_eq!(dense, if cell["mixer"] == "dense" { 0 } else { 15 });
        let mut model = Decoder::new(&config, MixerConfig::Dense, seed, &Device::flex()).unwrap();
        let mut losses = Vec::new();
        for part in [0..dense, dense..STEPS].into_iter().filter(|part| !part.is_empty()) {
            if part.end == STEPS {
                model = model.swap_mixer(&own).unwrap();
            }
            let warmup = Warmup::Fraction(number(&of["train"]["warmup"]));
            let train = TrainConfig::new(part.end - part.start, number(&of["mixer"]["lr"]))
                .with_schedule(Schedule::Cosine { warmup, last: 0.0 })
                .with_clip(number(&of["train"]["clip"]))
                .with_seed(seed);
            let mut data = |step: u64, _: u32| {
                let rows = made.rows(seed, part.start + step, 4);
                QuestionBatch::stack(&rows).map(|batch| Some(batch.batch))
            };
            losses.clear();
            let trained =
                Trainer::new(train).unwrap().fit(model, &NextToken, &mut data, &mut |step| {
                    losses.push(step.report.loss);
                    Ok(())
                });
            model = trained.unwrap().model;
        }
        let weights: usize = params(&model).iter().map(ParamInfo::numel).sum();
        assert_eq!(cell["parameters"], weights);
        let last = &losses[losses.len() - losses.len().div_ceil(10)..];
        let loss = last.iter().sum::<f64>() / last.len() as f64;
        assert!((loss / number(&cell["loss"]) - 1.0).abs() < 1e-6, "{loss}, {}", cell["loss"]);
        let right = |task: MqarConfig| {
            let task = task.init().unwrap();
            let batch = QuestionBatch::stack(&task.rows(seed + (1 << 32), 0, 4)).unwrap();
            let said = answered(&model, &batch, task.answers()).unwrap();
            (said.iter().filter(|is_right| **is_right).count(), said.len())
        };
        let lengths = [128, 160].map(|length| MqarConfig { length, ..task.clone() });
        let pairs = [1, 4, 8, 16].map(|n| MqarConfig { pairs: (n, n), ..task.clone() });
        let expected: Vec<_> = lengths.into_iter().chain(pairs).map(right).collect();
        let count = |value: &Value| value.as_u64().unwrap() as usize;
        let scores = cell["scores"].as_array().unwrap();
        let got: Vec<_> = scores.iter().map(|s| (count(&s["right"]), count(&s["asked"]))).collect();
        assert_eq!(got, expected, "{}", cell["mixer"]);
    }
}

#[test]
fn a_run_that_is_killed_goes_on() {
    let folder = Folder::new(40);
    let asked = ["--task", "copying,passkey", "--mixer", "dense", "--seed", "5"];
    let whole = folder.run("whole", &asked);
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_longburn"))
        .arg("bench")
        .args(folder.args("cut", &asked))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (start, first) = (Instant::now(), folder.path("cut/copying-dense-5.json"));
    while !first.exists() && start.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!folder.path("cut/passkey-dense-5.json").exists(), "killed too late");
    let rest = folder.run("cut", &asked);
    assert_eq!((&rest["skipped"], &rest["computed"]), (&json!(1), &json!(1)));
    for i in 0..2 {
        assert_eq!(timeless(rest["cells"][i].clone()), timeless(whole["cells"][i].clone()));
    }
}

#[test]
fn what_cannot_be_is_named() {
    let folder = Folder::new(1);
    let (kind, message) = folder.refusal("a", &["--jobs", "0"]);
    assert!(kind == "config" && message.contains("`jobs`"), "{message}");
    // Told before anything is trained.
    let (kind, message) =
        folder.refusal("settings.toml", &["--task", "passkey", "--mixer", "dense"]);
    assert!(kind == "config" && message.contains("`out` is"), "{message}");
    let text = fs::read_to_string(folder.path("settings.toml")).unwrap();
    for (from, to, kind, parts) in [
        ("lengths = [128", "lengths = [64", "config", ["tasks.mqar.length", "128"]),
        (
            "dense_share = 0.75",
            "dense_share = 1.5",
            "config",
            ["mixers.longlora.dense_share", "1.5"],
        ),
        ("documents = 4", "documents = 0", "config", ["mixers.anchor.documents", "0"]),
        ("digits = 4", "digits = 64", "config", ["digits", "64"]),
        ("chunk = 64, window", "chunks = 64, window", "parse", ["settings.toml", "chunks"]),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text, "{from}");
        fs::write(folder.path("settings.toml"), changed).unwrap();
        let (got, message) = folder.refusal("a", &["--task", "passkey", "--mixer", "anchor"]);
        assert_eq!(got, kind, "{from}: {message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{from}: {message}");
    }
    // What a process of its own says.
    fs::write(folder.path("settings.toml"), text.replace("digits = 4", "digits = 64")).unwrap();
    let (_, message) = folder.refusal("a", &["--task", "passkey", "--jobs", "2"]);
    assert!(message.contains("passkey, ") && message.contains("`digits` is 64"), "{message}");
    let (kind, message) = refusal(&["recall-page", "--from", "no-such-folder"]);
    assert!(kind == "io" && message.contains("no-such-folder"), "{message}");
    fs::create_dir(folder.path("empty")).unwrap();
    let empty = folder.path("empty");
    let (kind, message) = refusal(&["recall-page", "--from", empty.to_str().unwrap()]);
    assert!(kind == "data" && message.contains("no results"), "{message}");
}

/// Every mixer by the settings of the program, at another width; then scores are put in by hand.
#[test]
fn the_page_says_what_failed_and_what_does_not_count() {
    let folder = Folder::new(2);
    let all = folder.run("a", &["--seed", "0", "--jobs", "2"]);
    assert_eq!(all["computed"], 24);
    let page = folder.page("a");
    // Nobody has learned anything.
    for task in ["recall", "copying", "pass key"] {
        assert!(page.contains(&format!("**The figures of {task} do not count**")), "{page}");
    }
    assert!(page.contains("- **failed**: dense answers at least 95 % of copying"), "{page}");
    assert!(page.contains("- **does not count**: Mamba-1 answers at least"), "{page}");

    let shares = |task: &str, mixer: &str| match (task, mixer) {
        ("copying", "longgen") => 0.5,
        ("copying", "mamba1") => 0.951,
        ("passkey", _) => 0.25,
        _ => 1.0,
    };
    for (task, mixer) in TASKS.into_iter().flat_map(|task| MIXERS.map(|mixer| (task, mixer))) {
        let name = format!("a/{task}-{mixer}-0.json");
        let mut cell = folder.read(&name);
        for score in cell["scores"].as_array_mut().unwrap() {
            score["asked"] = 1000.into();
            let long = score["length"] == 160;
            let share = if long { 0.125 } else { shares(task, mixer) };
            score["right"] = ((1000.0 * share) as u64).into();
        }
        folder.write(&name, &cell);
        cell["seed"] = 1.into();
        folder.write(&format!("a/{task}-{mixer}-1.json"), &cell);
    }
    let page = folder.page("a");
    let has = |text: &str| assert!(page.contains(text), "{text}: {page}");
    has("- holds: dense answers at least 95 % of copying at 128 tokens: 100.0 %");
    has("- **failed**: dense answers at least 95 % of pass key at 128 tokens: 25.0 %");
    has(
        "- **failed**: LongGen is at most 5 points below dense in copying at 128 tokens: 50.0 % of 100.0 %",
    );
    has("- holds: Mamba-1 answers at least 95 % of copying at 128 tokens: 95.1 %");
    has("- **failed**: Mamba-2 loses at least 10 points in recall from 1 pairs to 16 pairs");
    has("- holds: dense loses at least 20 points in recall from 128 tokens to 160 tokens");
    has("- **does not count**: Anchor is at most 3 points below dense in pass key");
    has(
        "- holds: Seer is at most 5 points below dense in copying at 128 tokens: 100.0 % of 100.0 %",
    );
    has("- **does not count**: Mamba-1 loses less than dense in pass key");
    // At this width they do: the smallest has a tenth less.
    has(
        "- **failed**: The models differ from the dense one by at most 5 % of its weights: 10.3 % at most, Mamba-1",
    );
    has("means over 2 seeds");
    assert!(!page.contains("Not measured"), "{page}");
    let line = page.lines().find(|line| line.starts_with("| LongGen")).unwrap();
    assert!(line.contains("| 50.0 ± 0.0 | 12.5 ± 0.0 |"), "{line}");

    // Where both lose the same, neither loses less; a model that is too small is no match either.
    for (mixer, seed) in MIXERS.into_iter().flat_map(|mixer| [(mixer, 0), (mixer, 1)]) {
        let name = format!("a/passkey-{mixer}-{seed}.json");
        let mut cell = folder.read(&name);
        for score in cell["scores"].as_array_mut().unwrap() {
            let lost = score["length"] == 160 && mixer != "mamba2";
            score["right"] = if lost { 500 } else { 1000 }.into();
        }
        if mixer == "lact" {
            cell["parameters"] = (cell["parameters"].as_u64().unwrap() / 2).into();
        }
        folder.write(&name, &cell);
    }
    let page = folder.page("a");
    let has = |text: &str| assert!(page.contains(text), "{text}: {page}");
    has("- **failed**: Mamba-1 loses less than dense in pass key");
    has("- holds: Mamba-2 loses less than dense in pass key");
    let sizes = page.lines().find(|line| line.contains("The models differ")).unwrap();
    assert!(sizes.contains("**failed**") && sizes.ends_with("% at most, LaCT"), "{sizes}");

    // A cell that is there twice, and one that was asked otherwise.
    let (from, cell) = (folder.path("a"), folder.read("a/mqar-dense-0.json"));
    let from = from.to_str().unwrap();
    folder.write("a/copy.json", &cell);
    let (kind, message) = refusal(&["recall-page", "--from", from]);
    assert!(kind == "data" && message.contains("are the same cell"), "{message}");
    let mut other = cell;
    other["seed"] = 7.into();
    other["settings"]["evaluate"]["rows"] = 5.into();
    folder.write("a/copy.json", &other);
    let (kind, message) = refusal(&["recall-page", "--from", from]);
    assert!(kind == "config" && message.contains("`settings.evaluate.rows`"), "{message}");
    fs::remove_file(folder.path("a/copy.json")).unwrap();

    // Some cell is lacking: nothing is made up for it.
    fs::remove_file(folder.path("a/copying-mamba1-1.json")).unwrap();
    let page = folder.page("a");
    assert!(page.contains("Not measured: copying, Mamba-1, seed 1."), "{page}");
    assert!(page.contains("- not measured: Mamba-1 answers at least 95 % of copying"), "{page}");

    let mut other = folder.read("a/mqar-lact-1.json");
    other["settings"]["mixer"]["lr"] = 0.5.into();
    folder.write("a/mqar-lact-1.json", &other);
    let from = folder.path("a");
    let (kind, message) = refusal(&["recall-page", "--from", from.to_str().unwrap()]);
    assert_eq!(kind, "config", "{message}");
    for part in ["mqar-lact-1.json", "`settings.mixer.lr` is 0.5", "mqar-lact-0.json"] {
        assert!(message.contains(part), "{message}");
    }
}

/// At the sizes of the program; nothing is trained that would be worth it.
#[test]
fn all_models_are_of_one_size() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let settings = dir.path().join("settings.toml");
    let few = SETTINGS.replace("rows = 256", "rows = 1").replace("steps = 300", "steps = 1");
    fs::write(&settings, few).unwrap();
    let args = ["recall", "--json", "--settings", settings.to_str().unwrap(), "--out", out];
    let asked = ["--task", "copying", "--seed", "0", "--steps", "1"];
    let done = bench(&[&args[..], &asked].concat()).assert().success();
    let said: Value = serde_json::from_slice(&done.get_output().stdout).unwrap();
    let sizes: Vec<f64> = said["cells"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cell| cell["parameters"].as_f64().unwrap())
        .collect();
    assert_eq!(sizes.len(), MIXERS.len());
    for (mixer, size) in MIXERS.iter().zip(&sizes) {
        assert!((size / sizes[0] - 1.0).abs() < 0.02, "{mixer}: {size} of {}", sizes[0]);
    }
    let gates: BTreeSet<bool> = said["cells"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cell| (cell["gate_parameters"] != 0) == (cell["mixer"] == "seer"))
        .collect();
    assert_eq!(gates, BTreeSet::from([true]));
}
