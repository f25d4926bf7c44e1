//! The trainer: objectives, strategies, optimizer, metrics, evaluation, reports.

pub mod eval;
pub mod report;
