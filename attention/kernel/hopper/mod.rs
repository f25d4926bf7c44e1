//! Attention for Hopper cards (compute capability 9): CUDA C++ with warpgroup products and TMA, compiled
//! by NVRTC and launched on CubeCL's stream.
//!
//! A workgroup has tiles of queries (forward, and dq where runs must repeat to the bit) or one of keys (dk,
//! dv and else dq) and goes through the tiles of the other side that its mask shows: lists per row and class
//! of heads (`lists`), whole tiles without a predicate, and in an order of their own (`arrange`). Few queries
//! share a tile, and share out their keys (`few`). What a mask looks at is compiled in, numbers per
//! token come as arrays (`rules`, `mask.cuh`). Heads of any width up to 256 are read into tiles of 64, 128,
//! 192 or 256 channels, any number of tokens into whole tiles: TMA fills up with zeros. From 129 channels on, tiles of
//! keys come in halves, dq always has a pass of its own, and of two warpgroups one has dv and one dk (`wide.cu`). Queries of one key head
//! read it where it lies. Scores, softmax and sums are in f32.
//!
//! `source` puts a kernel's text together from the files here, `card` has it compiled and loaded.
#![cfg_attr(not(feature = "cuda-nvrtc"), allow(dead_code))]

mod arrange;
#[cfg(feature = "cuda-nvrtc")]
mod card;
mod few;
mod hidden;
mod later;
mod launch;
mod lists;
#[cfg(feature = "cuda-nvrtc")]
mod pass;
mod rules;
mod source;
#[cfg(test)]
mod tests;
mod wgmma;

/// Instructions of Hopper that no later card has.
const OPTIONS: [&str; 1] = ["--gpu-architecture=sm_90a"];

#[cfg(feature = "cuda-nvrtc")]
pub(crate) use pass::{backward, forward, on_cuda, prepare, refusal};
