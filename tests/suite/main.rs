//! One binary for all integration tests: building and linking once.

mod alloc;
mod data;
mod files;
mod generate;
mod interop;
mod longlora;
mod lora;
mod mixers;
mod report;
mod training;
mod tiny;
