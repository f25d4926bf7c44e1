//! Rows of one document each on NVIDIA cards, in CUDA C++ through NVRTC: heads of up to 64 channels with up
//! to 128 numbers of state, on cards whose workgroups have 208 KiB of shared memory (H100 and later).
//!
//! A workgroup has a chunk of 64 tokens and a head, or one head of a group after the other. Decays between
//! tokens are computed where they are needed, and no tensor of pairs of tokens of a head is ever written.
//! Products are tensor cores', of numbers in two parts of 11 bits each, so that they are as exact as those in
//! f32. States go from chunk to chunk in a pass of its own, forward and backward.

mod source;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda-nvrtc")]
mod pass;

#[cfg(feature = "cuda-nvrtc")]
pub(super) use pass::{Kernels, run_for};
