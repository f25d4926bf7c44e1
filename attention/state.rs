//! What a layer remembers between calls.

use super::seer::SeerCache;
use crate::{Error, Result};
use burn::tensor::Tensor;
use longburn_kernels::TokenMeta;

/// The memory of one layer. Strategies detach, relay and count its tensors without knowing the
/// mixer.
#[derive(Clone, Debug)]
pub enum State {
    /// Keys and values of all earlier tokens.
    Kv(KvCache),
    /// The same with compressed keys, for a gate that chooses blocks.
    Seer(SeerCache),
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
            Self::Seer(SeerCache { kv, gate }) => {
                vec![kv.k.clone(), kv.v.clone(), gate.blocks.clone(), gate.open.clone()]
            }
        }
    }

    /// The same state with other tensors (detached, on another device ...), in the same order.
    ///
    /// # Errors
    /// When the number of tensors differs.
    pub fn from_tensors(&self, tensors: Vec<Tensor<4>>) -> Result<Self> {
        let (n, expected) = (tensors.len(), self.tensors().len());
        let mut tensors = tensors.into_iter();
        let mut next = || {
            let reason = || format!("{n} tensors where the state has {expected}");
            tensors.next().filter(|_| n == expected).ok_or_else(|| Error::shape("State", reason()))
        };
        let mut kv = |cache: &KvCache| -> Result<KvCache> {
            Ok(KvCache { k: next()?, v: next()?, tokens: cache.tokens.clone() })
        };
        Ok(match self {
            Self::Kv(cache) => Self::Kv(kv(cache)?),
            Self::Seer(SeerCache { kv: cache, gate }) => {
                let kv = kv(cache)?;
                let mut gate = gate.clone();
                (gate.blocks, gate.open) = (next()?, next()?);
                Self::Seer(SeerCache { kv, gate })
            }
        })
    }

    /// Tokens remembered per row.
    pub fn len(&self) -> usize {
        match self {
            Self::Kv(cache) => cache.tokens.len(),
            Self::Seer(cache) => cache.kv.tokens.len(),
        }
    }

    /// Keys and values, for a mixer that knows no more.
    pub(crate) fn into_kv(self, mixer: &str) -> Result<KvCache> {
        match self {
            Self::Kv(cache) => Ok(cache),
            other => Err(other.foreign(mixer)),
        }
    }

    /// The refusal of a state that another mixer made.
    pub(crate) fn foreign(&self, mixer: &str) -> Error {
        let of = match self {
            Self::Kv(_) => "keys and values",
            Self::Seer(_) => "compressed keys (SeerAttention)",
        };
        Error::Unsupported {
            what: format!("{mixer} with a state of {of}"),
            remedy: "hand every layer the state that it returned itself".into(),
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
