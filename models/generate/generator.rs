//! A model and what its layers remember.

use super::token::OneByOne;
use crate::attention::{Compute, State};
use crate::models::{Blocks, ForwardOptions, ids_tensor};
use crate::{Error, Result};
use burn::tensor::{DType, TensorData};
use longburn_kernels::TokenMeta;

/// Sequences that grow, one row each: the model and what its layers remember of them.
pub struct Generator<M: Blocks> {
    model: M,
    states: Vec<State>,
    len: usize,
    compute: Compute,
    one_by_one: OneByOne,
}

impl<M: Blocks> Generator<M> {
    /// Start with nothing. The model's parameters are shared, not copied.
    pub fn new(model: &M) -> Self {
        let (model, one_by_one) = (model.valid(), OneByOne::default());
        Self { model, states: Vec::new(), len: 0, compute: Compute::F32, one_by_one }
    }

    /// Choose what passes compute in, and with it what a cache holds; a [rounded](crate::models::Decoder::rounded)
    /// model spares them the rounding of its weights.
    pub fn with_compute(mut self, compute: Compute) -> Self {
        self.compute = compute;
        self
    }

    /// Go on from the states of `len` tokens per row, of every layer, as a pass has returned them.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of states than the model has layers, or caches of another length.
    pub fn with_states(mut self, states: Vec<State>, len: usize) -> Result<Self> {
        if states.len() != self.model.num_blocks() {
            let reason = format!("{} states for {} blocks", states.len(), self.model.num_blocks());
            return Err(Error::shape("Generator", reason));
        }
        let other = |state: &State| matches!(state, State::Kv(_)) && state.len() != len;
        if let Some(layer) = states.iter().position(other) {
            let reason =
                format!("layer {layer} remembers {} tokens, not {len}", states[layer].len());
            return Err(Error::shape("Generator", reason));
        }
        (self.states, self.len) = (states, len);
        self.one_by_one.forget();
        Ok(self)
    }

    /// Tokens fed so far, per row and padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was fed yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Append tokens to a single sequence; the logits that follow the last one, `[V]`.
    ///
    /// # Errors
    /// [`Error::Data`] for no ids, and those of [`feed_rows`](Self::feed_rows).
    pub fn feed(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        if ids.is_empty() {
            return Err(Error::Data("no ids to continue from".into()));
        }
        let tokens = TokenMeta::contiguous(1, ids.len(), self.len);
        Ok(self.feed_rows(ids, &tokens)?.swap_remove(0))
    }

    /// Append tokens to every row, as `tokens` describes them; the logits that follow the last
    /// one of each, `[B]` of `[V]`. What follows padding is of no use.
    ///
    /// # Shapes
    /// ids `[B * T]`
    ///
    /// # Errors
    /// [`Error::Data`] for ids outside the vocabulary, [`Error::Shape`] where `ids` and `tokens`
    /// differ in size or hold nothing, what a mixer refuses, and [`Error::Unsupported`] for a
    /// mixer that returns no state. After an error the sequences are lost.
    pub fn feed_rows(&mut self, ids: &[u32], tokens: &TokenMeta) -> Result<Vec<Vec<f32>>> {
        let (rows, len) = (tokens.batch(), tokens.len());
        if ids.is_empty() || ids.len() != rows * len {
            let reason = format!("{} ids for {rows} rows of {len}", ids.len());
            return Err(Error::shape("Generator", reason));
        }
        let vocab = self.model.config().vocab_size;
        if let Some(at) = ids.iter().position(|id| *id as usize >= vocab) {
            return Err(Error::Data(format!(
                "id {} at position {} is outside the model's vocabulary of {vocab}; \
                 tokenizer and model do not belong together",
                ids[at],
                self.len + at % len,
            )));
        }
        if len == 1 && self.one_by_one.takes(&self.model, self.compute, &self.states, tokens) {
            let states = std::mem::take(&mut self.states);
            let (logits, states) = self.one_by_one.step(&self.model, ids, tokens, states)?;
            (self.states, self.len) = (states, self.len + 1);
            return Ok(logits);
        }
        self.one_by_one.forget();
        let device = self.model.head().device();
        let options = ForwardOptions::infer().with_state(true).with_compute(self.compute);
        let states = std::mem::take(&mut self.states);
        let input = ids_tensor(ids, rows, &device);
        let out = self.model.forward_ids(input, tokens, &options, states)?;
        if out.states.len() != self.model.num_blocks() {
            return Err(Error::Unsupported {
                what: "generation with a mixer that keeps no state".into(),
                remedy: "return `MixOutput::state` where `MixContext::keep_state` asks for it"
                    .into(),
            });
        }
        self.states = out.states;
        self.len += len;
        let last = out.last.narrow(1, len - 1, 1);
        Ok(by_rows(self.model.logits(last).cast(DType::F32).into_data(), rows))
    }
}

/// `[B, .., V]` in f32 -> `[B]` of `[V]`
pub(super) fn by_rows(logits: TensorData, rows: usize) -> Vec<Vec<f32>> {
    // Half a million numbers for 16 rows: element by element they would take as long as the card for all layers.
    let all = |logits: &[f32]| logits.chunks(logits.len() / rows).map(<[f32]>::to_vec).collect();
    logits.as_slice().map_or_else(|_| all(&logits.iter().collect::<Vec<f32>>()), all)
}
