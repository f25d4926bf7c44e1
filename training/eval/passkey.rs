//! Retrieval of pass keys: does the model complete a prompt by exactly the key?
//!
//! A key is right when every one of its tokens is the most likely one given the prompt and the
//! tokens of the key before it. One pass over prompt and key decides that, and it is what greedy
//! decoding would produce: up to the first wrong token both see the same context.

use crate::error::check_sizes;
use crate::models::{Blocks, ForwardOptions, ids_tensor};
use crate::training::report::Heatmap;
use crate::{Error, Result};
use burn::tensor::{Int, Tensor, TensorData};
use longburn_kernels::TokenMeta;
use serde::Serialize;
use std::collections::BTreeMap;

/// A prompt and the key that must follow.
#[derive(Clone, Debug, PartialEq)]
pub struct PasskeyItem {
    /// Everything in front of the key.
    pub prompt: Vec<u32>,
    /// The key.
    pub answer: Vec<u32>,
    /// Length under which the item is reported, tokens.
    pub length: usize,
    /// Where the key was stated: 0 first, 1 last.
    pub depth: f64,
}

impl PasskeyItem {
    /// Reported under its own length.
    pub fn new(prompt: Vec<u32>, answer: Vec<u32>, depth: f64) -> Self {
        let length = prompt.len() + answer.len();
        Self { prompt, answer, length, depth }
    }

    /// Report under a nominal length, where prompts of one length differ by some tokens.
    pub fn with_length(mut self, length: usize) -> Self {
        self.length = length;
        self
    }
}

/// Evaluation of pass keys.
#[derive(Clone, Debug, PartialEq)]
pub struct PasskeyEval {
    batch_size: usize,
    depth_buckets: usize,
}

/// Items of one length and a range of depths.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PasskeyCell {
    /// Tokens.
    pub length: usize,
    /// First depth of the cell.
    pub depth_start: f64,
    /// Last depth of the cell.
    pub depth_end: f64,
    /// Mean depth of its items.
    pub depth: f64,
    /// Items whose key is right.
    pub exact: usize,
    /// Items.
    pub total: usize,
    /// `exact / total`
    pub rate: f64,
    /// 95 % Wilson interval of the rate.
    pub interval: (f64, f64),
}

/// Result of [`PasskeyEval::eval`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PasskeyReport {
    /// Whether the key is right, in the order of the items.
    pub exact: Vec<bool>,
    /// By length, all depths together.
    pub by_length: Vec<PasskeyCell>,
    /// By length, then depth; only cells that hold items.
    pub cells: Vec<PasskeyCell>,
}

impl PasskeyReport {
    /// The cells as a map: a column per length, a row per range of depths, named by the mean depth
    /// of its items.
    pub fn heatmap(&self, title: &str) -> Heatmap {
        let mut lengths: Vec<usize> = self.cells.iter().map(|cell| cell.length).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let mut rows: Vec<f64> = self.cells.iter().map(|cell| cell.depth_start).collect();
        rows.sort_by(f64::total_cmp);
        rows.dedup();
        let of_row = |row: &f64| {
            let cells = self.cells.iter().filter(|cell| cell.depth_start == *row);
            let (sum, n) =
                cells.fold((0.0, 0), |(sum, n), c| (sum + c.depth * c.total as f64, n + c.total));
            format!("{:.0}", 100.0 * sum / n as f64)
        };
        let mut map = Heatmap::new(title)
            .x("length (tokens)", lengths.iter().map(usize::to_string))
            .y("depth (%)", rows.iter().map(of_row));
        for cell in &self.cells {
            let column = lengths.iter().position(|length| *length == cell.length);
            let row = rows.iter().position(|row| *row == cell.depth_start);
            if let (Some(column), Some(row)) = (column, row) {
                map = map.cell(column, row, cell.rate);
            }
        }
        map
    }

    /// Share of keys that are right.
    pub fn rate(&self) -> f64 {
        self.exact.iter().filter(|e| **e).count() as f64 / self.exact.len() as f64
    }
}

impl Default for PasskeyEval {
    fn default() -> Self {
        Self { batch_size: 8, depth_buckets: 5 }
    }
}

impl PasskeyEval {
    /// Eight prompts at a time, five ranges of depth.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many prompts go through the model at a time.
    pub fn with_batch_size(mut self, prompts: usize) -> Self {
        self.batch_size = prompts;
        self
    }

    /// Into how many equal ranges depth 0 to 1 is divided.
    pub fn with_depth_buckets(mut self, buckets: usize) -> Self {
        self.depth_buckets = buckets;
        self
    }

    /// Run `items` through `model`.
    ///
    /// # Errors
    /// No items, an empty prompt or key, a depth outside of 0 to 1, an id outside of the
    /// vocabulary, a logit that is NaN, or what the model refuses.
    pub fn eval(&self, model: &impl Blocks, items: &[PasskeyItem]) -> Result<PasskeyReport> {
        let members: Vec<&PasskeyItem> = items.iter().collect();
        let exact = self.exact(model, &members)?;
        self.report(items, exact)
    }

