//! Mamba and Mamba-2 as whole models, and models of which some layers are such.

use crate::tiny::{self, ids, logits, ratio};
use burn::tensor::Device;
use longburn::attention::{
    Layers, Mamba1Config, Mamba2Config, MixerConfig, MixerSchedule, MixerSite, StepSizes,
};
use longburn::models::keymap::params;
use longburn::models::lora::{self, LoraConfig, Target};
use longburn::models::weights::{WeightFiles, read_safetensors, write_safetensors};
use longburn::models::{
    Architecture, Decoder, GenerateConfig, ModelConfig, SaveOptions, generate, generate_batch,
};
use longburn::streams::Streams;
use longburn::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

fn mamba1() -> MixerConfig {
    MixerConfig::Mamba1(Mamba1Config::new().with_d_state(4).with_dt_rank(3))
}

fn mamba2() -> MixerConfig {
    let config = Mamba2Config::new().with_d_state(5).with_head_dim(8).with_n_groups(2);
    MixerConfig::Mamba2(config.with_chunk(4).with_dt_limit(Some((0.01, 0.5))))
}

/// Both families, with and without a head of its own.
fn families() -> Vec<ModelConfig> {
    let of = |mixer, tied| ModelConfig::state_space(61, 24, 2, mixer).with_tied(tied);
    let biased = Mamba1Config::new().with_d_state(3).with_d_conv(3).with_biases(false, true);
    let MixerConfig::Mamba2(second) = mamba2() else { panic!("another mixer") };
    let steps = StepSizes { min: 0.002, max: 0.05, floor: 0.003 };
    let first = Mamba1Config { step_sizes: steps, ..biased };
    let second = Mamba2Config { step_sizes: steps, ..second };
    vec![
        of(mamba1(), true),
        of(mamba2(), false),
        of(MixerConfig::Mamba1(first), false),
        of(MixerConfig::Mamba2(second), true),
    ]
}

/// All parameters random; the logarithms of decays and the step sizes in their own range.
fn model(config: &ModelConfig) -> Decoder {
    let model = Decoder::new(config, MixerSchedule::Own, 1, &Device::flex()).unwrap();
    tiny::scattered(model, 2, |path| !path.ends_with("A_log") && !path.contains("dt_"))
}

/// A Llama with a state-space layer at each of these places.
fn hybrid(layers: &str, mixer: MixerConfig) -> Decoder {
    let config = ModelConfig::llama(61, 24, 4, 4).with_kv_heads(2).with_max_positions(64);
    let schedule = MixerSchedule::new(MixerConfig::Dense).with_layers(Layers::parse(layers), mixer);
    let model = Decoder::new(&config, &schedule, 1, &Device::flex()).unwrap();
    tiny::scattered(model, 2, |path| !path.ends_with("A_log") && !path.contains("dt_"))
}

fn json_of(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap()
}

#[test]
fn folders_come_back_in_the_form_of_transformers() {
    for config in families() {
        let dir = tempfile::tempdir().unwrap();
        let model = model(&config);
        model.save(dir.path(), &SaveOptions::default()).unwrap();
        let back = Decoder::load(dir.path(), MixerSchedule::Own, &Device::flex()).unwrap();
        assert_eq!(logits(&back, &ids(9)), logits(&model, &ids(9)));
        let read = ModelConfig::from_file(&dir.path().join("config.json")).unwrap();
        assert_eq!(read.mixers, config.mixers);
        assert_eq!(read.tie_word_embeddings, config.tie_word_embeddings);
        let text = json_of(dir.path());
        assert!(text.get("longburn").is_none() && text.get("rope_theta").is_none(), "{text}");
        let files = WeightFiles::open(dir.path()).unwrap();
        for name in ["backbone.embeddings.weight", "backbone.norm_f.weight"] {
            assert!(files.shape(name).is_some(), "{name}");
        }
        let conv = files.shape("backbone.layers.1.mixer.conv1d.weight").unwrap();
        assert_eq!(conv[1], 1, "{conv:?}");
        assert_eq!(files.shape("lm_head.weight").is_some(), !config.tie_word_embeddings);
        files.check_names(&config.tensor_shapes(), |_| false).unwrap();
    }
}

