//! Low-rank updates of the projections of Mamba and Mamba-2.

use super::{loss, trainable, trained};
use crate::tiny::{self, ids, logits, ratio};
use burn::tensor::{Device, Tensor};
use longburn::attention::{Layers, Mamba1Config, Mamba2Config, MixerConfig, MixerSchedule};
use longburn::models::keymap::params;
use longburn::models::lora::{self, LoraConfig, Role, Target};
use longburn::models::peft::{load_adapter, save_adapter};
use longburn::models::weights::WeightFiles;
use longburn::models::{Decoder, GenerateConfig, ModelConfig, generate};
use longburn::{Error, Result};
use serde_json::{Value, json};

fn mamba1() -> MixerConfig {
    MixerConfig::Mamba1(Mamba1Config::new().with_d_state(4).with_dt_rank(3))
}

fn mamba2() -> MixerConfig {
    let config = Mamba2Config::new().with_d_state(5).with_head_dim(8).with_n_groups(2);
    MixerConfig::Mamba2(config.with_chunk(4))
}

/// Each family with the layers that it has.
fn families() -> [(ModelConfig, Vec<Target>); 2] {
    let of = |mixer| ModelConfig::state_space(61, 24, 2, mixer);
    [
        (of(mamba1()), Target::STATE_SPACE.to_vec()),
        (of(mamba2()).with_tied(false), vec![Target::In, Target::Out]),
    ]
}

/// Random parameters; decays and step sizes in their own range.
fn base(config: &ModelConfig, device: &Device) -> Decoder {
    let model = Decoder::new(config, MixerSchedule::Own, 1, device).unwrap();
    tiny::scattered(model, 2, |path| !path.ends_with("A_log") && !path.contains("dt_"))
}

fn adapted(config: &ModelConfig, policy: &LoraConfig, device: &Device) -> Decoder {
    trained(lora::apply(base(config, device), policy).unwrap())
}

#[test]
fn merged_equals_unmerged_for_every_layer_alone() {
    for (config, targets) in families() {
        for target in targets.iter().copied() {
            let policy = LoraConfig::new().with_targets(&[target]).with_rank(3);
            let model = adapted(&config, &policy, &Device::flex());
            for len in [1, 63, 100] {
                let ids = ids(len);
                let unmerged = logits(&model, &ids);
                let without = logits(&base(&config, &Device::flex()), &ids);
                let changed = ratio(&unmerged, &without);
                assert!(changed > 1e-3, "{target:?} changes nothing: {changed}");
                let merged = lora::merge(model.clone());
                let apart = ratio(&logits(&merged, &ids), &unmerged);
                assert!(apart < 1e-5, "{target:?}, {len}: {apart}");
                assert!(!lora::is_adapted(&merged));
            }
        }
    }
}

/// dB = s·dW·Aᵀ and dA = s·Bᵀ·dW, with dW that of the merged weights.
#[test]
fn gradients_equal_those_of_the_merged_weights() {
    let device = Device::flex().autodiff();
    for (config, targets) in families() {
        let policy = LoraConfig::new().with_targets(&targets).with_rank(3).with_alpha(5.0);
        let model = adapted(&config, &policy, &device);
        let merged = lora::merge(model.clone());
        for len in [1, 63, 100] {
            let of_updates = loss(&model, &ids(len)).backward();
            let of_weights = loss(&merged, &ids(len)).backward();
            for (layer, block) in model.layers.iter().enumerate() {
                for target in &targets {
                    let linear = target.linear(block).unwrap();
                    let update = linear.lora.as_ref().unwrap();
                    assert!(linear.weight.grad(&of_updates).is_none(), "the weight is frozen");
                    let whole = target.linear(&merged.layers[layer]).unwrap();
                    let dw = whole.weight.grad(&of_weights).unwrap().mul_scalar(update.scale());
                    let (a, b) = (update.a.val().inner(), update.b.val().inner());
                    let wanted = [b.transpose().matmul(dw.clone()), dw.matmul(a.transpose())];
                    for (factor, wanted) in [&update.a, &update.b].into_iter().zip(wanted) {
                        let host = |x: Tensor<2>| x.into_data().iter::<f32>().collect::<Vec<_>>();
                        let got = host(factor.grad(&of_updates).unwrap());
                        let apart = ratio(&got, &host(wanted));
                        assert!(apart < 1e-4, "{target:?}, layer {layer}, {len}: {apart}");
                    }
                }
            }
        }
    }
}

#[test]
fn only_updates_and_what_is_named_train() {
    for (config, targets) in families() {
        let policy = LoraConfig::new().with_targets(&targets).with_extra(&[Role::Norm]);
        let model = lora::apply(base(&config, &Device::flex()), &policy).unwrap();
        let found = trainable(&model);
        let expected = |path: &str| path.contains(".lora.") || path.contains("layernorm");
        assert!(found.iter().all(|path| expected(path) || path == "norm.weight"), "{found:?}");
        // Two factors each in two layers, and three norms.
        assert_eq!(found.len(), 2 * 2 * targets.len() + 3);
        // No two updates begin alike.
        let read = |path: &str| path.ends_with(".lora.a");
        let all = longburn::models::keymap::read_params(&model, read);
        for (i, (path, _, values)) in all.iter().enumerate() {
            let earlier = all[..i].iter().all(|(_, _, other)| other[..8] != values[..8]);
            assert!(earlier, "{path}");
        }
    }
}

