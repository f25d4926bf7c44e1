//! How a sequence becomes a sequence: one file per paper.
