//! One binary for all integration tests: building and linking once.

mod backends;
mod data;
mod files;
mod longlora;
mod mixers;
mod report;
mod training;
