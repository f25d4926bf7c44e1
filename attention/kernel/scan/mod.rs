//! State-space scans: what a sequence leaves in a state of fixed size, and what is read from it.
//!
//! [`selective_scan`] has a decay per channel and state (Mamba-1, 2312.00752), [`ssd`] one per head,
//! which turns chunks of tokens into matrix products (Mamba-2, 2405.21060). No tensor of a state per
//! token is kept, forward or backward: states are kept at the ends of spans of tokens, if at all, and
//! those between are computed again.
//!
//! A row may hold several documents and padding, which [`Steps`] tell apart.
//!
//! Shape letters: B rows, T tokens, E channels, N numbers of state per channel, G groups of channels
//! that share B and C, H heads of P channels each.

#[macro_use]
mod tensors;

#[cfg(feature = "flex")]
pub(crate) mod jobs;
#[cfg(feature = "flex")]
pub(crate) mod rows;
mod selective;
mod ssd;
mod steps;
#[cfg(test)]
mod tests;

pub use selective::{
    SelectiveScan, selective_implementation_for, selective_in_cuda, selective_scan,
};
pub use ssd::{Ssd, SsdDiscrete, ssd, ssd_discrete, ssd_in_cuda};
pub use steps::{Step, Steps};

use crate::{Error, Implementation};
use burn::tensor::Tensor;

/// What a node of the graph returns: y `[B, T, E]`, and behind it, where it is wanted, the state
/// `[B, N, E]` as N more tokens. A node has one output, and both need a gradient.
fn unpack(out: Tensor<3>, tokens: usize, state: bool) -> (Tensor<3>, Option<Tensor<3>>) {
    if !state {
        return (out, None);
    }
    let n = out.dims()[1] - tokens;
    (out.clone().narrow(1, 0, tokens), Some(out.narrow(1, tokens, n)))
}

/// The implementation that [`ssd`] would run for tensors like `x`, for reports.
///
/// # Errors
/// [`Error::Unsupported`] for an implementation that is not there.
pub fn ssd_implementation_for(
    wanted: Implementation,
    x: &Tensor<3>,
) -> Result<Implementation, Error> {
    wanted.in_f32("ssd", x)
}

/// Numbers that the CPU form of [`selective_scan`] keeps for its backward pass beside inputs and
/// output, and those that this pass holds beside gradients, for memory plans. With one group.
///
/// # Shapes
/// u `[B, T, E]`, A `[E, N]` as ([B, T, E], N)
pub fn selective_memory(u: [usize; 3], n: usize, threads: usize) -> (usize, usize) {
    #[cfg(feature = "flex")]
    return selective::flex::memory(u, n, threads);
    #[cfg(not(feature = "flex"))]
    {
        let _ = (u, n, threads);
        (0, 0)
    }
}

/// Numbers that the backward pass of the CPU form of [`ssd`] holds beside gradients, for memory plans.
///
/// # Shapes
/// x `[B, T, H, P]`, B `[B, T, G, N]` as ([B, T, H, P], [G, N])
pub fn ssd_memory(x: [usize; 4], b: [usize; 2], chunk: usize, threads: usize) -> usize {
    #[cfg(feature = "flex")]
    return ssd::flex::memory(x, b, chunk, threads);
    #[cfg(not(feature = "flex"))]
    {
        let _ = (x, b, chunk, threads);
        0
    }
}

/// What `op` makes of x `[B, T, W]` and a row `[W]` that all its tokens share.
///
/// The gradient of the row is a sum over all tokens, of which there are W: too few for a card to compute side
/// by side. Tokens in runs of about as many as there are runs make it two sums of many each.
fn with_row(
    x: Tensor<3>,
    row: Tensor<1>,
    op: impl Fn(Tensor<3>, Tensor<3>) -> Tensor<3>,
) -> Tensor<3> {
    let shape @ [batch, len, width] = x.dims();
    let tokens = batch * len;
    let run = (1..=tokens.isqrt()).rev().find(|run| tokens % run == 0).unwrap_or(1);
    let row = row.reshape([1, 1, width]).expand([1, run, width]);
    op(x.reshape([tokens / run, run, width]), row).reshape(shape)
}

/// ln(1 + e^x) without overflow.
fn softplus<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone().clamp_min(0.0) + x.abs().neg().exp().log1p()
}
