//! Mixers in recipes, the gates that are trained beside a model, and what is said of both.

use super::Bench;
use longburn::models::gates::GATE_FILE;
use longburn::models::weights::{WeightFiles, write_safetensors};
use serde_json::{Value, json};

/// A recipe of one step with these lines for its mixer, and more in `[data]`.
fn recipe(mixer: &str, data: &str) -> String {
    format!(
        "{mixer}\n[model]\npath = \"model\"\n[data]\ntrain = \"texts\"\n{data}\n[train]\nsteps = 1\n\
         length = 16\nlr = 1e-3\n"
    )
}

const GATE: &str = "[mixer]\nname = \"seer\"\nblock = 4\nselect = { nz_ratio = 0.3 }";

/// A bench with a trained gate in `run/adapter`.
fn gated() -> Bench {
    let bench = Bench::new();
    bench.write("run.toml", &recipe(GATE, ""));
    bench.run(&["train", "run.toml", "--out", "run"]);
    bench
}

/// Write the gates again, with other entries in the header and without some tensors.
fn rewrite(bench: &Bench, entries: &[(&str, &str)], left_out: &str) {
    let file = bench.path("run/adapter").join(GATE_FILE);
    let files = WeightFiles::open_file(&file).unwrap();
    let mut metadata = files.metadata().clone();
    for (name, text) in entries {
        match text.is_empty() {
            true => drop(metadata.remove(*name)),
            false => drop(metadata.insert(name.to_string(), text.to_string())),
        }
    }
    let kept = files.names().filter(|name| left_out.is_empty() || !name.contains(left_out));
    let tensors = kept.map(|name| (name.to_string(), files.load_raw(name).unwrap())).collect();
    drop(files);
    write_safetensors(&file, &tensors, &metadata).unwrap();
}

const GENERATE: [&str; 6] =
    ["generate", "model", "--adapter", "run/adapter", "--prompt", "The river ran past the mill"];

#[test]
fn gates_are_told_from_models_and_are_never_merged() {
    let bench = gated();
    let facts = bench.json(&["inspect", "run/adapter"]);
    assert_eq!(facts["gates"]["block"], 4);
    assert_eq!(facts["gates"]["layers"], json!([0, 1]));
    assert_eq!(facts["weights"]["tensors"], 2);
    assert_eq!(facts["runs_in"]["longburn"], "yes, beside its base");
    assert!(facts["runs_in"]["transformers"].as_str().unwrap().starts_with("no"));
    let command = facts["usable_for"]["generate"].as_str().unwrap();
    let command = command.replace("BASE", "model").replace("TEXT", "The");
    bench.run(&command.split(' ').skip(1).collect::<Vec<_>>());

    let args = ["merge", "run/adapter", "--base", "model", "--out", "merged"];
    let message = bench.refusal(&args);
    assert!(message.contains("run/adapter") && message.contains("--adapter"), "{message}");
    assert!(!bench.path("merged").exists());
}

/// Training, merging and `inspect` say alike where what they have written runs.
#[test]
fn exports_say_where_they_run() {
    let bench = Bench::new();
    let said = |facts: &Value, begins: &str| {
        let found = facts["runs_in"]["transformers"].as_str().unwrap();
        assert!(found.starts_with(begins), "{found}, not {begins}");
        assert!(facts["runs_in"]["longburn"].as_str().unwrap().starts_with("yes"));
    };
    let lora = |mixer: &str| recipe(mixer, "[lora]\nrank = 2");
    let longgen = "[mixer]\nname = \"longgen\"\nblock = 4";
    bench.write("whole.toml", &recipe(longgen, ""));
    said(&bench.json(&["train", "whole.toml", "--out", "whole"]), "no: it would load, and");
    said(&bench.json(&["inspect", "whole/model"]), "no: it would load, and");
    for (name, mixer, adapter, merged) in [
        ("sparse", longgen, "no: it would load beside its base", "no: it would load, and"),
        ("dense", "", "yes, with peft", "yes, 4."),
    ] {
        let (file, folder) = (format!("{name}.toml"), format!("{name}/adapter"));
        bench.write(&file, &lora(mixer));
        said(&bench.json(&["train", &file, "--out", name]), adapter);
        said(&bench.json(&["inspect", &folder]), adapter);
        let out = format!("{name}/merged");
        said(&bench.json(&["merge", &folder, "--base", "model", "--out", &out]), merged);
    }
    let text = bench.run(&["train", "dense.toml", "--out", "again"]);
    assert!(text.contains("runs in transformers: yes, with peft"), "{text}");
    // What cannot be loaded runs nowhere.
    let file = bench.path("whole/model/config.json");
    let config = std::fs::read_to_string(&file).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["longburn"]["mixer"]["block"] = json!(0);
    std::fs::write(&file, config.to_string()).unwrap();
    let facts = bench.json(&["inspect", "whole/model"]);
    let here = facts["runs_in"]["longburn"].as_str().unwrap();
    assert!(here.starts_with("no: config.json: longburn.mixer[0]"), "{here}");
}

