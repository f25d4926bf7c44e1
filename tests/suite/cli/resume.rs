//! A run that is stopped, in whatever way, and goes on in another process.

mod disk;
mod kinds;

use super::{Bench, longburn};
use longburn::training::checkpoint::Checkpoint;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const STEPS: usize = 44;

/// Rows of 8 tokens, 16 to a step; everything that a resumed run has to find again is in use.
const RECIPE: &str = r#"
seed = 5
[model]
path = "model"
[data]
train = "texts"
split = 4
[train]
steps = 44
length = 8
micro_batches = 2
lr = 1e-2
clip = 1.0
schedule = { name = "cosine", warmup = { steps = 3 } }
adamw = { weight_decay = 0.1 }
groups = [{ roles = ["norm"], lr_factor = 0.5 }]
[eval]
tokens = 30
[checkpoints]
every = 1
keep = 99
[output]
dir = "run"
"#;

/// Tokens of the training documents, with the tokenizer's EOS between them.
fn tokens(bench: &Bench) -> usize {
    let of = |file: &str| {
        let text = fs::read_to_string(bench.path(file)).unwrap();
        bench.tokenizer.encode(&text, true).unwrap().len() + 1
    };
    ["texts/0.txt", "texts/1.txt", "texts/2.txt"].map(of).iter().sum()
}

/// A bench whose training documents make up a whole number of steps.
fn bench() -> Bench {
    let bench = Bench::new();
    while !tokens(&bench).is_multiple_of(16) {
        let text = fs::read_to_string(bench.path("texts/0.txt")).unwrap();
        bench.write("texts/0.txt", &(text + "x"));
    }
    bench.write("run.toml", RECIPE);
    bench
}

fn copy(from: &Path, to: &Path, wanted: &dyn Fn(&str) -> bool) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match path.is_dir() {
            _ if !wanted(&name) => {}
            true => copy(&path, &to.join(name), wanted),
            false => _ = fs::copy(&path, to.join(name)).unwrap(),
        }
    }
}

fn step_of(name: &str) -> Option<usize> {
    name.strip_prefix("step-")?.parse().ok()
}

/// Steps of the checkpoints of a run, in order.
fn saved(run: &Path) -> Vec<usize> {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    let mut steps: Vec<_> =
        entries.filter_map(|e| step_of(&e.file_name().to_string_lossy())).collect();
    steps.sort_unstable();
    steps
}

fn checkpoint(run: &Path, step: usize) -> PathBuf {
    run.join(format!("checkpoints/step-{step:06}"))
}

/// What the last telling of every step says, speeds left out.
fn losses(run: &Path) -> BTreeMap<u64, (Value, Value, Value, Value)> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of = |r: Value| {
        let values =
            (r["loss"].clone(), r["lr"].clone(), r["grad_norm"].clone(), r["tokens"].clone());
        (r["step"].as_u64().unwrap(), values)
    };
    records.filter(|r| r["kind"] == "train").map(of).collect()
}

