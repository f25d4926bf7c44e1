//! The trainer: objectives, strategies, optimizer, metrics, evaluation, reports.

pub mod report;