/// Gates that choose for one token at a time change no row that is scored in one pass, and that is said.
#[test]
fn gates_of_decoding_choose_nothing_in_whole_rows() {
    let bench = Bench::new();
    let gate = "[mixer]\nname = \"seer\"\nblock = 4\ngate = \"decode\"\nselect = { budget = 8 }";
    let eval = "held_out = \"texts\"\n[eval]";
    bench.write("run.toml", &recipe(gate, eval));
    let said = bench.notes(&["train", "run.toml", "--out", "run"]);
    assert!(said.contains("[eval] sees everything"), "{said}");
    bench.write("ids.json", "[[1, 5, 9, 4, 7, 3]]");
    let logits =
        ["logits", "model", "--ids", "ids.json", "--out", "out", "--adapter", "run/adapter"];
    let eval = ["eval", "model", "--data", "texts", "--adapter", "run/adapter"];
    for command in [&logits[..], &eval] {
        assert!(bench.notes(command).contains("rows in one pass see everything"));
        let message = bench.refusal(&[command, &["--select", "budget=4"]].concat());
        assert!(message.contains("--select") && message.contains("--passkey"), "{message}");
    }
    bench.run(&[&GENERATE[..], &["--select", "budget=4"]].concat());
}

/// Must show 10: without its weights, no gate chooses, and no layer is dense unasked.
#[test]
fn a_layer_that_lost_its_gate_is_told() {
    let bench = gated();
    bench.run(&GENERATE);
    rewrite(&bench, &[], "layers.1.");
    let message = bench.refusal(&GENERATE);
    assert!(message.contains(GATE_FILE), "{message}");
    assert!(message.contains("missing (1): model.layers.1.self_attn.attn_gate"), "{message}");
}

#[test]
fn settings_of_gates_that_cannot_be_used_name_their_file() {
    let bench = gated();
    let file = bench.path("run/adapter").join(GATE_FILE);
    let said = WeightFiles::open_file(&file).unwrap().metadata()["seer"].clone();
    let with = |field: &str, value: Value| {
        let mut settings: Value = serde_json::from_str(&said).unwrap();
        settings[field] = value;
        settings.to_string()
    };
    for (entries, expected) in [
        ([("seer", with("block", json!(0)))], "field `seer.block` is 0"),
        ([("seer", with("block", json!(1_u64 << 40)))], "field `seer.block` is 1099511627776"),
        ([("seer", with("gate_dim", json!(1_u64 << 40)))], "field `seer.gate_dim` is"),
        ([("seer", with("select", json!({ "threshold": 2.0 })))], "field `seer.select`"),
        ([("seer", String::new())], "no entry `seer`"),
        ([("seer_layers", "[0, 7]".into())], "layers below 2"),
        ([("seer_layers", "7".into())], "header entry `seer_layers`"),
    ] {
        let entries = entries.each_ref().map(|(name, text)| (*name, &**text));
        rewrite(&bench, &entries, "");
        let message = bench.refusal(&GENERATE);
        assert!(message.contains(GATE_FILE) && message.contains(expected), "{message}");
        rewrite(&bench, &[("seer", &said), ("seer_layers", "[0,1]")], "");
    }
    // A file of an earlier version does not say its layers; those of its tensors count.
    rewrite(&bench, &[("seer_layers", "")], "");
    bench.run(&GENERATE);
}

/// Gates learn from attention, and choose for it.
#[test]
fn gates_beside_a_model_without_attention_are_refused() {
    let bench = gated();
    let hybrid = "[[mixer]]\nname = \"mamba1\"\nlayers = [0]\n[[mixer]]\nname = \"dense\"";
    bench.write("hybrid.toml", &recipe(hybrid, ""));
    bench.run(&["train", "hybrid.toml", "--out", "hybrid"]);
    let mut args = GENERATE;
    args[1] = "hybrid/model";
    // The folder of the gates knows the model that they were trained beside.
    let message = bench.refusal(&args);
    assert!(message.contains("mixer dense in layer 0"), "{message}");
    assert!(message.contains("hybrid/model has no weights"), "{message}");
    std::fs::remove_file(bench.path("run/adapter/config.json")).unwrap();
    let message = bench.refusal(&args);
    assert!(message.contains("layers with attention; the model's is mamba1"), "{message}");
}

