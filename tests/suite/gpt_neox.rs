//! GPT-NeoX: the fused projection on disk, names both ways, the two forms of residuals, low-rank
//! updates, a cache. `tests/goldens` compares with the official implementation.

use crate::tiny::{self, ids, logits, ratio};
use burn::tensor::Device;
use longburn::Error;
use longburn::attention::{LongLoraConfig, MixerConfig};
use longburn::models::keymap::{KeyMap, NeoXKeys, params};
use longburn::models::lora::{self, LoraConfig, Role, Target};
use longburn::models::weights::{
    HostTensor, RawTensor, SaveDtype, WeightFiles, read_safetensors, write_safetensors,
};
use longburn::models::{
    Activation, Architecture, Blocks, Decoder, GenerateConfig, ModelConfig, SaveOptions, generate,
    peft, stored,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

fn config(parallel: bool) -> ModelConfig {
    ModelConfig::gpt_neox(61, 32, 2, 4).with_parallel_residual(parallel).with_max_positions(64)
}

fn model(parallel: bool) -> Decoder {
    tiny::model(&config(parallel), &Device::flex())
}

#[test]
fn names_are_bijective() {
    let model = model(true);
    let mut names = Vec::new();
    for param in params(&model) {
        let name = NeoXKeys.to_hf(&param.path).unwrap();
        assert_eq!(NeoXKeys.to_path(&name), Some(param.path));
        names.push(name);
    }
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!((names.len(), all), (2 * 16 + 4, 2 * 16 + 4));
    // A mixer's own parameters keep their names.
    let own = "layers.3.self_attn.decay.weight";
    let name = "gpt_neox.layers.3.attention.decay.weight";
    assert_eq!(NeoXKeys.to_hf(own).as_deref(), Some(name));
    assert_eq!(NeoXKeys.to_path(name).as_deref(), Some(own));
    assert_eq!(NeoXKeys.to_hf("layers.0.mlp.up_proj.lora.a"), None);
    assert_eq!(NeoXKeys.to_path("model.layers.0.mlp.up_proj.weight"), None);
}

/// Rows of the stored tensor: of head 0 those of q, of k, of v, then of head 1 …
#[test]
fn projections_are_stored_head_by_head() {
    let part = |name: &str, first: f32| {
        let data = (0..8).map(|i| first + i as f32).collect();
        let name = format!("x.attention.query_key_value.{name}.weight");
        HostTensor::new(name, vec![4, 2], data).unwrap()
    };
    let other = HostTensor::new("x.dense.weight", vec![1], vec![7.0]).unwrap();
    let named = vec![part("v", 200.0), part("q", 0.0), other, part("k", 100.0)];
    let joined = stored::join(named, 2);
    let names: Vec<_> = joined.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["x.dense.weight", "x.attention.query_key_value.weight"]);
    assert_eq!(joined[1].shape, [12, 2]);
    let expected: Vec<f32> = [0, 100, 200, 4, 104, 204]
        .into_iter()
        .flat_map(|first| (first..first + 4).map(|x| x as f32))
        .collect();
    assert_eq!(joined[1].data, expected);
}

#[test]
fn what_is_saved_is_read_back() {
    for parallel in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let model = model(parallel);
        let sharded = SaveOptions { dtype: SaveDtype::F32, max_shard_bytes: Some(6000) };
        model.save(dir.path(), &sharded).unwrap();
        let files = WeightFiles::open(dir.path()).unwrap();
        let name = "gpt_neox.layers.1.attention.query_key_value.";
        assert_eq!(files.shape(&format!("{name}weight")), Some(&[96, 32][..]));
        assert_eq!(files.shape(&format!("{name}bias")), Some(&[96][..]));
        files.check_names(&model.config().tensor_shapes(), |_| false).unwrap();

        let back = Decoder::load(dir.path(), &MixerConfig::Dense, &Device::flex()).unwrap();
        assert_eq!(back.config().parallel_residual, parallel);
        assert_eq!(back.config().rope, model.config().rope);
        assert_eq!(logits(&back, &ids(33)), logits(&model, &ids(33)));
    }
}

