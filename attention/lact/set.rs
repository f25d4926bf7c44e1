//! The set form: tokens without an order, such as those of several images. A list of operations
//! says which tokens the weights learn from and which are then read; read after learning, tokens
//! of a set see each other both ways.

use super::fast::{FastWeights, Learner};
use crate::{Error, Result};
use burn::tensor::Tensor;
use std::ops::Range;

/// One operation; learning comes before reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetOp {
    /// Which tokens.
    pub tokens: Range<usize>,
    /// The weights take one step from all of them.
    pub update: bool,
    /// All of them are read.
    pub apply: bool,
}

impl SetOp {
    /// Learn from these tokens, and read them with what was learned.
    pub fn update_and_apply(tokens: Range<usize>) -> Self {
        Self { tokens, update: true, apply: true }
    }

    /// Learn from these tokens.
    pub fn update(tokens: Range<usize>) -> Self {
        Self { tokens, update: true, apply: false }
    }

    /// Read these tokens.
    pub fn apply(tokens: Range<usize>) -> Self {
        Self { tokens, update: false, apply: true }
    }
}

/// Carry out `ops` one after the other. Returns what was read, in the order of the operations, and
/// the weights as they are then, which other tokens can be read with.
///
/// # Shapes
/// q, k, v `[N, H, T, d]`, rates `[N, H, T, 3]` (4 with momentum) -> `[N, H, tokens read, d]`, none
/// where nothing is read
///
/// # Errors
/// A range that is empty or ends behind the tokens.
pub fn run_ops(
    weights: FastWeights,
    learner: &Learner,
    [q, k, v]: [Tensor<4>; 3],
    rates: Tensor<4>,
    ops: &[SetOp],
) -> Result<(Option<Tensor<4>>, FastWeights)> {
    let len = q.dims()[2];
    let (mut weights, mut read) = (weights, Vec::new());
    for (i, op) in ops.iter().enumerate() {
        let SetOp { tokens, .. } = op;
        if tokens.is_empty() || tokens.end > len {
            let reason = format!("operation {i} is for tokens {tokens:?} of {len}");
            return Err(Error::shape("the set form of LaCT", reason));
        }
        let part = |x: &Tensor<4>| x.clone().narrow(2, tokens.start, tokens.len());
        if op.update {
            weights = learner.update(weights, part(&k), part(&v), part(&rates));
        }
        if op.apply {
            read.push(weights.apply(part(&q)));
        }
    }
    Ok(((!read.is_empty()).then(|| Tensor::cat(read, 2)), weights))
}
