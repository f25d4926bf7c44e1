//! Perplexity under the two protocols that long-context work quotes. They give different numbers
//! on the same model and text; a number is worth something only with the protocol's name.

use super::position::{Part, PositionBucket, doubling_buckets, pool, weighted_mean, window_means};
use super::score::{EvalWindow, Targets, WindowNll, score};
use crate::attention::Compute;
use crate::models::Blocks;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Which windows of a document are scored, and how their losses are averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
pub enum Protocol {
    /// The strided window of the Hugging Face guide on perplexity: windows of `max_len` every
    /// `stride` tokens, of which only what no earlier window has scored counts.
    ///
    /// The guide's counting is kept: a window weighs one token less than it scores, except where
    /// it scores all of its tokens but the first. Small strides thereby give the first window too
    /// much weight, and stride 1 all of it; [`PerplexityReport::token_mean_nll`] weighs every
    /// token alike.
    Strided {
        /// Longest window, tokens.
        max_len: usize,
        /// Distance between windows, at most `max_len`.
        stride: usize,
    },
    /// The "sliding window" of LongLoRA's evaluation (arXiv 2309.12307): windows of `len`
    /// every `step` tokens, starting below N − `len` and without the last of those, all tokens
    /// but the first scored in each; the mean of the windows' means. Tokens are scored many
    /// times, at all depths of context, so the number is higher than the strided one; `step` is
    /// no stride in the sense of [`Protocol::Strided`].
    LongLora {
        /// Tokens per window.
        len: usize,
        /// Distance between windows.
        step: usize,
    },
}

/// Perplexity of documents, each on its own.
///
/// ```
/// use longburn::attention::MixerConfig;
/// use longburn::models::{Decoder, ModelConfig};
/// use longburn::training::eval::Perplexity;
/// let config = ModelConfig::llama(64, 16, 1, 2);
/// let model = Decoder::new(&config, &MixerConfig::Dense, 0, &burn::tensor::Device::default())?;
/// let document: Vec<u32> = (0..100).map(|i| i * i % 64).collect();
/// let report = Perplexity::strided(32, 8).eval(&model, &[document])?;
/// assert_eq!(report.tokens, 99);
/// # Ok::<(), longburn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Perplexity {
    protocol: Protocol,
    batch_size: usize,
    compute: Compute,
    buckets: Option<Vec<Range<usize>>>,
}

/// Result of [`Perplexity::eval`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PerplexityReport {
    /// How the numbers came about.
    pub protocol: Protocol,
    /// e to the power of `mean_nll`.
    pub ppl: f64,
    /// Mean of −log p as the protocol averages it, nats.
    pub mean_nll: f64,
    /// Standard error of `mean_nll` over documents (over windows, where there is one document);
    /// `None` of fewer than two.
    pub se: Option<f64>,
    /// Mean of −log p over all scored tokens, each as often as it was scored, nats.
    pub token_mean_nll: f64,
    /// Scored tokens, each as often as it was scored.
    pub tokens: usize,
    /// Documents without a window of the protocol that has a token to score.
    pub skipped_documents: usize,
    /// By position in the window.
    pub by_position: Vec<PositionBucket>,
    /// One per window, document after document.
    pub windows: Vec<WindowNll>,
}

impl Perplexity {
    /// Under `protocol`, four windows at a time, buckets of doubling width.
    pub fn new(protocol: Protocol) -> Self {
        Self { protocol, batch_size: 4, compute: Compute::F32, buckets: None }
    }

    /// [`Protocol::Strided`]
    pub fn strided(max_len: usize, stride: usize) -> Self {
        Self::new(Protocol::Strided { max_len, stride })
    }

    /// [`Protocol::LongLora`]
    pub fn longlora(len: usize, step: usize) -> Self {
        Self::new(Protocol::LongLora { len, step })
    }

    /// How many windows of equal length go through the model at a time.
    pub fn with_batch_size(mut self, windows: usize) -> Self {
        self.batch_size = windows;
        self
    }

