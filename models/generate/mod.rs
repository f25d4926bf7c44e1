//! Text generation: prefill, then one token at a time against the state of every layer.

mod sampler;

pub use sampler::Sampler;

use super::{Blocks, ForwardOptions, ids_tensor};
use crate::attention::State;
use crate::{Error, Result};
use burn::tensor::DType;
use longburn_kernels::TokenMeta;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// How text is generated; greedy, 128 tokens at most by default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateConfig {
    /// Stop after this many new tokens.
    pub max_new_tokens: usize,
    /// Divides the logits; 0 takes the most likely token (greedy).
    pub temperature: f64,
    /// Draw from the fewest tokens that hold this share of the probability, above 0 to 1.
    pub top_p: f64,
    /// Of the draws.
    pub seed: u64,
    /// Ids that end the text; the one that did is part of the result.
    pub stop: Vec<u32>,
    /// Feed the prompt in pieces of this many tokens, to bound memory; all at once where not set.
    pub prefill_chunk: Option<usize>,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            stop: Vec::new(),
            prefill_chunk: None,
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

    /// Draw at this temperature.
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// Draw from the most likely tokens only.
    pub fn with_top_p(mut self, top_p: f64) -> Self {
        self.top_p = top_p;
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
}

/// What was generated, and how fast.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Generated {
    /// New ids, without the prompt.
    pub ids: Vec<u32>,
    /// Whether a stop id ended the text (it is the last of `ids`).
    pub stopped: bool,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Length of `ids`.
    pub new_tokens: usize,
    /// Time to the first logits, s.
    pub seconds_prefill: f64,
    /// Time from there to the last id, s.
    pub seconds_decode: f64,
    /// Ids after the first (which prefill pays for) per second of decoding; 0 where there is none.
    pub tokens_per_second: f64,
}

/// Continue `prompt`; every new id goes to `on_token` as soon as it is chosen.
///
/// # Errors
/// [`Error::Config`] for settings out of range, and what [`Generator::feed`] and
/// [`Sampler::pick`] return.
pub fn generate<M: Blocks>(
    model: &M,
    prompt: &[u32],
    config: &GenerateConfig,
    mut on_token: impl FnMut(u32),
) -> Result<Generated> {
    let sampler = Sampler::new(config.temperature, config.top_p, config.seed)?;
    if config.prefill_chunk == Some(0) {
        return Err(Error::config("generate", "prefill_chunk", 0, "at least 1 token"));
    }
    let mut generator = Generator::new(model);
    let start = Instant::now();
    let mut logits = Vec::new();
    for piece in prompt.chunks(config.prefill_chunk.unwrap_or(usize::MAX)) {
        logits = generator.feed(piece)?;
    }
    if logits.is_empty() {
        return Err(Error::Data("the prompt is empty; generation needs at least one token".into()));
    }
    let seconds_prefill = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let (mut ids, mut stopped) = (Vec::new(), false);
    while ids.len() < config.max_new_tokens {
        if let Some(last) = ids.last() {
            logits = generator.feed(&[*last])?;
        }
        let id = sampler.pick(&logits, ids.len() as u64)?;
        on_token(id);
        ids.push(id);
        stopped = config.stop.contains(&id);
        if stopped {
            break;
        }
    }
    let seconds_decode = start.elapsed().as_secs_f64();
    let steps = ids.len().saturating_sub(1) as f64;
    Ok(Generated {
        stopped,
        prompt_tokens: prompt.len(),
        new_tokens: ids.len(),
        seconds_prefill,
        seconds_decode,
        tokens_per_second: if steps > 0.0 { steps / seconds_decode } else { 0.0 },
        ids,
    })
}

/// A sequence that grows: the model and what its layers remember of it.
pub struct Generator<M: Blocks> {
    model: M,
    states: Vec<State>,
    len: usize,
}

impl<M: Blocks> Generator<M> {
    /// Start with nothing. The model's parameters are shared, not copied.
    pub fn new(model: &M) -> Self {
        Self { model: model.valid(), states: Vec::new(), len: 0 }
    }

    /// Tokens fed so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was fed yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Append tokens; the logits that follow the last one, `[V]`.
    ///
    /// # Errors
    /// [`Error::Data`] for no ids or ids outside the vocabulary, what a mixer refuses, and
    /// [`Error::Unsupported`] for a mixer that returns no state. After an error the sequence
    /// is lost.
    pub fn feed(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let vocab = self.model.config().vocab_size;
        if ids.is_empty() {
            return Err(Error::Data("no ids to continue from".into()));
        }
        if let Some(at) = ids.iter().position(|id| *id as usize >= vocab) {
            return Err(Error::Data(format!(
                "id {} at position {} is outside the model's vocabulary of {vocab}; \
                 tokenizer and model do not belong together",
                ids[at],
                self.len + at,
            )));
        }
        let device = self.model.head().device();
        let tokens = TokenMeta::contiguous(1, ids.len(), self.len);
        let options = ForwardOptions::infer().with_state(true);
        let states = std::mem::take(&mut self.states);
        let input = ids_tensor(ids, 1, &device);
        let out = self.model.forward_ids(input, &tokens, &options, states)?;
        if out.states.len() != self.model.num_blocks() {
            return Err(Error::Unsupported {
                what: "generation with a mixer that keeps no state".into(),
                remedy: "return `MixOutput::state` where `MixContext::keep_state` asks for it"
                    .into(),
            });
        }
        self.states = out.states;
        self.len += ids.len();
        let last = out.last.narrow(1, ids.len() - 1, 1);
        let logits = self.model.logits(last).cast(DType::F32).into_data();
        Ok(logits.iter::<f32>().collect())
    }
}
