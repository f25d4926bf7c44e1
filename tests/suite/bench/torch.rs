//! Peers in Python: the protocol with stand-ins, and the script itself where LONGBURN_PYTHON names
//! a Python that has torch and transformers.

use super::{number, quick, row};
use serde_json::Value;
use std::path::PathBuf;
use tempfile::TempDir;

const PRODUCT: [&str; 7] = ["matmul", "--m", "2", "--k", "3", "--n", "2"];

fn refusal(python: &str) -> String {
    let mut command = quick(&[&PRODUCT[..], &["--peer", "torch", "--python", python]].concat());
    let out = command.assert().code(1);
    let said: Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
    said["error"]["message"].as_str().unwrap().to_string()
}

/// A program that answers every line with `answer`, in place of Python.
#[cfg(unix)]
fn stand_in(answer: &str) -> (TempDir, PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("python");
    let text = format!("#!/bin/sh\nwhile read line; do echo '{answer}'; done\n");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    (dir, path)
}

#[test]
fn a_python_that_is_not_there_is_named_with_the_option() {
    let message = refusal("/no/such/python");
    assert!(message.contains("/no/such/python") && message.contains("--python"), "{message}");
}

#[cfg(unix)]
#[test]
fn what_a_peer_says_it_lacks_is_passed_on() {
    let (_dir, python) = stand_in(r#"{"error": "No module named torch"}"#);
    let message = refusal(python.to_str().unwrap());
    assert!(message.contains("No module named torch") && message.contains("--python"), "{message}");
    let (_dir, python) = stand_in("no JSON");
    assert!(refusal(python.to_str().unwrap()).contains("--python"));
}

#[cfg(unix)]
#[test]
fn a_peer_that_computes_something_else_ends_the_run() {
    let found = r#"{"name": "product", "values": [1, 2, 3, 4], "sum": 10, "size": 10}"#;
    let answer = format!(r#"{{"version": "x", "probe": [{found}], "seconds": 0.5}}"#);
    let (_dir, python) = stand_in(&answer);
    let message = refusal(python.to_str().unwrap());
    assert!(message.contains("difference of `product`"), "{message}");
    // Nor may a result be left out.
    let (_dir, python) = stand_in(r#"{"version": "x", "probe": [], "seconds": 0.5}"#);
    assert!(refusal(python.to_str().unwrap()).contains("NaN"));
}

/// A library that is not there is told before anything is measured.
#[cfg(unix)]
#[test]
fn libraries_are_asked_for_first() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("python");
    let script = r#"#!/bin/sh
read line
case "$line" in
    *import*) echo '{"error": "No module named transformers"}' ;;
    *) echo '{"error": "too late"}' ;;
esac
"#;
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let args = ["generate", "--random-llama", "20k", "--prompt", "2", "--new", "2"];
    let peer = ["--peer", "transformers", "--python", path.to_str().unwrap()];
    let out = quick(&[&args[..], &peer].concat()).assert().code(1);
    let said = String::from_utf8_lossy(&out.get_output().stdout).into_owned();
    assert!(said.contains("No module named transformers"), "{said}");
}

#[test]
fn pytorch_computes_the_same() {
    let Some(python) = std::env::var_os("LONGBURN_PYTHON") else {
        return println!("skipped: LONGBURN_PYTHON names no Python");
    };
    let python = python.to_str().unwrap();
    let attention = ["attention", "--len", "64", "--heads", "4", "--kv-heads", "2", "--backward"];
    let model = ["--len", "64", "--width", "32", "--heads", "4"];
    let longgen =
        ["train-step", "--vocab", "60", "--layers", "3", "--mask", "longgen", "--block", "4"];
    let longgen = [&longgen[..], &["--local-blocks", "2"]].concat();
    for (case, peer) in [
        (attention.to_vec(), "torch"),
        (
            [&attention[..], &["--mask", "window", "--window", "9", "--sinks", "2"]].concat(),
            "torch",
        ),
        ([&attention[..], &["--mask", "longlora"]].concat(), "torch"),
        (
            [&attention[..], &["--mask", "stride", "--block", "4", "--stride", "3"]].concat(),
            "torch",
        ),
        ([&attention[..], &["--mask", "blocks", "--block", "7"]].concat(), "torch"),
        ([&PRODUCT[..], &["--layout", "tn", "--batch", "2"]].concat(), "torch"),
        (vec!["linear-loss", "--tokens", "40", "--width", "16", "--vocab", "60"], "torch"),
        ([&["block", "--kv-heads", "2"][..], &model].concat(), "torch"),
        ([&["train-step", "--vocab", "60"][..], &model].concat(), "torch"),
        ([&["train-step", "--vocab", "60", "--mask", "longlora"][..], &model].concat(), "torch"),
        ([&longgen[..], &model].concat(), "torch"),
        ([&longgen[..], &["--kv-heads", "2", "--stride", "3"], &model].concat(), "torch"),
        (
            [&longgen[..], &["--kv-heads", "2", "--stride", "5", "--sink-blocks", "2"], &model]
                .concat(),
            "torch",
        ),
        (vec!["generate", "--random-llama", "20k", "--prompt", "9", "--new", "5"], "transformers"),
    ] {
        let row = row(&[&case[..], &["--peer", peer, "--python", python]].concat());
        let difference = number(&row["peers"][0], "difference");
        println!("{}, {}: {difference:e}", row["what"], row["case"]);
        assert!(difference < 1e-4, "{row}");
    }
}

/// FlexAttention has a backward pass on cards alone; its rules are those of the masks that
/// [`pytorch_computes_the_same`] compares.
#[test]
fn flex_attention_sees_the_same_pairs() {
    let Some(python) = std::env::var_os("LONGBURN_PYTHON") else {
        return println!("skipped: LONGBURN_PYTHON names no Python");
    };
    let root = env!("CARGO_MANIFEST_DIR");
    let mut script = assert_cmd::Command::new(python);
    script.args(["tests/interop/flex_on_cpu.py", "benches/peers/torch_peer"]).current_dir(root);
    script.assert().success();
}
