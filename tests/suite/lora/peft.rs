//! Adapters as PEFT folders.

use super::{trainable, trained};
use crate::tiny::{self, ids, logits, ratio};
use burn::tensor::Device;
use longburn::Error;
use longburn::models::lora::{self, LoraConfig, Role, Target};
use longburn::models::peft::{load_adapter, save_adapter};
use longburn::models::weights::{RawTensor, read_safetensors, write_safetensors};
use longburn::models::{Decoder, ModelConfig};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tempfile::tempdir;

fn base(config: &ModelConfig) -> Decoder {
    tiny::model(config, &Device::flex())
}

/// Adapted, and everything that trains far from where it was.
fn adapted(config: &ModelConfig, policy: &LoraConfig) -> Decoder {
    let model = trained(lora::apply(base(config), policy).unwrap());
    let names = trainable(&model);
    tiny::scattered(model, 4, |path| names.iter().any(|name| name == path))
}

/// A folder with a LongLoRA adapter of a Llama.
fn saved(dir: &Path, tied: bool) -> Decoder {
    let model = adapted(&tiny::llama(tied), &LoraConfig::longlora().with_rank(2));
    save_adapter(&model, dir, "some/base").unwrap();
    model
}

fn tensors(dir: &Path) -> BTreeMap<String, RawTensor> {
    read_safetensors(&dir.join("adapter_model.safetensors")).unwrap().0
}

fn put_tensors(dir: &Path, tensors: &BTreeMap<String, RawTensor>) {
    write_safetensors(&dir.join("adapter_model.safetensors"), tensors, &BTreeMap::new()).unwrap();
}

fn config(dir: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(dir.join("adapter_config.json")).unwrap()).unwrap()
}

fn put_config(dir: &Path, config: &Value) {
    fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
}

#[test]
fn a_folder_gives_back_logits_and_trainable_parameters() {
    let policies = [
        LoraConfig::longlora(),
        LoraConfig::new().with_rank(3).with_alpha(5.5).with_rslora(true),
        LoraConfig::longlora().with_targets(&Target::TRANSFORMER),
        LoraConfig::new().with_targets(&[Target::Down]).with_extra(&[Role::Norm]),
    ];
    for config in [tiny::llama(false), tiny::llama(true), tiny::qwen3()] {
        let mut policies = policies.to_vec();
        if config.qk_norm {
            policies.push(LoraConfig::new().with_extra(&[Role::QkNorm, Role::Head]));
        }
        for policy in policies {
            let dir = tempdir().unwrap();
            let model = adapted(&config, &policy);
            save_adapter(&model, dir.path(), "some/base").unwrap();
            let back = load_adapter(base(&config), dir.path()).unwrap();
            assert_eq!(trainable(&back), trainable(&model), "{policy:?}");
            assert_eq!(back.lm_head.is_some(), model.lm_head.is_some());
            let apart = ratio(&logits(&back, &ids(11)), &logits(&model, &ids(11)));
            assert!(apart < 1e-6, "{apart} with {policy:?}");
        }
    }
}

#[test]
fn the_file_has_the_names_and_settings_that_peft_writes() {
    let dir = tempdir().unwrap();
    saved(dir.path(), false);
    let tensors = tensors(dir.path());
    let shape = |name: &str| tensors[&format!("base_model.model.{name}")].shape.clone();
    assert_eq!(shape("model.layers.1.self_attn.k_proj.lora_A.weight"), [2, 24]);
    assert_eq!(shape("model.layers.1.self_attn.k_proj.lora_B.weight"), [12, 2]);
    assert_eq!(shape("model.embed_tokens.weight"), [61, 24]);
    assert_eq!(shape("model.norm.weight"), [24]);
    assert_eq!(tensors.len(), 2 * 4 * 2 + 1 + 2 * 2 + 1);

    let config = config(dir.path());
    for (field, value) in [
        ("peft_type", json!("LORA")),
        ("task_type", json!("CAUSAL_LM")),
        ("base_model_name_or_path", json!("some/base")),
        ("r", json!(2)),
        ("lora_alpha", json!(16)),
        ("target_modules", json!(["q_proj", "k_proj", "v_proj", "o_proj"])),
        (
            "modules_to_save",
            json!(["embed_tokens", "input_layernorm", "model.norm", "post_attention_layernorm"]),
        ),
        ("use_rslora", json!(false)),
        ("fan_in_fan_out", json!(false)),
        ("bias", json!("none")),
    ] {
        assert_eq!(config[field], value, "{field}");
    }
}

#[test]
fn a_trained_tied_embedding_is_written_as_the_head_too() {
    let dir = tempdir().unwrap();
    saved(dir.path(), true);
    let tensors = tensors(dir.path());
    assert_eq!(
        tensors["base_model.model.lm_head.weight"],
        tensors["base_model.model.model.embed_tokens.weight"]
    );
    let config = config(dir.path());
    assert_eq!(config["ensure_weight_tying"], true);
    assert!(config["modules_to_save"].as_array().unwrap().contains(&json!("lm_head")));
}

#[test]
fn an_embedding_trained_without_its_head_unties_the_model() {
    let dir = tempdir().unwrap();
    let model = saved(dir.path(), true);
    let mut tensors = tensors(dir.path());
    tensors.remove("base_model.model.lm_head.weight");
    put_tensors(dir.path(), &tensors);
    let mut config = config(dir.path());
    config["ensure_weight_tying"] = json!(false);
    config["modules_to_save"] = json!(["embed_tokens", "norm"]);
    put_config(dir.path(), &config);

    let old = base(&tiny::llama(true));
    let back = load_adapter(old.clone(), dir.path()).unwrap();
    let mut expected = model.untied();
    expected.lm_head.as_mut().unwrap().weight = old.embed_tokens;
    assert_eq!(logits(&back, &ids(9)), logits(&expected, &ids(9)));
    assert!(!trainable(&back).contains(&"lm_head.weight".to_string()));

    let dir = tempdir().unwrap();
    lora::merge(back.clone()).save(dir.path(), &Default::default()).unwrap();
    let dense = longburn::attention::MixerConfig::Dense;
    let plain = Decoder::load(dir.path(), &dense, &Device::flex()).unwrap();
    assert!(ratio(&logits(&plain, &ids(9)), &logits(&back, &ids(9))) < 1e-5);
}