#[test]
fn a_peft_folder_has_the_names_of_the_family_and_gives_the_model_back() {
    for (config, targets) in families() {
        let policy = LoraConfig::new().with_targets(&targets).with_rank(3).with_rslora(true);
        let policy = policy.with_extra(&[Role::Norm, Role::Embedding]);
        let model = adapted(&config, &policy, &Device::flex());
        let dir = tempfile::tempdir().unwrap();
        save_adapter(&model, dir.path(), "some/base").unwrap();
        let text = std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
        let said: Value = serde_json::from_str(&text).unwrap();
        let names: Vec<&str> = targets.iter().map(|target| target.hf_name()).collect();
        assert_eq!(said["target_modules"], json!(names));
        let files = WeightFiles::open_file(&dir.path().join("adapter_model.safetensors")).unwrap();
        for (name, shape) in [
            ("backbone.layers.1.mixer.in_proj.lora_A.weight", vec![3, 24]),
            ("backbone.layers.1.mixer.out_proj.lora_B.weight", vec![24, 3]),
            ("backbone.norm_f.weight", vec![24]),
            ("backbone.layers.0.norm.weight", vec![24]),
            ("backbone.embeddings.weight", vec![61, 24]),
        ] {
            let found = files.shape(&format!("base_model.model.{name}"));
            assert_eq!(found, Some(&shape[..]), "{name}");
        }
        let back = load_adapter(base(&config, &Device::flex()), dir.path()).unwrap();
        assert_eq!(trainable(&back), trainable(&model));
        assert_eq!(logits(&back, &ids(11)), logits(&model, &ids(11)));
    }
}

/// A step of decoding goes through the same updates as a whole row.
#[test]
fn a_cached_text_is_that_of_the_merged_model() {
    for (config, targets) in families() {
        let policy = LoraConfig::new().with_targets(&targets).with_rank(3);
        let model = adapted(&config, &policy, &Device::flex());
        let text = |model: &Decoder| {
            let options = GenerateConfig::new().with_max_new_tokens(12);
            generate(model, &ids(7), &options, |_| ()).unwrap().ids
        };
        assert_eq!(text(&model), text(&lora::merge(model.clone())));
    }
}

/// Targets of both kinds; every layer has the updates of its own kind.
#[test]
fn layers_of_both_kinds_are_adapted_each_in_its_way() {
    let schedule = MixerSchedule::new(MixerConfig::Dense).with_layers(Layers::parse("1"), mamba1());
    let config = tiny::llama(false);
    let model = || Decoder::new(&config, schedule.clone(), 1, &Device::flex()).unwrap();
    let policy = LoraConfig::new().with_targets(&Target::ALL).with_rank(3);
    let adapted = trained(lora::apply(model(), &policy).unwrap());
    let of = |layer: usize| {
        let start = format!("layers.{layer}.self_attn.");
        let all = params(&adapted).into_iter().map(|p| p.path);
        let updates = all.filter(|path| path.starts_with(&start) && path.ends_with(".lora.a"));
        updates.map(|path| path[start.len()..].replace(".lora.a", "")).collect::<Vec<_>>()
    };
    assert_eq!(of(0), ["proj.q_proj", "proj.k_proj", "proj.v_proj", "proj.o_proj"]);
    assert_eq!(of(1), ["in_proj", "x_proj", "dt_proj", "out_proj"]);
    let dir = tempfile::tempdir().unwrap();
    save_adapter(&adapted, dir.path(), "some/base").unwrap();
    let back = load_adapter(model(), dir.path()).unwrap();
    assert_eq!(logits(&back, &ids(11)), logits(&adapted, &ids(11)));
}

#[test]
fn what_a_family_does_not_have_is_refused_with_what_it_has() {
    let expected = |config: &ModelConfig, policy: &LoraConfig| -> Result<()> {
        lora::apply(base(config, &Device::flex()), policy).map(drop)
    };
    let [(first, _), (second, _)] = families();
    for (config, target, there) in [
        (&first, Target::Q, "in, x, dt, out"),
        (&first, Target::Down, "in, x, dt, out"),
        (&second, Target::X, "in, out"),
        (&second, Target::Dt, "in, out"),
        (&tiny::llama(false), Target::In, "q, k, v, o, gate, up, down"),
    ] {
        match expected(config, &LoraConfig::new().with_targets(&[target])) {
            Err(Error::Config { field, expected, .. }) => {
                assert_eq!(field, "targets");
                assert!(expected.contains(&format!(": {there} (")), "{expected}");
            }
            other => panic!("{other:?}"),
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let (config, targets) = &families()[0];
    let model = adapted(config, &LoraConfig::new().with_targets(targets), &Device::flex());
    save_adapter(&model, dir.path(), "some/base").unwrap();
    let error = load_adapter(base(&second, &Device::flex()), dir.path()).unwrap_err().to_string();
    assert!(error.contains("x_proj") && error.contains("in_proj, out_proj"), "{error}");
}
