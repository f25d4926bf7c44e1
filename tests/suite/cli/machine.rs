//! `doctor`, `--version`, `completions`, `inspect` on what else runs and on flipped bits.

use super::{Bench, longburn};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

#[test]
fn doctor_finds_a_device_that_computes() {
    let bench = Bench::new();
    let facts = bench.json(&["doctor"]);
    assert_eq!(facts["devices"]["flex"]["runs"], true);
    let dtypes = facts["devices"]["flex"]["dtypes"].as_array().unwrap();
    assert!(dtypes.contains(&"f32".into()), "{facts}");
    assert!(facts["cpu"]["threads"].as_u64().unwrap() >= 1);
    assert!(facts["here"]["free_bytes"].as_u64().unwrap() > 0);
    assert_eq!(facts["features"][0], "flex");
    // The version is that of the lock file.
    let lock = include_str!("../../../Cargo.lock");
    let burn = facts["versions"]["burn"].as_str().unwrap();
    assert!(lock.contains(&format!("name = \"burn\"\nversion = \"{burn}\"\n")), "{burn}");

    let text = bench.run(&["doctor", "--threads", "1"]);
    assert!(text.contains("flex       runs; f32") && text.contains(" 1 threads"), "{text}");
    // A device that is asked for and not there is no reason to stop.
    if cfg!(not(feature = "cuda")) {
        let facts = bench.json(&["doctor", "--device", "cuda:3"]);
        assert_eq!(facts["devices"]["cuda:3"]["runs"], false);
        let problem = facts["devices"]["cuda:3"]["problem"].as_str().unwrap();
        assert!(problem.contains("--features cuda"), "{problem}");
    }
}

