//! What follows from a configuration without building the model.

use super::{Architecture, ModelConfig};
use crate::positional::RopeKind;
use std::collections::BTreeMap;

impl ModelConfig {
    /// Longest context, tokens. Inference programs multiply `max_position_embeddings` by the
    /// factor of linear and dynamic scaling; for YaRN some checkpoints have the length before
    /// scaling there and some the length after it, so the factor counts from the original length.
    pub fn max_context(&self) -> usize {
        let max = self.max_position_embeddings as f64;
        match &self.rope.kind {
            RopeKind::Linear { factor } | RopeKind::Dynamic { factor, .. } => {
                (max * factor) as usize
            }
            RopeKind::Yarn(yarn) => {
                let original = yarn.original_max_position_embeddings as f64;
                max.max(original * yarn.factor) as usize
            }
            _ => self.max_position_embeddings,
        }
    }

    /// Names and shapes of all weights as a checkpoint holds them; a tied head is not listed.
    pub fn tensor_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let (d, inner) = (self.hidden_size, self.intermediate_size);
        let q = self.num_attention_heads * self.head_dim;
        let kv = self.num_key_value_heads * self.head_dim;
        let norm_bias = self.architecture.norms_have_bias();
        let gated = self.activation.is_gated();
        let mut shapes = BTreeMap::new();
        // By module paths, as the decoder has them.
        let mut put = |path: String, shape: &[usize]| _ = shapes.insert(path, shape.to_vec());
        put("embed_tokens".into(), &[self.vocab_size, d]);
        if !self.tie_word_embeddings {
            put("lm_head.weight".into(), &[self.vocab_size, d]);
        }
        let mut norm = |path: String| {
            put(format!("{path}.weight"), &[d]);
            if norm_bias {
                put(format!("{path}.bias"), &[d]);
            }
        };
        norm("norm".into());
        let has_mlp = self.architecture.has_attention();
        for i in 0..self.num_hidden_layers {
            norm(format!("layers.{i}.input_layernorm"));
            if has_mlp {
                norm(format!("layers.{i}.post_attention_layernorm"));
            }
        }
        for (i, mixer) in self.mixers.iter().enumerate() {
            for (name, shape) in mixer.own_weights(d) {
                put(format!("layers.{i}.self_attn.{name}"), &shape);
            }
            let attends = mixer.has_projections();
            for norm in ["q_norm", "k_norm"].into_iter().filter(|_| attends && self.qk_norm) {
                put(format!("layers.{i}.self_attn.proj.{norm}.weight"), &[self.head_dim]);
            }
            for (there, layer, to, from, bias) in [
                (attends, "self_attn.proj.q_proj", q, d, self.qkv_bias),
                (attends, "self_attn.proj.k_proj", kv, d, self.qkv_bias),
                (attends, "self_attn.proj.v_proj", kv, d, self.qkv_bias),
                (attends, "self_attn.proj.o_proj", d, q, self.o_bias),
                (has_mlp && gated, "mlp.gate_proj", inner, d, self.mlp_bias),
                (has_mlp, "mlp.up_proj", inner, d, self.mlp_bias),
                (has_mlp, "mlp.down_proj", d, inner, self.mlp_bias),
            ] {
                if !there {
                    continue;
                }
                put(format!("layers.{i}.{layer}.weight"), &[to, from]);
                if bias {
                    put(format!("layers.{i}.{layer}.bias"), &[to]);
                }
            }
        }
        let keys = self.architecture.keys();
        let named =
            shapes.into_iter().filter_map(|(path, shape)| Some((keys.to_hf(&path)?, shape)));
        crate::models::stored::shapes(named)
    }

    /// Whether a checkpoint of this model may hold `name` though no weight is read from it: a tied
    /// head beside its embedding, and buffers that old files keep.
    pub fn may_hold(&self, name: &str) -> bool {
        let head = self.architecture.keys().to_hf("lm_head.weight");
        let buffers: &[&str] = match self.architecture {
            Architecture::GptNeoX => {
                &[".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"]
            }
            _ => &[".rotary_emb.inv_freq"],
        };
        (self.tie_word_embeddings && head.is_some_and(|head| head == name))
            || buffers.iter().any(|end| name.ends_with(end))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Architecture, ModelConfig};
    use crate::attention::MixerConfig;
    use crate::models::Decoder;

    #[test]
    fn shapes_are_those_of_the_model() {
        let llama = ModelConfig::llama(32, 24, 2, 6).with_kv_heads(2).with_head_dim(6);
        let device = burn::tensor::Device::default();
        let attend = Architecture::ALL.into_iter().filter(|family| family.has_attention());
        for architecture in attend {
            let mut config = match architecture {
                Architecture::GptNeoX => ModelConfig::gpt_neox(32, 24, 2, 3),
                _ => ModelConfig { architecture, ..llama.clone() },
            };
            config.qk_norm = architecture == Architecture::Qwen3;
            config.mlp_bias |= architecture == Architecture::Llama;
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
