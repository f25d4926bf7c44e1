//! Mean loss by absolute position: tells long-range use from better short-range modelling.

use super::score::{EvalWindow, WindowNll, score};
use crate::Result;
use crate::attention::Compute;
use crate::models::Blocks;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// Loss of a window's tokens within one bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct BucketSum {
    /// Sum of −log p, nats.
    pub nll: f64,
    /// Tokens.
    pub count: usize,
}

/// Mean loss of the tokens at positions `start..end` of their windows; token 0 has no context and
/// no loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PositionBucket {
    /// First position.
    pub start: usize,
    /// Behind the last position.
    pub end: usize,
    /// Mean of −log p, nats; NaN of no tokens.
    pub mean_nll: f64,
    /// Tokens.
    pub count: usize,
    /// Standard error of the mean over documents (over windows, where there is one document);
    /// `None` of fewer than two.
    pub se: Option<f64>,
}

/// Result of [`by_position`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PositionReport {
    /// In the order asked for.
    pub buckets: Vec<PositionBucket>,
    /// One per window, in the order given: what paired comparisons of two models need.
    pub windows: Vec<WindowNll>,
}

/// Mean loss by position over `windows`, `batch_size` of them at a time.
///
/// # Errors
/// No windows, an id outside of the vocabulary, an empty bucket, a loss that is not finite, or
/// what the model refuses.
pub fn by_position(
    model: &impl Blocks,
    windows: &[EvalWindow<'_>],
    buckets: &[Range<usize>],
    batch_size: usize,
) -> Result<PositionReport> {
    let windows = score(model, windows, None, buckets, (batch_size, Compute::F32))?;
    Ok(PositionReport { buckets: pool(&windows, buckets), windows })
}

impl PositionReport {
    /// Mean loss of every window in bucket `index`, for windows that reach it.
    pub fn window_means(&self, index: usize) -> Vec<f64> {
        window_means(&self.windows, index)
    }
}

/// The first `len` tokens of every document that has as many.
pub fn document_starts<D: AsRef<[u32]>>(documents: &[D], len: usize) -> Vec<EvalWindow<'_>> {
    let documents = documents.iter().map(|d| d.as_ref().get(..len)).enumerate();
    documents
        .filter_map(|(document, ids)| Some(EvalWindow { document, start: 0, ids: ids?, first: 1 }))
        .collect()
}

/// 1..2, 2..4, 4..8 ... up to `len`.
pub fn doubling_buckets(len: usize) -> Vec<Range<usize>> {
    let starts = std::iter::successors(Some(1usize), |s| s.checked_mul(2));
    starts.take_while(|s| *s < len).map(|s| s..s.saturating_mul(2).min(len)).collect()
}

pub(super) fn pool(windows: &[WindowNll], buckets: &[Range<usize>]) -> Vec<PositionBucket> {
    let one = |(i, range): (usize, &Range<usize>)| {
        let parts: Vec<Part> = windows
            .iter()
            .filter(|w| w.by_position[i].count > 0)
            .map(|w| {
                let BucketSum { nll, count } = w.by_position[i];
                Part { document: w.document, weight: count as f64, mean: nll / count as f64 }
            })
            .collect();
        let (mean_nll, se) = weighted_mean(&parts);
        let count = windows.iter().map(|w| w.by_position[i].count).sum();
        PositionBucket { start: range.start, end: range.end, mean_nll, count, se }
    };
    buckets.iter().enumerate().map(one).collect()
}

pub(super) fn window_means(windows: &[WindowNll], index: usize) -> Vec<f64> {
    let sums = windows.iter().filter_map(|w| w.by_position.get(index));
    sums.filter(|sum| sum.count > 0).map(|sum| sum.nll / sum.count as f64).collect()
}

/// A mean over some tokens of a document.
pub(super) struct Part {
    pub document: usize,
    pub weight: f64,
    pub mean: f64,
}

/// Weighted mean and its standard error. Tokens of one document are not independent, so the
/// error is that of a ratio over documents; with a single document, over its parts.
pub(super) fn weighted_mean(parts: &[Part]) -> (f64, Option<f64>) {
    let total: f64 = parts.iter().map(|p| p.weight).sum();
    let mean = parts.iter().map(|p| p.weight * p.mean).sum::<f64>() / total;
    let single = parts.iter().all(|p| p.document == parts[0].document);
    let mut residuals: BTreeMap<usize, f64> = BTreeMap::new();
    for (i, part) in parts.iter().enumerate() {
        let cluster = if single { i } else { part.document };
        *residuals.entry(cluster).or_default() += part.weight * (part.mean - mean);
    }
    let n = residuals.len() as f64;
    let squares: f64 = residuals.values().map(|r| r * r).sum();
    (mean, (n > 1.0).then(|| (n / (n - 1.0) * squares).sqrt() / total))
}