/// Every part of a block has its say, and the two forms of residuals differ.
#[test]
fn residuals_are_parallel_or_in_sequence() {
    let (parallel, sequential) = (model(true), model(false));
    let apart = ratio(&logits(&parallel, &ids(20)), &logits(&sequential, &ids(20)));
    assert!(apart > 0.1, "{apart}");
    let changed = |path: &str| {
        let other = tiny::scattered(parallel.clone(), 5, |p| p == path);
        ratio(&logits(&other, &ids(20)), &logits(&parallel, &ids(20)))
    };
    for path in [
        "norm.bias",
        "layers.0.input_layernorm.bias",
        "layers.1.post_attention_layernorm.bias",
        "layers.0.self_attn.proj.k_proj.weight",
        "layers.1.self_attn.proj.o_proj.bias",
        "layers.1.mlp.up_proj.bias",
        "layers.0.mlp.down_proj.bias",
    ] {
        assert!(changed(path) > 1e-3, "{path}: {}", changed(path));
    }
}

#[test]
fn cached_generation_equals_the_whole_pass() {
    let model = model(true);
    let prompt = ids(9);
    let config = GenerateConfig::new().with_max_new_tokens(12).with_prefill_chunk(Some(4));
    let generated = generate(&model, &prompt, &config, |_| ()).unwrap();
    let mut text = prompt;
    for id in generated.ids {
        let all = logits(&model, &text);
        let last = &all[all.len() - 61..];
        let best = (0..61).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        assert_eq!(id as usize, best);
        text.push(id);
    }
}

#[test]
fn low_rank_updates_go_by_role() {
    let base = model(true);
    let all = [Target::Q, Target::K, Target::V, Target::O, Target::Up, Target::Down];
    let policy = LoraConfig::longlora().with_rank(3).with_targets(&all);
    let adapted = lora::apply(base.clone(), &policy).unwrap();
    assert_eq!(logits(&adapted, &ids(20)), logits(&base, &ids(20)));
    for param in params(&adapted) {
        let norm = param.path.contains("norm");
        let expected = param.path.contains(".lora.") || norm || param.path == "embed_tokens";
        assert_eq!(param.trainable, expected, "{}", param.path);
    }
    assert_eq!(Role::of("layers.0.input_layernorm.bias"), Some(Role::Norm));

    let adapted = tiny::scattered(adapted, 7, |path| path.contains(".lora."));
    let expected = logits(&adapted, &ids(20));
    assert!(ratio(&expected, &logits(&base, &ids(20))) > 1e-2);
    let dir = tempfile::tempdir().unwrap();
    let merged = lora::merge(adapted.clone());
    assert!(ratio(&logits(&merged, &ids(20)), &expected) < 1e-5);
    merged.save(dir.path(), &SaveOptions::default()).unwrap();
    let back = Decoder::load(dir.path(), &MixerConfig::Dense, &Device::flex()).unwrap();
    assert_eq!(logits(&back, &ids(20)), logits(&merged, &ids(20)));

    match lora::apply(base.clone(), &LoraConfig::new().with_targets(&[Target::Q, Target::Gate])) {
        Err(Error::Config { field, value, .. }) => {
            assert_eq!((field.as_str(), value.as_str()), ("targets", "gate"));
        }
        other => panic!("{other:?}"),
    }
}

fn adapter(dir: &Path) -> (BTreeMap<String, RawTensor>, BTreeMap<String, String>, Value) {
    let (tensors, metadata) = read_safetensors(&dir.join("adapter_model.safetensors")).unwrap();
    let config = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap();
    (tensors, metadata, serde_json::from_str(&config).unwrap())
}

const ATTENTION: &str = "base_model.model.gpt_neox.layers.1.attention.query_key_value.";