/// Everything that a finished run leaves that does not tell the time.
fn assert_same_bits(a: &Path, b: &Path) {
    let bytes = |path: PathBuf| fs::read(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    for folder in ["model", "adapter", "checkpoints/step-000044"] {
        if !a.join(folder).exists() {
            assert!(!b.join(folder).exists(), "{folder}");
            continue;
        }
        for entry in fs::read_dir(a.join(folder)).unwrap() {
            let name = entry.unwrap().file_name();
            // Settings that were changed on purpose stand in these.
            if name != "recipe.json" && name != "manifest.json" {
                let [a, b] = [a, b].map(|run| bytes(run.join(folder).join(&name)));
                assert!(a == b, "{folder}/{}", name.to_string_lossy());
            }
        }
    }
    assert_eq!(losses(a), losses(b));
}

/// The recipe with less saving.
fn sparse(every: usize) -> String {
    RECIPE.replace("every = 1\n", &format!("every = {every}\n"))
}

/// A run of `recipe`, which is given the steps between saves, killed and left as it was when step
/// `k` had been saved; its folder.
fn killed_after(bench: &Bench, recipe: &dyn Fn(usize) -> String, k: usize) -> PathBuf {
    let to = format!("from-{k}");
    let dir = bench.path(&to);
    bench.write("run.toml", &recipe(k));
    let mut child = start(bench, &["train", "run.toml", "--out", &to]);
    wait_for("the save", || saved(&dir).contains(&k));
    child.kill().unwrap();
    child.wait().unwrap();
    for step in saved(&dir).into_iter().filter(|step| *step > k) {
        fs::remove_dir_all(checkpoint(&dir, step)).unwrap();
    }
    dir
}

fn cursor(dir: &Path, step: usize) -> Value {
    let state = fs::read_to_string(checkpoint(dir, step).join("state.json")).unwrap();
    serde_json::from_str::<Value>(&state).unwrap()["counters"]["cursor"].clone()
}

/// The run killed after step `k` ends as `run`, whose summary is `whole`.
fn assert_goes_on(bench: &Bench, recipe: &str, whole: &Value, k: usize) {
    let to = format!("from-{k}");
    bench.write("run.toml", recipe);
    let summary = bench.json(&["train", "run.toml", "--resume", "--out", &to]);
    assert_eq!(summary["resumed"], k);
    for field in ["steps", "finished", "tokens", "first_loss", "last_loss", "trainable"] {
        assert_eq!(summary[field], whole[field], "{field}");
    }
    assert_eq!((&summary["before"], &summary["after"]), (&whole["before"], &whole["after"]));
    assert_same_bits(&bench.path("run"), &bench.path(&to));
}

#[test]
fn r1_a_new_process_goes_on_with_the_same_bits() {
    let bench = bench();
    let run = bench.path("run");
    bench.write("run.toml", &sparse(0));
    let whole = bench.json(&["train", "run.toml"]);
    assert_eq!(saved(&run), [STEPS]);
    let edge = tokens(&bench) / 16;
    assert!((2..STEPS).contains(&edge), "{edge}");
    for k in [1, 37, edge, STEPS] {
        let dir = killed_after(&bench, &sparse, k);
        if k == edge {
            let rows = &cursor(&dir, k)["rows"];
            assert_eq!((&rows["index"], &rows["carry"]), (&3.into(), &0.into()));
        }
        assert_goes_on(&bench, &sparse(0), &whole, k);
    }
    // Nothing but what was asked for is kept.
    assert_eq!(saved(&bench.path("from-1")), [1, STEPS]);
}

#[test]
fn r3_a_resumed_adapter_keeps_its_base_frozen() {
    let bench = bench();
    let text = sparse(0).replace("[data]", "[lora]\nrank = 2\nextra = [\"norm\"]\n[data]");
    bench.write("run.toml", &text);
    let whole = bench.json(&["train", "run.toml"]);
    bench.write(
        "half.toml",
        &text.replace("every = 0", "every = 20").replace("\"run\"", "\"half\""),
    );
    bench.json(&["train", "half.toml"]);
    for path in [bench.path("half/adapter"), bench.path("half/summary.json")] {
        let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
    }
    fs::remove_dir_all(checkpoint(&bench.path("half"), STEPS)).unwrap();
    fs::remove_dir_all(checkpoint(&bench.path("half"), 40)).unwrap();
    let resumed = bench.json(&["train", "half.toml", "--resume"]);
    assert_eq!(resumed["resumed"], 20);
    assert_eq!(resumed["trainable"], whole["trainable"]);
    assert!(whole["trainable"]["trainable"].as_u64() < whole["trainable"]["total"].as_u64());
    assert_same_bits(&bench.path("run"), &bench.path("half"));
    // Only what trains is in a checkpoint; the base is where it was.
    let names = fs::read_dir(checkpoint(&bench.path("half"), 20)).unwrap();
    let names: Vec<_> =
        names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().any(|name| name == "adapter_model.safetensors"), "{names:?}");
    assert!(!names.iter().any(|name| name == "model.safetensors"), "{names:?}");

    // Another base is no longer the same run.
    let base = bench.path("model/model.safetensors");
    let mut bytes = fs::read(&base).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&base, bytes).unwrap();
    let message = refusal(&bench, &["train", "half.toml", "--resume"]);
    assert!(message.contains("model.safetensors has other contents"), "{message}");
}

