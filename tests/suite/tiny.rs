//! Small models for tests, and their logits.

use burn::tensor::Device;
use longburn::attention::{MixerSchedule, SequenceMixer};
use longburn::kernel::TokenMeta;
use longburn::models::keymap::{map_params, params};
use longburn::models::{Blocks, Decoder, ForwardOptions, ModelConfig, ids_tensor};
use longburn::positional::{LongRope, RopeConfig, RopeKind};
use longburn::streams::{Draw, Purpose, Streams};

/// Llama with grouped key heads, two blocks, 61 words.
pub fn llama(tied: bool) -> ModelConfig {
    ModelConfig::llama(61, 24, 2, 4).with_kv_heads(2).with_tied(tied).with_max_positions(64)
}

/// Qwen3: norms on queries and keys, heads wider than the model's width over their number.
pub fn qwen3() -> ModelConfig {
    from_json("qwen3", "Qwen3ForCausalLM", r#""head_dim": 8, "attention_bias": false"#)
}

/// Mistral: a query sees itself and four keys before it.
pub fn mistral() -> ModelConfig {
    from_json("mistral", "MistralForCausalLM", r#""head_dim": 6, "sliding_window": 5"#)
}

fn from_json(model_type: &str, class: &str, rest: &str) -> ModelConfig {
    let text = format!(
        r#"{{
            "model_type": "{model_type}", "architectures": ["{class}"], "vocab_size": 61,
            "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
            "hidden_act": "silu", "torch_dtype": "float32", {rest}
        }}"#
    );
    ModelConfig::from_json_str(&text, "config.json").unwrap()
}

/// A model all of whose parameters are random, norms too.
pub fn model(config: &ModelConfig, device: &Device) -> Decoder {
    let model = Decoder::new(config, MixerSchedule::Own, 1, device).unwrap();
    scattered(model, 2, |_| true)
}

/// Models whose rotary frequencies follow the length beyond 8 tokens: dynamic NTK, and LongRoPE
/// with two lists.
pub fn following_length() -> [Decoder; 2] {
    let dynamic = RopeKind::Dynamic { factor: 4.0, original_max_position_embeddings: 8 };
    let long = RopeKind::LongRope(LongRope {
        factor: 4.0,
        original_max_position_embeddings: 8,
        short_factor: vec![1.0, 1.2, 1.5],
        long_factor: vec![1.0, 3.0, 6.0],
        attention_factor: None,
    });
    [dynamic, long].map(|kind| {
        let rope = RopeConfig::new(1e4, 6).with_kind(kind);
        let config = llama(false).with_max_positions(8).with_rope(rope);
        model(&config, &Device::flex())
    })
}

/// The same model with new values where `wanted` says so.
pub fn scattered<M: SequenceMixer>(
    model: Decoder<M>,
    seed: u64,
    wanted: impl Fn(&str) -> bool,
) -> Decoder<M> {
    let mut rng = Streams::new(seed).rng(Purpose::Init, 0, 0, 0);
    let mut values: Vec<_> = params(&model)
        .into_iter()
        .filter(|p| wanted(&p.path))
        .map(|p| {
            let around = if p.path.contains("norm") { 1.0 } else { 0.0 };
            // Products of two updates still change less than the weights are.
            let spread = if p.path.contains(".lora.") { 0.1 } else { 0.3 };
            let draw = |_| (around + spread * rng.normal()) as f32;
            (p.path.clone(), (0..p.numel()).map(draw).collect::<Vec<f32>>())
        })
        .collect();
    let value = |path: &str| {
        let at = values.iter().position(|(p, _)| p == path)?;
        Some(values.swap_remove(at).1)
    };
    map_params(model, value, |_| None)
}

/// Logits of one row, `[T * V]`.
pub fn logits<M: Blocks>(model: &M, ids: &[u32]) -> Vec<f32> {
    let device = model.head().device();
    let tokens = TokenMeta::contiguous(1, ids.len(), 0);
    let options = ForwardOptions::infer();
    let hidden = model.forward_ids(ids_tensor(ids, 1, &device), &tokens, &options, vec![]);
    model.logits(hidden.unwrap().last).inner().into_data().iter::<f32>().collect()
}

/// RMS of the difference over RMS of `wanted`.
pub fn ratio(got: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    let square = |x: f32| x as f64 * x as f64;
    let apart: f64 = got.iter().zip(wanted).map(|(a, b)| square(a - b)).sum();
    (apart / wanted.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
}

/// Ids that visit much of the vocabulary.
pub fn ids(len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (i * 17 + 5) % 61).collect()
}
