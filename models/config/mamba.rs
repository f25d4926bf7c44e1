//! The families that are state-space layers only: `MambaForCausalLM` and `Mamba2ForCausalLM`.

use super::check::limit;
use super::fields::Fields;
use super::{Architecture, ModelConfig};
use crate::attention::{Mamba1Config, Mamba2Config, MixerConfig, StepSizes};
use crate::models::Activation;
use crate::positional::RopeConfig;
use crate::{Error, Result};
use serde_json::{Map, Value, json};

/// What `transformers` takes an infinite bound for.
const INFINITY: &str = "__float__";

impl ModelConfig {
    /// A new Mamba or Mamba-2, by the mixer of all its layers: no attention, no feed-forward layers
    /// and no limit of length, ε 1e-5, a head that is the embedding, no special ids.
    ///
    /// Nothing is checked before [`validate`](Self::validate), which building a model calls.
    ///
    /// ```
    /// use longburn::{attention::{Mamba1Config, MixerConfig}, models::ModelConfig};
    /// let mixer = MixerConfig::Mamba1(Mamba1Config::new().with_d_state(8));
    /// let config = ModelConfig::state_space(512, 64, 2, mixer);
    /// config.validate()?;
    /// # Ok::<(), longburn::Error>(())
    /// ```
    pub fn state_space(
        vocab_size: usize,
        hidden_size: usize,
        layers: usize,
        mixer: MixerConfig,
    ) -> Self {
        let architecture = match mixer {
            MixerConfig::Mamba1(_) => Architecture::Mamba,
            _ => Architecture::Mamba2,
        };
        let built = layers.min(limit("num_hidden_layers"));
        let class = format!("{}ForCausalLM", architecture.class_prefix());
        let raw = [
            ("architectures", json!([class])),
            ("model_type", json!(architecture.model_type())),
            ("hidden_act", json!("silu")),
            ("residual_in_fp32", json!(true)),
            ("use_cache", json!(true)),
        ];
        Self {
            architecture,
            vocab_size,
            hidden_size,
            intermediate_size: 0,
            num_hidden_layers: layers,
            num_attention_heads: 0,
            num_key_value_heads: 0,
            head_dim: 0,
            rms_norm_eps: 1e-5,
            max_position_embeddings: limit("max_position_embeddings"),
            rope: RopeConfig::new(10_000.0, 2),
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            activation: Activation::SwiGlu,
            parallel_residual: false,
            qk_norm: false,
            tie_word_embeddings: true,
            windows: vec![None; built],
            mixers: vec![mixer; built],
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
            initializer_range: 0.02,
            raw: raw.map(|(k, v)| (k.to_string(), v)).into_iter().collect(),
        }
    }

    /// What the family's Python class would not have could not be written.
    pub(super) fn check_state_space(&self, file: &str) -> Result<()> {
        let bad = |field: &str, value: &dyn ToString, expected: &str| {
            let expected = format!("{expected} ({})", self.architecture.model_type());
            Err(Error::config(file, field, value.to_string(), expected))
        };
        for (field, value) in [
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
        ] {
            if value != 0 {
                return bad(field, &value, "0");
            }
        }
        let first = self.mixers.first();
        if let Some(layer) = self.mixers.iter().position(|mixer| Some(mixer) != first) {
            let name = self.mixers[layer].name();
            return bad(&format!("mixers[{layer}]"), &name, "the mixer of layer 0 in all layers");
        }
        match (self.architecture, first) {
            (Architecture::Mamba, Some(MixerConfig::Mamba1(config))) => {
                if config.inner(self.hidden_size) != config.expand.saturating_mul(self.hidden_size)
                {
                    return bad("mixers", &"d_inner", "expand times hidden_size inner channels");
                }
                Ok(())
            }
            (Architecture::Mamba2, Some(MixerConfig::Mamba2(config))) => {
                let form = Mamba2Config { step_sizes: config.step_sizes, ..hugging_face(config) };
                if form != *config {
                    let expected = "a gated norm by groups with the model's epsilon, D per head, \
                                    expand times hidden_size inner channels";
                    return bad("mixers", &"a mamba2 of another form", expected);
                }
                if config.norm_eps != self.rms_norm_eps {
                    return bad("mixers.norm_eps", &config.norm_eps, "layer_norm_epsilon");
                }
                Ok(())
            }
            (_, mixer) => {
                let name = mixer.map_or("missing", MixerConfig::name);
                bad("mixers", &name, "the family's own mixer in all layers")
            }
        }
    }

