//! `config.json` in and out.

use longburn::models::weights::SaveDtype;
use longburn::models::{Architecture, ModelConfig};
use longburn::positional::{RopeConfig, RopeKind};
use longburn::{Error, Result};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A small model of a family, with `changes` made; a change to `"absent"` removes the field.
fn file(model_type: &str, changes: Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    });
    for (key, value) in changes.as_object().unwrap() {
        if value == "absent" {
            config.as_object_mut().unwrap().remove(key);
        } else {
            config[key] = value.clone();
        }
    }
    config
}

fn read(model_type: &str, changes: Value) -> Result<ModelConfig> {
    ModelConfig::from_json_str(&file(model_type, changes).to_string(), "config.json")
}

/// The field, value and expectation of a refusal.
fn refused(result: Result<ModelConfig>) -> (String, String, String) {
    match result {
        Err(Error::Config { file, field, value, expected }) => {
            assert_eq!(file, "config.json");
            assert!(!expected.is_empty());
            (field, value, expected)
        }
        other => panic!("expected a refusal of a field, got {other:?}"),
    }
}

/// What `transformers` makes of the same sparse files.
#[test]
fn absent_fields_have_the_family_s_defaults() {
    let sparse = json!({"num_key_value_heads": null});
    let llama = read("llama", sparse.clone()).unwrap();
    assert_eq!(llama.architecture, Architecture::Llama);
    assert_eq!((llama.num_key_value_heads, llama.head_dim), (4, 8));
    assert_eq!((llama.max_position_embeddings, llama.rms_norm_eps), (2048, 1e-6));
    assert_eq!((llama.bos_token_id, &llama.eos_token_ids[..]), (Some(1), &[2][..]));
    assert_eq!((llama.pad_token_id, llama.tie_word_embeddings), (None, false));
    assert_eq!(llama.rope, RopeConfig::new(10_000.0, 8));
    assert_eq!(llama.initializer_range, 0.02);
    assert_eq!(llama.windows, [None; 4]);
    let biases = |c: &ModelConfig| [c.qkv_bias, c.o_bias, c.mlp_bias, c.qk_norm];
    assert_eq!(biases(&llama), [false; 4]);

    let mistral = read("mistral", sparse.clone()).unwrap();
    assert_eq!((mistral.max_position_embeddings, mistral.bos_token_id), (131_072, Some(1)));
    assert_eq!(mistral.windows, [Some(4096); 4]);
    assert_eq!(biases(&mistral), [false; 4]);
    let eight =
        read("mistral", json!({"num_attention_heads": 16, "num_key_value_heads": "absent"}));
    assert_eq!(eight.unwrap().num_key_value_heads, 8);

    let qwen2 = read("qwen2", sparse.clone()).unwrap();
    assert_eq!((qwen2.max_position_embeddings, qwen2.bos_token_id), (32_768, None));
    assert_eq!((qwen2.eos_token_ids.len(), qwen2.head_dim), (0, 8));
    assert_eq!(qwen2.windows, [None; 4]);
    assert_eq!(biases(&qwen2), [true, false, false, false]);

    let qwen3 = read("qwen3", sparse).unwrap();
    assert_eq!((qwen3.head_dim, qwen3.rope.dim), (128, 128));
    assert_eq!(biases(&qwen3), [false, false, false, true]);
    let many = json!({"num_attention_heads": 64, "num_key_value_heads": "absent"});
    assert_eq!(read("qwen3", many.clone()).unwrap().num_key_value_heads, 32);
    assert_eq!(
        read(
            "llama",
            json!({"hidden_size": 64, "num_attention_heads": 32,
        "num_key_value_heads": "absent"})
        )
        .unwrap()
        .num_key_value_heads,
        32
    );
}

