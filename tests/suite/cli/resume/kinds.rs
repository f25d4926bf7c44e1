//! Runs on conversations and on mixtures go on with the same bits, too.

use super::*;
use longburn::attention::MixerConfig;
use longburn::models::{Decoder, ModelConfig, SaveOptions};
use serde_json::json;

/// The recipe of this folder with other sections in the place of its data.
fn with_data(data: &str, every: usize) -> String {
    let old = "[data]\ntrain = \"texts\"\nsplit = 4\n";
    let text = sparse(every);
    assert!(text.contains(old));
    text.replace(old, data)
}

#[test]
fn r1_a_mixture_goes_on_with_the_same_bits() {
    let bench = bench();
    fs::create_dir(bench.path("more")).unwrap();
    for i in 0..5 {
        let text = format!("Boats {i} and sacks, sacks and boats by the mill. ").repeat(3 + i);
        bench.write(&format!("more/{i}.txt"), &text);
    }
    fs::create_dir(bench.path("least")).unwrap();
    for i in 0..3 {
        bench.write(&format!("least/{i}.txt"), &"Evenings along the river. ".repeat(9 + i));
    }
    let recipe = |every| {
        let data = "[data]\ntrain = \"texts\"\nsplit = 4\n\
                    mix = [{ path = \"more\", weight = 0.6 }, { path = \"least\", weight = 0.3 }]\n";
        with_data(data, every)
    };
    bench.write("run.toml", &recipe(0));
    let whole = bench.json(&["train", "run.toml"]);
    for k in [1, 29] {
        let dir = killed_after(&bench, &recipe, k);
        let parts = cursor(&dir, k)["rows"]["parts"].clone();
        let rows: Vec<u64> = (0..3).map(|i| parts[i]["rows"].as_u64().unwrap()).collect();
        assert_eq!(rows.iter().sum::<u64>(), 2 * k as u64, "{parts}");
        // Each in its share, to within a row or so.
        for (rows, weight) in rows.iter().zip([1.0, 0.6, 0.3]) {
            let share = 2.0 * k as f64 * weight / 1.9;
            assert!((*rows as f64 - share).abs() < 1.5, "{parts}");
        }
        assert_goes_on(&bench, &recipe(0), &whole, k);
    }
    // Files of the mixed source are part of the run.
    bench.write("more/3.txt", "others");
    let message = refusal(&bench, &["train", "run.toml", "--resume", "--out", "from-29"]);
    assert!(message.contains("3.txt had"), "{message}");
}

