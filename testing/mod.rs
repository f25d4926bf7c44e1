//! The conformance suite that every mixer passes, and the list of papers that it holds to.

pub mod papers;