/// Updates of q, k and v are written as one of the layer that holds them, and read back as they
/// were.
#[test]
fn updates_of_three_layers_are_one_in_a_peft_folder() {
    let all = [Target::Q, Target::K, Target::V, Target::O, Target::Up, Target::Down];
    let longlora = LoraConfig::longlora().with_rank(3);
    let two = LoraConfig::new().with_rank(2).with_targets(&[Target::Q, Target::V]);
    for (policy, times, alpha, parts) in [
        (longlora.clone().with_targets(&all), 3, 48.0, "q,k,v"),
        (longlora, 3, 48.0, "q,k,v"),
        (two.clone(), 2, 32.0, "q,v"),
        (two.with_rslora(true), 2, 16.0 * 2f64.sqrt(), "q,v"),
        (LoraConfig::new().with_rank(2).with_targets(&[Target::K]), 1, 16.0, "k"),
        (LoraConfig::new().with_rank(2).with_targets(&[Target::O]), 0, 16.0, ""),
    ] {
        let base = model(true);
        let adapted = lora::apply(base.clone(), &policy).unwrap();
        let trains: Vec<String> =
            params(&adapted).into_iter().filter(|p| p.trainable).map(|p| p.path).collect();
        let adapted = tiny::scattered(adapted, 7, |path| trains.iter().any(|t| t == path));
        let dir = tempfile::tempdir().unwrap();
        peft::save_adapter(&adapted, dir.path(), "base").unwrap();
        let back = peft::load_adapter(base, dir.path()).unwrap();
        assert_eq!(logits(&back, &ids(20)), logits(&adapted, &ids(20)), "{policy:?}");
        let of = |model: &Decoder| -> Vec<_> {
            params(model).into_iter().map(|p| (p.path, p.shape, p.trainable)).collect()
        };
        assert_eq!(of(&back), of(&adapted), "{policy:?}");

        let (tensors, metadata, config) = adapter(dir.path());
        if times == 0 {
            assert!(!tensors.keys().any(|name| name.contains("query_key_value")));
            assert_eq!(config["target_modules"], json!(["dense"]));
            continue;
        }
        let rank = policy.rank * times;
        assert_eq!(tensors[&format!("{ATTENTION}lora_A.weight")].shape, [rank, 32]);
        assert_eq!(tensors[&format!("{ATTENTION}lora_B.weight")].shape, [96, rank]);
        assert_eq!(metadata["longburn.query_key_value"], parts);
        if times > 1 {
            assert_eq!(config["rank_pattern"], json!({"query_key_value": rank}));
            let written = config["alpha_pattern"]["query_key_value"].as_f64().unwrap();
            assert!((written - alpha).abs() < 1e-12, "{written} {alpha}");
        }
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(policy.rank), &json!(16)));
        if policy.targets == all {
            let names = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"];
            assert_eq!(config["target_modules"], json!(names));
            let saved =
                ["embed_in", "final_layer_norm", "input_layernorm", "post_attention_layernorm"];
            assert_eq!(config["modules_to_save"], json!(saved));
            let norm = "base_model.model.gpt_neox.final_layer_norm.bias";
            assert_eq!(tensors[norm].shape, [32]);
        }
        // Without what the metadata say, it is one update of a higher rank, the same in effect.
        write_safetensors(
            &dir.path().join("adapter_model.safetensors"),
            &tensors,
            &BTreeMap::new(),
        )
        .unwrap();
        let plain = peft::load_adapter(model(true), dir.path()).unwrap();
        let updates = Target::K.linear(&plain.layers[0]).unwrap().lora.as_ref().unwrap();
        assert_eq!(updates.rank(), rank);
        let apart = ratio(&logits(&plain, &ids(20)), &logits(&adapted, &ids(20)));
        assert!(apart < 1e-6, "{apart} with {policy:?}");
    }
}

/// The head is called `lm_head` by transformers 5, `embed_out` by 4 and in checkpoints.
#[test]
fn a_trained_head_is_found_under_either_name() {
    let base = model(true);
    let policy = LoraConfig::new().with_rank(2).with_extra(&[Role::Head]);
    let adapted = lora::apply(base.clone(), &policy).unwrap();
    let wanted = |path: &str| path.contains(".lora.") || path == "lm_head.weight";
    let adapted = tiny::scattered(adapted, 7, wanted);
    let dir = tempfile::tempdir().unwrap();
    peft::save_adapter(&adapted, dir.path(), "base").unwrap();
    let (mut tensors, metadata, mut config) = adapter(dir.path());
    assert_eq!(config["modules_to_save"], json!(["lm_head"]));
    let head = tensors.remove("base_model.model.lm_head.weight").unwrap();
    let back = peft::load_adapter(base.clone(), dir.path()).unwrap();
    assert_eq!(logits(&back, &ids(20)), logits(&adapted, &ids(20)));

    tensors.insert("base_model.model.embed_out.weight".into(), head);
    write_safetensors(&dir.path().join("adapter_model.safetensors"), &tensors, &metadata).unwrap();
    config["modules_to_save"] = json!(["embed_out"]);
    std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    let back = peft::load_adapter(base, dir.path()).unwrap();
    assert_eq!(logits(&back, &ids(20)), logits(&adapted, &ids(20)));
}

