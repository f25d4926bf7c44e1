//! Long-sequence ops for Burn: masked attention over branches of queries and keys, with memory
//! linear in the sequence length, statistics of its weights, state-space scans, and a linear layer
//! fused with its cross-entropy.
//!
//! Every op has a slow, obvious `reference`, a `tiled` form out of tensor operations that runs on
//! any device, and, where it pays, a form of its own for a device. All share one signature and
//! are tested against each other, outputs and gradients.
//!
//! Shape letters: B batch, H query heads, K key/value heads, T queries, S keys, D head width,
//! E value width, N tokens, V vocabulary.
#![allow(non_snake_case)]
#![warn(missing_docs)]

#[macro_use]
mod node;

#[cfg(feature = "flex")]
mod ahead;
pub mod attention;
mod branch;
#[cfg(feature = "cube")]
mod card;
#[cfg(any(test, feature = "cuda-nvrtc"))]
mod cuda;
#[cfg(feature = "flex")]
mod deep;
mod error;
pub mod fused;
#[cfg(any(test, feature = "cuda-nvrtc"))]
mod hopper;
mod host;
mod linear;
pub mod loss;
pub mod mask;
mod named;
#[cfg(feature = "flex")]
mod panels;
mod precision;
#[cfg(feature = "flex")]
mod product;
#[cfg(feature = "flex")]
mod room;
pub mod scan;
#[cfg(feature = "flex")]
mod simd;
#[cfg(feature = "cuda")]
mod stream;
#[cfg(feature = "flex")]
mod threads;
mod token;
mod trace;
mod view;

pub use attention::{Reduce, attention_backward, attention_stats, masked_attention};
pub use branch::{AttentionGrads, AttentionOptions, AttentionOutput, Branch, Implementation};
pub use error::Error;
pub use host::keep_freed_memory;
pub use loss::{linear_cross_entropy, linear_nll};
pub use named::card_name;
pub use scan::{SelectiveScan, Ssd, SsdDiscrete, Step, Steps, selective_scan, ssd, ssd_discrete};
pub use token::{Logits, TokenLayer, TokenModel, TokenPass, Tokens};
pub use trace::{Launch, traced};
pub use view::leading;

pub use mask::{
    BlockKind, BlockList, BlockMap, BlockStride, GroupSize, Groups, Mask, MaskSpec, TokenMeta,
};

#[cfg(doctest)]
#[doc = include_str!("README.md")]
struct Readme;
