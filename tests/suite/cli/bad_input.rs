//! Bad input is named, with its place, and costs nothing.

use super::{Bench, longburn};
use longburn::Error;
use longburn::training::Recipe;

const GOOD: &str = r#"
[model]
path = "model"
[mixer]
name = "longlora"
[data]
train = "texts"
split = 4
[train]
steps = 6
length = 32
lr = 1e-2
schedule = { name = "linear" }
[eval]
[output]
dir = "run"
"#;

/// What the error about the recipe with `old` replaced by `new` points at, and what it says.
fn fault(old: &str, new: &str) -> (String, String) {
    assert!(GOOD.contains(old), "{old}");
    let text = GOOD.replacen(old, new, 1);
    match Recipe::parse(&text, "run.toml") {
        Err(Error::Parse { file, message, text: Some(shown), span: Some(span) }) => {
            assert_eq!((file.as_str(), &shown), ("run.toml", &text));
            (shown[span].to_string(), message)
        }
        other => panic!("{new}: {other:?}"),
    }
}

#[test]
fn recipe_errors_point_into_the_line() {
    Recipe::parse(GOOD, "run.toml").unwrap();
    for (old, new, at, says) in [
        // What TOML or the types refuse.
        ("length = 32", "length = ", "", "line 11"),
        ("length = 32", "lenght = 32", "lenght", "unknown field"),
        ("lr = 1e-2", "lr = \"high\"", "\"high\"", "invalid type"),
        ("steps = 6", "steps = -6", "-6", "invalid value"),
        // Inside of enums that a field tells apart.
        ("\"longlora\"", "\"longlora\"\ngroup_ration = 4", "group_ration", "unknown field"),
        ("\"longlora\"", "\"longlora\"\ngroup_ratio = \"x\"", "\"x\"", "invalid type"),
        ("\"longlora\"", "\"longloar\"", "\"longloar\"", "unknown variant"),
        ("\"linear\" }", "\"linear\", warm = 3 }", "warm", "unknown field"),
        // What does not go together.
        ("length = 32", "length = 30", "30", "mixer.group_ratio = 4"),
        ("\"longlora\"", "\"longlora\"\ngroup_size = 24", "32", "mixer.group_size = 24"),
        ("\"longlora\"", "\"longlora\"\ngroup_size = 7", "7", "even"),
        ("\"longlora\"", "\"longlora\"\ngroup_ratio = 0", "0", "at least 1"),
        ("split = 4", "split = 4\nsegments = true", "mixer", "documents"),
        ("split = 4", "split = 1", "1", "at least 2"),
        ("split = 4\n", "", "eval", "held_out"),
        ("[eval]", "[extend]\nto = 16\n[eval]", "16", "train.length = 32"),
        ("[eval]", "[lora]\nrank = 0\n[eval]", "0", "at least 1"),
        ("[eval]", "[eval.protocol]\nname = \"strided\"\nmax_len = 8\nstride = 9", "9", "max_len"),
        ("{ name = \"linear\" }", "{ name = \"linear\", last = 2 }", "2", "from 0 to 1"),
        (
            "path = \"model\"",
            "path = \"model\"\n[model.new]\nvocab_size = 9\nhidden_size = 8\n\
          layers = 1\nheads = 2",
            "new",
            "one of the two",
        ),
        (
            "path = \"model\"",
            "[model.new]\nvocab_size = 9\nhidden_size = 9\nlayers = 1\nheads = 3",
            "9",
            "even",
        ),
        ("dir = \"run\"", "dir = \"run\"\nmerge = true", "true", "[lora]"),
        // What would take all memory.
        ("steps = 6", "steps = 6\nbatch = 9223372036854775807", "9223372036854775807", "from 1 to"),
        ("steps = 6", "steps = 6\nworkers = 4000000000", "4000000000", "from 1 to"),
        ("steps = 6", "steps = 6\nmicro_batches = 4000000000", "4000000000", "from 1 to"),
        ("length = 32", "length = 9223372036854775804", "9223372036854775804", "from 2 to"),
        ("[eval]", "[extend]\nto = 99999999999\n[eval]", "99999999999", "from 1 to"),
    ] {
        let (found, message) = fault(old, new);
        assert_eq!(found, at, "{new}: {message}");
        assert!(message.contains(says), "{new}: {message}");
    }
    let missing = Recipe::parse("[model]\npath = \"x\"", "run.toml").unwrap_err().to_string();
    assert!(missing.contains("missing field `data`"), "{missing}");
}

