//! From JSON fields to a [`ModelConfig`], with the defaults of `transformers`.

use super::check::limit;
use super::fields::Fields;
use super::{Architecture, ModelConfig, mamba, mixers, rope};
use crate::models::Activation;
use crate::{Error, Result};
use serde_json::{Map, Value};

pub(super) fn config(raw: Map<String, Value>, file: &str) -> Result<ModelConfig> {
    let f = Fields { file, path: String::new(), map: &raw };
    let architecture = architecture(&f)?;
    refuse_unsupported(&f)?;
    if !architecture.has_attention() {
        let config = mamba::read(&f, architecture)?;
        return Ok(ModelConfig { raw, ..config });
    }

    use Architecture::{GptNeoX, Llama, Mamba, Mamba2, Mistral, Qwen2, Qwen3};
    let size = |key| f.integer(key, 1..=limit(key));
    let required = |key: &'static str| {
        size(key)?.ok_or_else(|| f.error(key, format!("an integer from 1 to {}", limit(key))))
    };
    let activation = activation(&f, architecture)?;
    let vocab_size = required("vocab_size")?;
    let hidden_size = required("hidden_size")?;
    let intermediate_size = required("intermediate_size")?;
    let num_hidden_layers = required("num_hidden_layers")?;
    let num_attention_heads = required("num_attention_heads")?;

    // An explicit null means one key head per query head; absence means the class default.
    let num_key_value_heads = match (size("num_key_value_heads")?, architecture) {
        (_, GptNeoX) => num_attention_heads,
        (Some(heads), _) => heads,
        (None, Mistral) if !f.has("num_key_value_heads") => 8,
        (None, Qwen2 | Qwen3) if !f.has("num_key_value_heads") => 32,
        (None, _) => num_attention_heads,
    };
    let head_dim = match (size("head_dim")?, architecture) {
        (Some(width), family) if family != GptNeoX => width,
        (None, Qwen3) => 128,
        _ if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
        _ => {
            let or = if architecture == GptNeoX { "" } else { ", or an explicit head_dim" };
            let expected = format!("a multiple of num_attention_heads ({num_attention_heads}){or}");
            return Err(f.error("hidden_size", expected));
        }
    };
    let max_position_embeddings = size("max_position_embeddings")?.unwrap_or(match architecture {
        Mistral => 131_072,
        Qwen2 | Qwen3 => 32_768,
        _ => 2048,
    });
    let attention_bias = f.boolean("attention_bias")?.unwrap_or(architecture == GptNeoX);
    let (qkv_bias, o_bias) = match architecture {
        Llama | Qwen3 | GptNeoX => (attention_bias, attention_bias),
        Qwen2 => (true, false),
        Mistral | Mamba | Mamba2 => (false, false),
    };
    let (bos, eos) = match architecture {
        Llama | Mistral => (Some(1), Some(2)),
        GptNeoX => (Some(0), Some(2)),
        _ => (None, None),
    };
    let default_eps = if architecture == GptNeoX { 1e-5 } else { 1e-6 };
    let mlp_bias = match architecture {
        Llama => f.boolean("mlp_bias")?.unwrap_or(false),
        other => other == GptNeoX,
    };
    let ids = |key: &str, default: Option<u32>| -> Result<Vec<u32>> {
        let absent = || if f.has(key) { Vec::new() } else { default.into_iter().collect() };
        Ok(f.token_ids(key)?.unwrap_or_else(absent))
    };

    Ok(ModelConfig {
        architecture,
        vocab_size,
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        rms_norm_eps: f.number(eps_name(architecture))?.unwrap_or(default_eps),
        max_position_embeddings,
        rope: rope::read(&f, architecture, head_dim, max_position_embeddings)?,
        qkv_bias,
        o_bias,
        mlp_bias,
        activation,
        parallel_residual: architecture == GptNeoX
            && f.boolean("use_parallel_residual")?.unwrap_or(true),
        qk_norm: architecture == Qwen3,
        tie_word_embeddings: f.boolean("tie_word_embeddings")?.unwrap_or(false),
        windows: windows(&f, architecture, num_hidden_layers)?,
        mixers: mixers::read(&f, num_hidden_layers)?,
        bos_token_id: single(&f, "bos_token_id", ids("bos_token_id", bos)?)?,
        eos_token_ids: ids("eos_token_id", eos)?,
        // Early Llama conversions wrote -1 for "none".
        pad_token_id: match f.get("pad_token_id").and_then(Value::as_i64) {
            Some(-1) => None,
            _ => single(&f, "pad_token_id", ids("pad_token_id", None)?)?,
        },
        initializer_range: f.number("initializer_range")?.unwrap_or(0.02),
        raw,
    })
}

