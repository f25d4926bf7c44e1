//! What has to be done to many tensors, in few launches: on NVIDIA cards, in CUDA C++ through NVRTC, since a
//! kernel in CubeCL has an argument per buffer. A model has more tensors than a card takes launches in the time
//! that it needs for the smallest of them.

mod source;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda-nvrtc")]
mod pass;

#[cfg(feature = "cuda-nvrtc")]
pub(super) use pass::{Waiting, sums_of_squares};
