//! Exchange with Python: checkpoints and adapters that `tests/interop/check_interop.py` loads with
//! `transformers` and `peft`, and those that it wrote.
//!
//! `LONGBURN_INTEROP_DIR` names the folder of exchange. Run this, then the script on the folder,
//! then this again.

use crate::tiny::{self, ids, logits, ratio};
use burn::tensor::Device;
use longburn::attention::{Mamba1Config, Mamba2Config, MixerConfig, MixerSchedule};
use longburn::models::lora::{self, LoraConfig, Role, Target};
use longburn::models::peft::{load_adapter, save_adapter};
use longburn::models::weights::{RawTensor, SaveDtype, read_safetensors, write_safetensors};
use longburn::models::{Decoder, Extension, ModelConfig, SaveOptions};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const LENGTH: usize = 33;

fn exchange() -> Option<PathBuf> {
    std::env::var_os("LONGBURN_INTEROP_DIR").map(Into::into)
}

fn load(dir: &Path) -> Decoder {
    Decoder::load(dir, MixerSchedule::Own, &Device::flex()).unwrap()
}

/// Ids and the logits that whoever loads the case must find, beside it.
fn put_expected(case: &Path, logits: &[f32]) {
    let ids: Vec<i64> = ids(LENGTH).iter().map(|id| *id as i64).collect();
    let vocab = logits.len() / LENGTH;
    let logits = RawTensor::from_f32(vec![1, LENGTH, vocab], logits, SaveDtype::F32).unwrap();
    let ids = RawTensor::from_i64(vec![1, LENGTH], &ids).unwrap();
    let tensors = BTreeMap::from([("ids".to_string(), ids), ("logits".to_string(), logits)]);
    write_safetensors(&case.join("expected.safetensors"), &tensors, &BTreeMap::new()).unwrap();
}

fn put_model(case: &Path, config: &ModelConfig, options: &SaveOptions) -> Decoder {
    let model = tiny::model(config, &Device::flex());
    model.save(&case.join("model"), options).unwrap();
    // Rounding to fewer bits is part of saving.
    let back = load(&case.join("model"));
    if options.dtype == SaveDtype::F32 {
        assert_eq!(logits(&back, &ids(LENGTH)), logits(&model, &ids(LENGTH)));
    }
    put_expected(case, &logits(&back, &ids(LENGTH)));
    back
}

fn put_adapter(case: &Path, config: &ModelConfig, policy: &LoraConfig) {
    let base = put_model(case, config, &SaveOptions::default());
    let adapted = lora::apply(base.clone(), policy).unwrap();
    let trained: Vec<String> = longburn::models::keymap::params(&adapted)
        .into_iter()
        .filter(|p| p.trainable)
        .map(|p| p.path)
        .collect();
    let adapted = tiny::scattered(adapted, 7, |path| trained.iter().any(|t| t == path));
    save_adapter(&adapted, &case.join("adapter"), "model").unwrap();
    let expected = logits(&adapted, &ids(LENGTH));
    let back = load_adapter(base, &case.join("adapter")).unwrap();
    assert_eq!(logits(&back, &ids(LENGTH)), expected);
    put_expected(case, &expected);
}

/// Every method; heads of 6 channels have three pairs.
fn extensions() -> [Extension; 6] {
    let (short_factor, long_factor) = (vec![1.0, 1.2, 1.5], vec![1.0, 2.0, 4.0]);
    [
        Extension::Linear,
        Extension::Ntk,
        Extension::Dynamic,
        Extension::Yarn,
        Extension::LongRope { short_factor, long_factor },
        Extension::Llama3,
    ]
}