/// A run of few steps that is done.
fn short(bench: &Bench, steps: usize) -> String {
    let text = sparse(2).replace("steps = 44", &format!("steps = {steps}"));
    bench.write("run.toml", &text);
    bench.json(&["train", "run.toml"]);
    text
}

#[test]
fn r5_changed_settings_are_refused_with_a_diff() {
    let bench = bench();
    let text = short(&bench, 4);
    // Without --resume nothing is touched, and the message says what can be done.
    let before = fs::read(bench.path("run/metrics.jsonl")).unwrap();
    let message = refusal(&bench, &["train", "run.toml"]);
    for part in ["output.dir", "--resume", "--out", "holds a run"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let message = refusal(&bench, &["train", "run.toml", "--out", "run"]);
    assert!(message.contains("`out`") && message.contains("--resume"), "{message}");

    let longer = text.replace("steps = 4\n", "steps = 6\n");
    let other = longer
        .replace("lr = 1e-2", "lr = 2e-2")
        .replace("weight_decay = 0.1", "weight_decay = 0.25")
        .replace("clip = 1.0\n", "");
    bench.write("run.toml", &other);
    let message = refusal(&bench, &["train", "run.toml", "--resume", "--seed", "6"]);
    for line in [
        "train.lr was 0.01, is 0.02",
        "train.adamw.weight_decay was 0.1, is 0.25",
        "train.clip was 1.0, is not set",
        "seed was 5, is 6",
        "--allow-changes",
    ] {
        assert!(message.contains(line), "{line}: {message}");
    }
    assert!(!message.contains("train.steps was"), "{message}");
    assert_eq!(fs::read(bench.path("run/metrics.jsonl")).unwrap(), before);

    // What may change, may: more steps, and where and how often things are written.
    bench.write("run.toml", &longer.replace("every = 2", "every = 3").replace("tokens = 30", ""));
    let summary = bench.json(&["train", "run.toml", "--resume"]);
    assert_eq!((&summary["resumed"], &summary["steps"]), (&4.into(), &6.into()));
    // The rest may on demand, and is told.
    bench.write("run.toml", &other.replace("steps = 6", "steps = 8"));
    let args = ["train", "run.toml", "--resume", "--allow-changes"];
    let out = longburn(bench.dir.path(), &args).output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && told.contains("train.lr was 0.01, is 0.02"), "{told}");
    assert!(losses(&bench.path("run"))[&8].1.as_f64() > Some(0.0));
}

#[test]
fn r6_a_checkpoint_serves_another_mixer() {
    let bench = bench();
    let text = short(&bench, 4);
    let from = "run/checkpoints/step-000004";
    let swapped = text
        .replace("path = \"model\"", &format!("path = \"{from}\"\n[mixer]\nname = \"longlora\""))
        .replace("dir = \"run\"", "dir = \"swapped\"");
    bench.write("swapped.toml", &swapped);
    let summary = bench.json(&["train", "swapped.toml"]);
    // Evaluation is dense in both: the weights are the same.
    let dense: Value =
        serde_json::from_str(&fs::read_to_string(bench.path("run/summary.json")).unwrap()).unwrap();
    assert_eq!(summary["before"], dense["after"]);
    // In the middle of a run, moments and all: allowed on demand.
    let text = text.replace("steps = 4\n", "steps = 6\n");
    bench.write("run.toml", &text.replace("[data]", "[mixer]\nname = \"longlora\"\n[data]"));
    let message = refusal(&bench, &["train", "run.toml", "--resume"]);
    assert!(message.contains("mixer.name was \"dense\", is \"longlora\""), "{message}");
    let summary = bench.json(&["train", "run.toml", "--resume", "--allow-changes"]);
    assert_eq!((&summary["resumed"], &summary["steps"]), (&4.into(), &6.into()));
}