#[test]
fn a_recipe_error_is_shown_in_its_line() {
    let bench = Bench::new();
    bench.write("run.toml", &GOOD.replace("steps = 6", "step = 6"));
    let message = bench.fails(&["train", "run.toml"]);
    assert!(message.contains("run.toml:10:1") && message.contains("step = 6"), "{message}");
    // Found in the checkpoint's configuration, still shown in the recipe.
    bench.write("run.toml", &GOOD.replace("length = 32", "length = 64"));
    let message = bench.fails(&["train", "run.toml"]);
    assert!(message.contains("run.toml:11:10"), "{message}");
    assert!(message.contains("context of 32"), "{message}");
    assert!(!bench.path("run").exists());
}

#[test]
fn recipes_name_missing_files_before_anything_is_written() {
    let bench = Bench::new();
    bench.write("run.toml", &GOOD.replace("\"texts\"", "\"nowhere\""));
    assert!(bench.fails(&["train", "run.toml"]).contains("nowhere"));
    bench.write("run.toml", &GOOD.replace("\"model\"", "\"elsewhere\""));
    assert!(bench.fails(&["train", "run.toml"]).contains("elsewhere"));
    assert!(!bench.path("run").exists());
    assert!(bench.fails(&["train", "absent.toml"]).contains("absent.toml"));
}

#[test]
fn ids_are_checked_before_anything_is_computed() {
    let bench = Bench::new();
    let fails = |ids: &str| {
        bench.write("ids.json", ids);
        bench.fails(&["logits", "model", "--ids", "ids.json", "--out", "out.safetensors"])
    };
    for (ids, says) in [
        ("[[1, 2], [3, 304]]", ["[1][1]", "304"]),
        ("[[1], []]", ["[1]", "empty"]),
        ("[]", ["ids.json", "at least one row"]),
        ("[[1, -2]]", ["ids.json:1:", "-2"]),
        ("[[1, 2]", ["ids.json:1:", "EOF"]),
        ("[1, 2]", ["ids.json:1:", "sequence"]),
    ] {
        let message = fails(ids);
        assert!(says.iter().all(|part| message.contains(part)), "{ids}: {message}");
    }
    assert!(!bench.path("out.safetensors").exists());
    let message = bench.fails(&["generate", "model", "--ids", "none.json"]);
    assert!(message.contains("none.json"), "{message}");
    assert!(bench.fails(&["generate", "model", "--prompt", ""]).contains("at least one token"));
    bench.write("ids.json", "{}");
    let message = bench.fails(&["generate", "model", "--ids", "ids.json"]);
    assert!(message.contains("a list of ids"), "{message}");
}

#[test]
fn numbers_that_cannot_work_are_named() {
    let bench = Bench::new();
    let huge = "18446744073709551615";
    for (args, says) in [
        (&["generate", "model", "--prompt", "x", "--temperature", "-1"][..], "temperature"),
        (
            &["generate", "model", "--prompt", "x", "--max-new-tokens", huge, "--top-p", "-1"],
            "top_p",
        ),
        (&["eval", "model", "--passkey", huge], "`passkey` is 18446744073709551615"),
        (&["eval", "model", "--passkey", "300", "--passkey-samples", "0"], "passkey-samples"),
        (
            &["eval", "model", "--data", "texts", "--protocol", "longlora", "--max-len", "9999"],
            "9999",
        ),
        (&["papers", "--threads", "100000"], "from 1 to 1024"),
        (&["mask", "show", "--len", "8", "--heads", huge], "heads"),
        (&["mask", "show", "--len", "8", "--head-dim", "0"], "head-dim"),
        (&["mask", "show", "--len", "8", "--segments", "18446744073709551615,5"], "row of 8"),
    ] {
        let message = bench.fails(args);
        assert!(message.contains(says), "{args:?}: {message}");
    }
    let with = |flag| longburn(bench.dir.path(), &["mask", "show", "--len", "8", flag]);
    with("--ragged").assert().code(2);
    with("--no-shift").assert().code(2);
}