/// What PEFT computes of its own folders, on the stored layer: W + s·B·A.
#[test]
fn an_update_of_the_fused_layer_is_one_of_each_part() {
    let base = model(false);
    let source = tempfile::tempdir().unwrap();
    base.save(source.path(), &SaveOptions::default()).unwrap();
    let (mut weights, none) = read_safetensors(&source.path().join("model.safetensors")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (rank, alpha) = (4, 6.0);
    let value = |seed: usize, i: usize| ((i * 37 + seed * 11) % 23) as f32 / 100.0 - 0.11;
    let mut tensors = BTreeMap::new();
    for layer in 0..2 {
        let name = format!("gpt_neox.layers.{layer}.attention.query_key_value");
        let a: Vec<f32> = (0..rank * 32).map(|i| value(layer, i)).collect();
        let b: Vec<f32> = (0..96 * rank).map(|i| value(layer + 5, i)).collect();
        let stored = weights.get_mut(&format!("{name}.weight")).unwrap();
        let mut w = stored.to_f32().unwrap();
        for (i, w) in w.iter_mut().enumerate() {
            let (row, column) = (i / 32, i % 32);
            let product: f32 = (0..rank).map(|r| b[row * rank + r] * a[r * 32 + column]).sum();
            *w += product * (alpha / rank as f32);
        }
        *stored = RawTensor::from_f32(vec![96, 32], &w, SaveDtype::F32).unwrap();
        for (factor, shape, data) in [("lora_A", vec![rank, 32], a), ("lora_B", vec![96, rank], b)]
        {
            let tensor = RawTensor::from_f32(shape, &data, SaveDtype::F32).unwrap();
            tensors.insert(format!("base_model.model.{name}.{factor}.weight"), tensor);
        }
    }
    let file = dir.path().join("adapter_model.safetensors");
    write_safetensors(&file, &tensors, &none).unwrap();
    // The rank and alpha of the file are those of the pattern.
    let config = json!({"peft_type": "LORA", "r": 9, "lora_alpha": 1, "target_modules":
        ["query_key_value"], "rank_pattern": {"query_key_value": rank},
        "alpha_pattern": {"attention.query_key_value": alpha}});
    std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    let adapted = peft::load_adapter(base.clone(), dir.path()).unwrap();
    write_safetensors(&source.path().join("model.safetensors"), &weights, &none).unwrap();
    let expected = Decoder::load(source.path(), &MixerConfig::Dense, &Device::flex()).unwrap();
    let apart = ratio(&logits(&adapted, &ids(20)), &logits(&expected, &ids(20)));
    assert!(apart < 1e-5, "{apart}");
    assert!(ratio(&logits(&adapted, &ids(20)), &logits(&base, &ids(20))) > 1e-2);

    // One A is written as one.
    let again = tempfile::tempdir().unwrap();
    peft::save_adapter(&adapted, again.path(), "base").unwrap();
    let (written, metadata, config) = adapter(again.path());
    assert_eq!(written, tensors);
    assert!(!metadata.contains_key("longburn.query_key_value"));
    assert_eq!((&config["r"], &config["rank_pattern"]), (&json!(rank), &json!({})));

    // Blocks that are none would lose what lies outside of them.
    for (parts, says) in [("q,k,v", "a rank of"), ("v,q", "order"), ("q,x", "order"), ("q", "zero")]
    {
        let claim = ("longburn.query_key_value".to_string(), parts.to_string());
        write_safetensors(
            &again.path().join("adapter_model.safetensors"),
            &tensors,
            &BTreeMap::from([claim]),
        )
        .unwrap();
        let error = peft::load_adapter(base.clone(), again.path()).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("query_key_value"), "{parts}: {error}");
    }
}