#[test]
fn d6_changed_data_stop_a_resume_unless_forced() {
    let bench = bench();
    let text = short(&bench, 4);
    bench.write("run.toml", &text.replace("steps = 4\n", "steps = 6\n"));
    let old = fs::read_to_string(bench.path("texts/1.txt")).unwrap();
    bench.write("texts/1.txt", &old.replace("seven", "eight"));
    bench.write("texts/9.txt", "more");
    let message = refusal(&bench, &["train", "run.toml", "--resume"]);
    for part in ["1.txt has other contents", "9.txt is new", "--allow-changes"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert_eq!(saved(&bench.path("run")), [2, 4]);
    bench.json(&["train", "run.toml", "--resume", "--allow-changes"]);
    assert_eq!(*saved(&bench.path("run")).last().unwrap(), 6);
}

#[test]
fn broken_checkpoints_are_passed_over_with_a_warning() {
    let bench = bench();
    bench.write("run.toml", &sparse(20));
    bench.json(&["train", "run.toml"]);
    copy(&bench.path("run"), &bench.path("broken"), &|_| true);
    for step in [40, STEPS] {
        let weights = checkpoint(&bench.path("broken"), step).join("model.safetensors");
        let mut bytes = fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 0x40;
        fs::write(&weights, bytes).unwrap();
    }
    let args = ["train", "run.toml", "--resume", "--out", "broken"];
    let out = longburn(bench.dir.path(), &args).output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{told}");
    assert_eq!(told.matches("passed over a broken checkpoint").count(), 2, "{told}");
    assert!(told.contains("resuming from broken/checkpoints/step-000020"), "{told}");
    assert_same_bits(&bench.path("run"), &bench.path("broken"));
}

/// One flipped bit in any file makes a checkpoint a broken one.
#[test]
fn f3_every_file_of_a_checkpoint_is_compared() {
    let bench = bench();
    short(&bench, 4);
    let dir = checkpoint(&bench.path("run"), 4);
    let checkpoint = Checkpoint::open(&dir).unwrap();
    checkpoint.verify().unwrap();
    let names: Vec<&str> = checkpoint.manifest.files.iter().map(|file| &*file.name).collect();
    for kind in ["config.json", "tokenizer.json", "recipe.json", "state.json"] {
        assert!(names.contains(&kind), "{names:?}");
    }
    // All that lies there but the list itself.
    assert_eq!(names.len() + 1, fs::read_dir(&dir).unwrap().count());
    for name in names {
        let good = fs::read(dir.join(name)).unwrap();
        let mut bytes = good.clone();
        bytes[good.len() / 2] ^= 1;
        fs::write(dir.join(name), bytes).unwrap();
        let error = checkpoint.verify().expect_err(name).to_string();
        assert!(error.contains(name) && error.contains("other bytes"), "{error}");
        fs::write(dir.join(name), good).unwrap();
    }
    checkpoint.verify().unwrap();
}

#[test]
fn r2_the_best_checkpoint_is_kept_and_known() {
    let bench = bench();
    // A rate at which the loss jumps about.
    let text = sparse(4)
        .replace("keep = 99", "keep = 2\nevaluate = true")
        .replace("{ name = \"cosine\", warmup = { steps = 3 } }", "{ name = \"constant\" }")
        .replace("lr = 1e-2", "lr = 3e-1");
    bench.write("run.toml", &text);
    bench.json(&["train", "run.toml"]);
    let metrics = fs::read_to_string(bench.path("run/metrics.jsonl")).unwrap();
    let records = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let measured: Vec<(usize, f64)> = records
        .filter(|r| r["name"] == "held_out_nll")
        .map(|r| (r["x"][0].as_f64().unwrap() as usize, r["y"][0].as_f64().unwrap()))
        .collect();
    assert_eq!(measured.len(), STEPS / 4);
    let (best, loss) = measured.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let mut expected = vec![best, STEPS - 4, STEPS];
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(saved(&bench.path("run")), expected, "{measured:?}");
    let state = fs::read_to_string(checkpoint(&bench.path("run"), STEPS).join("state.json"));
    let state: Value = serde_json::from_str(&state.unwrap()).unwrap();
    assert_eq!(state["counters"]["best"], loss);

    // What was best before the run was stopped is known to the process that goes on.
    bench.write("run.toml", &text.replace("keep = 2", "keep = 99"));
    bench.json(&["train", "run.toml", "--out", "many"]);
    let early = |name: &str| step_of(name).map_or(name != "model", |step| step <= 20);
    copy(&bench.path("many"), &bench.path("again"), &early);
    let summary = bench.json(&["train", "run.toml", "--resume", "--out", "again"]);
    assert_eq!(summary["resumed"], 20);
    assert_same_bits(&bench.path("many"), &bench.path("again"));
}

/// The error of a command, on one line as programs get it.
fn refusal(bench: &Bench, args: &[&str]) -> String {
    let args = [args, &["--json"]].concat();
    let out = longburn(bench.dir.path(), &args).assert().code(1);
    let error: Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
    error["error"]["message"].as_str().unwrap().to_string()
}

/// A run in a process of its own.
fn start(bench: &Bench, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_longburn"))
        .current_dir(bench.dir.path())
        .args(args)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// More steps than a test waits for.
fn endless(every: usize) -> String {
    sparse(every).replace("steps = 44", "steps = 1000000").replace("keep = 99", "keep = 2")
}

#[test]
fn p1_killed_runs_end_with_the_same_bits() {
    let bench = bench();
    bench.write("whole.toml", &sparse(0).replace("\"run\"", "\"whole\""));
    bench.json(&["train", "whole.toml"]);
    let run = bench.path("run");
    let mut kills = 0;
    for after in [0, 3, 11, 17, 30] {
        // The first process may be killed before it has begun anything.
        let mut child = start(&bench, &["train", "run.toml", "--resume"]);
        wait_for("a step", || {
            let newest = saved(&run).last().copied();
            newest.unwrap_or(0) >= after || child.try_wait().unwrap().is_some()
        });
        child.kill().unwrap();
        kills += usize::from(!child.wait().unwrap().success());
        let (before, last) = (saved(&run), saved(&run).last().copied().unwrap_or(0));
        assert!(last >= after, "{before:?}");
    }
    assert_eq!(kills, 5);
    let summary = bench.json(&["train", "run.toml", "--resume"]);
    assert!(summary["resumed"].as_u64() >= Some(30));
    assert_same_bits(&bench.path("whole"), &run);
    // No half-written thing is left anywhere.
    for folder in [run.clone(), run.join("checkpoints"), run.join("model")] {
        for entry in fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            assert!(name == ".lock" || !name.starts_with('.'), "{name}");
        }
    }
}

#[test]
fn p3_a_second_run_in_the_same_folder_is_refused() {
    let bench = bench();
    bench.write("run.toml", &endless(0));
    let mut child = start(&bench, &["train", "run.toml"]);
    wait_for("a step", || {
        fs::read_to_string(bench.path("run/metrics.jsonl")).is_ok_and(|t| t.contains("\"train\""))
    });
    for args in [&["train", "run.toml"][..], &["train", "run.toml", "--resume"]] {
        let message = refusal(&bench, args);
        assert!(message.contains(&format!("process {}", child.id())), "{message}");
    }
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
    // The lock goes with its process.
    bench.write("run.toml", &sparse(0).replace("steps = 44", "steps = 4"));
    bench.json(&["train", "run.toml", "--resume"]);
}

#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// As `tee` does, which Ctrl-C ends first.
#[test]
#[cfg(unix)]
fn p4_a_signal_stops_a_run_that_nobody_listens_to() {
    let bench = bench();
    let run = bench.path("run");
    bench.write("run.toml", &endless(0));
    let mut child = start(&bench, &["train", "run.toml"]);
    wait_for("a step", || run.join("metrics.jsonl").exists() && losses_seen(&run) > 0);
    drop(child.stderr.take());
    drop(child.stdout.take());
    signal(&child, "-INT");
    wait_for("its end", || child.try_wait().unwrap().is_some());
    assert!(!saved(&run).is_empty());
}

#[test]
fn a_result_is_not_overwritten_because_its_checkpoints_were_removed() {
    let bench = bench();
    short(&bench, 3);
    fs::remove_dir_all(bench.path("run/checkpoints")).unwrap();
    let said = refusal(&bench, &["train", "run.toml", "--resume"]);
    assert!(said.contains("holds a result") && said.contains("--out"), "{said}");
    assert!(bench.path("run/model/model.safetensors").exists());
}

#[test]
#[cfg(unix)]
fn p4_signals_finish_the_step_and_save() {
    use std::io::Read;
    let bench = bench();
    for name in ["-TERM", "-INT"] {
        let run = bench.path("run");
        bench.write("run.toml", &endless(0));
        let before = saved(&run).last().copied().unwrap_or(0);
        let mut child = start(&bench, &["train", "run.toml", "--resume"]);
        let steps = || if run.join("metrics.jsonl").exists() { losses_seen(&run) } else { 0 };
        wait_for("a step", || steps() > before);
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let mut told = String::new();
        child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        assert!(told.contains("interrupted after step") && told.contains("--resume"), "{told}");
        // The page no longer says that the run is under way, but where it stands.
        let page = fs::read_to_string(run.join("report.html")).unwrap();
        let last = *saved(&run).last().unwrap();
        for part in [
            &format!("Stopped after step {last}, as asked."),
            &format!("goes on after step {last}"),
            "longburn train run.toml --resume",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("Under way") && !page.contains("http-equiv=\"refresh\""));
        // The step that was being done is the last one told of and the one that was saved.
        assert_eq!(saved(&run).last().copied(), losses(&run).keys().last().map(|s| *s as usize));
    }
    // What follows is what would have followed anyway.
    let last = *saved(&bench.path("run")).last().unwrap();
    let steps = format!("steps = {}", last + 3);
    let text = endless(0).replace("steps = 1000000", &steps);
    bench.write("run.toml", &text);
    bench.json(&["train", "run.toml", "--resume"]);
}

#[cfg(unix)]
fn losses_seen(run: &Path) -> usize {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let whole = text.lines().filter(|l| l.ends_with('}') && l.contains(r#""kind":"train""#));
    whole.filter_map(|l| serde_json::from_str::<Value>(l).ok()?["step"].as_u64()).max().unwrap_or(0)
        as usize
}

#[test]
#[cfg(unix)]
fn p4_a_second_signal_stops_at_once() {
    let bench = bench();
    // One step takes far longer than a test may.
    bench.write("run.toml", &endless(0).replace("micro_batches = 2", "micro_batches = 1000000"));
    let mut child = start(&bench, &["train", "run.toml"]);
    wait_for("the run", || bench.path("run/metrics.jsonl").exists());
    wait_for("evaluation", || bench.path("run/before.json").exists());
    std::thread::sleep(Duration::from_millis(200));
    signal(&child, "-TERM");
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "the step was too short for this test");
    signal(&child, "-TERM");
    let begun = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(saved(&bench.path("run")).is_empty());
}
