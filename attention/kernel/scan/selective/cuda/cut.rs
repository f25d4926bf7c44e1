//! How many tokens a chunk has.
//!
//! Workgroups have 128 channels of a row's chunk. Where rows have enough of them for a card, they are not cut: then
//! nothing is handed on from chunk to chunk. What takes how long was measured on an H100 (T 2048, W 1536, N 16).

use super::source::{LONGEST, SPAN};

/// Fewest tokens of a chunk: with fewer, handing on states costs more than it gains.
pub(super) const SHORTEST: usize = 32;

#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Tokens.
    pub len: usize,
    /// Whether it may stay whole.
    pub whole: bool,
}

/// Forward, for `groups` workgroups of whole rows and so many multiprocessors.
pub(super) fn forward(row: Row, groups: usize, cores: usize) -> usize {
    // Whole rows take 1.1 and one for each workgroup that a multiprocessor has; cut ones 2.16 for each on average.
    let (each, most) = (groups as f64 / cores as f64, groups.div_ceil(cores) as f64);
    if row.whole && 1.1 + most <= 2.16 * each {
        return row.len;
    }
    // A multiprocessor has four at a time.
    let chunks = (4 * cores / groups).max(1);
    row.len.div_ceil(chunks).next_multiple_of(SPAN).clamp(SHORTEST, 128)
}

/// Backward.
pub(super) fn backward(row: Row, groups: usize, cores: usize) -> usize {
    // What other kernels take where rows are cut counts, too.
    if row.whole && waves(groups, cores) <= 0.98 * groups as f64 / cores as f64 {
        return row.len;
    }
    let took = |spans: usize| {
        let chunks = row.len.div_ceil(spans * SPAN);
        // To begin takes nearly as long as a span.
        waves(groups * chunks, cores) * (spans as f64 + 0.9)
    };
    let fewest = SHORTEST / SPAN;
    let best = (fewest..=LONGEST / SPAN).rev().min_by(|a, b| took(*a).total_cmp(&took(*b)));
    best.unwrap_or(fewest) * SPAN
}

/// How long so many workgroups of the gradients take, in the time of one that is alone: a multiprocessor has two at a
/// time, and together they take half as long again.
fn waves(groups: usize, cores: usize) -> f64 {
    let rest = match groups % (2 * cores) {
        0 => 0.0,
        few if few <= cores => 1.0,
        _ => 1.5,
    };
    1.5 * (groups / (2 * cores)) as f64 + rest
}
