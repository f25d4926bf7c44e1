//! GPT-NeoX: the fused projection on disk, names both ways, the two forms of residuals, low-rank
//! updates, a cache. `tests/goldens` compares with the official implementation.

use crate::tiny::{self, ids, logits, ratio};
use burn::tensor::Device;
use longburn::Error;
use longburn::attention::{LongLoraConfig, MixerConfig};
use longburn::models::keymap::{KeyMap, NeoXKeys, params};
use longburn::models::lora::{self, LoraConfig, Role, Target};
use longburn::models::weights::{HostTensor, SaveDtype, WeightFiles};
use longburn::models::{
    Activation, Architecture, Blocks, Decoder, GenerateConfig, ModelConfig, SaveOptions, generate,
    peft, stored,
};
use serde_json::json;

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
    let folder = dir.path().join("adapter");
    let refused = peft::save_adapter(&adapted, &folder, "base").unwrap_err();
    assert!(refused.to_string().contains("merge"), "{refused}");
    assert!(!folder.exists());
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
