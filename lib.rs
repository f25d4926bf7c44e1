//! Longburn: a modular zoo of long-context techniques for language models, on Burn.
//!
//! Layers, bottom up: [`kernel`] (ops) → [`positional`] → [`attention`] → [`models`] →
//! [`datasets`] → [`training`] → [`testing`]. A layer uses those below it only; [`streams`]
//! (random numbers) serve all.
//!
//! Shape letters in names: B batch, T tokens, S keys, D channels, H query heads, K key heads,
//! V vocabulary.
#![allow(non_snake_case)]
#![warn(missing_docs)]

mod atomic;
pub mod attention;
pub mod datasets;
mod error;
pub mod models;
mod paths;
pub mod positional;
pub mod streams;
pub mod testing;
pub mod training;

pub use error::{Error, HubFault, Result};
pub use longburn_kernels as kernel;

#[cfg(doctest)]
#[doc = include_str!("README.md")]
struct Readme;
