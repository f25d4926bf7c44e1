//! Slow, obvious twins of the mixers, for tests.

pub mod lact;
pub mod longlora;
