//! What a layer remembers between calls.

use super::fast::FastWeights;
use super::plan::Carry;
use crate::attention::KvCache;
use crate::{Error, Result};
use burn::tensor::Tensor;

/// The fast weights of each row, and the tokens that they have not learned from yet. A token is
/// answered with the weights as they are; when a buffer holds a whole chunk and another token
/// comes, the weights learn from it first.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Of B rows.
    pub weights: FastWeights,
    /// `[B, H, P, d]`, keys of the chunk that is not full; behind a row's own, anything.
    pub k: Tensor<4>,
    /// `[B, H, P, d]`
    pub v: Tensor<4>,
    /// `[B, H, P, R]`
    pub rates: Tensor<4>,
    /// Tokens of each row in the buffers.
    pub pending: Vec<usize>,
    /// Document that each row is in; negative where there was none yet.
    pub segment: Vec<i32>,
}

impl Memory {
    /// Tokens per row for which the buffers have room.
    pub(super) fn room(&self) -> usize {
        self.k.dims()[2]
    }

    pub(super) fn carry(&self) -> Carry<'_> {
        Carry { segment: &self.segment, pending: &self.pending, room: self.room() }
    }
}

/// The memory of a LaCT layer.
#[derive(Clone, Debug)]
pub struct LactState {
    /// Keys and values that the window still reaches.
    pub window: KvCache,
    /// Fast weights and buffers.
    pub memory: Memory,
}

impl LactState {
    /// All tensors, in a fixed order.
    pub fn tensors(&self) -> Vec<Tensor<4>> {
        let Memory { weights, k, v, rates, .. } = &self.memory;
        let mut all = vec![self.window.k.clone(), self.window.v.clone()];
        all.extend([k, v, rates].map(Clone::clone));
        all.extend(weights.tensors());
        all
    }

    /// The same state with other tensors, in the same order.
    ///
    /// # Errors
    /// When the number of tensors differs.
    pub fn with_tensors(&self, tensors: Vec<Tensor<4>>) -> Result<Self> {
        let given = tensors.len();
        let mut from = tensors.into_iter();
        let mut build = || {
            let (window_k, window_v) = (from.next()?, from.next()?);
            let (k, v, rates) = (from.next()?, from.next()?, from.next()?);
            let weights = self.memory.weights.with_tensors(&mut from)?;
            let memory = Memory { weights, k, v, rates, ..self.memory.clone() };
            let window = KvCache::new(window_k, window_v, self.window.tokens.clone());
            from.next().is_none().then_some(Self { window, memory })
        };
        let needed = self.tensors().len();
        build().ok_or_else(|| {
            Error::shape("State", format!("{given} tensors where the state has {needed}"))
        })
    }
}
