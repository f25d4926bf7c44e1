//! Slow, obvious twins of the mixers, for tests.

pub mod longlora;
pub mod seer;