/// The field that holds the norms' ε.
pub(super) fn eps_name(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::GptNeoX => "layer_norm_eps",
        Architecture::Mamba | Architecture::Mamba2 => "layer_norm_epsilon",
        _ => "rms_norm_eps",
    }
}

fn architecture(f: &Fields) -> Result<Architecture> {
    let known = || {
        let names: Vec<_> = Architecture::ALL.iter().map(|a| a.model_type()).collect();
        format!("one of {}", names.join(", "))
    };
    let architecture = f
        .text("model_type")?
        .and_then(mixers::family)
        .ok_or_else(|| f.error("model_type", known()))?;
    let prefix = architecture.class_prefix();
    let belongs = |class: &&str| {
        let rest = class.get(prefix.len()..).unwrap_or("");
        class.get(..prefix.len()).is_some_and(|p| p.eq_ignore_ascii_case(prefix))
            && (rest.starts_with("For") || rest == "Model")
    };
    match f.texts("architectures")? {
        Some(classes) if !classes.is_empty() && !classes.iter().any(belongs) => {
            let model_type = architecture.model_type();
            let expected = format!("{prefix}ForCausalLM, as model_type is {model_type}");
            Err(f.error("architectures", expected))
        }
        _ => Ok(architecture),
    }
}

fn activation(f: &Fields, architecture: Architecture) -> Result<Activation> {
    let name = f.text("hidden_act")?;
    match architecture {
        Architecture::GptNeoX => match name.unwrap_or("gelu") {
            "gelu" => Ok(Activation::Gelu),
            // Three names of one formula.
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            _ => Err(f.error("hidden_act", "gelu, gelu_new, gelu_fast or gelu_pytorch_tanh")),
        },
        _ if name.is_none_or(|name| name == "silu") => Ok(Activation::SwiGlu),
        _ => Err(f.error("hidden_act", "silu")),
    }
}

/// Settings that change the result and that nothing here honours.
fn refuse_unsupported(f: &Fields) -> Result<()> {
    if f.get("quantization_config").is_some() {
        return Err(Error::Unsupported {
            what: format!("{}: the weights are quantised (quantization_config)", f.file),
            remedy: "use the checkpoint in float32, bfloat16 or float16".into(),
        });
    }
    Ok(())
}

/// Window of each layer.
fn windows(f: &Fields, architecture: Architecture, layers: usize) -> Result<Vec<Option<usize>>> {
    use Architecture::{Mistral, Qwen2, Qwen3};
    let size = || -> Result<_> {
        let given = f.integer("sliding_window", 1..=limit("sliding_window"))?;
        Ok(given.or((!f.has("sliding_window")).then_some(4096)))
    };
    let (window, first) = match architecture {
        Mistral => (size()?, 0),
        Qwen2 | Qwen3 if f.boolean("use_sliding_window")?.unwrap_or(false) => {
            let first = f.integer("max_window_layers", 0..=usize::MAX)?.unwrap_or(28);
            (size()?, first)
        }
        _ => (None, 0),
    };
    let by_rule: Vec<_> = (0..layers).map(|i| window.filter(|_| i >= first)).collect();
    let Some(types) = f.texts("layer_types")? else { return Ok(by_rule) };
    if types.len() != layers {
        let expected = format!("one entry per layer ({layers}), not {}", types.len());
        return Err(f.error("layer_types", expected));
    }
    let listed = types
        .into_iter()
        .map(|kind| match (kind, window) {
            ("full_attention", _) => Ok(None),
            ("sliding_attention", Some(size)) => Ok(Some(size)),
            ("sliding_attention", None) => Err(f.error(
                "sliding_window",
                "a size, in use, since layer_types names sliding_attention",
            )),
            _ => Err(f.error("layer_types", "full_attention or sliding_attention in each place")),
        })
        .collect::<Result<Vec<_>>>()?;
    // Only the Qwen classes obey the list; elsewhere it may at most repeat what holds anyway.
    if !matches!(architecture, Qwen2 | Qwen3) && listed != by_rule {
        let model_type = architecture.model_type();
        return Err(f.error("layer_types", format!("the same kind in all layers ({model_type})")));
    }
    Ok(listed)
}

pub(super) fn single(f: &Fields, key: &str, ids: Vec<u32>) -> Result<Option<u32>> {
    match ids[..] {
        [] => Ok(None),
        [id] => Ok(Some(id)),
        _ => Err(f.error(key, "one token id or null")),
    }
}
