//! What a configuration must satisfy before anything is built from it.

use super::{Architecture, ModelConfig};
use crate::positional::RopeKind;
use crate::{Error, Result};

/// Largest value of a size field: far above any model, far below what overflows.
pub(super) fn limit(field: &str) -> usize {
    match field {
        "num_hidden_layers" => 10_000,
        "num_attention_heads" | "num_key_value_heads" | "head_dim" | "expand" => 1 << 16,
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
        let attends = self.architecture.has_attention();
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        let of_attention = [
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
        ];
        let of_attention = of_attention.into_iter().filter(|_| attends);
        for (field, value) in sizes.into_iter().chain(of_attention) {
            if value == 0 || value > limit(field) {
                return bad(field, &value, format!("an integer from 1 to {}", limit(field)));
            }
        }
        let (heads, kv) = (self.num_attention_heads, self.num_key_value_heads);
        if attends && !heads.is_multiple_of(kv) {
            return bad("num_key_value_heads", &kv, format!("a divisor of the {heads} heads"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return bad("head_dim", &self.head_dim, "an even width (rotary pairs)".into());
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            let field = super::read::eps_name(self.architecture);
            return bad(field, &self.rms_norm_eps, "a number between 0 and 1".into());
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
        self.check_windows(file)?;
        self.check_mixers(file)?;
        if !attends {
            return self.check_state_space(file);
        }
        self.check_rope(file)?;
        self.check_family(file)
    }

    fn check_rope(&self, file: &str) -> Result<()> {
        let (dim, head_dim) = (self.rope.dim, self.head_dim);
        let partly = self.architecture == Architecture::GptNeoX
            && !matches!(self.rope.kind, RopeKind::Proportional { .. });
        if dim > head_dim || (dim < head_dim && !partly) {
            let most = if partly { "at most " } else { "" };
            return Err(Error::config(
                file,
                "rope.dim",
                dim,
                format!("{most}head_dim ({head_dim})"),
            ));
        }
        match &self.rope.kind {
            RopeKind::ByParts { .. } => {
                let expected = format!("one of {}", RopeKind::NAMES.join(", "));
                return Err(Error::config(file, "rope_type", "by_parts", expected));
            }
            RopeKind::Dynamic { original_max_position_embeddings: length, .. }
                if *length != self.max_position_embeddings =>
            {
                let expected = format!("the original length of dynamic scaling ({length})");
                let found = self.max_position_embeddings;
                return Err(Error::config(file, "max_position_embeddings", found, expected));
            }
            _ => {}
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
            family if !family.has_windows() && !sizes.is_empty() => {
                bad(value(), &format!("none ({})", family.model_type()))
            }
            Architecture::Mistral if sizes.len() > 1 || (full && !sizes.is_empty()) => {
                bad(value(), "the same in all layers (mistral)")
            }
            _ if sizes.len() > 1 => bad(value(), "one size, in some or all layers"),
            _ => Ok(()),
        }
    }

    /// What the family's Python class would not have could not be written.
    fn check_family(&self, file: &str) -> Result<()> {
        use Architecture::{GptNeoX, Llama, Mamba, Mamba2, Mistral, Qwen2, Qwen3};
        let family = self.architecture;
        let (qkv, o) = match family {
            Llama | Qwen3 | GptNeoX => (self.qkv_bias, self.qkv_bias),
            Qwen2 => (true, false),
            Mistral | Mamba | Mamba2 => (false, false),
        };
        let neox = family == GptNeoX;
        let width = self.num_attention_heads * self.head_dim;
        for (field, value, expected) in [
            ("qkv_bias", self.qkv_bias, qkv),
            ("o_bias", self.o_bias, o),
            ("mlp_bias", self.mlp_bias, neox || (self.mlp_bias && family == Llama)),
            ("qk_norm", self.qk_norm, family == Qwen3),
            ("parallel_residual", self.parallel_residual, neox && self.parallel_residual),
        ] {
            if value != expected {
                let expected = format!("{expected} ({})", family.model_type());
                return Err(Error::config(file, field, value, expected));
            }
        }
        if self.activation.is_gated() == neox {
            let expected = if neox { "a GELU (gpt_neox)".into() } else { "SwiGlu".to_string() };
            return Err(Error::config(
                file,
                "activation",
                format!("{:?}", self.activation),
                expected,
            ));
        }
        if neox && self.num_key_value_heads != self.num_attention_heads {
            let expected = format!("{} (gpt_neox)", self.num_attention_heads);
            return Err(Error::config(
                file,
                "num_key_value_heads",
                self.num_key_value_heads,
                expected,
            ));
        }
        if neox && width != self.hidden_size {
            let expected = format!("hidden_size over num_attention_heads (gpt_neox), not {width}");
            return Err(Error::config(file, "head_dim", self.head_dim, expected));
        }
        Ok(())
    }
}