    /// Write the fields of the mixers.
    pub(super) fn put_state_space(&self, map: &mut Map<String, Value>) {
        let mut put = |field: &str, value: Value| _ = map.insert(field.into(), value);
        let mut steps = StepSizes::default();
        match self.mixers.first() {
            Some(MixerConfig::Mamba1(c)) => {
                steps = c.step_sizes;
                put("state_size", json!(c.d_state));
                put("conv_kernel", json!(c.d_conv));
                put("expand", json!(c.expand));
                put("intermediate_size", json!(c.inner(self.hidden_size)));
                put("time_step_rank", json!(c.rank(self.hidden_size)));
                put("use_conv_bias", json!(c.conv_bias));
                put("use_bias", json!(c.bias));
            }
            Some(MixerConfig::Mamba2(c)) => {
                steps = c.step_sizes;
                put("state_size", json!(c.d_state));
                put("conv_kernel", json!(c.d_conv));
                put("expand", json!(c.expand));
                put("num_heads", json!(c.heads(self.hidden_size)));
                put("head_dim", json!(c.head_dim));
                put("n_groups", json!(c.n_groups));
                put("chunk_size", json!(c.chunk));
                put("use_conv_bias", json!(c.conv_bias));
                put("use_bias", json!(c.bias));
                if let Some((low, high)) = c.dt_limit {
                    put("time_step_limit", json!([low, high]));
                }
            }
            _ => {}
        }
        for (field, value) in [
            ("time_step_min", steps.min),
            ("time_step_max", steps.max),
            ("time_step_floor", steps.floor),
        ] {
            map.insert(field.into(), json!(value));
        }
    }
}

/// What `transformers` has for these sizes.
fn hugging_face(config: &Mamba2Config) -> Mamba2Config {
    Mamba2Config {
        d_state: config.d_state,
        d_conv: config.d_conv,
        expand: config.expand,
        head_dim: config.head_dim,
        n_groups: config.n_groups,
        chunk: config.chunk,
        dt_limit: config.dt_limit,
        a_init: config.a_init,
        norm_eps: config.norm_eps,
        conv_bias: config.conv_bias,
        bias: config.bias,
        ..Mamba2Config::new()
    }
}

