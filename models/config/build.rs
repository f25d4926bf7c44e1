//! Configurations of new models.

use super::{Architecture, ModelConfig};
use crate::attention::MixerConfig;
use crate::models::Activation;
use crate::positional::RopeConfig;
use serde_json::{Map, Value, json};

impl ModelConfig {
    /// A new Llama: as many key heads as heads, width over heads as head width, an inner width
    /// of 8/3 of the width (rounded up to a multiple of 8), RoPE with θ 10 000, 2048 positions,
    /// ε 1e-5, an untied head and no special ids.
    ///
    /// Nothing is checked before [`validate`](Self::validate), which building a model calls.
    pub fn llama(vocab_size: usize, hidden_size: usize, layers: usize, heads: usize) -> Self {
        let head_dim = hidden_size / heads.max(1);
        let built = layers.min(super::check::limit("num_hidden_layers"));
        let raw = [
            ("architectures", json!(["LlamaForCausalLM"])),
            ("model_type", json!("llama")),
            ("hidden_act", json!("silu")),
            ("attention_dropout", json!(0.0)),
            ("use_cache", json!(true)),
        ];
        Self {
            architecture: Architecture::Llama,
            vocab_size,
            hidden_size,
            intermediate_size: (hidden_size.saturating_mul(8) / 3).div_ceil(8) * 8,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim,
            rms_norm_eps: 1e-5,
            max_position_embeddings: 2048,
            rope: RopeConfig::new(10_000.0, head_dim),
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            activation: Activation::SwiGlu,
            parallel_residual: false,
            qk_norm: false,
            tie_word_embeddings: false,
            windows: vec![None; built],
            mixers: vec![MixerConfig::Dense; built],
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
            initializer_range: 0.02,
            raw: raw.map(|(k, v)| (k.to_string(), v)).into_iter().collect::<Map<String, Value>>(),
        }
    }

    /// A new GPT-NeoX: an inner width of four times the width, a quarter of each head rotated,
    /// biases everywhere, parallel residuals; else as [`llama`](Self::llama).
    ///
    /// Nothing is checked before [`validate`](Self::validate), which building a model calls.
    pub fn gpt_neox(vocab_size: usize, hidden_size: usize, layers: usize, heads: usize) -> Self {
        let llama = Self::llama(vocab_size, hidden_size, layers, heads);
        let raw = [
            ("architectures", json!(["GPTNeoXForCausalLM"])),
            ("model_type", json!("gpt_neox")),
            ("attention_dropout", json!(0.0)),
            ("hidden_dropout", json!(0.0)),
            ("use_cache", json!(true)),
        ];
        Self {
            architecture: Architecture::GptNeoX,
            intermediate_size: hidden_size.saturating_mul(4),
            rope: RopeConfig::new(10_000.0, llama.head_dim / 4),
            qkv_bias: true,
            o_bias: true,
            mlp_bias: true,
            activation: Activation::Gelu,
            parallel_residual: true,
            raw: raw.map(|(k, v)| (k.to_string(), v)).into_iter().collect::<Map<String, Value>>(),
            ..llama
        }
    }

    /// Whether the feed-forward layer stands beside attention (GPT-NeoX).
    pub fn with_parallel_residual(mut self, parallel: bool) -> Self {
        self.parallel_residual = parallel;
        self
    }

    /// Rows of the embedding.
    pub fn with_vocab_size(mut self, rows: usize) -> Self {
        self.vocab_size = rows;
        self
    }

    /// Inner width of the feed-forward layer.
    pub fn with_intermediate(mut self, width: usize) -> Self {
        self.intermediate_size = width;
        self
    }

    /// Key and value heads.
    pub fn with_kv_heads(mut self, heads: usize) -> Self {
        self.num_key_value_heads = heads;
        self
    }

    /// Width of one head, and with it of the rotation.
    pub fn with_head_dim(mut self, width: usize) -> Self {
        self.head_dim = width;
        self.rope.dim = width;
        self
    }

    /// Rotary encoding; its width must be that of a head (GPT-NeoX: at most that).
    pub fn with_rope(mut self, rope: RopeConfig) -> Self {
        self.rope = rope;
        self
    }

    /// Whether the head is the embedding.
    pub fn with_tied(mut self, tied: bool) -> Self {
        self.tie_word_embeddings = tied;
        self
    }

    /// Longest sequence, tokens.
    pub fn with_max_positions(mut self, positions: usize) -> Self {
        self.max_position_embeddings = positions;
        self
    }

    /// ε of the RMS norms.
    pub fn with_eps(mut self, eps: f64) -> Self {
        self.rms_norm_eps = eps;
        self
    }

    /// Id that begins a text.
    pub fn with_bos(mut self, id: Option<u32>) -> Self {
        self.bos_token_id = id;
        self
    }

    /// Ids that end a text.
    pub fn with_eos(mut self, ids: impl Into<Vec<u32>>) -> Self {
        self.eos_token_ids = ids.into();
        self
    }

    /// Id that fills up rows.
    pub fn with_pad(mut self, id: Option<u32>) -> Self {
        self.pad_token_id = id;
        self
    }
}
