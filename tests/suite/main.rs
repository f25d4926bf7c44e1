//! Integration tests: one file per topic, one binary.

mod alloc;
mod eval;
mod files;
mod generate;
mod interop;
mod lora;
mod realdata;
mod tiny;