/// Before anything is read: there is no such model.
#[test]
fn numbers_of_grids_are_checked_first() {
    let bench = Bench::new();
    let huge = "18446744073709551615";
    let needle = ["--data", "none", "--needle", "64"];
    for (args, field, expected) in [
        (&["--passkey", huge][..], "passkey", "from 1 to 1048576"),
        (&["--passkey", "0"], "passkey", "from 1 to 1048576"),
        (&["--passkey", "64", "--passkey-samples", huge], "passkey-samples", "from 1 to 10000"),
        (&["--passkey", "64", "--passkey-samples", "0"], "passkey-samples", "from 1 to 10000"),
        (&["--data", "none", "--needle", "64,1048577"], "needle", "from 1 to 1048576"),
        (&[&needle[..], &["--depths", huge]].concat(), "depths", "from 1 to 10000"),
        (&[&needle[..], &["--depths", "0"]].concat(), "depths", "from 1 to 10000"),
        (&[&needle[..], &["--needle-samples", "10001"]].concat(), "needle-samples", "from 1 to"),
        (&["--data", "none", "--batch", "0"], "batch", "from 1 to 10000"),
        (&["--data", "none", "--max-len", huge], "max-len", "from 1 to 1048576"),
        (&["--data", "none", "--stride", "0"], "stride", "from 1 to 1048576"),
        // Each may be, all together not.
        (&["--passkey", "1048576", "--passkey-samples", "10000"], "passkey", "at most 268435456"),
        (
            &[&needle[..], &["--depths", "10000", "--needle-samples", "10000"]].concat(),
            "needle",
            "fewer or shorter prompts",
        ),
    ] {
        // A folder of that name, without a model in it.
        let message = bench.refusal(&[&["eval", "texts"], args].concat());
        assert!(message.contains(&format!("field `{field}` is ")), "{args:?}: {message}");
        assert!(message.contains(expected), "{args:?}: {message}");
    }
}