#[test]
fn older_spellings_and_unknown_fields_are_read() {
    let dir = tempdir().unwrap();
    let model = saved(dir.path(), false);
    let original = tensors(dir.path());
    let respell = |name: &str, saved: &str, lora: &str| {
        let infix = if name.contains(".lora_") { lora } else { saved };
        format!("{}{infix}.weight", name.strip_suffix(".weight").unwrap())
    };
    for (saved, lora) in
        [(".modules_to_save", ""), (".modules_to_save.default", ".default"), (".default", "")]
    {
        let renamed = original.iter().map(|(k, v)| (respell(k, saved, lora), v.clone())).collect();
        put_tensors(dir.path(), &renamed);
        let mut config = config(dir.path());
        config["a_field_of_tomorrow"] = json!({"x": [1]});
        config["lora_dropout"] = json!(0.1);
        put_config(dir.path(), &config);
        let back = load_adapter(base(&tiny::llama(false)), dir.path()).unwrap();
        assert_eq!(logits(&back, &ids(9)), logits(&model, &ids(9)), "{saved}");
    }
}

#[test]
fn settings_that_cannot_be_honoured_are_refused_by_name() {
    let dir = tempdir().unwrap();
    saved(dir.path(), false);
    let good = config(dir.path());
    for (field, value) in [
        ("peft_type", json!("IA3")),
        ("task_type", json!("SEQ_CLS")),
        ("bias", json!("lora_only")),
        ("use_dora", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!({"^model.*q_proj": 4})),
        ("rank_pattern", json!([4])),
        ("alpha_pattern", json!({"q_proj": "4"})),
        ("layers_to_transform", json!([0])),
        ("layer_replication", json!([[0, 2]])),
        ("trainable_token_indices", json!([3])),
        ("init_lora_weights", json!("pissa")),
        ("r", json!(0)),
        ("r", json!("8")),
        ("lora_alpha", Value::Null),
        ("use_rslora", json!("yes")),
        ("target_modules", json!(".*q_proj")),
        ("target_modules", json!(["q_proj", "embed_tokens"])),
        ("modules_to_save", json!(["embed_tokens", "score"])),
        ("modules_to_save", json!(["up_proj"])),
    ] {
        let mut config = good.clone();
        config[field] = value.clone();
        put_config(dir.path(), &config);
        let error = load_adapter(base(&tiny::llama(false)), dir.path()).unwrap_err();
        assert!(matches!(error, Error::Config { .. } | Error::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains(field), "{field} = {value}: {error}");
    }
}

#[test]
fn f6_all_adapter_tensors_that_do_not_fit_are_listed() {
    let dir = tempdir().unwrap();
    saved(dir.path(), false);
    let mut tensors = tensors(dir.path());
    let stem = "base_model.model.model.layers.0.self_attn.";
    for gone in ["q_proj.lora_A.weight", "v_proj.lora_B.weight"] {
        tensors.remove(&format!("{stem}{gone}")).unwrap();
    }
    let short =
        RawTensor::from_f32(vec![2, 23], &[0.0; 46], longburn::models::weights::SaveDtype::F32);
    tensors.insert(format!("{stem}k_proj.lora_A.weight"), short.unwrap());
    let extra = tensors["base_model.model.model.norm.weight"].clone();
    tensors.insert("base_model.model.model.layers.7.mlp.up_proj.lora_A.weight".into(), extra);
    put_tensors(dir.path(), &tensors);
    match load_adapter(base(&tiny::llama(false)), dir.path()).unwrap_err() {
        Error::TensorMismatch { missing, unexpected, misshaped, .. } => {
            assert_eq!(missing.len(), 2, "{missing:?}");
            assert!(unexpected.len() == 1 && unexpected[0].contains("layers.7"), "{unexpected:?}");
            assert!(misshaped.len() == 1 && misshaped[0].contains("[2, 23]"), "{misshaped:?}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn what_a_folder_cannot_hold_is_not_lost_silently() {
    let dir = tempdir().unwrap();
    let refused = |model: &Decoder| match save_adapter(model, dir.path(), "b") {
        Err(Error::Unsupported { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert!(refused(&base(&tiny::llama(false))).contains("without adapters"));
    let mut model = adapted(&tiny::llama(false), &LoraConfig::new());
    let up = &mut model.layers[1].mlp.as_mut().unwrap().up_proj;
    up.weight = up.weight.clone().set_require_grad(true);
    assert!(refused(&model).contains("layers.1.mlp.up_proj.weight"));
    let mut model = adapted(&tiny::llama(false), &LoraConfig::longlora());
    model.layers[1].input_layernorm.weight =
        model.layers[1].input_layernorm.weight.clone().set_require_grad(false);
    assert!(refused(&model).contains("input_layernorm"));
    let mut model = adapted(&tiny::llama(false), &LoraConfig::new());
    Target::K.linear_mut(&mut model.layers[0]).unwrap().lora = None;
    assert!(refused(&model).contains("k_proj"));
    assert!(!dir.path().join("adapter_model.safetensors").exists());
}
