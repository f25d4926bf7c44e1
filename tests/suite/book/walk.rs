//! The walk of `docs/walk.md`, its two accidents included, and what must be true behind it: a run
//! that was stopped ends with the same bits as one that was not.

use super::session::Session;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const PAGE: &str = "walk.md";

/// Of the page's recipe.
const EVERY: u64 = 8;
const STEPS: u64 = 40;

fn records(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Steps after which processes took the run over.
fn resumed(run: &Path) -> Vec<u64> {
    let notes = records(run).into_iter().filter(|r| r["name"] == "resumed");
    notes.map(|note| note["value"].as_u64().unwrap()).collect()
}

/// The last word on every step, speeds left out.
fn steps(run: &Path) -> BTreeMap<u64, [Value; 4]> {
    let train = records(run).into_iter().filter(|r| r["kind"] == "train");
    let fields = ["loss", "lr", "grad_norm", "tokens"];
    train.map(|r| (r["step"].as_u64().unwrap(), fields.map(|f| r[f].clone()))).collect()
}

fn assert_same_files(a: &Path, b: &Path) {
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(a), names(b));
    for name in names(a) {
        let [one, other] = [a, b].map(|dir| fs::read(dir.join(&name)).unwrap());
        assert!(one == other, "{} of {} and {}", name.display(), a.display(), b.display());
    }
}

fn walk(session: &Session) {
    let printed = session.run(PAGE);
    let ends: Vec<&str> = printed.lines().filter(|l| l.starts_with("ended with")).collect();
    assert_eq!(ends, ["ended with status 137", "ended with status 130"], "{printed}");

    let (run, whole) = (session.path("runs/walk"), session.path("runs/whole"));
    // Both accidents fell into the middle, and both times another process went on: after the kill
    // from a planned save, after the signal from where the run stood.
    let [killed, stopped] = resumed(&run)[..] else { panic!("{:?}", resumed(&run)) };
    assert!(killed.is_multiple_of(EVERY) && (EVERY..3 * EVERY).contains(&killed), "{killed}");
    assert!((3 * EVERY..STEPS).contains(&stopped), "{stopped}");
    assert!(resumed(&whole).is_empty());

    assert_eq!(steps(&run).len() as u64, STEPS);
    assert_eq!(steps(&run), steps(&whole));
    assert_same_files(&run.join("adapter"), &whole.join("adapter"));
    let json =
        |commands: &str| -> Value { serde_json::from_str(&session.shell(commands, PAGE)).unwrap() };
    session.shell("longburn merge runs/whole/adapter --out runs/whole/merged", PAGE);
    assert_same_files(&run.join("merged"), &whole.join("merged"));
    let says = |run: &str| {
        let prompt = "--prompt 'Once upon a time' --max-new-tokens 32 --json";
        json(&format!("longburn generate runs/{run}/merged {prompt}"))
    };
    let (one, other) = (says("walk"), says("whole"));
    assert!(!one["ids"].as_array().unwrap().is_empty(), "{one}");
    assert_eq!((&one["ids"], &one["text"]), (&other["ids"], &other["text"]));
    // It prints what the page's last command printed.
    let text = one["text"].as_str().unwrap().trim();
    assert!(printed.contains(text), "{text}\n{printed}");

    // Something was gained: the reach, and the loss of the held-out text at it.
    let merged = json("longburn inspect runs/walk/merged --json");
    assert_eq!(merged["positions"]["max_context"], 2048);
    let summary: Value =
        serde_json::from_str(&fs::read_to_string(run.join("summary.json")).unwrap()).unwrap();
    let nll = |when: &str| summary[when]["mean_nll"].as_f64().unwrap();
    assert!(nll("after") < nll("before"), "{} {}", nll("before"), nll("after"));
}

#[test]
#[cfg(unix)]
fn p1_p4_the_walk_survives_its_accidents() {
    walk(&Session::small());
}

#[test]
#[cfg(all(unix, feature = "slow"))]
fn p1_p4_the_walk_survives_its_accidents_on_a_real_checkpoint() {
    match std::env::var_os("LONGBURN_REALDATA") {
        Some(root) => walk(&Session::real(Path::new(&root))),
        None => super::session::skipped("the walk on a real checkpoint", "LONGBURN_REALDATA"),
    }
}
