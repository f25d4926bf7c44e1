//! The conformance suite that every mixer passes.