#[test]
fn names_map_both_ways() {
    let keys = Architecture::Mamba.keys();
    for (path, name) in [
        ("embed_tokens", "backbone.embeddings.weight"),
        ("norm.weight", "backbone.norm_f.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("layers.3.input_layernorm.weight", "backbone.layers.3.norm.weight"),
        ("layers.3.self_attn.norm.weight", "backbone.layers.3.mixer.norm.weight"),
        ("layers.3.self_attn.A_log", "backbone.layers.3.mixer.A_log"),
        ("layers.10.self_attn.conv1d.bias", "backbone.layers.10.mixer.conv1d.bias"),
    ] {
        assert_eq!(keys.to_hf(path).as_deref(), Some(name));
        assert_eq!(keys.to_path(name).as_deref(), Some(path));
    }
    for name in ["model.layers.0.norm.weight", "backbone.layers.0.mlp.weight", "backbone.x"] {
        assert_eq!(keys.to_path(name), None, "{name}");
    }
    assert_eq!(keys.to_hf("layers.0.self_attn.in_proj.lora.a"), None);
}

#[test]
fn names_of_the_authors_files_are_read() {
    let config = families().remove(0);
    let model = model(&config);
    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path(), &SaveOptions::default()).unwrap();
    let file = dir.path().join("model.safetensors");
    let (tensors, metadata) = read_safetensors(&file).unwrap();
    for (from, to) in [("backbone.embeddings.", "backbone.embedding."), ("", "model.")] {
        let renamed = tensors.iter().map(|(name, t)| (name.replacen(from, to, 1), t.clone()));
        write_safetensors(&file, &renamed.collect(), &metadata).unwrap();
        let back = Decoder::load(dir.path(), MixerSchedule::Own, &Device::flex()).unwrap();
        assert_eq!(logits(&back, &ids(9)), logits(&model, &ids(9)), "{to}");
    }
    let mut both = tensors.clone();
    let embedding = tensors["backbone.embeddings.weight"].clone();
    both.insert("backbone.embedding.weight".into(), embedding);
    write_safetensors(&file, &both, &metadata).unwrap();
    let error = Decoder::load(dir.path(), MixerSchedule::Own, &Device::flex()).unwrap_err();
    assert!(error.to_string().contains("backbone.embedding"), "{error}");
    let mut less = tensors.clone();
    less.remove("backbone.layers.1.mixer.D").unwrap();
    write_safetensors(&file, &less, &metadata).unwrap();
    match Decoder::load(dir.path(), MixerSchedule::Own, &Device::flex()).map(|_| ()) {
        Err(Error::TensorMismatch { missing, .. }) => {
            assert_eq!(missing, ["backbone.layers.1.mixer.D"]);
        }
        other => panic!("{other:?}"),
    }
}

/// A configuration with one field changed.
fn changed(config: &ModelConfig, field: &str, value: Value) -> Result<ModelConfig> {
    let mut text = config.to_json_of_same_weights();
    text[field] = value;
    ModelConfig::from_json_str(&text.to_string(), "config.json")
}

