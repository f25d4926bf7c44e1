//! The selective scan on NVIDIA cards, in CUDA C++ through NVRTC, for up to 16 states per channel.
//!
//! The passes are those of the kernels in CubeCL: what each chunk leaves in a state of zeros, states from
//! chunk to chunk, outputs; backward the same from the other end; and they keep the same states between.
//! What differs is what a thread has: forward a channel with all its states in registers; backward four
//! channels and four states, so that sums over either cost few exchanges among the lanes of a warp.
//!
//! Tokens come through shared memory long before they are wanted: of loads into registers that are written ahead of
//! their use the compiler makes loads right before it. On an H100, what bounds the passes is the number of
//! instructions, and for `ends` and `starts` exponentials, not memory. Two other divisions were slower there:
//! walking over whole rows without chunks, lanes by runs of tokens (one exponential per number instead of two, but
//! as many instructions), and gradients with a lane per channel (fewer instructions, but room for half the warps).

mod source;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda-nvrtc")]
pub(super) use pass::{forward, gradients, kernels, run_for};

#[cfg(feature = "cuda-nvrtc")]
mod pass;