/// Read the fields of either family.
pub(super) fn read(f: &Fields, architecture: Architecture) -> Result<ModelConfig> {
    let size = |key: &'static str, default: usize| {
        Ok::<_, Error>(f.integer(key, 1..=limit(key))?.unwrap_or(default))
    };
    let required = |key: &'static str| {
        let expected = || format!("an integer from 1 to {}", limit(key));
        f.integer(key, 1..=limit(key))?.ok_or_else(|| f.error(key, expected()))
    };
    if f.text("hidden_act")?.is_some_and(|name| name != "silu") {
        return Err(f.error("hidden_act", "silu"));
    }
    let (vocab, hidden) = (required("vocab_size")?, required("hidden_size")?);
    let layers = required("num_hidden_layers")?;
    let eps = f.number("layer_norm_epsilon")?.unwrap_or(1e-5);
    let expand = size("expand", 2)?;
    let inner = expand.saturating_mul(hidden);
    let default = StepSizes::default();
    let step_sizes = StepSizes {
        min: f.number("time_step_min")?.unwrap_or(default.min),
        max: f.number("time_step_max")?.unwrap_or(default.max),
        floor: f.number("time_step_floor")?.unwrap_or(default.floor),
    };
    let (d_conv, conv_bias) =
        (size("conv_kernel", 4)?, f.boolean("use_conv_bias")?.unwrap_or(true));
    let bias = f.boolean("use_bias")?.unwrap_or(false);
    let is_first = architecture == Architecture::Mamba;
    if is_first && f.integer("intermediate_size", 0..=usize::MAX)?.is_some_and(|e| e != inner) {
        return Err(f.error("intermediate_size", format!("expand times hidden_size ({inner})")));
    }
    let mixer = if is_first {
        let dt_rank = match f.get("time_step_rank") {
            Some(Value::String(text)) if text == "auto" => None,
            None => None,
            _ => f.integer("time_step_rank", 1..=limit("time_step_rank"))?,
        };
        let d_state = size("state_size", 16)?;
        let default = Mamba1Config::new();
        MixerConfig::Mamba1(Mamba1Config {
            d_state,
            d_conv,
            expand,
            dt_rank: dt_rank.filter(|rank| *rank != default.rank(hidden)),
            step_sizes,
            conv_bias,
            bias,
            ..default
        })
    } else {
        let (heads, head_dim) = (size("num_heads", 128)?, size("head_dim", 64)?);
        if heads.saturating_mul(head_dim) != inner {
            let expected = format!("expand times hidden_size ({inner}) over head_dim ({head_dim})");
            return Err(f.error("num_heads", expected));
        }
        let n_groups = size("n_groups", 8)?;
        if !heads.is_multiple_of(n_groups) {
            return Err(f.error("n_groups", format!("a divisor of num_heads ({heads})")));
        }
        MixerConfig::Mamba2(Mamba2Config {
            d_state: size("state_size", 128)?,
            d_conv,
            expand,
            head_dim,
            n_groups,
            chunk: size("chunk_size", 256)?,
            step_sizes,
            dt_limit: bounds(f)?,
            norm_eps: eps,
            conv_bias,
            bias,
            ..Mamba2Config::new()
        })
    };
    let ids = |key: &str, default: u32| -> Result<Vec<u32>> {
        let absent = || if f.has(key) { Vec::new() } else { vec![default] };
        Ok(f.token_ids(key)?.unwrap_or_else(absent))
    };
    let (pad, eos) = if is_first { (0, 0) } else { (1, 2) };
    Ok(ModelConfig {
        rms_norm_eps: eps,
        tie_word_embeddings: f.boolean("tie_word_embeddings")?.unwrap_or(is_first),
        bos_token_id: super::read::single(f, "bos_token_id", ids("bos_token_id", 0)?)?,
        eos_token_ids: ids("eos_token_id", eos)?,
        pad_token_id: super::read::single(f, "pad_token_id", ids("pad_token_id", pad)?)?,
        initializer_range: f.number("initializer_range")?.unwrap_or(0.1),
        ..ModelConfig::state_space(vocab, hidden, layers, mixer)
    })
}

/// `time_step_limit`: numbers, of which newer versions write an infinite one as an object.
fn bounds(f: &Fields) -> Result<Option<(f64, f64)>> {
    let key = "time_step_limit";
    let number = |value: &Value| match value.get(INFINITY).and_then(Value::as_str) {
        // The largest number bounds as little, and can be written.
        Some("Infinity") => Some(f64::MAX),
        Some(_) => None,
        None => value.as_f64(),
    };
    let expected = "a list of a lower and an upper bound";
    match f.get(key) {
        None => Ok(None),
        Some(Value::Array(pair)) if pair.len() == 2 => match (number(&pair[0]), number(&pair[1])) {
            (Some(low), Some(high)) if low == 0.0 && high == f64::MAX => Ok(None),
            (Some(low), Some(high)) if low <= high => Ok(Some((low, high))),
            _ => Err(f.error(key, expected)),
        },
        Some(_) => Err(f.error(key, expected)),
    }
}

/// The text with the bare word that Python writes for an infinite number, which JSON does not have, as newer
/// versions of `transformers` write them.
pub(super) fn without_bare_infinities(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['"', 'I']) {
        out += &rest[..at];
        rest = &rest[at..];
        let word = Some("Infinity").filter(|word| rest.starts_with(word));
        let len = match word {
            Some(word) => {
                let sign = if out.ends_with('-') { "-" } else { "" };
                out.truncate(out.len() - sign.len());
                out += &format!("{{\"{INFINITY}\": \"{sign}{word}\"}}");
                word.len()
            }
            None => {
                let len = if rest.starts_with('"') { string(rest) } else { 1 };
                out += &rest[..len];
                len
            }
        };
        rest = &rest[len..];
    }
    out + rest
}

/// Bytes of the string that `text` begins with, quotes included.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}
