//! Comparisons of files and the page made from them.

use super::bench;
use serde_json::{Value, json};
use std::path::PathBuf;
use tempfile::TempDir;

/// A row as the program writes it.
fn row(case: &str, shape: &str, samples: &[f64], peers: &[(&str, f64)]) -> Value {
    let seconds = samples[samples.len() / 2];
    let peers: Vec<Value> = peers
        .iter()
        .map(|(name, ratio)| {
            json!({
                "name": name, "version": "torch 2", "seconds": seconds * ratio,
                "samples": [seconds * ratio], "peak_bytes": 4000, "ratio": ratio,
                "memory_ratio": 4.0, "difference": 1e-7,
            })
        })
        .collect();
    json!({
        "what": "attention", "case": case, "shape": shape, "dtype": "f32", "device": "flex",
        "threads": 2,
        "machine": {
            "cpu": "a processor", "cores": 2, "simd": ["avx2"], "system": "linux x86_64",
            "longburn": "0.1.0", "build": "release",
        },
        "seconds": seconds, "samples": samples, "flops": 1e9, "flops_per_second": 1e9 / seconds,
        "bytes": 1e6, "peak_bytes": 1000, "pairs": 10, "density": 0.5, "causal_share": 1.0,
        "ceiling": {
            "gemm_flops_per_second": 1e11, "gemm_by": "burn", "bytes_per_second": 1e10,
        },
        "share": 0.7, "tokens_per_second": null, "growth": null, "peers": peers,
    })
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, rows: &[Value]) -> String {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(&path, json!({ "rows": rows }).to_string()).unwrap();
        path.to_str().unwrap().into()
    }
}

fn said(args: &[&str]) -> String {
    let out = bench(args).assert().success();
    String::from_utf8(out.get_output().stdout.clone()).unwrap()
}

