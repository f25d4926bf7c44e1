//! Dense, obvious attention.
