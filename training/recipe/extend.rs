//! Longer positions: LongLoRA's rule (arXiv 2309.12307, §3.1 and its training script).

use crate::Result;
use crate::models::{Extension, ModelConfig};

/// `config` with positions interpolated so far that it reaches `to` tokens.
///
/// The factor is a whole number of times the one in place: `f · ⌈to / (L · f)⌉` with L the length
/// in `max_position_embeddings`, which stays what it was, as inference programs expect of linear
/// scaling (they multiply it by the factor). A model that reaches `to` already is left alone.
///
/// # Errors
/// [`crate::Error::Unsupported`] for a checkpoint with another scaling than linear.
pub fn interpolated(config: &ModelConfig, to: usize) -> Result<ModelConfig> {
    if to <= config.max_context() {
        return Ok(config.clone());
    }
    config.extended(&Extension::Linear, to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::positional::RopeKind;

    #[test]
    fn factor_is_rounded_up_and_multiplies_the_one_in_place() {
        let config = ModelConfig::llama(64, 16, 1, 2).with_max_positions(512);
        let factor = |config: &ModelConfig| config.rope.linear_factor();
        let four = interpolated(&config, 2048).unwrap();
        assert_eq!((factor(&four), four.max_context()), (4.0, 2048));
        assert_eq!(factor(&interpolated(&config, 1025).unwrap()), 3.0);
        assert_eq!(interpolated(&config, 512).unwrap().rope.kind, RopeKind::Default);
        assert_eq!(interpolated(&four, 2000).unwrap(), four);
        assert_eq!(factor(&interpolated(&four, 4096).unwrap()), 8.0);
        assert_eq!(factor(&interpolated(&four, 5000).unwrap()), 12.0);
    }
}