#[test]
fn comparisons_tell_changes_from_noise() {
    let folder = Folder::new();
    let a = [
        row("dense, forward", "T1", &[0.99, 1.0, 1.01], &[]),
        row("dense, forward", "T2", &[0.9, 1.0, 1.1], &[]),
        row("dense, forward", "T3", &[1.0], &[]),
    ];
    let b = [
        row("dense, forward", "T4", &[1.0], &[]),
        row("dense, forward", "T2", &[0.94, 1.04, 1.14], &[]),
        row("dense, forward", "T1", &[0.49, 0.5, 0.51], &[]),
    ];
    let (a, b) = (folder.write("a.json", &a), folder.write("b.json", &b));
    let found: Value = serde_json::from_str(&said(&["compare", &a, &b, "--json"])).unwrap();
    let changes = found["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 2);
    assert_eq!((&changes[0]["shape"], &changes[0]["ratio"]), (&"T1".into(), &0.5.into()));
    assert_eq!(changes[0]["is_noise"], false);
    assert_eq!((&changes[1]["ratio"], &changes[1]["is_noise"]), (&1.04.into(), &true.into()));
    assert_eq!(found["only_before"], json!(["attention, dense, forward, T3"]));
    assert_eq!(found["only_after"], json!(["attention, dense, forward, T4"]));
    let text = said(&["compare", &a, &b]);
    let line = |shape: &str| text.lines().find(|l| l.contains(shape)).unwrap().to_string();
    assert!(line("T1").contains("0.500") && !line("T1").contains("noise"), "{text}");
    assert!(line("T2").trim_end().ends_with("noise"), "{text}");
    assert!(text.contains("only in the second: attention, dense, forward, T4"), "{text}");
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let folder = Folder::new();
    let a = folder.write("a.json", &[row("dense, forward", "T1", &[1.0], &[])]);
    let b = folder.write("b.json", &[row("dense, forward", "T2", &[1.0], &[])]);
    let broken = folder.0.path().join("broken.json");
    std::fs::write(&broken, "{\"rows\": [{\"what\": 3}]}").unwrap();
    for (other, kind, says) in [
        (b.as_str(), "data", "no row in common"),
        (broken.to_str().unwrap(), "parse", "broken.json"),
    ] {
        let out = bench(&["compare", &a, other, "--json"]).assert().code(1);
        let said: Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
        assert_eq!(said["error"]["kind"], kind);
        assert!(said["error"]["message"].as_str().unwrap().contains(says), "{said}");
    }
}

#[test]
fn rows_that_cannot_be_true_and_rows_that_are_there_twice_are_refused() {
    let folder = Folder::new();
    let good = row("dense, forward", "T1", &[1.0], &[("torch", 2.0)]);
    let with = |field: &str, value: Value| {
        let mut row = good.clone();
        row[field] = value;
        folder.write("bad.json", &[row])
    };
    let refused = |args: &[&str]| {
        let out = bench(&[args, &["--json"]].concat()).assert().code(1);
        let said: Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
        assert_eq!(said["error"]["kind"], "data", "{said}");
        said["error"]["message"].as_str().unwrap().to_string()
    };
    for (field, value) in [
        ("seconds", json!(0.0)),
        ("seconds", json!(2.0)),
        ("samples", json!([])),
        ("flops_per_second", json!(1.0)),
    ] {
        let said = refused(&["page", "--from", &with(field, value)]);
        assert!(said.contains("bad.json") && said.contains(field), "{said}");
    }
    let one = std::slice::from_ref(&good);
    let (a, b) = (folder.write("a.json", one), folder.write("b.json", one));
    let refusal = refused(&["page", "--from", &a, &b]);
    assert!(refusal.contains("a.json") && refusal.contains("b.json"), "{refusal}");
    let refusal = refused(&["compare", &a, &folder.write("c.json", &[good.clone(), good.clone()])]);
    assert!(refusal.contains("c.json"), "{refusal}");
    // Which of two machines would be compared?
    let mut elsewhere = good.clone();
    elsewhere["machine"]["cpu"] = json!("another");
    let two = folder.write("two.json", &[good, elsewhere]);
    assert!(refused(&["compare", &a, &two]).contains("two.json"));
    said(&["page", "--from", &two]);
}

#[test]
fn the_page_says_plainly_what_was_reached() {
    let folder = Folder::new();
    let classic = "B1 H8 K8 D64 T4096";
    let both = "dense, forward + backward";
    let slow = [row(both, classic, &[0.5], &[("stock", 12.0), ("torch", 0.8)])];
    let page = said(&["page", "--from", &folder.write("a.json", &slow)]);
    let line = |what: &str| page.lines().find(|l| l.contains(what)).unwrap().to_string();
    let stock = line("against stock Burn");
    assert!(
        stock.contains("≥ 10") && stock.contains("12.00") && stock.contains("| met"),
        "{stock}"
    );
    // Peak of memory: 4 where 20 is asked for.
    assert!(line("peak of memory of stock").contains("**not met**"), "{page}");
    assert!(line("PyTorch SDPA, T 1 k").contains("**not met**"), "{page}");
    assert!(line("memory growth").contains("not measured"), "{page}");
    assert!(page.contains("a processor, 2 threads") && page.contains("100 GFLOP/s"), "{page}");
    assert!(page.contains("stock 12.00 (memory 4.0); torch 0.80 (memory 4.0)"), "{page}");

    // One case of ten that holds is no target met.
    let fast = [row(both, classic, &[0.5], &[("torch", 1.2)])];
    let page = said(&["page", "--from", &folder.write("b.json", &fast)]);
    let torch = page.lines().find(|l| l.contains("PyTorch SDPA, T 1 k")).unwrap();
    assert!(torch.contains("9 of 10 cases not measured"), "{torch}");
}

#[test]
fn the_page_of_a_folder_has_a_drawing_where_there_are_several_lengths() {
    let folder = Folder::new();
    let both = "dense, forward + backward";
    let rows = ["B1 H8 K8 D64 T1024", "B1 H8 K8 D64 T2048"]
        .map(|shape| row(both, shape, &[0.5], &[("torch", 1.2)]));
    folder.write("a.json", &rows);
    let (page, image) = (folder.0.path().join("page.md"), folder.0.path().join("page.svg"));
    let [from, page, image] = [folder.0.path(), &page, &image].map(|path| path.to_str().unwrap());
    assert_eq!(said(&["page", "--from", from, "--out", page, "--image", image]), "");
    assert!(std::fs::read_to_string(page).unwrap().contains("(images/performance.svg)"));
    let svg = std::fs::read_to_string(image).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("PyTorch SDPA"));
}