#[test]
fn what_is_something_else_is_told_with_what_was_expected() {
    let bench = Bench::new();
    bench.write("empty.txt", "");
    bench.write("cut.json", "[[1, 5");
    std::fs::write(bench.path("latin.txt"), b"caf\xe9\n").unwrap();
    bench.write("factors.json", r#"{"long_factor": [1.0, 0.0, 2.0, 4.0]}"#);
    bench.write("rows.jsonl", "{\"text\": \"The river ran.\"}\n{\"text\": 1}\n");
    let generate = ["generate", "model", "--max-new-tokens", "1"];
    let extend = ["extend", "model", "--method", "longrope", "--to", "64", "--factors"];
    for (args, says) in [
        (
            &["generate", "model/config.json", "--prompt", "x"][..],
            &["model/config.json: is a file", "name the folder"][..],
        ),
        (
            &[&generate[..], &["--prompt", "x", "--adapter", "empty.txt"]].concat(),
            &["empty.txt: is a file", "name the folder"],
        ),
        (
            &["merge", "texts", "--out", "merged"],
            &["texts/adapter_config.json: there is no such file", "adapter in PEFT form"],
        ),
        (
            &["inspect", "texts"],
            &["texts/config.json: there is no such file", "checkpoint in Hugging Face form"],
        ),
        (&[&generate[..], &["--prompts", "latin.txt"]].concat(), &["latin.txt: is not UTF-8"]),
        (&[&generate[..], &["--prompt-file", "latin.txt"]].concat(), &["latin.txt: is not UTF-8"]),
        (&[&generate[..], &["--prompt-file", "texts"]].concat(), &["texts: ", "name a file in it"]),
        (&[&generate[..], &["--ids", "none.json"]].concat(), &["none.json: ", "check the path"]),
        (
            &[&extend[..], &["factors.json"]].concat(),
            &["factors.json: field `long_factor` is a list with 0 in it; expected a list of 4"],
        ),
        (
            &["logits", "model", "--ids", "cut.json", "--out", "l"],
            &["cut.json: ", "EOF", "such as [[1, 5, 9], [1, 7]]"],
        ),
        (&["eval", "model", "--data", "rows.jsonl"], &["rows.jsonl:2: ", "--skip-bad-lines"]),
    ] {
        let message = bench.refusal(args);
        assert!(says.iter().all(|part| message.contains(part)), "{args:?}: {message}");
        assert!(message.contains("(remedy: ") || message.contains("; expected "), "{message}");
    }
    let skipped = bench.json(&["eval", "model", "--data", "rows.jsonl", "--skip-bad-lines"]);
    assert_eq!(skipped["data"]["skipped"]["bad line"], 1, "{skipped}");
}

#[test]
fn damaged_checkpoints_are_named() {
    let bench = Bench::new();
    let weights = bench.path("model/model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 5]).unwrap();
    let message = bench.fails(&["generate", "model", "--prompt", "x"]);
    assert!(message.contains("model.safetensors") && message.contains("cut short"), "{message}");
    std::fs::write(&weights, &bytes).unwrap();
    std::fs::remove_file(bench.path("model/tokenizer.json")).unwrap();
    assert!(bench.fails(&["eval", "model", "--data", "texts"]).contains("tokenizer.json"));
}

#[test]
fn devices_are_checked() {
    let bench = Bench::new();
    bench.write("ids.json", "[[1]]");
    let args = ["logits", "model", "--ids", "ids.json", "--out", "x", "--device"];
    let with = |device| [&args[..], &[device]].concat();
    for name in ["gpu", "flex:1", "wgpu:x"] {
        longburn(bench.dir.path(), &with(name)).assert().code(2);
    }
    if cfg!(not(feature = "cuda")) {
        let message = bench.fails(&with("cuda:1"));
        assert!(
            message.contains("device cuda:1") && message.contains("--features cuda"),
            "{message}"
        );
    }
    assert!(bench.fails(&["papers", "--threads", "0"]).contains("threads"));
    bench.run(&["papers", "--threads", "1"]);
}

#[test]
fn masks_have_lengths_that_can_be_drawn() {
    let bench = Bench::new();
    for (args, says) in [
        (&["--len", "0"][..], "from 1"),
        (&["--len", "99999999999"], "1048576"),
        (&["--len", "30", "--group-ratio", "4"], "30"),
        (&["--len", "32", "--group-ratio", "4", "--heads", "3"], "even"),
        (&["--len", "8", "--segments", "5,5"], "10 tokens"),
        (&["--len", "8", "--stride", "0"], "stride"),
        (&["--len", "8", "--stride", "2", "--heads", "65536"], "up to 64"),
        (&["--len", "8", "--stride", "2", "--kv-heads", "0"], "key_heads"),
    ] {
        let message = bench.fails(&[&["mask", "show"], args].concat());
        assert!(message.contains(says), "{args:?}: {message}");
    }
    longburn(bench.dir.path(), &["mask", "show"]).assert().code(2);
}

#[test]
fn programs_get_errors_as_json() {
    let bench = Bench::new();
    let out = longburn(bench.dir.path(), &["inspect", "absent", "--json"]).assert().code(1);
    let error: serde_json::Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
    assert_eq!(error["error"]["kind"], "hub_offline");
    assert!(error["error"]["message"].as_str().unwrap().contains("absent"));

    // The last weight of the file is one of the final norm.
    let weights = bench.path("model/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len() - 4;
    bytes[end..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    for (args, kind) in [
        (["generate", "model", "--prompt", "x", "--json"], "logits"),
        (["eval", "model", "--data", "texts", "--json"], "evaluation"),
    ] {
        let out = longburn(bench.dir.path(), &args).assert().code(1);
        let error: serde_json::Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
        assert_eq!(error["error"]["kind"], kind, "{error}");
    }
}