    /// What matrix products and attention compute in.
    pub fn with_compute(mut self, compute: Compute) -> Self {
        self.compute = compute;
        self
    }

    /// Ranges of positions to average over; they may overlap and leave gaps.
    pub fn with_buckets(mut self, buckets: Vec<Range<usize>>) -> Self {
        self.buckets = Some(buckets);
        self
    }

    /// Score `documents`, lists of token ids.
    ///
    /// # Errors
    /// Lengths that make no windows, a document of fewer than 2 tokens, no document that is long
    /// enough, an id outside of the vocabulary, a loss that is not finite, or what the model
    /// refuses.
    pub fn eval<D: AsRef<[u32]>>(
        &self,
        model: &impl Blocks,
        documents: &[D],
    ) -> Result<PerplexityReport> {
        self.run(model, documents, None)
    }

    /// Score some tokens only: `targets[d][t]` says whether token `t` of document `d` counts, as
    /// training on conversations has it. A window weighs as many tokens as count in it, whatever
    /// the protocol; one without any is left out.
    ///
    /// # Errors
    /// As [`eval`](Self::eval), and when the lists differ from the documents in number or length.
    pub fn eval_targets<D: AsRef<[u32]>>(
        &self,
        model: &impl Blocks,
        documents: &[D],
        targets: &[Vec<bool>],
    ) -> Result<PerplexityReport> {
        let fits = |(document, of): (&D, &Vec<bool>)| document.as_ref().len() == of.len();
        if targets.len() != documents.len() || !documents.iter().zip(targets).all(fits) {
            return Err(Error::shape("Perplexity", "targets do not fit the documents"));
        }
        self.run(model, documents, Some(targets))
    }

    fn run<D: AsRef<[u32]>>(
        &self,
        model: &impl Blocks,
        documents: &[D],
        targets: Targets<'_>,
    ) -> Result<PerplexityReport> {
        self.protocol.check()?;
        let (mut windows, mut weights, mut skipped_documents) = (Vec::new(), Vec::new(), 0);
        for (document, ids) in documents.iter().enumerate() {
            let ids = ids.as_ref();
            if ids.len() < 2 {
                return Err(Error::Data(format!(
                    "document {document} has {} tokens; a loss needs at least 2",
                    ids.len()
                )));
            }
            let before = windows.len();
            for Span { range, first, weight } in self.protocol.spans(ids.len()) {
                let start = range.start;
                let window = EvalWindow { document, start, ids: &ids[range], first };
                let counted =
                    (first..window.ids.len()).filter(|i| window.counts(*i, targets)).count();
                if counted > 0 {
                    windows.push(window);
                    weights.push(if targets.is_some() { counted as f64 } else { weight });
                }
            }
            skipped_documents += usize::from(windows.len() == before);
        }
        if windows.is_empty() {
            let longest = documents.iter().map(|d| d.as_ref().len()).max().unwrap_or(0);
            return Err(Error::Data(format!(
                "no document is long enough for a window ({}) with a token to score; the longest \
                 of {} has {longest} tokens (remedy: shorter windows, or longer documents)",
                self.protocol,
                documents.len()
            )));
        }
        let buckets = match &self.buckets {
            Some(buckets) => buckets.clone(),
            None => doubling_buckets(windows.iter().map(|w| w.ids.len()).max().unwrap_or(0)),
        };
        let mut windows =
            score(model, &windows, targets, &buckets, (self.batch_size, self.compute))?;
        for (window, weight) in windows.iter_mut().zip(weights) {
            window.weight = weight;
        }
        Ok(self.report(windows, &buckets, skipped_documents))
    }

