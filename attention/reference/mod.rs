//! Slow, obvious twins of the mixers, for tests.

pub mod anchor;
pub mod lact;
pub mod longgen;
pub mod longlora;
pub mod mamba;
pub mod seer;