#[test]
fn r1_conversations_go_on_with_the_same_bits() {
    let bench = bench();
    let path = bench.path("model/tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["chat_template"] = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\
                               <|endoftext|>{% endfor %}{% if add_generation_prompt %}a: {% endif %}"
        .into();
    fs::write(&path, config.to_string()).unwrap();
    let row = |i: usize| {
        let answer = "seven sacks ".repeat(1 + i % 3);
        json!({"question": format!("river {i}"), "answer": answer}).to_string()
    };
    bench.write("qa.jsonl", &(0..14).map(row).collect::<Vec<_>>().join("\n"));
    let recipe = |every| {
        let data = "[data]\nkind = \"chat\"\ntrain = \"qa.jsonl\"\nsplit = 4\n[data.chat]\n\
                    question = \"question\"\nanswer = \"answer\"\n";
        with_data(data, every).replace("length = 8", "length = 32")
    };
    bench.write("run.toml", &recipe(0));
    let whole = bench.json(&["train", "run.toml"]);
    for k in [2, 31] {
        let dir = killed_after(&bench, &recipe, k);
        let rows = cursor(&dir, k)["rows"].clone();
        assert!(rows["epoch"].as_u64() > Some(0) || k == 2, "{rows}");
        assert_goes_on(&bench, &recipe(0), &whole, k);
    }
    let text = fs::read_to_string(bench.path("qa.jsonl")).unwrap();
    bench.write("qa.jsonl", &text.replace("river 3", "lakes 3"));
    let message = refusal(&bench, &["train", "run.toml", "--resume", "--out", "from-31"]);
    assert!(message.contains("qa.jsonl has other contents"), "{message}");
}

/// What a run reads beside weights and text decides it, too: here, where documents end.
#[test]
fn d6_the_tokenizers_settings_are_part_of_a_run() {
    let bench = bench();
    let text = short(&bench, 4).replace("steps = 4\n", "steps = 6\n");
    bench.write("run.toml", &text);
    let path = bench.path("model/tokenizer_config.json");
    let old = fs::read_to_string(&path).unwrap();
    let mut config: Value = serde_json::from_str(&old).unwrap();
    config["eos_token"] = "e".into();
    fs::write(&path, config.to_string()).unwrap();
    let message = refusal(&bench, &["train", "run.toml", "--resume"]);
    assert!(message.contains("model/tokenizer_config.json had"), "{message}");
    fs::remove_file(&path).unwrap();
    let message = refusal(&bench, &["train", "run.toml", "--resume"]);
    assert!(message.contains("model/tokenizer_config.json is gone"), "{message}");
    fs::write(&path, old).unwrap();
    bench.write("model/special_tokens_map.json", "{}");
    let message = refusal(&bench, &["train", "run.toml", "--resume"]);
    assert!(message.contains("model/special_tokens_map.json is new"), "{message}");
    fs::remove_file(bench.path("model/special_tokens_map.json")).unwrap();
    assert_eq!(bench.json(&["train", "run.toml", "--resume"])["resumed"], 4);
}

/// GPT-NeoX stores q, k and v as one layer, and their updates as one; those are three again when
/// the run goes on.
#[test]
fn r3_updates_of_a_fused_layer_go_on_with_the_same_bits() {
    let bench = bench();
    let config = ModelConfig::gpt_neox(304, 16, 2, 2).with_max_positions(32).with_eos([0]);
    let device = burn::tensor::Device::flex();
    let model = Decoder::new(&config, &MixerConfig::Dense, 3, &device).unwrap();
    model.save(&bench.path("model"), &SaveOptions::default()).unwrap();
    let recipe = |every| {
        let lora = "[lora]\nrank = 2\nextra = [\"norm\"]\n[data]";
        sparse(every).replace("[data]", lora)
    };
    bench.write("run.toml", &recipe(0));
    let whole = bench.json(&["train", "run.toml"]);
    assert!(bench.path("run/adapter").is_dir());
    for k in [1, 23] {
        killed_after(&bench, &recipe, k);
        assert_goes_on(&bench, &recipe(0), &whole, k);
    }
    bench.run(&["merge", "run/adapter", "--out", "merged"]);
    let args = ["eval", "merged", "--data", "texts/3.txt", "--max-len", "8", "--stride", "4"];
    bench.json(&args);
}

/// Layers whose mixers are no attention, in a converted checkpoint and in a model of nothing else.
#[test]
fn r1_state_space_layers_go_on_with_the_same_bits() {
    let converted = "[[mixer]]\nname = \"dense\"\n[[mixer]]\nname = \"mamba1\"\nlayers = [1]\n\
                     d_state = 4\n[data]";
    let new = "[model]\ntokenizer = \"model/tokenizer.json\"\n[model.new]\nfamily = \"mamba2\"\n\
               vocab_size = 304\nhidden_size = 16\nlayers = 2\ntied = true\n[mixer]\n\
               name = \"mamba2\"\nhead_dim = 8\nd_state = 4\nchunk = 4\n";
    for (old, sections) in [("[data]", converted), ("[model]\npath = \"model\"\n", new)] {
        let bench = bench();
        let recipe = |every| sparse(every).replacen(old, sections, 1);
        bench.write("run.toml", &recipe(0));
        let whole = bench.json(&["train", "run.toml"]);
        assert!(whole["last_loss"].as_f64() < whole["first_loss"].as_f64(), "{whole}");
        for k in [1, 23] {
            killed_after(&bench, &recipe, k);
            assert_goes_on(&bench, &recipe(0), &whole, k);
        }
        let args = ["generate", "run/model", "--prompt", "The river", "--max-new-tokens", "3"];
        assert_eq!(bench.json(&args)["new_tokens"], 3);
        let facts = bench.json(&["inspect", "run/model"]);
        assert_eq!(facts["weights"]["complete"], true, "{facts}");
        let other = recipe(0).replace("d_state = 4", "d_state = 5");
        bench.write("run.toml", &other);
        let message = refusal(&bench, &["train", "run.toml", "--resume", "--out", "from-23"]);
        assert!(message.contains("mixer"), "{message}");
    }
}

#[test]
fn new_mixers_are_not_left_as_they_were_drawn() {
    let bench = bench();
    let mixers = "[lora]\n[[mixer]]\nname = \"dense\"\n[[mixer]]\nname = \"mamba1\"\n\
                  layers = [1]\n[data]";
    bench.write("run.toml", &sparse(0).replacen("[data]", mixers, 1));
    let message = refusal(&bench, &["train", "run.toml"]);
    assert!(message.contains("mamba1, layer 1") && message.contains("[lora]"), "{message}");
}

#[test]
fn a_mixer_on_the_command_line_is_part_of_the_run() {
    let bench = bench();
    let text = short(&bench, 4);
    let args = ["train", "run.toml", "--out", "swapped", "--mixer", "mamba1"];
    bench.json(&args);
    let mixers = bench.json(&["inspect", "swapped/model"])["model"]["mixers"].clone();
    assert_eq!(mixers, "mamba1");
    bench.write("run.toml", &text.replace("steps = 4\n", "steps = 6\n"));
    let message = refusal(&bench, &["train", "run.toml", "--out", "swapped", "--resume"]);
    assert!(message.contains("mixer.name was \"mamba1\", is \"dense\""), "{message}");
    assert_eq!(bench.json(&[&args[..], &["--resume"]].concat())["resumed"], 4);
    let mut out = longburn(bench.dir.path(), &["train", "run.toml", "--mixer", "cobra"]);
    let said = out.assert().failure().get_output().stderr.clone();
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("unknown variant `cobra`") && said.contains("mamba2"), "{said}");
}

