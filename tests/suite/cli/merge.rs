//! `longburn merge`: base and adapter as one checkpoint.

use super::{Bench, longburn};
use crate::tiny::{self, ids, logits, ratio};
use burn::tensor::Device;
use longburn::attention::{Mamba1Config, MixerConfig, MixerSchedule};
use longburn::models::lora::{self, LoraConfig, Role, Target};
use longburn::models::peft::{load_adapter, save_adapter};
use longburn::models::weights::SaveDtype;
use longburn::models::{Decoder, ModelConfig, SaveOptions};
use serde_json::Value;
use std::path::Path;

/// W + s·B·A in f32 against W·x + s·B·(A·x).
const MERGED: f64 = 1e-5;

fn load(dir: &Path) -> Decoder {
    Decoder::load(dir, &MixerConfig::Dense, &Device::flex()).unwrap()
}

/// `base/` and an adapter of it in `adapter/`, all values random; base and adapter together.
fn write(dir: &Path, config: &ModelConfig, policy: &LoraConfig, dtype: SaveDtype) -> Decoder {
    let base = tiny::model(config, &Device::flex());
    let options = SaveOptions { dtype, max_shard_bytes: None };
    base.save(&dir.join("base"), &options).unwrap();
    let adapted = lora::apply(load(&dir.join("base")), policy).unwrap();
    let adapted = tiny::scattered(adapted, 4, |path| {
        path.contains(".lora.") || Role::of(path).is_some_and(|role| policy.extra.contains(&role))
    });
    save_adapter(&adapted, &dir.join("adapter"), "base").unwrap();
    adapted
}

fn merge(dir: &Path, args: &[&str]) -> Value {
    let common = ["merge", "adapter", "--out", "merged", "--json"];
    let out = longburn(dir, &[&common[..], args].concat()).assert().success();
    serde_json::from_slice(&out.get_output().stdout).unwrap()
}

#[test]
fn merged_logits_are_those_of_base_and_adapter() {
    let policies = [
        LoraConfig::new().with_rank(3).with_alpha(5.5).with_rslora(true),
        LoraConfig::longlora().with_targets(&Target::TRANSFORMER),
    ];
    for config in [tiny::llama(false), tiny::llama(true), tiny::qwen3()] {
        for policy in &policies {
            let dir = tempfile::tempdir().unwrap();
            let both = write(dir.path(), &config, policy, SaveDtype::F32);
            // The base is the one that the adapter names.
            let said = merge(dir.path(), &[]);
            assert_eq!(said["base"], "base");
            assert_eq!(said["tied_head"], config.tie_word_embeddings);
            let merged = load(&dir.path().join("merged"));
            assert!(!lora::is_adapted(&merged));
            let apart = ratio(&logits(&merged, &ids(12)), &logits(&both, &ids(12)));
            assert!(apart <= MERGED, "{apart} with {policy:?}");
            let plain = load(&dir.path().join("base"));
            assert!(ratio(&logits(&plain, &ids(12)), &logits(&both, &ids(12))) > 0.01);
        }
    }
}

#[test]
fn a_head_that_the_adapter_unties_stays_untied() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &tiny::llama(true), &LoraConfig::longlora(), SaveDtype::F32);
    // The embedding was trained without its head, as PEFT does by default.
    let path = dir.path().join("adapter/adapter_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["ensure_weight_tying"] = false.into();
    config["modules_to_save"] = serde_json::json!(["embed_tokens", "norm"]);
    std::fs::write(&path, config.to_string()).unwrap();
    let weights = dir.path().join("adapter/adapter_model.safetensors");
    let (mut tensors, about) = longburn::models::weights::read_safetensors(&weights).unwrap();
    tensors.remove("base_model.model.lm_head.weight").unwrap();
    longburn::models::weights::write_safetensors(&weights, &tensors, &about).unwrap();

    let both = load_adapter(load(&dir.path().join("base")), &dir.path().join("adapter")).unwrap();
    assert_eq!(merge(dir.path(), &[])["tied_head"], false);
    let merged = load(&dir.path().join("merged"));
    let apart = ratio(&logits(&merged, &ids(9)), &logits(&both, &ids(9)));
    assert!(merged.lm_head.is_some() && apart <= MERGED, "{apart}");
}

#[test]
fn the_base_s_number_format_is_kept_unless_another_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let both = write(dir.path(), &tiny::llama(false), &LoraConfig::new(), SaveDtype::BF16);
    assert_eq!(merge(dir.path(), &[])["dtype"], "bfloat16");
    std::fs::remove_dir_all(dir.path().join("merged")).unwrap();
    let said = merge(dir.path(), &["--dtype", "f32", "--max-shard-bytes", "4000"]);
    assert_eq!(said["dtype"], "float32");
    let merged = load(&dir.path().join("merged"));
    assert!(ratio(&logits(&merged, &ids(9)), &logits(&both, &ids(9))) <= MERGED);
    assert!(dir.path().join("merged/model.safetensors.index.json").exists());
}

