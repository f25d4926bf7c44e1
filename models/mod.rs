//! Whole networks: configuration, decoder, weights in Hugging Face form, adapters, generation.

pub mod config;
pub mod weights;

//pub use config::{Architecture, ModelConfig};