#[test]
fn explicit_fields_are_honoured() {
    let biased = json!({"attention_bias": true, "mlp_bias": true, "head_dim": 12});
    let config = read("llama", biased.clone()).unwrap();
    assert!(config.qkv_bias && config.o_bias && config.mlp_bias);
    assert_eq!((config.head_dim, config.rope.dim), (12, 12));
    let config = read("qwen3", biased.clone()).unwrap();
    assert!(config.qkv_bias && config.o_bias && !config.mlp_bias);
    let config = read("mistral", biased).unwrap();
    assert!(!config.qkv_bias && !config.o_bias && !config.mlp_bias);

    let ids = json!({"bos_token_id": null, "eos_token_id": [7, 60], "pad_token_id": 0});
    let config = read("llama", ids).unwrap();
    assert_eq!((config.bos_token_id, config.pad_token_id), (None, Some(0)));
    assert_eq!(config.eos_token_ids, [7, 60]);
    let none = read("llama", json!({"eos_token_id": null, "pad_token_id": -1})).unwrap();
    assert_eq!((none.eos_token_ids.len(), none.pad_token_id), (0, None));
    // A width that heads do not divide is fine with a head width of its own.
    assert_eq!(read("llama", json!({"hidden_size": 33, "head_dim": 8})).unwrap().hidden_size, 33);
    assert!(read("llama", json!({"architectures": ["LlamaForCausalLM"]})).is_ok());
}

#[test]
fn windows_follow_the_family_s_rule() {
    let windows = |family, changes| read(family, changes).unwrap().windows;
    assert_eq!(windows("mistral", json!({"sliding_window": 6})), [Some(6); 4]);
    assert_eq!(windows("mistral", json!({"sliding_window": null})), [None; 4]);
    assert_eq!(windows("llama", json!({"sliding_window": 6})), [None; 4]);
    let off = json!({"sliding_window": 5, "max_window_layers": 2});
    assert_eq!(windows("qwen2", off), [None; 4]);
    let on = json!({"use_sliding_window": true, "sliding_window": 5, "max_window_layers": 3});
    assert_eq!(windows("qwen2", on.clone()), [None, None, None, Some(5)]);
    let none = json!({"use_sliding_window": true, "sliding_window": null, "max_window_layers": 0});
    assert_eq!(windows("qwen2", none), [None; 4]);
    let few = json!({"use_sliding_window": true});
    assert_eq!(windows("qwen3", few), [None; 4]);
    // The list wins over max_window_layers.
    let (full, sliding) = ("full_attention", "sliding_attention");
    let mut listed = on;
    listed["layer_types"] = json!([sliding, full, sliding, full]);
    assert_eq!(windows("qwen3", listed.clone()), [Some(5), None, Some(5), None]);

    listed["use_sliding_window"] = json!(false);
    assert_eq!(refused(read("qwen3", listed.clone())).0, "sliding_window");
    listed["layer_types"] = json!([full, full]);
    assert_eq!(refused(read("qwen3", listed.clone())).0, "layer_types");
    listed["layer_types"] = json!([full, full, full, "chunked_attention"]);
    assert_eq!(refused(read("qwen3", listed)).0, "layer_types");
    let mixed = json!({"sliding_window": 5, "layer_types": [sliding, sliding, sliding, full]});
    assert_eq!(refused(read("mistral", mixed)).0, "layer_types");
}

#[test]
fn rope_is_read_in_both_shapes() {
    let rope = |changes| read("llama", changes).unwrap().rope;
    let plain = RopeConfig::new(5e5, 8);
    assert_eq!(rope(json!({"rope_theta": 5e5, "rope_scaling": null})), plain);
    assert_eq!(rope(json!({"rope_theta": 5e5, "rope_scaling": {}})), plain);
    assert_eq!(rope(json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "default"}})), plain);
    assert_eq!(rope(json!({"rope_parameters": {"rope_theta": 5e5}})), plain);
    assert_eq!(rope(json!({"rope_theta": 5e5, "rope_parameters": {"type": "default"}})), plain);
    assert_eq!(rope(json!({"rope_theta": 1, "rope_parameters": {"rope_theta": 5e5}})), plain);

    let linear = plain.clone().with_kind(RopeKind::Linear { factor: 4.0 });
    let scaling = json!({"type": "linear", "factor": 4});
    assert_eq!(rope(json!({"rope_theta": 5e5, "rope_scaling": scaling})), linear);
    let both = json!({"type": "linear", "rope_type": "linear", "factor": 4.0});
    assert_eq!(rope(json!({"rope_theta": 5e5, "rope_scaling": both})), linear);
    let newer = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5});
    assert_eq!(rope(json!({"rope_parameters": newer})), linear);
    let agree = json!({"rope_theta": 5e5, "rope_scaling": scaling, "rope_parameters": newer});
    assert_eq!(rope(agree), linear);
}

