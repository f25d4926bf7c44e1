//! Whole networks: configuration, decoder, weights in Hugging Face form, adapters, generation.

pub mod checkpoint;
pub mod config;
mod decoder;
pub mod keymap;
mod mlp;
pub mod weights;

pub use checkpoint::SaveOptions;
pub use config::{Architecture, ModelConfig};
pub use decoder::{Block, Blocks, Decoder, ForwardOptions, Hidden, Place, ids_tensor};
pub use mlp::{Mlp, MlpConfig};