#[test]
fn doctor_finds_the_cache_that_python_uses() {
    let bench = Bench::new();
    let cache = |variables: &[(&str, &str)]| -> String {
        let mut command = longburn(bench.dir.path(), &["doctor", "--json"]);
        command
            .env_remove("HUGGINGFACE_HUB_CACHE")
            .env_remove("HF_HUB_CACHE")
            .env_remove("HF_HOME")
            .env_remove("XDG_CACHE_HOME");
        let out = command.envs(variables.iter().copied()).assert().success();
        let facts: Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
        facts["cache"]["path"].as_str().unwrap().to_string()
    };
    assert_eq!(cache(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
    assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
    assert_eq!(cache(&[("HF_HOME", "/y"), ("XDG_CACHE_HOME", "/x")]), "/y/hub");
    assert_eq!(cache(&[("HF_HUB_CACHE", "/z"), ("HF_HOME", "/y")]), "/z");
}

#[test]
fn the_version_names_what_is_compiled_in() {
    let bench = Bench::new();
    let text = bench.run(&["--version"]);
    for line in ["features: flex", "devices: flex", concat!("longburn ", env!("CARGO_PKG_VERSION"))]
    {
        assert!(text.lines().any(|l| l.starts_with(line)), "{line}: {text}");
    }
    assert_eq!(bench.run(&["-V"]).trim(), concat!("longburn ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn shells_get_completions() {
    let bench = Bench::new();
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let script = bench.run(&["completions", shell]);
        for word in ["merge", "doctor", "passkey", "longburn"] {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
    }
    longburn(bench.dir.path(), &["completions", "tcsh"]).assert().code(2);
    let written = bench.path("script");
    std::fs::write(&written, bench.run(&["completions", "bash"])).unwrap();
    assert_cmd::Command::new("bash").arg("-n").arg(&written).assert().success();
}

#[test]
fn inspect_says_what_runs_where() {
    let bench = Bench::new();
    let facts = bench.json(&["inspect", "model"]);
    let mixers = &facts["usable_for"]["mixers"];
    assert_eq!(mixers["dense"]["max_length"], 32);
    assert_eq!(mixers["longlora"]["max_length"], 32);
    let methods = ["linear", "ntk", "dynamic", "yarn", "longrope", "llama3"];
    assert_eq!(facts["usable_for"]["extend"], json!(methods));
    assert_eq!(facts["usable_for"]["lora"]["targets"][0], "q");
    // The head is the embedding, and there are no norms of q and k.
    assert_eq!(facts["usable_for"]["lora"]["extra"], json!(["embedding", "norm"]));
    assert_eq!(facts["runs_in"]["transformers"], "yes, 4.43 or later");
    assert!(facts["runs_in"]["vllm"].as_str().unwrap().contains("width 8"));

    let path = bench.path("model/config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["architectures"] = json!(null);
    std::fs::write(&path, config.to_string()).unwrap();
    let facts = bench.json(&["inspect", "model"]);
    assert!(facts["runs_in"]["vllm"].as_str().unwrap().contains("architectures"));
    // One head cannot be halved.
    config["num_attention_heads"] = json!(1);
    config["num_key_value_heads"] = json!(1);
    config["head_dim"] = json!(16);
    std::fs::write(&path, config.to_string()).unwrap();
    let facts = bench.json(&["inspect", "model"]);
    let problem = facts["usable_for"]["mixers"]["longlora"]["problem"].as_str().unwrap();
    assert!(problem.contains("even"), "{problem}");
    config["num_hidden_layers"] = json!(3);
    std::fs::write(&path, config.to_string()).unwrap();
    let facts = bench.json(&["inspect", "model"]);
    assert!(facts["runs_in"]["transformers"].as_str().unwrap().starts_with("no"));
}

/// An adapter as PEFT writes it has no config.json.
#[test]
fn inspect_says_what_an_adapter_is_and_what_takes_it() {
    let bench = Bench::new();
    bench.write(
        "run.toml",
        "[model]\npath = \"model\"\n[lora]\nrank = 2\nalpha = 6.0\nextra = [\"norm\"]\n\
         [data]\ntrain = \"texts\"\n[train]\nsteps = 1\nlength = 16\nlr = 1e-3\n",
    );
    bench.run(&["train", "run.toml", "--out", "run"]);
    let own = bench.json(&["inspect", "run/adapter", "--verify"]);
    assert_eq!(own["adapted_model"]["layers"], 2);
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::remove_file(bench.path("run/adapter").join(name)).unwrap();
    }
    let facts = bench.json(&["inspect", "run/adapter"]);
    assert_eq!(facts["adapter"], own["adapter"]);
    let adapter = &facts["adapter"];
    assert_eq!((&adapter["base"], &adapter["rank"]), (&json!("model"), &json!(2)));
    assert_eq!(adapter["alpha"], 6.0);
    assert_eq!(adapter["targets"][0], "q_proj");
    assert_eq!(adapter["saved_whole"].as_array().unwrap().len(), 3, "{facts}");
    assert!(facts["weights"]["parameters"].as_u64() > Some(0));
    assert_eq!(facts["model"], Value::Null);
    // The commands that it names take it.
    let command = |verb: &str, word: &str, value: &str| {
        let line = facts["usable_for"][verb].as_str().unwrap().replace(word, value);
        let args: Vec<&str> = line.split(' ').skip(1).collect();
        bench.run(&args);
    };
    command("generate", "TEXT", "The");
    command("eval", "TEXTS", "texts/3.txt");
    command("merge", "DIR", "merged");
    let text = bench.run(&["inspect", "run/adapter"]);
    assert!(text.contains("PEFT") && text.contains("longburn merge run/adapter"), "{text}");

    std::fs::remove_file(bench.path("run/adapter/adapter_model.safetensors")).unwrap();
    let facts = bench.json(&["inspect", "run/adapter"]);
    assert!(facts["weights"]["problem"].as_str().unwrap().contains("adapter_model"), "{facts}");
}

#[test]
fn f3_a_flipped_bit_is_found() {
    let bench = Bench::new();
    let text = bench.run(&["inspect", "model", "--verify"]);
    assert!(text.contains("there are no sums to compare with"), "{text}");

    let names = ["config.json", "model.safetensors", "tokenizer.json"];
    let read = |name: &str| std::fs::read(bench.path(&format!("model/{name}"))).unwrap();
    let files: Vec<Value> = names
        .iter()
        .map(|name| {
            let bytes = read(name);
            let sum: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            json!({ "name": name, "len": bytes.len(), "sha256": sum })
        })
        .collect();
    let manifest = json!({ "format_version": 1, "step": 7, "files": files });
    bench.write("model/manifest.json", &manifest.to_string());
    let facts = bench.json(&["inspect", "model", "--verify"]);
    assert_eq!(facts["verified"]["equal"], true);
    assert_eq!(
        (facts["verified"]["step"].as_u64(), facts["verified"]["files"].as_u64()),
        (Some(7), Some(3))
    );
    assert_eq!(bench.json(&["inspect", "model"])["verified"], Value::Null);

    // One bit anywhere, which no header and no JSON parser would notice.
    let good = read("model.safetensors");
    for at in [good.len() - 1, good.len() / 2, 9 * good.len() / 10] {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(bench.path("model/model.safetensors"), bytes).unwrap();
        bench.run(&["inspect", "model"]);
        let message = bench.refusal(&["inspect", "model", "--verify"]);
        assert!(message.contains("1 of 3 files"), "{message}");
        assert!(message.contains("model.safetensors"), "{message}");
    }
    std::fs::write(bench.path("model/model.safetensors"), good).unwrap();
    std::fs::remove_file(bench.path("model/tokenizer.json")).unwrap();
    let message = bench.refusal(&["inspect", "model", "--verify"]);
    assert!(message.contains("tokenizer.json") && message.contains("missing"), "{message}");
}
