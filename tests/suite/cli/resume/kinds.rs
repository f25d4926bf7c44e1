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

/// Where the gate alone learns, it alone is saved, and what it belongs to comes from the base.
#[test]
fn r3_gates_go_on_with_the_same_bits() {
    let bench = bench();
    let recipe = |every| {
        let gate = "[mixer]\nname = \"seer\"\nblock = 2\nselect = { nz_ratio = 0.5 }\n\
                    last_block_dense = false\n[data]";
        sparse(every).replace("[data]", gate)
    };
    bench.write("run.toml", &recipe(0));
    let whole = bench.json(&["train", "run.toml"]);
    let trained = &whole["trainable"];
    assert!(trained["trainable"].as_u64() < Some(trained["total"].as_u64().unwrap() / 4));
    assert!(bench.path("run/adapter/attn_gate_weights.safetensors").is_file());
    assert!(!bench.path("run/adapter/model.safetensors").exists());
    for k in [1, 23] {
        killed_after(&bench, &recipe, k);
        assert_goes_on(&bench, &recipe(0), &whole, k);
    }
    // The command finds gates where it looks for an adapter, with what they choose.
    let eval = |adapter: &[&str]| {
        let args = ["eval", "model", "--data", "texts/3.txt", "--max-len", "16", "--stride", "8"];
        let result = bench.json(&[&args[..], adapter].concat());
        result["perplexity"]["ppl"].as_f64().unwrap()
    };
    assert_ne!(eval(&[]), eval(&["--adapter", "run/adapter"]));
    let both = recipe(0).replace("[mixer]", "[lora]\nrank = 2\n[mixer]");
    bench.write("both.toml", &both);
    let message = refusal(&bench, &["train", "both.toml", "--out", "both"]);
    assert!(message.contains("`lora`") && message.contains("gate"), "{message}");
}
