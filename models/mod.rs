//! Whole networks: configuration, decoder, weights in Hugging Face form, adapters, generation.

pub mod checkpoint;
mod companions;
pub mod config;
mod decoder;
pub mod gates;
pub mod generate;
pub mod hub;
pub mod keymap;
pub mod lora;
mod mlp;
mod norm;
pub mod peft;
mod rounded;
pub mod stored;
mod token;
pub mod weights;

pub use checkpoint::SaveOptions;
pub(crate) use companions::COMPANIONS;
pub use companions::copy_companions;
pub use config::{Architecture, ExtendMethod, Extension, ModelConfig};
pub use decoder::{Block, Blocks, Decoder, ForwardOptions, Hidden, Place, ids_tensor};
pub use generate::{GenerateConfig, Generated, generate, generate_batch, generate_from};
pub use lora::{LoraConfig, TrainableReport};
pub use mlp::{Activation, Mlp, MlpConfig};
pub use norm::{Norm, NormConfig};
