//! P2: disks that are full, for a while or to the end of a run.

use super::*;

/// A process of `longburn train run.toml ..` whose files may not grow beyond so many KiB.
#[cfg(unix)]
fn limited(bench: &Bench, kib: u32, more: &str) -> (Option<i32>, String) {
    let program = env!("CARGO_BIN_EXE_longburn");
    let limited = format!("trap '' XFSZ; ulimit -f {kib}; exec {program} train run.toml {more}");
    let out = Command::new("bash").args(["-c", &limited]).current_dir(bench.dir.path()).output();
    let out = out.unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
#[cfg(unix)]
fn p2_a_full_disk_costs_no_checkpoint() {
    let bench = bench();
    let text = short(&bench, 4);
    bench.write("run.toml", &text.replace("steps = 4\n", "steps = 8\n"));
    copy(&bench.path("run"), &bench.path("free"), &|_| true);
    copy(&checkpoint(&bench.path("run"), 4), &bench.path("as-it-was"), &|_| true);
    // Weights cannot be written, metrics can.
    let (status, told) = limited(&bench, 32, "--resume");
    assert_eq!(status, Some(1), "{told}");
    for step in [6, 8] {
        assert!(told.contains(&format!("no checkpoint of step {step}")), "{told}");
    }
    assert!(told.contains("model.safetensors"), "{told}");
    assert_eq!(saved(&bench.path("run")), [2, 4]);
    for entry in fs::read_dir(bench.path("as-it-was")).unwrap() {
        let path = entry.unwrap().path();
        let now = checkpoint(&bench.path("run"), 4).join(path.file_name().unwrap());
        assert_eq!(fs::read(&path).unwrap(), fs::read(now).unwrap(), "{path:?}");
    }
    let notes = fs::read_to_string(bench.path("run/metrics.jsonl")).unwrap();
    assert_eq!(notes.matches("checkpoint failed").count(), 2);

    let summary = bench.json(&["train", "run.toml", "--resume"]);
    assert_eq!((&summary["resumed"], &summary["steps"]), (&4.into(), &8.into()));
    bench.json(&["train", "run.toml", "--resume", "--out", "free"]);
    let model = |run: &str| fs::read(bench.path(run).join("model/model.safetensors")).unwrap();
    assert!(model("run") == model("free"));
}

/// No room for metrics, curves and page: all steps are done all the same, each trouble is told of
/// once, and what stands in the files is whole.
#[test]
#[cfg(unix)]
fn p2_a_disk_without_room_for_a_line_ends_no_run() {
    let bench = bench();
    bench.write("run.toml", &sparse(0).replace("[output]", "[output]\ntensorboard = true"));
    let (status, told) = limited(&bench, 4, "");
    // The result itself cannot be written.
    assert_eq!(status, Some(1), "{told}");
    assert!(told.contains("no checkpoint of step 44"), "{told}");
    for name in ["metrics.jsonl", "tensorboard", "report.html"] {
        let lines = told.lines().filter(|l| l.contains("the run goes on") && l.contains(name));
        assert_eq!(lines.count(), 1, "{name}: {told}");
    }
    assert!(!told.contains("written again"), "{told}");
    let run = bench.path("run");
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert!((3000..=4096).contains(&metrics.len()) && metrics.ends_with('\n'), "{metrics}");
    let last = losses(&run).keys().last().copied().unwrap();
    assert!((3..STEPS as u64).contains(&last), "{last}");
    for entry in fs::read_dir(run.join("tensorboard")).unwrap() {
        let path = entry.unwrap().path();
        let events = crate::watching::scalars(&path);
        assert!(fs::metadata(&path).unwrap().len() <= 4096 && !events.is_empty());
    }
    // Half a result is none: the run, of which nothing was saved, begins again.
    assert!(run.join("model").is_dir());
    let summary = bench.json(&["train", "run.toml", "--resume"]);
    assert_eq!((&summary["resumed"], &summary["steps"]), (&Value::Null, &STEPS.into()));
    assert_eq!(losses(&run).len(), STEPS);
}