    fn report(
        &self,
        windows: Vec<WindowNll>,
        buckets: &[Range<usize>],
        skipped_documents: usize,
    ) -> PerplexityReport {
        let part =
            |w: &WindowNll| Part { document: w.document, weight: w.weight, mean: w.mean_nll };
        let (mean_nll, se) = weighted_mean(&windows.iter().map(part).collect::<Vec<_>>());
        let tokens = windows.iter().map(|w| w.tokens).sum();
        let total: f64 = windows.iter().map(WindowNll::sum).sum();
        PerplexityReport {
            protocol: self.protocol,
            ppl: mean_nll.exp(),
            mean_nll,
            se,
            token_mean_nll: total / tokens as f64,
            tokens,
            skipped_documents,
            by_position: pool(&windows, buckets),
            windows,
        }
    }
}

impl PerplexityReport {
    /// Mean loss of every window in bucket `index` of `by_position`, for windows that reach it.
    pub fn window_means(&self, index: usize) -> Vec<f64> {
        window_means(&self.windows, index)
    }

    /// Bits per byte of text, which compares models with different tokenizers.
    ///
    /// `bytes` is the length of the text that the scored tokens stand for: the whole text, where
    /// a beginning-of-text id precedes each document. `None` for a protocol that scores tokens
    /// more than once.
    pub fn bits_per_byte(&self, bytes: u64) -> Option<f64> {
        let total = self.token_mean_nll * self.tokens as f64;
        match self.protocol {
            Protocol::Strided { .. } if bytes > 0 => {
                Some(total / std::f64::consts::LN_2 / bytes as f64)
            }
            _ => None,
        }
    }
}

/// A window within a document.
struct Span {
    range: Range<usize>,
    first: usize,
    weight: f64,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Strided { max_len, stride } => {
                write!(f, "strided, windows of {max_len}, stride {stride}")
            }
            Self::LongLora { len, step } => {
                write!(f, "LongLoRA's sliding window, windows of {len}, step {step}")
            }
        }
    }
}

impl Protocol {
    /// Whether there are windows of these lengths.
    ///
    /// # Errors
    /// [`Error::Config`] with field, value and what is expected.
    pub fn check(&self) -> Result<()> {
        let bad = |field, value: usize, expected: String| {
            Err(Error::config("perplexity", field, value, expected))
        };
        match *self {
            Self::Strided { max_len, .. } if max_len < 2 => {
                bad("max_len", max_len, "at least 2 tokens".into())
            }
            Self::Strided { stride: 0, .. } => bad("stride", 0, "at least 1".into()),
            Self::Strided { max_len, stride } if stride > max_len => bad(
                "stride",
                stride,
                format!("at most max_len = {max_len}, or tokens are left out"),
            ),
            Self::LongLora { len, .. } if len < 2 => bad("len", len, "at least 2 tokens".into()),
            Self::LongLora { step: 0, .. } => bad("step", 0, "at least 1".into()),
            _ => Ok(()),
        }
    }

    /// Windows of a document of `n` tokens.
    fn spans(&self, n: usize) -> Vec<Span> {
        match *self {
            Self::Strided { max_len, stride } => strided(n, max_len, stride),
            Self::LongLora { len, step } => {
                let starts: Vec<usize> = (0..n.saturating_sub(len)).step_by(step).collect();
                let kept = starts.len().saturating_sub(1);
                starts[..kept]
                    .iter()
                    .map(|s| Span { range: *s..s + len, first: 1, weight: 1.0 })
                    .collect()
            }
        }
    }
}

fn strided(n: usize, max_len: usize, stride: usize) -> Vec<Span> {
    let (mut spans, mut scored_to) = (Vec::new(), 0);
    for begin in (0..n).step_by(stride) {
        let end = (begin + max_len).min(n);
        let new = end - scored_to;
        // The window's own first token has nothing to be predicted from.
        let first = (end - begin - new).max(1);
        // A leftover of one token without context holds no loss and would weigh 0.
        if end - begin > first {
            spans.push(Span { range: begin..end, first, weight: (new - 1) as f64 });
        }
        scored_to = end;
        if end == n {
            break;
        }
    }
    spans
}