/// Which of three places the original length of llama3 is taken from, per shape.
#[test]
fn llama3_original_length_has_its_precedence() {
    let scaling = |inner: Option<usize>| {
        let mut s = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "rope_theta": 5e5});
        if let Some(length) = inner {
            s["original_max_position_embeddings"] = json!(length);
        }
        s
    };
    let length = |shape: &str, inner, top: Option<usize>| {
        let mut changes = json!({"max_position_embeddings": 512});
        changes[shape] = scaling(inner);
        if let Some(length) = top {
            changes["original_max_position_embeddings"] = json!(length);
        }
        read("llama", changes).map(|c| match c.rope.kind {
            RopeKind::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings,
            } => original_max_position_embeddings,
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(length("rope_scaling", Some(64), Some(32)).unwrap(), 64);
    match length("rope_scaling", None, Some(32)) {
        Err(Error::Config { field, value, .. }) => {
            assert_eq!(field, "rope_scaling.original_max_position_embeddings");
            assert_eq!(value, "missing");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(length("rope_parameters", Some(64), Some(32)).unwrap(), 32);
    assert_eq!(length("rope_parameters", Some(64), None).unwrap(), 64);
    assert_eq!(length("rope_parameters", None, None).unwrap(), 512);
}

#[test]
fn quantised_weights_are_refused() {
    let packed = read("llama", json!({"quantization_config": {"bits": 4}}));
    assert!(matches!(packed, Err(Error::Unsupported { .. })));
}

#[test]
fn f5_wrong_config() {
    let linear = |factor: Value| json!({"rope_scaling": {"rope_type": "linear", "factor": factor}});
    let llama3 = |low: f64, high: f64| {
        json!({"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": low,
            "high_freq_factor": high, "original_max_position_embeddings": 16}})
    };
    let cases = [
        (json!({"vocab_size": "absent"}), "vocab_size", "missing"),
        (json!({"hidden_size": "absent"}), "hidden_size", "missing"),
        (json!({"intermediate_size": null}), "intermediate_size", "null"),
        (json!({"num_hidden_layers": "absent"}), "num_hidden_layers", "missing"),
        (json!({"num_attention_heads": "absent"}), "num_attention_heads", "missing"),
        (json!({"model_type": "absent"}), "model_type", "missing"),
        (json!({"model_type": "gptj"}), "model_type", "\"gptj\""),
        (json!({"model_type": 3}), "model_type", "3"),
        (json!({"architectures": ["MistralForCausalLM"]}), "architectures", "Mistral"),
        (json!({"architectures": ["LlamaTowerModel"]}), "architectures", "LlamaTower"),
        (json!({"hidden_act": "gelu"}), "hidden_act", "\"gelu\""),
        (json!({"hidden_size": "32"}), "hidden_size", "\"32\""),
        (json!({"hidden_size": 32.5}), "hidden_size", "32.5"),
        (json!({"hidden_size": 1e308}), "hidden_size", "1e+308"),
        (json!({"vocab_size": 1e308}), "vocab_size", "1e+308"),
        (json!({"vocab_size": u64::MAX}), "vocab_size", "18446744073709551615"),
        (json!({"vocab_size": 0}), "vocab_size", "0"),
        (json!({"num_hidden_layers": 1_000_000_000_000u64}), "num_hidden_layers", "1000000000000"),
        (json!({"num_attention_heads": -4}), "num_attention_heads", "-4"),
        (json!({"num_attention_heads": 0}), "num_attention_heads", "0"),
        (json!({"num_attention_heads": true}), "num_attention_heads", "true"),
        (json!({"hidden_size": 33}), "hidden_size", "33"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads", "3"),
        (json!({"num_key_value_heads": 8}), "num_key_value_heads", "8"),
        (json!({"num_key_value_heads": 0}), "num_key_value_heads", "0"),
        (json!({"head_dim": 7}), "head_dim", "7"),
        (json!({"head_dim": 0}), "head_dim", "0"),
        (json!({"rms_norm_eps": 0}), "rms_norm_eps", "0"),
        (json!({"rms_norm_eps": -1e-6}), "rms_norm_eps", "-0.000001"),
        (json!({"rms_norm_eps": "1e-6"}), "rms_norm_eps", "\"1e-6\""),
        (json!({"initializer_range": -0.1}), "initializer_range", "-0.1"),
        (json!({"max_position_embeddings": 1e308}), "max_position_embeddings", "1e+308"),
        (json!({"tie_word_embeddings": "true"}), "tie_word_embeddings", "\"true\""),
        (json!({"attention_bias": 1}), "attention_bias", "1"),
        (json!({"eos_token_id": 61}), "eos_token_id", "61"),
        (json!({"eos_token_id": [2, -1]}), "eos_token_id", "[2,-1]"),
        (json!({"bos_token_id": [1, 2]}), "bos_token_id", "[1,2]"),
        (json!({"pad_token_id": 4_000_000_000u64}), "pad_token_id", "4000000000"),
        (json!({"rope_theta": 0}), "rope_theta", "0"),
        (json!({"rope_theta": "1e4"}), "rope_theta", "\"1e4\""),
        (json!({"rope_scaling": "linear"}), "rope_scaling", "\"linear\""),
        (json!({"rope_scaling": {"factor": 2.0}}), "rope_scaling.rope_type", "missing"),
        (json!({"rope_scaling": {"rope_type": "spiral"}}), "rope_scaling.rope_type", "spiral"),
        (json!({"rope_scaling": {"type": "spiral"}}), "rope_scaling.type", "spiral"),
        (
            json!({"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 2.0}}),
            "rope_scaling.type",
            "linear",
        ),
        (json!({"rope_parameters": {"rope_type": "linear"}}), "rope_parameters.factor", "missing"),
        (linear(json!("2")), "rope_scaling.factor", "\"2\""),
        (linear(json!(0.5)), "factor", "0.5"),
        (llama3(4.0, 4.0), "high_freq_factor", "4"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor", "0.5"),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
            "rope_parameters",
            "4.0",
        ),
    ];
    for (changes, field, value) in cases {
        let (got_field, got_value, _) = refused(read("llama", changes.clone()));
        assert_eq!(got_field, field, "{changes}");
        assert!(got_value.contains(value), "{changes}: value {got_value}");
    }
    let (_, _, known) = refused(read("gptj", json!({})));
    assert!(
        ["llama", "mistral", "qwen2", "qwen3", "gpt_neox"].iter().all(|m| known.contains(m)),
        "{known}"
    );
    let (_, _, known) = refused(read("llama", json!({"rope_scaling": {"rope_type": "spiral"}})));
    assert!(RopeKind::NAMES.iter().all(|m| known.contains(m)), "{known}");
    let (_, long, _) = refused(read("llama", json!({"hidden_act": "x".repeat(100_000)})));
    assert!(long.len() < 100);
}

#[test]
fn f5_hostile_json() {
    let parse = |text: &str| ModelConfig::from_json_str(text, "config.json").unwrap_err();
    let deep = format!("{{\"a\":{}", "[".repeat(10_000));
    for text in [deep.as_str(), "", "{", "[1]", "null", "{\"vocab_size\": NaN}"] {
        let error = parse(text);
        assert!(matches!(&error, Error::Parse { file, .. } if file == "config.json"), "{error}");
    }
    match parse("{\n  \"vocab_size\": 61,\n  \"hidden_size\": x\n}") {
        Error::Parse { text: Some(text), span: Some(span), .. } => {
            assert_eq!(text[span.start..].chars().next(), Some('x'));
        }
        other => panic!("{other:?}"),
    }

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::File::create(&path).unwrap().set_len(200_000_000).unwrap();
    let start = Instant::now();
    let error = ModelConfig::from_file(&path).unwrap_err();
    assert!(start.elapsed() < Duration::from_millis(100));
    assert!(error.to_string().contains("200000000"), "{error}");
    std::fs::write(&path, b"{\"model_type\": \"\xff\"}").unwrap();
    assert!(matches!(ModelConfig::from_file(&path), Err(Error::Parse { .. })));
    assert!(matches!(ModelConfig::from_file(dir.path()), Err(Error::Parse { .. })));
    assert!(matches!(ModelConfig::from_file(&dir.path().join("x")), Err(Error::Io { .. })));
    std::fs::write(&path, file("llama", json!({})).to_string()).unwrap();
    assert_eq!(ModelConfig::from_file(&path).unwrap().vocab_size, 61);
}

#[test]
fn unchanged_files_are_written_as_they_were() {
    for family in ["llama", "mistral", "qwen2", "qwen3"] {
        for mut original in [
            file(family, json!({"torch_dtype": "float16", "head_dim": null, "x": {"y": [1.5]}})),
            file(family, json!({"dtype": "float16", "rope_parameters": {"rope_theta": 5e5}})),
        ] {
            let text = original.to_string();
            let config = ModelConfig::from_json_str(&text, "config.json").unwrap();
            let name = if text.contains("torch_dtype") { "torch_dtype" } else { "dtype" };
            original[name] = json!("bfloat16");
            assert_eq!(config.to_json(SaveDtype::BF16).to_string(), original.to_string());
        }
    }
    let named = |changes, name: &str| {
        read("llama", changes).unwrap().to_json(SaveDtype::F32).get(name).cloned()
    };
    assert_eq!(named(json!({}), "torch_dtype"), Some(json!("float32")));
    let newer = json!({"rope_parameters": {"rope_theta": 5e5}});
    assert_eq!(named(newer.clone(), "dtype"), Some(json!("float32")));
    assert_eq!(named(newer, "torch_dtype"), None);
}

/// Equal in all but the file it came from.
fn same_model(a: &ModelConfig, b: &ModelConfig) -> bool {
    a.to_json(SaveDtype::F32) == b.to_json(SaveDtype::F32)
}

#[test]
fn changes_are_written_in_the_shape_of_the_file() {
    let linear = RopeKind::Linear { factor: 4.0 };
    let reread = |config: &ModelConfig| {
        let text = config.to_json(SaveDtype::F32).to_string();
        ModelConfig::from_json_str(&text, "config.json").unwrap()
    };
    let older = read("qwen2", json!({"rope_theta": 5e5, "rope_scaling": null, "x": 1})).unwrap();
    let longer = |c: &ModelConfig| {
        let rope = c.rope.clone().with_kind(linear.clone());
        c.clone().with_rope(rope).with_max_positions(999).with_vocab_size(77).with_tied(true)
    };
    let written = longer(&older).to_json(SaveDtype::F32);
    assert_eq!(written["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
    assert_eq!((&written["rope_theta"], &written["x"]), (&json!(5e5), &json!(1)));
    assert_eq!(written["max_position_embeddings"], 999);
    assert_eq!(
        (&written["vocab_size"], &written["tie_word_embeddings"]),
        (&json!(77), &json!(true))
    );
    assert!(written.get("rope_parameters").is_none() && written.get("head_dim").is_none());
    assert_eq!(reread(&longer(&older)).rope, longer(&older).rope);

    let newer = read("qwen3", json!({"rope_parameters": {"rope_theta": 5e5}})).unwrap();
    let written = longer(&newer).to_json(SaveDtype::F32);
    let expected = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5});
    assert_eq!(written["rope_parameters"], expected);
    assert!(written.get("rope_scaling").is_none() && written.get("rope_theta").is_none());
    let back = longer(&newer).with_rope(RopeConfig::new(5e5, 128));
    assert_eq!(reread(&back).rope, back.rope);

    // A length that hung on another field stays what it was.
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "rope_theta": 5e5});
    let config =
        read("llama", json!({"rope_parameters": llama3})).unwrap().with_max_positions(4096);
    assert_eq!(reread(&config).rope, config.rope);

    // A top-level length would otherwise win over the new one.
    let top = json!({"rope_parameters": llama3, "original_max_position_embeddings": 64});
    let mut config = read("llama", top).unwrap();
    if let RopeKind::Llama3 { original_max_position_embeddings: length, .. } = &mut config.rope.kind
    {
        *length = 128;
    }
    assert_eq!(reread(&config).rope, config.rope);

    let mut config = read("qwen3", json!({})).unwrap();
    config.windows = vec![None, Some(9), None, Some(9)];
    assert_eq!(reread(&config).windows, config.windows);
    let mut config = read("mistral", json!({})).unwrap();
    config.windows = vec![None; 4];
    assert_eq!(reread(&config).windows, config.windows);
    let mut config =
        read("llama", json!({"num_key_value_heads": null, "hidden_act": "silu"})).unwrap();
    (config.qkv_bias, config.o_bias, config.mlp_bias) = (true, true, true);
    (config.num_attention_heads, config.eos_token_ids) = (8, vec![3, 4]);
    let again = reread(&config);
    assert!(same_model(&again, &config));
    assert_eq!((again.num_key_value_heads, again.head_dim, again.o_bias), (4, 8, true));
}

#[test]
fn new_models_are_complete_files_of_the_older_shape() {
    let config = ModelConfig::llama(512, 64, 3, 8)
        .with_kv_heads(2)
        .with_rope(RopeConfig::new(5e5, 8).with_kind(RopeKind::Linear { factor: 2.0 }))
        .with_tied(true)
        .with_max_positions(256)
        .with_eps(1e-4)
        .with_bos(Some(1))
        .with_eos([2]);
    config.validate().unwrap();
    assert_eq!(config.intermediate_size, 176);
    let written = config.to_json(SaveDtype::BF16);
    for (key, value) in [
        ("architectures", json!(["LlamaForCausalLM"])),
        ("model_type", json!("llama")),
        ("vocab_size", json!(512)),
        ("num_key_value_heads", json!(2)),
        ("head_dim", json!(8)),
        ("attention_bias", json!(false)),
        ("pad_token_id", Value::Null),
        ("eos_token_id", json!(2)),
        ("rope_theta", json!(5e5)),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 2.0})),
        ("torch_dtype", json!("bfloat16")),
    ] {
        assert_eq!(written.get(key), Some(&value), "{key}");
    }
    let again = ModelConfig::from_json_str(&written.to_string(), "config.json").unwrap();
    assert!(same_model(&again, &config));
    assert_eq!(again.rope, config.rope);
    // Without special ids the file says so, or a reader would take 1 and 2.
    let bare = ModelConfig::llama(2, 8, 1, 1).to_json(SaveDtype::F32);
    assert_eq!((&bare["bos_token_id"], &bare["eos_token_id"]), (&Value::Null, &Value::Null));

    let invalid = [
        ModelConfig::llama(512, 64, 3, 0),
        ModelConfig::llama(512, 64, usize::MAX, 8),
        ModelConfig::llama(512, usize::MAX, 3, 8),
        ModelConfig::llama(512, 64, 3, 8).with_kv_heads(3),
        ModelConfig::llama(512, 64, 3, 8).with_head_dim(7),
        ModelConfig::llama(512, 64, 3, 8).with_rope(RopeConfig::new(1e4, 16)),
        ModelConfig::llama(512, 64, 3, 8).with_bos(Some(512)),
        ModelConfig::llama(512, 64, 3, 8).with_eos([1, 512]),
        ModelConfig::llama(512, 64, 3, 8).with_eps(f64::NAN),
    ];
    for config in invalid {
        assert!(matches!(config.validate(), Err(Error::Config { .. })), "{config:?}");
    }
    let mut windowed = ModelConfig::llama(512, 64, 3, 8);
    windowed.windows = vec![Some(4); 3];
    assert!(windowed.validate().is_err());
}
