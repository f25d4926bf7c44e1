//! What a layer remembers between calls.

use super::LactState;
use crate::{Error, Result};
use burn::tensor::Tensor;
use longburn_kernels::TokenMeta;

/// The memory of one layer. Strategies detach, relay and count its tensors without knowing the
/// mixer.
#[derive(Clone, Debug)]
pub enum State {
    /// Keys and values of all earlier tokens.
    Kv(KvCache),
    /// Fast weights that learn, and a window of keys and values.
    Lact(Box<LactState>),
    /// The state of a state-space layer.
    Recurrent(Recurrent),
}

/// What a state-space layer remembers, of the same size at any length.
#[derive(Clone, Debug)]
pub struct Recurrent {
    /// The last K inputs of the convolution, oldest first, `[B, 1, K, C]`
    pub conv: Tensor<4>,
    /// `[B, H, P, N]`; Mamba-1 has one head of all channels.
    pub ssm: Tensor<4>,
    /// The document that each row is in, negative where no token has come yet.
    pub documents: Vec<i32>,
    /// Tokens seen per row, padding included.
    pub tokens: usize,
}

/// Keys and values of earlier tokens, with what masks need to know of them.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// `[B, K, S, D]`, rotated unless [`MixContext::unrotated_cache`](super::MixContext) is set
    pub k: Tensor<4>,
    /// `[B, K, S, E]`
    pub v: Tensor<4>,
    /// Of the cached keys.
    pub tokens: TokenMeta,
}

impl KvCache {
    /// The cache that a state is, for a mixer that goes on with it.
    ///
    /// # Errors
    /// [`Error::Shape`] for what another kind of mixer remembers.
    pub fn of(state: Option<State>) -> Result<Option<Self>> {
        match state {
            None => Ok(None),
            Some(State::Kv(cache)) => Ok(Some(cache)),
            Some(other) => {
                let reason = format!("the state of another kind of layer, {}", other.kind());
                Err(Error::shape("attention", reason))
            }
        }
    }

    /// Append keys and values of new tokens.
    ///
    /// # Errors
    /// When the numbers of rows differ.
    pub fn append(self, k: Tensor<4>, v: Tensor<4>, tokens: &TokenMeta) -> Result<Self> {
        Ok(Self {
            tokens: self.tokens.concat(tokens)?,
            k: Tensor::cat(vec![self.k, k], 2),
            v: Tensor::cat(vec![self.v, v], 2),
        })
    }
}

impl State {
    /// The state's tensors, in a fixed order.
    pub fn tensors(&self) -> Vec<Tensor<4>> {
        match self {
            Self::Kv(cache) => vec![cache.k.clone(), cache.v.clone()],
            Self::Lact(state) => state.tensors(),
            Self::Recurrent(state) => vec![state.conv.clone(), state.ssm.clone()],
        }
    }

    /// The same state with other tensors (detached, on another device ...), in the same order.
    ///
    /// # Errors
    /// When the number of tensors differs.
    pub fn from_tensors(&self, tensors: Vec<Tensor<4>>) -> Result<Self> {
        if let Self::Lact(state) = self {
            return Ok(Self::Lact(Box::new(state.with_tensors(tensors)?)));
        }
        let n = tensors.len();
        match (self, <[Tensor<4>; 2]>::try_from(tensors)) {
            (Self::Kv(cache), Ok([k, v])) => {
                Ok(Self::Kv(KvCache { k, v, tokens: cache.tokens.clone() }))
            }
            (Self::Recurrent(state), Ok([conv, ssm])) => {
                Ok(Self::Recurrent(Recurrent { conv, ssm, ..state.clone() }))
            }
            _ => Err(Error::shape("State", format!("{n} tensors where the state has 2"))),
        }
    }

    /// Tokens remembered per row.
    pub fn len(&self) -> usize {
        match self {
            Self::Kv(cache) => cache.tokens.len(),
            Self::Recurrent(state) => state.tokens,
            Self::Lact(state) => state.window.tokens.len(),
        }
    }

    /// What kind of memory it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Kv(_) => "keys and values",
            Self::Recurrent(_) => "a recurrent state",
            Self::Lact(_) => "fast weights",
        }
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let size = |x: &Tensor<4>| x.shape().num_elements() * x.dtype().size();
        self.tensors().iter().map(size).sum()
    }
}