    /// Whether each item's key is right.
    ///
    /// # Errors
    /// Those of [`eval`](Self::eval).
    pub fn exact(&self, model: &impl Blocks, items: &[&PasskeyItem]) -> Result<Vec<bool>> {
        let model = model.valid();
        self.check(items, model.head().dims()[0])?;
        // Neighbours in length share a batch, so that little is padded.
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|i| items[*i].prompt.len() + items[*i].answer.len());
        let mut exact = vec![false; items.len()];
        for batch in order.chunks(self.batch_size) {
            let members: Vec<&PasskeyItem> = batch.iter().map(|i| items[*i]).collect();
            for (i, hit) in batch.iter().zip(hits(&model, &members)?) {
                exact[*i] = hit;
            }
        }
        Ok(exact)
    }

    /// Count what [`exact`](Self::exact) found, by length and depth.
    ///
    /// # Errors
    /// Another number of results than of items.
    pub fn report(&self, items: &[PasskeyItem], exact: Vec<bool>) -> Result<PasskeyReport> {
        if exact.len() != items.len() {
            let reason = format!("{} results of {} items", exact.len(), items.len());
            return Err(Error::shape("passkey evaluation", reason));
        }
        Ok(PasskeyReport {
            by_length: cells(items, &exact, 1),
            cells: cells(items, &exact, self.depth_buckets.max(1)),
            exact,
        })
    }

    fn check(&self, items: &[&PasskeyItem], vocabulary: usize) -> Result<()> {
        let sizes = &[("batch_size", self.batch_size), ("depth_buckets", self.depth_buckets)];
        check_sizes("passkey evaluation", sizes)?;
        if items.is_empty() {
            return Err(Error::Data("passkey evaluation: there are no items".into()));
        }
        for (i, item) in items.iter().enumerate() {
            if item.prompt.is_empty() || item.answer.is_empty() {
                return Err(Error::Data(format!("passkey item {i} has an empty prompt or key")));
            }
            if !(0.0..=1.0).contains(&item.depth) {
                let field = format!("item {i}: depth");
                return Err(Error::config("passkey evaluation", field, item.depth, "0 to 1"));
            }
            let mut ids = item.prompt.iter().chain(&item.answer);
            if let Some(id) = ids.find(|id| **id as usize >= vocabulary) {
                return Err(Error::Tokenizer(format!(
                    "passkey item {i} holds id {id}, and the model has a vocabulary of {vocabulary}"
                )));
            }
        }
        Ok(())
    }
}

/// Whether each item's key is right; rows are padded on the left.
fn hits(model: &impl Blocks, items: &[&PasskeyItem]) -> Result<Vec<bool>> {
    // The key's last token predicts nothing that is asked for.
    let lengths: Vec<usize> =
        items.iter().map(|item| item.prompt.len() + item.answer.len() - 1).collect();
    let len = lengths.iter().copied().max().unwrap_or(0);
    let (mut ids, mut wanted) = (Vec::with_capacity(items.len() * len), Vec::new());
    for (row, item) in items.iter().enumerate() {
        let inputs = item.prompt.iter().chain(&item.answer[..item.answer.len() - 1]);
        ids.extend(std::iter::repeat_n(0, len - lengths[row]));
        ids.extend(inputs);
        let end = (row + 1) * len;
        wanted.extend((end - item.answer.len()..end).map(|i| i as i32));
    }
    let head = model.head();
    let device = head.device();
    let tokens = TokenMeta::left_padded(&lengths, len)?;
    let ids = ids_tensor(&ids, items.len(), &device);
    let last = model.forward_ids(ids, &tokens, &ForwardOptions::infer(), vec![])?.last;
    let [b, t, d] = last.dims();
    let count = wanted.len();
    let wanted = Tensor::<1, Int>::from_data(TensorData::new(wanted, [count]), &device);
    let hidden = last.reshape([b * t, d]).select(0, wanted).reshape([1, count, d]);
    let logits: Vec<f32> = model.logits(hidden).into_data().iter::<f32>().collect();
    let mut rows = logits.chunks(head.dims()[0]);
    let mut exact = Vec::with_capacity(items.len());
    for item in items {
        let mut hit = true;
        for (answer, logits) in item.answer.iter().zip(&mut rows) {
            hit &= argmax(logits)? == *answer as usize;
        }
        exact.push(hit);
    }
    Ok(exact)
}

/// Index of the largest value, the first of equals.
fn argmax(logits: &[f32]) -> Result<usize> {
    let mut best = 0;
    for (i, value) in logits.iter().enumerate() {
        if value.is_nan() {
            return Err(Error::Evaluation {
                what: format!("the logit of id {i}"),
                value: (*value).into(),
                remedy: "check the weights for NaN and infinite values".into(),
            });
        }
        if *value > logits[best] {
            best = i;
        }
    }
    Ok(best)
}

fn cells(items: &[PasskeyItem], exact: &[bool], buckets: usize) -> Vec<PasskeyCell> {
    let mut members: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        let bucket = ((item.depth * buckets as f64) as usize).min(buckets - 1);
        members.entry((item.length, bucket)).or_default().push(i);
    }
    let cell = |((length, bucket), members): ((usize, usize), Vec<usize>)| {
        let (hits, total) = (members.iter().filter(|i| exact[**i]).count(), members.len());
        PasskeyCell {
            length,
            depth_start: bucket as f64 / buckets as f64,
            depth_end: (bucket + 1) as f64 / buckets as f64,
            depth: members.iter().map(|i| items[*i].depth).sum::<f64>() / total as f64,
            exact: hits,
            total,
            rate: hits as f64 / total as f64,
            interval: wilson(hits, total),
        }
    };
    members.into_iter().map(cell).collect()
}

/// 95 % Wilson score interval of `hits` of `total`; 0 to 1 of none.
pub fn wilson(hits: usize, total: usize) -> (f64, f64) {
    if total == 0 {
        return (0.0, 1.0);
    }
    let z = 1.959_963_984_540_054_f64;
    let (n, p) = (total as f64, hits as f64 / total as f64);
    let scale = 1.0 + z * z / n;
    let centre = (p + z * z / (2.0 * n)) / scale;
    let half = z / scale * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    ((centre - half).max(0.0), (centre + half).min(1.0))
}
