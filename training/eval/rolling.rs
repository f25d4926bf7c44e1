//! Log-likelihood of whole documents in windows, every token predicted once, as
//! lm-evaluation-harness rolls over a text.

use super::loglikelihood::{Continuation, LoglikelihoodEval, prefix};
use crate::datasets::{Document, Tokenizer};
use crate::models::Blocks;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Windows over a document's tokens: the first predicts up to `max_len` tokens from `prefix`,
/// every further one as many new tokens as fit behind `context` tokens that are known. A last
/// window with fewer new tokens is filled up with more context.
///
/// # Errors
/// A `context` that is 0 or larger than `max_len`.
pub fn rolling_windows(
    ids: &[u32],
    prefix: u32,
    max_len: usize,
    context: usize,
) -> Result<Vec<Continuation>> {
    if context == 0 || context > max_len {
        let expected = format!("1 to max_len = {max_len}");
        return Err(Error::config("rolling windows", "context", context, expected));
    }
    let first = ids.len().min(max_len);
    let mut windows = Vec::new();
    if first > 0 {
        windows.push(Continuation { context: vec![prefix], continuation: ids[..first].to_vec() });
    }
    let mut done = first;
    while done < ids.len() {
        let new = (ids.len() - done).min(max_len - context + 1);
        let end = done + new;
        // The last token is predicted and not seen, so that one more lies in front.
        let start = end - max_len - 1;
        windows.push(Continuation {
            context: ids[start..done].to_vec(),
            continuation: ids[done..end].to_vec(),
        });
        done = end;
    }
    Ok(windows)
}

/// Likelihood of one document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RollingItem {
    /// Name of the document.
    pub id: String,
    /// Sum of log p over all tokens, nats.
    pub sum: f64,
    /// Tokens.
    pub tokens: usize,
    /// Words as the harness counts them: runs of white space, plus one.
    pub words: usize,
    /// Bytes of the text.
    pub bytes: usize,
}

/// Likelihood of documents, pooled.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RollingReport {
    /// One per document.
    pub items: Vec<RollingItem>,
    /// e^(−Σ log p / Σ tokens)
    pub token_perplexity: f64,
    /// e^(−Σ log p / Σ words)
    pub word_perplexity: f64,
    /// e^(−Σ log p / Σ bytes)
    pub byte_perplexity: f64,
    /// −Σ log p / (Σ bytes · ln 2)
    pub bits_per_byte: f64,
}

impl RollingReport {
    /// Pool documents.
    pub fn of(items: Vec<RollingItem>) -> Self {
        let total: f64 = -items.iter().map(|item| item.sum).sum::<f64>();
        let over = |count: fn(&RollingItem) -> usize| {
            total / items.iter().map(count).sum::<usize>().max(1) as f64
        };
        Self {
            token_perplexity: over(|item| item.tokens).exp(),
            word_perplexity: over(|item| item.words).exp(),
            byte_perplexity: over(|item| item.bytes).exp(),
            bits_per_byte: over(|item| item.bytes) / std::f64::consts::LN_2,
            items,
        }
    }
}

/// Roll over documents with one token of context in every window but the first. Documents are
/// tokenised without special tokens: the BOS (or EOS) token stands in front as the first context.
///
/// # Errors
/// A tokenizer with neither, and those of [`LoglikelihoodEval::eval`].
pub fn rolling(
    model: &impl Blocks,
    tokenizer: &Tokenizer,
    documents: &[Document],
    max_len: usize,
    batch_size: usize,
) -> Result<Vec<RollingItem>> {
    let first = prefix(tokenizer)?;
    let eval = LoglikelihoodEval::new(max_len).with_batch_size(batch_size);
    let one = |document: &Document| {
        let windows =
            rolling_windows(&tokenizer.encode(&document.text, false)?, first, max_len, 1)?;
        let scores = eval.eval(model, &windows)?;
        let mut words = 1;
        let mut space = false;
        for c in document.text.chars() {
            words += usize::from(c.is_whitespace() && !space);
            space = c.is_whitespace();
        }
        Ok(RollingItem {
            id: document.id.clone(),
            sum: scores.iter().map(|score| score.sum).sum(),
            tokens: scores.iter().map(|score| score.tokens).sum(),
            words,
            bytes: document.text.len(),
        })
    };
    documents.iter().map(one).collect()
}
