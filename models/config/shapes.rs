//! What follows from a configuration without building the model.

use super::ModelConfig;
use std::collections::BTreeMap;

impl ModelConfig {
    /// Longest context, tokens: `max_position_embeddings`, times the factor of linear scaling.
    pub fn max_context(&self) -> usize {
        (self.max_position_embeddings as f64 * self.rope.linear_factor()) as usize
    }

    /// Names and shapes of all weights as a checkpoint holds them; a tied head is not listed.
    pub fn tensor_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let (d, inner) = (self.hidden_size, self.intermediate_size);
        let q = self.num_attention_heads * self.head_dim;
        let kv = self.num_key_value_heads * self.head_dim;
        let mut shapes = BTreeMap::new();
        let mut put = |name: String, shape: &[usize]| _ = shapes.insert(name, shape.to_vec());
        put("model.embed_tokens.weight".into(), &[self.vocab_size, d]);
        put("model.norm.weight".into(), &[d]);
        if !self.tie_word_embeddings {
            put("lm_head.weight".into(), &[self.vocab_size, d]);
        }
        for i in 0..self.num_hidden_layers {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                put(format!("model.layers.{i}.{norm}.weight"), &[d]);
            }
            for norm in ["q_norm", "k_norm"].into_iter().filter(|_| self.qk_norm) {
                put(format!("model.layers.{i}.self_attn.{norm}.weight"), &[self.head_dim]);
            }
            for (layer, to, from, bias) in [
                ("self_attn.q_proj", q, d, self.qkv_bias),
                ("self_attn.k_proj", kv, d, self.qkv_bias),
                ("self_attn.v_proj", kv, d, self.qkv_bias),
                ("self_attn.o_proj", d, q, self.o_bias),
                ("mlp.gate_proj", inner, d, self.mlp_bias),
                ("mlp.up_proj", inner, d, self.mlp_bias),
                ("mlp.down_proj", d, inner, self.mlp_bias),
            ] {
                put(format!("model.layers.{i}.{layer}.weight"), &[to, from]);
                if bias {
                    put(format!("model.layers.{i}.{layer}.bias"), &[to]);
                }
            }
        }
        shapes
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Architecture, ModelConfig};
    use crate::attention::MixerConfig;
    use crate::models::Decoder;

    #[test]
    fn shapes_are_those_of_the_model() {
        let mut config = ModelConfig::llama(32, 24, 2, 6).with_kv_heads(2).with_head_dim(6);
        let device = burn::tensor::Device::default();
        for architecture in Architecture::ALL {
            config.architecture = architecture;
            config.qk_norm = architecture == Architecture::Qwen3;
            config.mlp_bias = architecture == Architecture::Llama;
            (config.qkv_bias, config.o_bias) = match architecture {
                Architecture::Mistral => (false, false),
                Architecture::Qwen2 => (true, false),
                _ => (true, true),
            };
            for tied in [false, true] {
                config.tie_word_embeddings = tied;
                let model = Decoder::new(&config, &MixerConfig::Dense, 0, &device).unwrap();
                let built = model.hf_tensors().into_iter().map(|t| (t.name, t.shape));
                assert_eq!(config.tensor_shapes(), built.collect());
            }
        }
    }
}
