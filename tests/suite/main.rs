//! One binary for all integration tests: building and linking once.
//!
//! `backends` runs on every device that is compiled in, everything else on the CPU.

#[cfg(feature = "flex")]
mod alloc;
#[cfg(feature = "flex")]
mod anchor;
mod backends;
#[cfg(feature = "flex")]
mod bench;
#[cfg(feature = "flex")]
mod book;
#[cfg(feature = "flex")]
mod broken;
#[cfg(feature = "flex")]
mod cache;
#[cfg(feature = "flex")]
mod chat;
#[cfg(feature = "flex")]
mod cli;
#[cfg(feature = "flex")]
mod data;
#[cfg(feature = "flex")]
mod eval;
#[cfg(feature = "flex")]
mod files;
#[cfg(feature = "flex")]
mod generate;
#[cfg(feature = "flex")]
mod gpt_neox;
#[cfg(all(feature = "flex", unix))]
mod hub;
#[cfg(feature = "flex")]
mod hybrids;
#[cfg(feature = "flex")]
mod interop;
#[cfg(feature = "flex")]
mod lact;
#[cfg(feature = "flex")]
mod longgen;
#[cfg(feature = "flex")]
mod longlora;
#[cfg(feature = "flex")]
mod lora;
#[cfg(feature = "flex")]
mod mamba;
#[cfg(feature = "flex")]
mod mamba1;
#[cfg(feature = "flex")]
mod mamba2;
#[cfg(feature = "flex")]
mod mamba_models;
#[cfg(feature = "flex")]
mod mixed_precision;
#[cfg(feature = "flex")]
mod mixers;
#[cfg(feature = "flex")]
mod plan;
#[cfg(feature = "flex")]
mod positional;
#[cfg(feature = "flex")]
mod realdata;
#[cfg(feature = "flex")]
mod report;
#[cfg(feature = "flex")]
mod seer;
#[cfg(feature = "flex")]
mod tiny;
#[cfg(feature = "flex")]
mod toy_extension;
#[cfg(feature = "flex")]
mod training;
#[cfg(feature = "flex")]
mod twins;
mod watching;
