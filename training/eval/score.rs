//! Losses of the tokens of windows, the part that all protocols share.

use super::position::BucketSum;
use crate::attention::Compute;
use crate::models::{Blocks, ForwardOptions, ids_tensor};
use crate::{Error, Result};
use longburn_kernels::{TokenMeta, linear_nll};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;

/// A stretch of one document that goes through the model on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvalWindow<'a> {
    /// Number of the document.
    pub document: usize,
    /// Where the window begins in the document, tokens.
    pub start: usize,
    /// The tokens.
    pub ids: &'a [u32],
    /// First token whose loss counts, from 1: the window's first token has no context.
    pub first: usize,
}

/// Per document, which of its tokens count; all where not given.
pub(super) type Targets<'a> = Option<&'a [Vec<bool>]>;

impl EvalWindow<'_> {
    /// Whether the loss of the window's `position`-th token counts.
    pub(super) fn counts(&self, position: usize, targets: Targets<'_>) -> bool {
        targets.is_none_or(|targets| targets[self.document][self.start + position])
    }
}

/// Loss of one window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WindowNll {
    /// Number of the document.
    pub document: usize,
    /// Where the window begins in the document, tokens.
    pub start: usize,
    /// Tokens in the window.
    pub len: usize,
    /// Tokens whose loss counts.
    pub tokens: usize,
    /// Mean of −log p over those, nats.
    pub mean_nll: f64,
    /// Weight of `mean_nll` in the mean over windows.
    pub weight: f64,
    /// One per bucket of the report.
    pub by_position: Vec<BucketSum>,
}

impl WindowNll {
    /// Sum of −log p over the tokens that count, nats.
    pub fn sum(&self) -> f64 {
        self.mean_nll * self.tokens as f64
    }
}

/// Losses of all windows, in their order, with a weight of one per token that counts; `targets`
/// are as long as the documents.
///
/// Windows of equal length go through the model together, `batch_size` at a time.
///
/// # Errors
/// No window, a window without a token to score, an id outside of the vocabulary, bad buckets, a
/// loss that is not finite, or what the model refuses.
pub(super) fn score(
    model: &impl Blocks,
    windows: &[EvalWindow<'_>],
    targets: Targets<'_>,
    buckets: &[Range<usize>],
    (batch_size, compute): (usize, Compute),
) -> Result<Vec<WindowNll>> {
    let model = model.valid();
    check(windows, buckets, batch_size, model.head().dims()[0])?;
    let mut groups: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (i, window) in windows.iter().enumerate() {
        groups.entry((window.ids.len(), window.first)).or_default().push(i);
    }
    let mut scored: Vec<(usize, WindowNll)> = Vec::with_capacity(windows.len());
    for members in groups.values() {
        for batch in members.chunks(batch_size) {
            let losses = batch_losses(&model, windows, batch, compute)?;
            let per_window = windows[batch[0]].ids.len() - windows[batch[0]].first;
            for (&i, losses) in batch.iter().zip(losses.chunks(per_window)) {
                scored.push((i, summarize(&windows[i], losses, targets, buckets)?));
            }
        }
    }
    scored.sort_by_key(|(i, _)| *i);
    Ok(scored.into_iter().map(|(_, window)| window).collect())
}

fn check(
    windows: &[EvalWindow<'_>],
    buckets: &[Range<usize>],
    batch_size: usize,
    vocabulary: usize,
) -> Result<()> {
    let config =
        |field, value: String, expected| Error::config("evaluation", field, value, expected);
    if batch_size == 0 {
        return Err(config("batch_size", "0".into(), "at least 1"));
    }
    if windows.is_empty() {
        return Err(Error::Data("evaluation: no document is long enough for a window".into()));
    }
    if let Some(empty) = buckets.iter().find(|b| b.is_empty()) {
        return Err(config("buckets", format!("{empty:?}"), "start below end"));
    }
    for window in windows {
        let place = format!("document {}, window at {}", window.document, window.start);
        if window.first == 0 || window.first >= window.ids.len() {
            return Err(Error::shape(
                "evaluation",
                format!("{place}: {} tokens, scored from {}", window.ids.len(), window.first),
            ));
        }
        if let Some(at) = window.ids.iter().position(|id| *id as usize >= vocabulary) {
            return Err(Error::Tokenizer(format!(
                "{place}: token {at} has id {}, and the model has a vocabulary of {vocabulary}; \
                 evaluate with the tokenizer that belongs to the model",
                window.ids[at]
            )));
        }
    }
    Ok(())
}

/// −log p of the scored tokens of windows of one length, window after window.
fn batch_losses(
    model: &impl Blocks,
    windows: &[EvalWindow<'_>],
    batch: &[usize],
    compute: Compute,
) -> Result<Vec<f32>> {
    let (len, first) = (windows[batch[0]].ids.len(), windows[batch[0]].first);
    let head = model.head();
    let ids: Vec<u32> = batch.iter().flat_map(|i| windows[*i].ids).copied().collect();
    let ids = ids_tensor(&ids, batch.len(), &head.device());
    let tokens = TokenMeta::contiguous(batch.len(), len, 0);
    let options = ForwardOptions::infer().with_compute(compute);
    let last = model.forward_ids(ids, &tokens, &options, vec![])?.last;
    let (count, d) = (len - first, last.dims()[2]);
    // Hidden state t predicts token t + 1.
    let x = last.narrow(1, first - 1, count).reshape([batch.len() * count, d]);
    let labels: Vec<i64> =
        batch.iter().flat_map(|i| &windows[*i].ids[first..]).map(|id| *id as i64).collect();
    Ok(linear_nll(x, head, &labels)?)
}

fn summarize(
    window: &EvalWindow<'_>,
    losses: &[f32],
    targets: Targets<'_>,
    buckets: &[Range<usize>],
) -> Result<WindowNll> {
    let mut by_position = vec![BucketSum::default(); buckets.len()];
    let (mut sum, mut tokens) = (0f64, 0);
    for (position, loss) in (window.first..).zip(losses) {
        if !window.counts(position, targets) {
            continue;
        }
        if !loss.is_finite() {
            return Err(Error::Evaluation {
                what: format!(
                    "the loss of token {} of document {}",
                    window.start + position,
                    window.document
                ),
                value: (*loss).into(),
                remedy: "check the weights for NaN and infinite values".into(),
            });
        }
        let loss = f64::from(*loss);
        sum += loss;
        tokens += 1;
        for (bucket, range) in by_position.iter_mut().zip(buckets) {
            if range.contains(&position) {
                bucket.nll += loss;
                bucket.count += 1;
            }
        }
    }
    Ok(WindowNll {
        document: window.document,
        start: window.start,
        len: window.ids.len(),
        tokens,
        mean_nll: sum / tokens as f64,
        weight: tokens as f64,
        by_position,
    })
}
