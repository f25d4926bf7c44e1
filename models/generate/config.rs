//! Settings of text generation.

use crate::attention::Compute;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How text is generated; greedy, 128 tokens at most by default.
///
/// The settings that choose a token take effect in the order in which `transformers` applies
/// them: repetition penalty, temperature, top-k, top-p, min-p. See [`Sampler`](super::Sampler).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateConfig {
    /// Stop after this many new tokens.
    pub max_new_tokens: usize,
    /// Logits of tokens that prompt and text hold are divided by it where they are positive and
    /// multiplied by it where they are negative; 1 leaves them. It holds for greedy choice, too.
    pub repetition_penalty: f64,
    /// Divides the logits; 0 takes the most likely token (greedy).
    pub temperature: f64,
    /// Draw from so many of the most likely tokens, and those equal to the last of them; 0 draws
    /// from all.
    pub top_k: usize,
    /// Draw from the fewest tokens that hold this share of the probability, above 0 to 1.
    pub top_p: f64,
    /// Leave out tokens less likely than this share of the most likely one's probability, 0 to 1.
    pub min_p: f64,
    /// Of the draws.
    pub seed: u64,
    /// Ids that end the text; the one that did is part of the result.
    pub stop: Vec<u32>,
    /// Feed the prompt in pieces of this many tokens, to bound memory; all at once where not set.
    pub prefill_chunk: Option<usize>,
    /// What passes compute in.
    pub compute: Compute,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            repetition_penalty: 1.0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            stop: Vec::new(),
            prefill_chunk: None,
            compute: Compute::F32,
        }
    }
}

impl GenerateConfig {
    /// Greedy, 128 tokens at most.
    pub fn new() -> Self {
        Self::default()
    }

    /// Limit the number of new tokens.
    pub fn with_max_new_tokens(mut self, tokens: usize) -> Self {
        self.max_new_tokens = tokens;
        self
    }

    /// Make tokens that were there already less likely (above 1) or more (below 1).
    pub fn with_repetition_penalty(mut self, penalty: f64) -> Self {
        self.repetition_penalty = penalty;
        self
    }

    /// Draw at this temperature.
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// Draw from so many of the most likely tokens only.
    pub fn with_top_k(mut self, top_k: usize) -> Self {
        self.top_k = top_k;
        self
    }

    /// Draw from the fewest tokens that hold this share of the probability.
    pub fn with_top_p(mut self, top_p: f64) -> Self {
        self.top_p = top_p;
        self
    }

    /// Leave out tokens less likely than this share of the most likely one's probability.
    pub fn with_min_p(mut self, min_p: f64) -> Self {
        self.min_p = min_p;
        self
    }

    /// Seed the draws.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Ids that end the text.
    pub fn with_stop(mut self, ids: &[u32]) -> Self {
        self.stop = ids.to_vec();
        self
    }

    /// Feed the prompt in pieces.
    pub fn with_prefill_chunk(mut self, tokens: Option<usize>) -> Self {
        self.prefill_chunk = tokens;
        self
    }

    /// Choose what passes compute in.
    pub fn with_compute(mut self, compute: Compute) -> Self {
        self.compute = compute;
        self
    }

    /// Check every value.
    ///
    /// # Errors
    /// [`Error::Config`] with the field.
    pub fn validate(&self) -> Result<()> {
        let bad = |field: &str, value: f64, expected: &str| {
            Err(Error::config("generate", field, value, expected))
        };
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return bad("repetition_penalty", self.repetition_penalty, "above 0; 1 for none");
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return bad("temperature", self.temperature, "0 or more");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top_p", self.top_p, "above 0, at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return bad("min_p", self.min_p, "from 0 to 1");
        }
        if self.prefill_chunk == Some(0) {
            return bad("prefill_chunk", 0.0, "at least 1 token");
        }
        Ok(())
    }
}
