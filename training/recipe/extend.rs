//! `[extend]`: longer positions, by the code behind `longburn extend`.

use crate::Result;
use crate::models::{ExtendMethod, ModelConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `[extend]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtendSection {
    /// Length that the model is to reach, tokens. One that reaches it already is left as it is.
    pub to: usize,
    /// How positions get there, as in `longburn extend`.
    #[serde(default)]
    pub method: ExtendMethod,
    /// For `longrope`: JSON file with `long_factor` and, if wanted, `short_factor`, a divisor per
    /// rotary pair.
    #[serde(default)]
    pub factors: Option<PathBuf>,
}

impl ExtendSection {
    /// Interpolation to `to` tokens.
    ///
    /// The factor is a whole number of times the one in place: `f · ⌈to / (L · f)⌉` with L the
    /// length in `max_position_embeddings`, as in LongLoRA's training script (arXiv 2309.12307).
    pub fn new(to: usize) -> Self {
        Self { to, method: ExtendMethod::Linear, factors: None }
    }

    /// `config` with positions that reach `to` tokens.
    ///
    /// # Errors
    /// As [`ExtendMethod::init`] and [`ModelConfig::extended`].
    pub fn apply(&self, config: &ModelConfig) -> Result<ModelConfig> {
        if self.to <= config.max_context() {
            return Ok(config.clone());
        }
        config.extended(&self.method.init(config, self.factors.as_deref())?, self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::positional::RopeKind;

    #[test]
    fn factor_is_rounded_up_and_multiplies_the_one_in_place() {
        let config = ModelConfig::llama(64, 16, 1, 2).with_max_positions(512);
        let interpolated = |config, to| ExtendSection::new(to).apply(config).unwrap();
        let factor = |config: &ModelConfig| config.rope.linear_factor();
        let four = interpolated(&config, 2048);
        assert_eq!((factor(&four), four.max_context()), (4.0, 2048));
        assert_eq!(factor(&interpolated(&config, 1025)), 3.0);
        assert_eq!(interpolated(&config, 512).rope.kind, RopeKind::Default);
        assert_eq!(interpolated(&four, 2000), four);
        assert_eq!(factor(&interpolated(&four, 4096)), 8.0);
        assert_eq!(factor(&interpolated(&four, 5000)), 12.0);
    }
}
