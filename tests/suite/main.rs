//! Integration tests: one file per topic, one binary.

mod alloc;
mod files;
mod generate;
mod interop;
mod lora;
mod tiny;