#[test]
fn bad_fields_are_named() {
    let [first, second, ..] = <[ModelConfig; 4]>::try_from(families()).unwrap();
    for (config, field, value, said) in [
        (&first, "state_size", json!(0), "state_size"),
        (&first, "conv_kernel", json!("4"), "conv_kernel"),
        (&first, "time_step_rank", json!("car"), "time_step_rank"),
        (&first, "intermediate_size", json!(47), "expand times hidden_size (48)"),
        (&first, "hidden_act", json!("gelu"), "hidden_act"),
        (&first, "layer_norm_epsilon", json!(-1.0), "layer_norm_epsilon"),
        (&first, "hidden_size", Value::Null, "hidden_size"),
        (&second, "num_heads", json!(5), "num_heads"),
        (&second, "num_heads", json!(12), "field `num_heads` is 12"),
        (&second, "n_groups", json!(4), "n_groups"),
        (&second, "time_step_limit", json!([0.5, 0.1]), "time_step_limit"),
        (&second, "time_step_limit", json!([0.0]), "time_step_limit"),
        (&second, "time_step_limit", json!([0.0, { "__float__": "-Infinity" }]), "time_step_limit"),
        (&second, "chunk_size", json!(0), "chunk_size"),
    ] {
        let error = changed(config, field, value).unwrap_err().to_string();
        assert!(error.contains("config.json: field") && error.contains(said), "{field}: {error}");
    }
    // "auto", and what either version of transformers writes for no bound.
    let auto = changed(&first, "time_step_rank", json!("auto")).unwrap();
    assert!(matches!(&auto.mixers[0], MixerConfig::Mamba1(c) if c.rank(24) == 2));
    let text = second.to_json_of_same_weights().to_string();
    for bound in ["Infinity", "{\"__float__\": \"Infinity\"}"] {
        let text = text.replace("[0.01,0.5]", &format!("[0.0,{bound}]"));
        assert!(text.contains("Infinity"), "{text}");
        let read = ModelConfig::from_json_str(&text, "config.json").unwrap();
        assert!(matches!(&read.mixers[0], MixerConfig::Mamba2(c) if c.dt_limit.is_none()));
        let again = read.to_json_of_same_weights();
        assert!(again.get("time_step_limit").is_none(), "{again}");
    }
    // With its sign, too.
    let text = text.replace("[0.01,0.5]", "[-Infinity,0.5]");
    let error = ModelConfig::from_json_str(&text, "config.json").unwrap_err().to_string();
    assert!(error.contains("config.json: field `time_step_limit`"), "{error}");
}

/// A file that says nothing but sizes has what the classes of `transformers` have by themselves.
#[test]
fn what_a_file_leaves_out_is_as_in_transformers() {
    let read = |text: Value| ModelConfig::from_json_str(&text.to_string(), "config.json").unwrap();
    let sizes = json!({ "vocab_size": 61, "hidden_size": 4096, "num_hidden_layers": 1 });
    let of = |model_type: &str| {
        let mut text = sizes.clone();
        text["model_type"] = json!(model_type);
        read(text)
    };
    let (first, second) = (of("mamba"), of("mamba2"));
    let MixerConfig::Mamba1(mixer) = &first.mixers[0] else { panic!("{:?}", first.mixers) };
    assert_eq!(*mixer, Mamba1Config::new());
    assert_eq!(
        (mixer.d_state, mixer.d_conv, mixer.inner(4096), mixer.rank(4096)),
        (16, 4, 8192, 256)
    );
    let MixerConfig::Mamba2(mixer) = &second.mixers[0] else { panic!("{:?}", second.mixers) };
    assert_eq!(*mixer, Mamba2Config::new().with_n_groups(8));
    assert_eq!((mixer.d_state, mixer.heads(4096), mixer.head_dim), (128, 128, 64));
    for (config, tied, pad, eos) in [(&first, true, 0, 0), (&second, false, 1, 2)] {
        assert_eq!(config.tie_word_embeddings, tied);
        assert_eq!((config.bos_token_id, config.pad_token_id), (Some(0), Some(pad)));
        assert_eq!(config.eos_token_ids, [eos]);
        assert_eq!((config.initializer_range, config.rms_norm_eps), (0.1, 1e-5));
    }
    // One epsilon for all norms, the gated one among them.
    let mut text = families()[1].to_json_of_same_weights();
    text["layer_norm_epsilon"] = json!(1e-3);
    let config = read(text);
    let MixerConfig::Mamba2(mixer) = &config.mixers[0] else { panic!("{:?}", config.mixers) };
    assert_eq!((config.rms_norm_eps, mixer.norm_eps), (1e-3, 1e-3));
    config.validate().unwrap();
}

