//! One binary for all integration tests: building and linking once.

mod alloc;
mod backends;
mod cli;
mod data;
mod eval;
mod files;
mod generate;
mod interop;
mod longlora;
mod lora;
mod mixers;
mod realdata;
mod report;
mod tiny;
mod training;