/// No weights are drawn for what an adapter's base does not have.
#[test]
fn an_adapter_of_a_hybrid_is_not_taken_for_one_of_its_base() {
    let bench = Bench::new();
    let hybrid = "[[mixer]]\nname = \"mamba1\"\nlayers = [0]\n[[mixer]]\nname = \"dense\"";
    bench.write("hybrid.toml", &recipe(hybrid, ""));
    bench.run(&["train", "hybrid.toml", "--out", "hybrid"]);
    let adapt = recipe("[lora]\nrank = 2\ntargets = [\"gate\"]", "");
    bench.write("adapt.toml", &adapt.replace("\"model\"", "\"hybrid/model\""));
    bench.run(&["train", "adapt.toml", "--out", "run"]);
    let mut args = GENERATE;
    let message = bench.refusal(&args);
    assert!(message.contains("mixer mamba1 in layer 0"), "{message}");
    assert!(message.contains("model has no weights"), "{message}");
    let message = bench.refusal(&["merge", "run/adapter", "--base", "model", "--out", "merged"]);
    assert!(message.contains("model has no weights"), "{message}");
    args[1] = "hybrid/model";
    bench.run(&args);
}

#[test]
fn inspect_says_which_mixers_would_need_new_weights() {
    let bench = Bench::new();
    let mixers = |dir: &str| bench.json(&["inspect", dir])["usable_for"]["mixers"].clone();
    let found = mixers("model");
    for name in ["dense", "longlora", "longgen", "anchor", "seer"] {
        assert_eq!(found[name]["new_weights"], Value::Null, "{name}");
        assert!(found[name]["for"].is_string(), "{name}");
    }
    assert_eq!(found["mamba1"]["new_weights"], "in 2 of 2 layers, to be trained");
    // Of 16 channels neither are 64 a divisor of twice as many, nor 32 a rank of a quarter.
    for (name, field) in [("mamba2", "head_dim"), ("lact", "low_rank")] {
        assert!(found[name]["problem"].as_str().unwrap().contains(field), "{name}");
    }
    for (mixer, kept) in [
        ("[mixer]\nname = \"mamba1\"\nd_state = 3", Value::Null),
        (
            "[[mixer]]\nname = \"mamba1\"\nlayers = [1]\n[[mixer]]\nname = \"dense\"",
            json!("in 1 of 2 layers, to be trained"),
        ),
    ] {
        bench.write("run.toml", &recipe(mixer, ""));
        let _ = std::fs::remove_dir_all(bench.path("run"));
        bench.run(&["train", "run.toml", "--out", "run"]);
        let found = mixers("run/model");
        assert_eq!(found["mamba1"]["new_weights"], kept, "{mixer}");
        let of_dense = if kept.is_null() { "in 2 of 2" } else { "in 1 of 2" };
        let said = found["dense"]["new_weights"].as_str().unwrap();
        assert!(said.starts_with(of_dense), "{mixer}: {said}");
    }
}

/// Told before any text is read: there is none.
#[test]
fn what_does_not_fit_the_checkpoint_is_told_first() {
    let bench = Bench::new();
    std::fs::remove_dir_all(bench.path("texts")).unwrap();
    for (mixer, said) in [
        ("[mixer]\nname = \"longgen\"\nstride = 4\ndense_heads = 3", "`mixer.dense_heads` is 3"),
        ("[mixer]\nname = \"mamba2\"\nhead_dim = 5", "`mixer.head_dim` is 5"),
        ("[mixer]\nname = \"seer\"\nblock = 1000000000000", "`mixer.block` is 1000000000000"),
        ("[mixer]\nname = \"seer\"\ngate_dim = 1000000000000", "`mixer.gate_dim` is"),
        (
            "[[mixer]]\nname = \"dense\"\n[[mixer]]\nname = \"mamba1\"\nlayers = [1]\n\
             d_state = 60000000\nexpand = 100",
            "`mixer[1].d_state` is 60000000",
        ),
    ] {
        bench.write("run.toml", &recipe(mixer, ""));
        let message = bench.refusal(&["train", "run.toml", "--out", "run"]);
        assert!(message.contains(said), "{mixer}: {message}");
    }
}

#[test]
fn the_mixer_of_the_command_is_the_one_that_is_checked() {
    let bench = Bench::new();
    bench.write("run.toml", &recipe("", "[data.anchor]\nengine = \"shared\""));
    let message = bench.refusal(&["train", "run.toml", "--out", "run"]);
    assert!(message.contains("`data.anchor.engine`"), "{message}");
    bench.run(&["train", "run.toml", "--mixer", "anchor", "--out", "run"]);
    // What the recipe's own would be refused for is not asked.
    bench.write("run.toml", &recipe("[mixer]\nname = \"mamba2\"\nhead_dim = 5", ""));
    bench.run(&["train", "run.toml", "--mixer", "longgen", "--out", "other"]);
}