#[test]
fn what_is_written_for_python_is_read_back() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = exchange().unwrap_or_else(|| temporary.path().into()).join("rust");
    let case = |name: &str| dir.join(name);
    let whole = SaveOptions::default();
    let sharded = SaveOptions { max_shard_bytes: Some(8192), ..SaveOptions::default() };
    let narrow = SaveOptions { dtype: SaveDtype::BF16, ..SaveOptions::default() };
    put_model(&case("llama"), &tiny::llama(false), &whole);
    put_model(&case("llama_tied_sharded"), &tiny::llama(true), &sharded);
    put_model(&case("qwen3_bf16"), &tiny::qwen3(), &narrow);
    put_model(&case("mistral"), &tiny::mistral(), &whole);
    assert!(case("llama_tied_sharded").join("model/model.safetensors.index.json").is_file());

    let neox = ModelConfig::gpt_neox(61, 32, 2, 4).with_max_positions(64);
    put_model(&case("gpt_neox"), &neox, &sharded);
    put_model(&case("gpt_neox_sequential"), &neox.with_parallel_residual(false), &whole);
    let mamba = MixerConfig::Mamba1(Mamba1Config::new().with_d_state(4).with_dt_rank(3));
    let mamba = ModelConfig::state_space(61, 24, 2, mamba);
    put_model(&case("mamba"), &mamba, &sharded);
    let mamba2 = Mamba2Config::new().with_d_state(5).with_head_dim(8).with_n_groups(2);
    let mamba2 = MixerConfig::Mamba2(mamba2.with_chunk(4).with_dt_limit(Some((0.05, 2.0))));
    let mamba2 = ModelConfig::state_space(61, 24, 2, mamba2).with_tied(false);
    put_model(&case("mamba2"), &mamba2, &whole);
    // Longer than the original 16 tokens, so that what depends on the length shows.
    let short = tiny::llama(true).with_max_positions(16);
    for method in extensions() {
        let config = short.extended(&method, 64).unwrap();
        put_model(&case(&format!("extended_{}", method.name())), &config, &whole);
    }

    let longlora = LoraConfig::longlora().with_rank(3);
    put_adapter(&case("lora_llama"), &tiny::llama(false), &longlora);
    put_adapter(&case("lora_llama_tied"), &tiny::llama(true), &longlora);
    // The norms of queries and keys stay as they are.
    let everywhere = longlora.with_targets(&Target::TRANSFORMER).with_rslora(true);
    put_adapter(&case("lora_qwen3_norms"), &tiny::qwen3(), &everywhere);
    let extra = [Role::QkNorm, Role::Head];
    let heads = LoraConfig::new().with_targets(&[Target::Gate]).with_extra(&extra).with_alpha(2.5);
    put_adapter(&case("lora_qwen3_head"), &tiny::qwen3(), &heads);
    put_adapter(&case("lora_mistral"), &tiny::mistral(), &LoraConfig::new());
    let neox = ModelConfig::gpt_neox(61, 32, 2, 4).with_max_positions(64);
    let all = [Target::Q, Target::K, Target::V, Target::O, Target::Up, Target::Down];
    let longlora = LoraConfig::longlora().with_rank(3).with_targets(&all);
    put_adapter(&case("lora_gpt_neox"), &neox, &longlora);
    let some = LoraConfig::new().with_targets(&[Target::Q, Target::V, Target::O]);
    let some = some.with_rank(2).with_rslora(true).with_extra(&[Role::Head]);
    put_adapter(&case("lora_gpt_neox_some"), &neox.with_parallel_residual(false), &some);
    // Of these families PEFT refuses `out_proj`, and `transformers` looks past an update of `dt_proj`.
    let inside = [Target::In, Target::X];
    let inside = LoraConfig::longlora().with_rank(3).with_targets(&inside);
    put_adapter(&case("lora_mamba"), &mamba, &inside);
    let first = LoraConfig::new().with_rank(2).with_targets(&[Target::In]).with_rslora(true);
    put_adapter(&case("lora_mamba2"), &mamba2, &first.with_extra(&[Role::Norm, Role::Head]));
}

#[test]
fn what_python_wrote_gives_the_logits_that_python_found() {
    let Some(dir) = exchange().map(|dir| dir.join("python")).filter(|dir| dir.is_dir()) else {
        return;
    };
    let mut found = 0;
    for case in std::fs::read_dir(dir).unwrap() {
        let case = case.unwrap().path();
        let mut model = load(&case.join("model"));
        if case.join("adapter").is_dir() {
            model = load_adapter(model, &case.join("adapter")).unwrap();
        }
        let (expected, _) = read_safetensors(&case.join("expected.safetensors")).unwrap();
        let bytes = expected["ids"].data.chunks_exact(8);
        let ids: Vec<u32> =
            bytes.map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect();
        let expected = expected["logits"].to_f32().unwrap();
        for model in [model.clone(), lora::merge(model)] {
            let got = logits(&model, &ids);
            let apart = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart <= 2e-5, "{}: {apart}, ratio {}", case.display(), ratio(&got, &expected));
        }
        found += 1;
    }
    assert!(found > 0);
}