/// Other mixers take the three projections as they are.
#[test]
fn mixers_can_be_swapped() {
    let model = model(false);
    let mixer = MixerConfig::LongLora(LongLoraConfig::new());
    let swapped = model.clone().swap_mixer(&mixer).unwrap();
    assert_eq!(logits(&swapped, &ids(32)), logits(&model, &ids(32)));
}

#[test]
fn configuration_is_read_with_the_family_s_defaults_and_written_in_its_terms() {
    let file = json!({"model_type": "gpt_neox", "vocab_size": 61, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4});
    let read = |changes: serde_json::Value| {
        let mut file = file.clone();
        for (key, value) in changes.as_object().unwrap() {
            file[key] = value.clone();
        }
        ModelConfig::from_json_str(&file.to_string(), "config.json")
    };
    let sparse = read(json!({})).unwrap();
    assert_eq!(sparse.architecture, Architecture::GptNeoX);
    assert_eq!((sparse.head_dim, sparse.rope.dim, sparse.num_key_value_heads), (8, 2, 4));
    assert_eq!((sparse.rms_norm_eps, sparse.max_position_embeddings), (1e-5, 2048));
    assert_eq!((sparse.bos_token_id, &sparse.eos_token_ids[..]), (Some(0), &[2][..]));
    assert!(sparse.parallel_residual && sparse.qkv_bias && sparse.o_bias && sparse.mlp_bias);
    assert_eq!(sparse.activation, Activation::Gelu);
    let written = sparse.to_json(SaveDtype::F32);
    let mut expected = file.clone();
    expected["torch_dtype"] = json!("float32");
    assert_eq!(written, expected);

    let full = json!({"layer_norm_eps": 1e-3, "use_parallel_residual": false,
        "attention_bias": false, "hidden_act": "gelu_fast", "rotary_pct": 0.5});
    let full = read(full).unwrap();
    assert!(!full.parallel_residual && !full.qkv_bias && !full.o_bias && full.mlp_bias);
    assert_eq!((full.rms_norm_eps, full.rope.dim), (1e-3, 4));
    assert_eq!(full.activation, Activation::GeluTanh);

    // A new model is a complete file, without the terms of other families.
    let new = config(false).with_eps(1e-4);
    let written = new.to_json(SaveDtype::F32);
    for foreign in ["head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta", "mlp_bias"] {
        assert!(written.get(foreign).is_none(), "{foreign}: {written}");
    }
    assert_eq!(written["rotary_pct"], 0.25);
    let again = ModelConfig::from_json_str(&written.to_string(), "config.json").unwrap();
    assert_eq!(again.to_json(SaveDtype::F32), written);
    assert_eq!((again.rope, again.parallel_residual), (new.rope, false));

    let refused = [
        (json!({"hidden_act": "relu"}), "hidden_act"),
        (json!({"hidden_size": 33}), "hidden_size"),
        (json!({"layer_norm_eps": 0}), "layer_norm_eps"),
        (json!({"use_parallel_residual": "yes"}), "use_parallel_residual"),
        (json!({"architectures": ["LlamaForCausalLM"]}), "architectures"),
    ];
    for (changes, field) in refused {
        match read(changes.clone()) {
            Err(Error::Config { field: got, .. }) => assert_eq!(got, field, "{changes}"),
            other => panic!("{changes}: {other:?}"),
        }
    }
    assert!(config(true).with_kv_heads(2).validate().is_err());
    assert!(config(true).with_head_dim(6).validate().is_err());
}

/// Buffers that old files keep are no weights; anything else is.
#[test]
fn old_buffers_are_passed_over() {
    let config = config(true);
    for name in ["attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"] {
        assert!(config.may_hold(&format!("gpt_neox.layers.0.{name}")), "{name}");
    }
    for name in ["gpt_neox.layers.0.attention.dense.bias", "embed_out.weight"] {
        assert!(!config.may_hold(name), "{name}");
    }
    assert!(config.with_tied(true).may_hold("embed_out.weight"));
}