#[test]
fn what_a_family_has_no_place_for_is_refused() {
    let config = families().remove(0);
    let two = MixerSchedule::new(mamba1())
        .with_layers(Layers::parse("1"), MixerConfig::Mamba1(Mamba1Config::new()));
    for (schedule, said) in [
        (MixerSchedule::new(MixerConfig::Dense), "mamba"),
        (two, "mixers[1]"),
        (MixerSchedule::new(mamba2()), "mamba2"),
    ] {
        let error = Decoder::new(&config, &schedule, 0, &Device::flex()).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let adapted = lora::apply(model(&config), &LoraConfig::new());
    assert!(adapted.unwrap_err().to_string().contains("targets"));
    let adapted = lora::apply(model(&config), &LoraConfig::new().with_targets(&[Target::Down]));
    assert!(adapted.unwrap_err().to_string().contains("no feed-forward layers"));
}

/// Weights that are about to be read are not drawn.
#[test]
fn loading_draws_no_matrices() {
    for mixer in [mamba1(), mamba2()] {
        let build = |drawn| {
            let (streams, device) = (Streams::new(1), Device::flex());
            let site = MixerSite {
                layer: 1,
                layers: 2,
                hidden: 24,
                eps: 1e-5,
                attention: None,
                window: None,
                streams: &streams,
                first: 0,
                drawn,
                device: &device,
            };
            let layer = mixer.build(&site).unwrap();
            let all = longburn::models::keymap::read_params(&layer, |p| p.contains("_proj.weight"));
            assert!(all.len() >= 2, "{}", mixer.name());
            all.iter().all(|(_, _, data)| data.iter().all(|x| *x == 0.0))
        };
        assert!(build(false) && !build(true), "{}", mixer.name());
    }
}

/// Greedy ids, with a state and by passes over everything.
fn generates_as_it_reads(model: &Decoder) {
    let prompt = ids(7);
    let config = GenerateConfig::new().with_max_new_tokens(12);
    let cached = generate(model, &prompt, &config, |_| ()).unwrap().ids;
    let mut text = prompt.clone();
    for _ in 0..12 {
        let all = logits(model, &text);
        let last = &all[all.len() - 61..];
        let best = (0..61).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        text.push(best as u32);
    }
    assert_eq!(cached, text[7..]);
    // In pieces, and beside a longer row.
    let pieces = config.clone().with_prefill_chunk(Some(3));
    assert_eq!(generate(model, &prompt, &pieces, |_| ()).unwrap().ids, cached);
    let rows = [prompt, ids(11)];
    let flow = |_, _| Ok(std::ops::ControlFlow::Continue(()));
    assert_eq!(generate_batch(model, &rows, &config, flow).unwrap()[0].ids, cached);
}

#[test]
fn generation_with_states_equals_passes_over_everything() {
    for config in families() {
        generates_as_it_reads(&model(&config));
    }
    for mixer in [mamba1(), mamba2()] {
        generates_as_it_reads(&hybrid("0, 2", mixer));
    }
}

#[test]
fn hybrids_come_back_and_say_that_only_longburn_reads_them() {
    let model = hybrid("0-1, 3", mamba2());
    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path(), &SaveOptions::default()).unwrap();
    let text = json_of(dir.path());
    assert_eq!(text["model_type"], "longburn_llama");
    assert_eq!(text["longburn"]["mixer"][0]["layers"], "0-1, 3");
    assert_eq!(text["longburn"]["mixer"][1], json!({ "name": "dense", "layers": "2" }));
    let back = Decoder::load(dir.path(), MixerSchedule::Own, &Device::flex()).unwrap();
    assert_eq!(logits(&back, &ids(9)), logits(&model, &ids(9)));
    let config = ModelConfig::from_file(&dir.path().join("config.json")).unwrap();
    let files = WeightFiles::open(dir.path()).unwrap();
    files.check_names(&config.tensor_shapes(), |_| false).unwrap();
    let lines = back.explain(&longburn::models::ForwardOptions::infer(), &Device::flex());
    let attends: Vec<bool> = lines.iter().map(|line| line.contains("causal attention")).collect();
    assert_eq!(attends, [false, false, true, false], "{lines:?}");

    // What a folder says of its mixers is checked, too.
    for (value, said) in [
        (json!({ "mixer": [{ "name": "dense", "layers": [0] }] }), "the layers 1-3"),
        (json!({ "mixer": [{ "name": "dense", "layers": [7] }] }), "longburn.mixer[0].layers"),
        (json!({ "mixer": { "name": "mamba9" } }), "unknown variant `mamba9`"),
        (
            json!({ "mixer": { "name": "mamba2", "n_groups": 0 } }),
            "field `mixers[0].n_groups` is 0",
        ),
        (json!({ "depth": 3 }), "unknown field `depth`"),
        (json!("dense"), "longburn"),
    ] {
        let mut text = text.clone();
        text["longburn"] = value;
        let error = ModelConfig::from_json_str(&text.to_string(), "config.json").unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn a_dense_checkpoint_becomes_a_hybrid_that_keeps_the_rest() {
    let config = ModelConfig::llama(61, 24, 4, 4).with_kv_heads(2).with_max_positions(64);
    let dense = tiny::model(&config, &Device::flex());
    let dir = tempfile::tempdir().unwrap();
    dense.save(dir.path(), &SaveOptions::default()).unwrap();
    let schedule = MixerSchedule::new(MixerConfig::Dense).with_layers(Layers::parse("1"), mamba1());
    let error = Decoder::load(dir.path(), &schedule, &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("no weights for the mixer mamba1 of layer 1"), "{error}");
    let error = dense.clone().swap_mixer(&schedule).unwrap_err().to_string();
    assert!(error.contains("layer 1") && error.contains("other weights"), "{error}");

    // Of the same name, but with weights of other sizes.
    let wider = MixerConfig::Mamba1(Mamba1Config::new().with_d_state(6).with_dt_rank(3));
    let wider = MixerSchedule::new(MixerConfig::Dense).with_layers(Layers::parse("1"), wider);
    let converted = Decoder::convert(dir.path(), &config, &schedule, 5, &Device::flex()).unwrap();
    let error = converted.swap_mixer(&wider).unwrap_err().to_string();
    assert!(error.contains("layer 1") && error.contains("other weights"), "{error}");

    let convert =
        |seed| Decoder::convert(dir.path(), &config, &schedule, seed, &Device::flex()).unwrap();
    let weights = |model: &Decoder| longburn::models::keymap::read_params(model, |_| true);
    let (one, again, other) = (weights(&convert(5)), weights(&convert(5)), weights(&convert(6)));
    assert_eq!(one, again);
    let old = weights(&dense);
    for (path, _, value) in &one {
        let is_new = path.starts_with("layers.1.self_attn.");
        let kept = old.iter().any(|(known, _, values)| known == path && values == value);
        assert_eq!(kept, !is_new, "{path}");
        if path.ends_with("in_proj.weight") {
            assert!(value.iter().any(|x| *x != 0.0), "{path} was not drawn");
            assert!(!other.iter().any(|(known, _, values)| known == path && values == value));
        }
    }
    // Every layer from streams of its own.
    let two = MixerSchedule::new(MixerConfig::Dense).with_layers(Layers::parse("1-2"), mamba1());
    let two = weights(&Decoder::convert(dir.path(), &config, &two, 5, &Device::flex()).unwrap());
    let drawn = |layer: usize| {
        let name = format!("layers.{layer}.self_attn.in_proj.weight");
        two.iter().find(|(path, ..)| *path == name).unwrap().2.clone()
    };
    assert_ne!(drawn(1), drawn(2));
    // Attention in three layers adapts; the new one does not, and merging leaves it alone.
    let hybrid = convert(5);
    let adapted = lora::apply(hybrid.clone(), &LoraConfig::new().with_rank(2)).unwrap();
    let updates = params(&adapted).iter().filter(|p| p.path.ends_with(".lora.a")).count();
    assert_eq!(updates, 3 * 4);
    let adapted = tiny::scattered(adapted, 3, |path| path.contains(".lora."));
    let peft = tempfile::tempdir().unwrap();
    longburn::models::peft::save_adapter(&adapted, peft.path(), "base").unwrap();
    let back = longburn::models::peft::load_adapter(hybrid, peft.path()).unwrap();
    assert_eq!(logits(&back, &ids(9)), logits(&adapted, &ids(9)));
    assert!(ratio(&logits(&lora::merge(back), &ids(9)), &logits(&adapted, &ids(9))) < 1e-5);
}
