//! What a configuration must satisfy before anything is built from it.

use super::{Architecture, ModelConfig};
use crate::{Error, Result};

/// Largest value of a size field: far above any model, far below what overflows.
pub(super) fn limit(field: &str) -> usize {
    match field {
        "num_hidden_layers" => 10_000,
        "num_attention_heads" | "num_key_value_heads" | "head_dim" => 1 << 16,
        "hidden_size" => 1 << 20,
        "max_position_embeddings" | "original_max_position_embeddings" | "sliding_window" => {
            1 << 30
        }
        _ => 1 << 24,
    }
}

impl ModelConfig {
    pub(super) fn check(&self, file: &str) -> Result<()> {
        let bad = |field: &str, value: &dyn ToString, expected: String| {
            Err(Error::config(file, field, value.to_string(), expected))
        };
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if value == 0 || value > limit(field) {
                return bad(field, &value, format!("an integer from 1 to {}", limit(field)));
            }
        }
        let (heads, kv) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(kv) {
            return bad("num_key_value_heads", &kv, format!("a divisor of the {heads} heads"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return bad("head_dim", &self.head_dim, "an even width (rotary pairs)".into());
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return bad("rms_norm_eps", &self.rms_norm_eps, "a number between 0 and 1".into());
        }
        if !(0.0..=1.0).contains(&self.initializer_range) {
            let expected = "a number from 0 to 1".into();
            return bad("initializer_range", &self.initializer_range, expected);
        }
        let named = [("bos_token_id", self.bos_token_id), ("pad_token_id", self.pad_token_id)];
        let ends = self.eos_token_ids.iter().map(|id| ("eos_token_id", Some(*id)));
        for (field, id) in named.into_iter().chain(ends) {
            if let Some(id) = id.filter(|id| *id as usize >= self.vocab_size) {
                return bad(field, &id, format!("below vocab_size ({})", self.vocab_size));
            }
        }
        self.check_rope(file)?;
        self.check_windows(file)?;
        self.check_family(file)
    }

    fn check_rope(&self, file: &str) -> Result<()> {
        if self.rope.dim != self.head_dim {
            let expected = format!("head_dim ({})", self.head_dim);
            return Err(Error::config(file, "rope.dim", self.rope.dim, expected));
        }
        match self.rope.init() {
            Ok(_) => Ok(()),
            Err(Error::Config { field, value, expected, .. }) => {
                Err(Error::config(file, field, value, expected))
            }
            Err(other) => Err(other),
        }
    }

    fn check_windows(&self, file: &str) -> Result<()> {
        let bad = |value: String, expected: &str| {
            Err(Error::config(file, "sliding_window", value, expected))
        };
        if self.windows.len() != self.num_hidden_layers {
            let value = format!("given for {} layers", self.windows.len());
            return bad(value, &format!("one entry per layer ({})", self.num_hidden_layers));
        }
        let mut sizes: Vec<_> = self.windows.iter().flatten().collect();
        sizes.sort_unstable();
        sizes.dedup();
        let value = || format!("{sizes:?}");
        if sizes.iter().any(|w| **w == 0 || **w > limit("sliding_window")) {
            return bad(value(), &format!("from 1 to {}", limit("sliding_window")));
        }
        let full = self.windows.iter().any(Option::is_none);
        match self.architecture {
            Architecture::Llama if !sizes.is_empty() => bad(value(), "none (llama)"),
            Architecture::Mistral if sizes.len() > 1 || (full && !sizes.is_empty()) => {
                bad(value(), "the same in all layers (mistral)")
            }
            _ if sizes.len() > 1 => bad(value(), "one size, in some or all layers"),
            _ => Ok(()),
        }
    }

    /// Biases and norms that the family's Python class would not have could not be written.
    fn check_family(&self, file: &str) -> Result<()> {
        use Architecture::{Llama, Mistral, Qwen2, Qwen3};
        let family = self.architecture;
        let (qkv, o) = match family {
            Llama | Qwen3 => (self.qkv_bias, self.qkv_bias),
            Qwen2 => (true, false),
            Mistral => (false, false),
        };
        for (field, value, expected) in [
            ("qkv_bias", self.qkv_bias, qkv),
            ("o_bias", self.o_bias, o),
            ("mlp_bias", self.mlp_bias, self.mlp_bias && family == Llama),
            ("qk_norm", self.qk_norm, family == Qwen3),
        ] {
            if value != expected {
                let expected = format!("{expected} ({})", family.model_type());
                return Err(Error::config(file, field, value, expected));
            }
        }
        Ok(())
    }
}
