//! Back to JSON: the file as read, with what has changed since.

use super::{Architecture, ModelConfig, read, rope};
use crate::attention::MixerConfig;
use crate::models::Activation;
use crate::models::weights::SaveDtype;
use serde_json::{Map, Value, json};

impl ModelConfig {
    /// The `config.json` of this model with weights of type `dtype`.
    ///
    /// Fields that did not change, and those unknown here, stay as they were read. A file keeps
    /// its shape (`rope_scaling` and `torch_dtype`, or `rope_parameters` and `dtype`); a new
    /// model gets the former, which transformers 4 and 5 both read.
    pub fn to_json(&self, dtype: SaveDtype) -> Value {
        let mut map = self.changed();
        let mut names = vec!["dtype", "torch_dtype"];
        names.retain(|name| map.contains_key(*name));
        if names.is_empty() {
            let newer = map.contains_key("rope_parameters");
            names.push(if newer { "dtype" } else { "torch_dtype" });
        }
        for name in names {
            map.insert(name.into(), json!(dtype.torch_name()));
        }
        Value::Object(map)
    }

    /// The same for weights that stay in the number format they have.
    pub fn to_json_of_same_weights(&self) -> Value {
        Value::Object(self.changed())
    }

    /// The file as read, with what has changed since.
    fn changed(&self) -> Map<String, Value> {
        let mut map = self.raw.clone();
        // Twice, because the default of an absent field can hang on one just written.
        for _ in 0..2 {
            let before = read::config(map.clone(), "").ok();
            self.put_changes(&mut map, before.as_ref());
        }
        map
    }

    /// Write into `map` every field that a reader of it would see otherwise; all of them
    /// where there is no reading yet.
    fn put_changes(&self, map: &mut Map<String, Value>, before: Option<&Self>) {
        let changed = |same: fn(&Self, &Self) -> bool| !before.is_some_and(|b| same(b, self));
        macro_rules! put {
            ($($field:ident),*) => {$(
                if changed(|a, b| a.$field == b.$field) {
                    map.insert(stringify!($field).into(), json!(self.$field));
                }
            )*};
        }
        put!(vocab_size, hidden_size, num_hidden_layers);
        if self.architecture.has_attention() {
            put!(intermediate_size, num_attention_heads, max_position_embeddings);
        }
        put!(tie_word_embeddings, bos_token_id, pad_token_id, initializer_range);
        use Architecture::{GptNeoX, Llama, Qwen3};
        if !self.architecture.has_attention() {
            if changed(|a, b| (&a.mixers, a.hidden_size) == (&b.mixers, b.hidden_size)) {
                self.put_state_space(map);
            }
            // No bound is the default, and no form of it is read by all versions of `transformers`.
            if matches!(self.mixers.first(), Some(MixerConfig::Mamba2(c)) if c.dt_limit.is_none()) {
                map.remove("time_step_limit");
            }
        } else if self.architecture == GptNeoX {
            if changed(|a, b| a.parallel_residual == b.parallel_residual) {
                map.insert("use_parallel_residual".into(), json!(self.parallel_residual));
            }
            if changed(|a, b| a.activation == b.activation) {
                let tanh = self.activation == Activation::GeluTanh;
                map.insert("hidden_act".into(), json!(if tanh { "gelu_new" } else { "gelu" }));
            }
        } else {
            put!(num_key_value_heads, head_dim);
        }
        if changed(|a, b| a.rms_norm_eps == b.rms_norm_eps) {
            let name = read::eps_name(self.architecture);
            map.insert(name.into(), json!(self.rms_norm_eps));
        }
        if changed(|a, b| a.eos_token_ids == b.eos_token_ids) {
            let ids = match self.eos_token_ids[..] {
                [] => Value::Null,
                [id] => json!(id),
                _ => json!(self.eos_token_ids),
            };
            map.insert("eos_token_id".into(), ids);
        }
        if matches!(self.architecture, Llama | Qwen3 | GptNeoX)
            && changed(|a, b| a.qkv_bias == b.qkv_bias)
        {
            map.insert("attention_bias".into(), json!(self.qkv_bias));
        }
        if self.architecture == Llama && changed(|a, b| a.mlp_bias == b.mlp_bias) {
            map.insert("mlp_bias".into(), json!(self.mlp_bias));
        }
        if self.architecture.has_windows() && changed(|a, b| a.windows == b.windows) {
            self.put_windows(map);
        }
        if self.architecture.has_attention() && changed(|a, b| a.rope == b.rope) {
            rope::write(map, self);
        }
        if changed(|a, b| a.mixers == b.mixers) {
            self.put_mixers(map);
        }
    }

    fn put_windows(&self, map: &mut Map<String, Value>) {
        let size = self.windows.iter().flatten().next();
        map.insert("sliding_window".into(), json!(size));
        if self.architecture != Architecture::Mistral {
            let kind = |window: &Option<usize>| match window {
                Some(_) => "sliding_attention",
                None => "full_attention",
            };
            let kinds: Vec<_> = self.windows.iter().map(kind).collect();
            map.insert("use_sliding_window".into(), json!(size.is_some()));
            map.insert("layer_types".into(), json!(kinds));
        }
    }
}