#[test]
fn the_tokenizer_comes_with_it() {
    let bench = Bench::new();
    let adapted = lora::apply(bench.decoder.clone(), &LoraConfig::new()).unwrap();
    save_adapter(&adapted, &bench.path("adapter"), "somewhere/else").unwrap();
    std::fs::write(bench.path("model/chat_template.jinja"), "{{ messages }}").unwrap();
    bench.run(&["merge", "adapter", "--base", "model", "--out", "merged"]);
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let read = |dir: &str| std::fs::read(bench.path(&format!("{dir}/{name}"))).unwrap();
        assert_eq!(read("merged"), read("model"), "{name}");
    }
    bench.run(&["generate", "merged", "--prompt", "The", "--max-new-tokens", "2"]);

    // The adapter's own goes first; one that the embedding has no rows for is refused.
    let own = longburn::datasets::BpeConfig::new(290);
    longburn::datasets::train_bpe([super::TEXT].iter(), &own)
        .unwrap()
        .save(bench.path("adapter"))
        .unwrap();
    bench.run(&["merge", "adapter", "--base", "model", "--out", "other"]);
    let read = |dir: &str| std::fs::read(bench.path(&format!("{dir}/tokenizer.json"))).unwrap();
    assert_eq!(read("other"), read("adapter"));
    let large: Vec<String> = (0..400).map(|i| format!("<extra {i}>")).collect();
    let large = longburn::datasets::BpeConfig::new(700).with_special(large);
    longburn::datasets::train_bpe([super::TEXT].iter(), &large)
        .unwrap()
        .save(bench.path("adapter"))
        .unwrap();
    let message = bench.refusal(&["merge", "adapter", "--base", "model", "--out", "third"]);
    assert!(message.contains("304 rows"), "{message}");
    assert!(!bench.path("third").exists());
}

#[test]
fn what_cannot_be_merged_is_named() {
    let bench = Bench::new();
    let adapted = lora::apply(bench.decoder.clone(), &LoraConfig::new()).unwrap();
    save_adapter(&adapted, &bench.path("adapter"), "somewhere/else").unwrap();
    let message = bench.refusal(&["merge", "adapter", "--out", "merged"]);
    for word in ["adapter_config.json", "base_model_name_or_path", "somewhere/else", "--base DIR"] {
        assert!(message.contains(word), "{word}: {message}");
    }
    let message = bench.refusal(&["merge", "model", "--base", "model", "--out", "merged"]);
    assert!(message.contains("adapter_config.json"), "{message}");
    let message = bench.refusal(&["merge", "adapter", "--base", "adapter", "--out", "merged"]);
    assert!(message.contains("config.json"), "{message}");
    assert!(!bench.path("merged").exists());
    let message = bench.refusal(&["merge", "adapter", "--base", "model", "--out", "model"]);
    assert!(message.contains("new or empty folder"), "{message}");
}

/// A Mamba checkpoint is adapted within a budget, saved in PEFT's form, merged, and read again.
#[test]
fn a_mamba_checkpoint_is_adapted_and_merged() {
    let bench = Bench::new();
    let mixer = MixerConfig::Mamba1(Mamba1Config::new().with_d_state(4));
    let config = ModelConfig::state_space(304, 16, 2, mixer);
    let model = Decoder::new(&config, MixerSchedule::Own, 3, &Device::flex()).unwrap();
    model.save(&bench.path("mamba"), &SaveOptions::default()).unwrap();
    bench.tokenizer.save(bench.path("mamba")).unwrap();
    let recipe = r#"
        [model]
        path = "mamba"
        [lora]
        rank = 2
        targets = ["in", "x", "dt", "out"]
        [data]
        train = "texts"
        [train]
        steps = 5
        length = 32
        lr = 1e-2
        device_memory = "64MiB"
        [output]
        dir = "run"
        merge = true
    "#;
    bench.write("run.toml", recipe);
    let plan = bench.json(&["plan", "run.toml"]);
    assert_eq!(plan["fits"], true);
    bench.run(&["train", "run.toml"]);
    let said = std::fs::read(bench.path("run/adapter/adapter_config.json")).unwrap();
    let said: Value = serde_json::from_slice(&said).unwrap();
    let names = serde_json::json!(["in_proj", "x_proj", "dt_proj", "out_proj"]);
    assert_eq!(said["target_modules"], names);
    let load =
        |name: &str| Decoder::load(&bench.path(name), MixerSchedule::Own, &Device::flex()).unwrap();
    let adapted = load_adapter(load("mamba"), &bench.path("run/adapter")).unwrap();
    let unmerged = logits(&adapted, &ids(12));
    assert!(ratio(&logits(&model, &ids(12)), &unmerged) > 1e-4);
    assert!(ratio(&logits(&load("run/model"), &ids(12)), &unmerged) <= MERGED);
    // What does not fit is refused with what would be smaller.
    bench.write("small.toml", &recipe.replace("64MiB", "64KiB").replace("\"run\"", "\"none\""));
    let message = bench.fails(&["train", "small.toml"]);
    assert!(message.contains("64.0 KiB") && !bench.path("none").exists(), "{message}");
    // Without an adapter, one of layers that there are is proposed.
    let (before, after) = recipe.split_at(recipe.find("[lora]").unwrap());
    let whole = format!("{before}{}", &after[after.find("[data]").unwrap()..]);
    bench.write("whole.toml", &whole.replace("merge = true", "").replace("64MiB", "64KiB"));
    let text = bench.run(&["plan", "whole.toml"]);
    assert!(text.contains(r#"[lora] targets = ["in", "x", "dt", "out"]"#), "{text}");
}
