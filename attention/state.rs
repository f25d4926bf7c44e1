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
            _ => Err(Error::shape("State", format!("{n} tensors where the state has 2"))),
        }
    }

    /// Tokens remembered per row.
    pub fn len(&self) -> usize {
        match self {
            Self::Kv(cache) => cache.tokens.len(),
            Self::Lact(state) => state.window.tokens.len(),
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
