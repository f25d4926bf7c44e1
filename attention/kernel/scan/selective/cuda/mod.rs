//! The selective scan on NVIDIA cards, in CUDA C++ through NVRTC, for up to 16 states per channel.
//!
//! The passes are those of the kernels in CubeCL: what each chunk leaves in a state of zeros, states from
//! chunk to chunk, outputs; backward the same from the other end; and they keep the same states between. Rows that
//! are enough for the card are not cut into chunks (`cut.rs`). What differs is what a thread has: forward a channel
//! with all its states in registers; backward four channels and four states, so that sums over either cost few
//! exchanges among the lanes of a warp. On cards of capability 9.0 and above a kernel begins while the one before it
//! ends, and waits for what that wrote.
//!
//! Tokens come through shared memory long before they are wanted: of loads into registers that are written ahead of
//! their use the compiler makes loads right before it. On an H100, what bounds the passes is the number of
//! instructions and of exponentials (five for each number of the state), not memory. Other divisions were slower there:
//! lanes by runs of tokens (one exponential per number instead of two, but as many instructions); gradients with a
//! lane per channel (fewer instructions, but room for half the warps), or with half as many warps again and runs of
//! two tokens (more instructions); `ends` and `outputs`, or `starts` and `gradients`, as one kernel whose workgroups
//! wait for each other (too few warps for what waits for exponentials); and some exponentials by polynomials.

#[cfg_attr(not(feature = "cuda-nvrtc"), allow(dead_code))]
mod cut;
mod source;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda-nvrtc")]
pub(super) use pass::{forward, gradients, kernels, run_for};

#[cfg(feature = "cuda-nvrtc")]
mod pass;