/// Where the gate alone learns, it alone is saved, and what it belongs to comes from the base.
#[test]
fn r3_gates_go_on_with_the_same_bits() {
    let gate = "name = \"seer\"\nblock = 2\nselect = { nz_ratio = 0.5 }\n\
                last_block_dense = false\n";
    let all = format!("[mixer]\n{gate}[data]");
    let some = format!("[[mixer]]\nname = \"dense\"\n[[mixer]]\n{gate}layers = [1]\n[data]");
    for sections in [&all, &some] {
        gates_go_on(&|every| sparse(every).replace("[data]", sections));
    }
    let bench = bench();
    let both = all.replace("[mixer]", "[lora]\nrank = 2\n[mixer]");
    let two = some.replace("name = \"dense\"", "name = \"seer\"");
    for (sections, words) in [(both, ["`lora`", "gate"]), (two, ["`mixer[1]`", "other gates"])] {
        bench.write("run.toml", &sparse(0).replace("[data]", &sections));
        let message = refusal(&bench, &["train", "run.toml"]);
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}

fn gates_go_on(recipe: &dyn Fn(usize) -> String) {
    let bench = bench();
    bench.write("run.toml", &recipe(0));
    let whole = bench.json(&["train", "run.toml"]);
    let trained = &whole["trainable"];
    assert!(trained["trainable"].as_u64() < Some(trained["total"].as_u64().unwrap() / 4));
    assert!(bench.path("run/adapter/attn_gate_weights.safetensors").is_file());
    assert!(!bench.path("run/adapter/model.safetensors").exists());
    for k in [1, 23] {
        killed_after(&bench, recipe, k);
        assert_goes_on(&bench, &recipe(0), &whole, k);
    }
    // The command finds gates where it looks for an adapter, with what they choose.
    let eval = |adapter: &[&str]| {
        let args = ["eval", "model", "--data", "texts/3.txt", "--max-len", "16", "--stride", "8"];
        let result = bench.json(&[&args[..], adapter].concat());
        result["perplexity"]["ppl"].as_f64().unwrap()
    };
    let chosen = eval(&["--adapter", "run/adapter"]);
    assert_ne!(eval(&[]), chosen);
    // Another rule takes the place of what they were saved with.
    let by = |rule| eval(&["--adapter", "run/adapter", "--select", rule]);
    assert_eq!(by("nz-ratio=0.5"), chosen);
    assert!((by("budget=1000") - eval(&[])).abs() < 1e-4 * eval(&[]));
    assert_ne!(by("threshold=0.3"), chosen);
    let args = ["eval", "model", "--data", "texts/3.txt", "--max-len", "16", "--select"];
    let gates = ["--adapter", "run/adapter"];
    for (rule, gates, code, words) in [
        ("nz-ratio=2", &gates[..], 1, ["select", "nz_ratio 2"]),
        ("fast=1", &gates, 2, ["'fast=1'", "threshold=X"]),
        ("budget=many", &gates, 2, ["many", "invalid digit"]),
        ("budget=8", &[], 2, ["--adapter", "required"]),
    ] {
        let args = [&args[..], &[rule], gates].concat();
        let out = longburn(bench.dir.path(), &args).assert().code(code);
        let message = String::from_utf8(out.get_output().stderr.clone()).unwrap();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}
