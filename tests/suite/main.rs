//! One binary for all integration tests: building and linking once.

mod backends;
mod data;
mod files;
mod mixers;
mod report;
