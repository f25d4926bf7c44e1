//! What `longburn bench` refuses, and how.

use super::{bench, quick};
use serde_json::Value;

/// Kind and message of the error of a run that fails.
fn refusal(args: &[&str]) -> (String, String) {
    // Nothing is measured before everything is found to be possible.
    let out = bench(&[args, &["--json"]].concat()).assert().code(1);
    let said: Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
    let text = |field: &str| said["error"][field].as_str().unwrap().to_string();
    (text("kind"), text("message"))
}

#[test]
fn sizes_and_masks_that_cannot_be_are_named() {
    for (args, kind, says) in [
        (&["attention", "--len", "0"][..], "config", &["`len`", "is 0"][..]),
        (
            &["attention", "--len", "8", "--heads", "6", "--kv-heads", "4"],
            "config",
            &["kv-heads", "6"],
        ),
        (&["attention", "--len", "8", "--batch", "0"], "config", &["`batch`"]),
        (&["attention", "--len", "9", "--mask", "longlora"], "kernel", &["9", "4"]),
        (&["attention", "--len", "8", "--mask", "window", "--window", "0"], "kernel", &["window"]),
        (
            &["attention", "--len", "8", "--mask", "stride", "--local-blocks", "0"],
            "kernel",
            &["local_blocks"],
        ),
        (
            &["attention", "--len", "8", "--mask", "blocks", "--density", "1.5"],
            "config",
            &["`density`", "1.5"],
        ),
        (&["attention", "--len", "8", "--mask", "blocks", "--block", "0"], "config", &["`block`"]),
        (
            &["block", "--len", "8", "--mask", "stride"],
            "unsupported",
            &["stride 8", "bench attention"],
        ),
        (
            &["train-step", "--mask", "longgen", "--layers", "3", "--full-layers", "4"],
            "config",
            &["`full-layers`", "at most the 3 layers"],
        ),
        (&["train-step", "--full-layers", "1"], "config", &["`full-layers`", "--mask longgen"]),
        (&["train-step", "--mask", "longgen", "--layers", "0"], "config", &["`layers`", "is 0"]),
        (
            &["train-step", "--mask", "longgen", "--layers", "99999999999999"],
            "config",
            &["`layers`", "from 1 to"],
        ),
        (
            &["block", "--len", "8", "--mask", "longgen", "--local-blocks", "0"],
            "kernel",
            &["local_blocks"],
        ),
        (&["attention", "--len", "8", "--repeats", "0"], "config", &["`repeats`"]),
        (&["decode", "--len", "0"], "config", &["`len`"]),
        (&["decode", "--kv-heads", "3"], "config", &["kv-heads", "3"]),
        (&["decode", "--peer", "torch"], "unsupported", &["peer torch", "leave --peer out"]),
        (&["matmul", "--m", "0", "--k", "1", "--n", "1"], "config", &["`m`"]),
        (&["matmul", "--m", "1", "--k", "1", "--n", "99999999999"], "config", &["`n`"]),
        (&["block", "--len", "8", "--width", "10", "--heads", "4"], "config", &["`heads`", "10"]),
        (
            &["block", "--len", "8", "--mask", "window", "--window", "4"],
            "unsupported",
            &["window", "bench attention"],
        ),
        // Sixteen million tokens of 1024 heads.
        (
            &["attention", "--len", "16777216", "--heads", "1024"],
            "config",
            &["`len`", "16777216", "of memory are free"],
        ),
        (
            &[
                "attention",
                "--len",
                "262144",
                "--heads",
                "1",
                "--head-dim",
                "1",
                "--mask",
                "blocks",
                "--block",
                "1",
            ],
            "config",
            &["`block`", "at least 8"],
        ),
        (&["attention", "--len", "8", "--peer-timeout", "0"], "config", &["`peer-timeout`"]),
        (&["attention", "--len", "8", "--out", "no-such-folder/a.json"], "io", &["a.json"]),
        (&["attention", "--len", "8", "--out", "tests"], "io", &["tests"]),
        (
            &["suite", "--quick", "--only", "no such row"],
            "config",
            &["`only`", "no such row", "train-step, dense, L2", "growth, 20 steps over 10"],
        ),
        // Long before its turn.
        (
            &["suite", "--quick", "--peer", "stock", "--model", "no-such-folder"],
            "io",
            &["no-such-folder"],
        ),
        (&["growth", "--steps", "5", "--early", "5"], "config", &["`early`", "5 steps"]),
        (&["generate", "no-such-folder"], "io", &["no-such-folder"]),
        (&["page", "--from", "no-such.json"], "io", &["no-such.json"]),
        (&["compare", "no-a.json", "no-b.json"], "io", &["no-a.json"]),
    ] {
        let (got, message) = refusal(args);
        assert_eq!(got, kind, "{args:?}: {message}");
        for part in says {
            assert!(message.contains(part), "{args:?}: {message}");
        }
    }
}

#[test]
fn words_that_are_unknown_are_answered_with_those_that_are_known() {
    for (args, known) in [
        (&["attention", "--mask", "diagonal"][..], "longlora"),
        (&["attention", "--peer", "jax"], "torch-flex"),
        (&["matmul", "--m", "1", "--k", "1", "--n", "1", "--layout", "tt"], "nt"),
        (&["generate", "--random-llama", "7b"], "100m"),
        (&["attention", "--memory", "--no-memory"], "--no-memory"),
    ] {
        let out = quick(args).assert().code(2);
        let said = String::from_utf8_lossy(&out.get_output().stderr).into_owned();
        assert!(said.contains(known), "{args:?}: {said}");
    }
}

#[test]
fn peers_that_do_something_else_are_refused_with_those_that_would_do() {
    for (args, others) in [
        (&["matmul", "--m", "1", "--k", "1", "--n", "1", "--peer", "stock"][..], "torch"),
        (&["attention", "--len", "8", "--peer", "transformers"], "stock, torch"),
        (&["attention", "--len", "8", "--peer", "recurrence"], "stock, torch"),
        // Burn's backward pass of a loop over parts of a row takes time quadratic in its length.
        (&["scan", "--len", "8", "--backward", "--peer", "recurrence"], "stock, torch"),
        // Without gaps there is nothing that sparsity could save.
        (&["attention", "--len", "8", "--peer", "dense"], "stock"),
        (&["attention", "--len", "8", "--backward", "--peer", "torch-flex"], "stock"),
        // Its backward pass is on cards alone.
        (&["attention", "--len", "8", "--backward", "--peer", "torch-flex"], "add --device cuda"),
        (
            &["train-step", "--len", "8", "--dtype", "bf16", "--peer", "torch-flex"],
            "add --device cuda --dtype bf16, or choose from torch",
        ),
        (
            &["attention", "--len", "8", "--dtype", "bf16", "--backward", "--peer", "torch-flex"],
            "add --device cuda --dtype bf16, or choose from stock, torch",
        ),
        (
            &["block", "--len", "32768", "--mask", "longgen", "--peer", "torch"],
            "choose from dense, torch-dense",
        ),
        // A boolean mask per head would take all memory.
        (
            &["attention", "--len", "16384", "--mask", "blocks", "--peer", "torch"],
            "stock, dense, torch-dense",
        ),
    ] {
        let (kind, message) = refusal(args);
        assert_eq!(kind, "unsupported", "{message}");
        assert!(message.contains(others), "{args:?}: {message}");
    }
}
