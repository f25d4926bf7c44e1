//! How likely a model finds continuations of contexts: what short-context tasks are scored by, as
//! EleutherAI's lm-evaluation-harness (commit 4e7e0d47f) does it.

use crate::datasets::Tokenizer;
use crate::error::check_sizes;
use crate::models::{Blocks, ForwardOptions, ids_tensor};
use crate::{Error, Result};
use burn::tensor::{DType, Int, Tensor, TensorData};
use longburn_kernels::TokenMeta;
use serde::{Deserialize, Serialize};

/// Logits that are on the host at a time.
const LOGITS: usize = 1 << 24;

/// Tokens, and those whose likelihood after them is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// At least one token.
    pub context: Vec<u32>,
    /// At least one token.
    pub continuation: Vec<u32>,
}

/// A context and a continuation as text became them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPair {
    /// The tokens.
    pub pair: Continuation,
    /// Whether the tokenizer joined characters across the border, so that the context's tokens are
    /// not the beginning of those of the whole. The harness divides by number all the same; how
    /// often it happens belongs beside a score.
    pub joined: bool,
}

impl EncodedPair {
    /// Spaces at the end of the context go to the continuation; both are tokenised together, and
    /// the continuation is what is left behind as many tokens as the context has alone. Special
    /// tokens are the tokenizer's, and are not added to a text that begins with one. An empty
    /// context is the BOS (without one, the EOS) token.
    ///
    /// # Errors
    /// A continuation without tokens, or an empty context without BOS and EOS.
    pub fn encode(tokenizer: &Tokenizer, context: &str, continuation: &str) -> Result<Self> {
        if context.is_empty() {
            return from_nothing(tokenizer, continuation);
        }
        let kept = context.trim_end();
        let whole_text = format!("{context}{continuation}");
        let encode = |text: &str| -> Result<Vec<u32>> {
            let bos = tokenizer.special_ids().bos.map(|id| tokenizer.decode(&[id], false));
            let marked = bos.transpose()?.is_some_and(|bos| text.starts_with(&bos));
            tokenizer.encode(text, !marked)
        };
        let alone = encode(kept)?;
        let whole = encode(&whole_text)?;
        if alone.is_empty() {
            return from_nothing(tokenizer, &whole_text);
        }
        let joined = !whole.starts_with(&alone);
        let continuation = whole.get(alone.len()..).unwrap_or_default().to_vec();
        if continuation.is_empty() {
            return Err(no_tokens(continuation_text(&whole_text, kept)));
        }
        // The context's own tokens are scored from, not those of the whole.
        let pair = Continuation { context: alone, continuation };
        Ok(Self { pair, joined })
    }
}

fn continuation_text<'a>(whole: &'a str, context: &str) -> &'a str {
    whole.get(context.len()..).unwrap_or_default()
}

fn no_tokens(text: &str) -> Error {
    Error::Data(format!("the continuation `{text}` has no tokens (remedy: leave the item out)"))
}

/// The token that stands in front of a text without context.
pub(super) fn prefix(tokenizer: &Tokenizer) -> Result<u32> {
    let special = tokenizer.special_ids();
    special.bos.or(special.eos).ok_or_else(|| {
        Error::Tokenizer(
            "a text without context is scored behind BOS or EOS, and the tokenizer has neither \
             (remedy: name one in tokenizer_config.json)"
                .into(),
        )
    })
}

fn from_nothing(tokenizer: &Tokenizer, continuation: &str) -> Result<EncodedPair> {
    let first = prefix(tokenizer)?;
    let mut continuation_ids = tokenizer.encode(continuation, false)?;
    if continuation_ids.first() == Some(&first) {
        continuation_ids.remove(0);
    }
    if continuation_ids.is_empty() {
        return Err(no_tokens(continuation));
    }
    let pair = Continuation { context: vec![first], continuation: continuation_ids };
    Ok(EncodedPair { pair, joined: false })
}

/// What a model makes of a continuation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loglikelihood {
    /// Sum of log p over the continuation's tokens, nats.
    pub sum: f64,
    /// Whether every token is the most likely one.
    pub greedy: bool,
    /// Tokens of the continuation.
    pub tokens: usize,
    /// Tokens of the context that were cut off in front for want of room.
    pub cut: usize,
}

/// Scores continuations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoglikelihoodEval {
    max_len: usize,
    batch_size: usize,
}

impl LoglikelihoodEval {
    /// Of at most `max_len` tokens that the model sees at once, eight at a time.
    pub fn new(max_len: usize) -> Self {
        Self { max_len, batch_size: 8 }
    }

    /// How many go through the model at a time.
    pub fn with_batch_size(mut self, rows: usize) -> Self {
        self.batch_size = rows;
        self
    }

    /// Score `pairs`, in their order. Of what is longer than `max_len` the beginning is cut off.
    ///
    /// # Errors
    /// An empty context or continuation, a continuation longer than `max_len`, an id outside of
    /// the vocabulary, logits that are no numbers, or what the model refuses.
    pub fn eval(&self, model: &impl Blocks, pairs: &[Continuation]) -> Result<Vec<Loglikelihood>> {
        let model = model.valid();
        self.check(pairs, model.head().dims()[0])?;
        let seen = |i: &usize| (pairs[*i].len() - 1).min(self.max_len);
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        // Longest first: what is too much for the memory shows at once.
        order.sort_by_key(|i| std::cmp::Reverse(seen(i)));
        let mut scores =
            vec![Loglikelihood { sum: 0.0, greedy: true, tokens: 0, cut: 0 }; pairs.len()];
        for batch in order.chunks(self.batch_size) {
            let rows: Vec<&Continuation> = batch.iter().map(|i| &pairs[*i]).collect();
            for (i, score) in batch.iter().zip(self.batch(&model, &rows)?) {
                scores[*i] = score;
            }
        }
        Ok(scores)
    }

    fn check(&self, pairs: &[Continuation], vocabulary: usize) -> Result<()> {
        let sizes = &[("max_len", self.max_len), ("batch_size", self.batch_size)];
        check_sizes("log-likelihood", sizes)?;
        for (i, pair) in pairs.iter().enumerate() {
            if pair.context.is_empty() || pair.continuation.is_empty() {
                let reason = format!("item {i}: an empty context or continuation");
                return Err(Error::shape("log-likelihood", reason));
            }
            if pair.continuation.len() > self.max_len {
                return Err(Error::config(
                    "log-likelihood",
                    format!("item {i}: continuation"),
                    format!("{} tokens long", pair.continuation.len()),
                    format!("at most max_len = {} tokens", self.max_len),
                ));
            }
            let mut ids = pair.context.iter().chain(&pair.continuation);
            if let Some(id) = ids.find(|id| **id as usize >= vocabulary) {
                return Err(Error::Tokenizer(format!(
                    "item {i} holds id {id}, and the model has a vocabulary of {vocabulary}; \
                     evaluate with the tokenizer that belongs to the model"
                )));
            }
        }
        Ok(())
    }

    /// One pass over rows padded on the right.
    fn batch(&self, model: &impl Blocks, rows: &[&Continuation]) -> Result<Vec<Loglikelihood>> {
        let inputs: Vec<Vec<u32>> = rows.iter().map(|pair| pair.input(self.max_len)).collect();
        let lengths: Vec<usize> = inputs.iter().map(Vec::len).collect();
        let len = lengths.iter().copied().max().unwrap_or(0);
        let (mut ids, mut wanted) = (Vec::with_capacity(rows.len() * len), Vec::new());
        for (row, (pair, input)) in rows.iter().zip(&inputs).enumerate() {
            ids.extend(input);
            ids.extend(std::iter::repeat_n(0, len - input.len()));
            let end = row * len + input.len();
            wanted.extend((end - pair.continuation.len()..end).map(|at| at as i32));
        }
        let head = model.head();
        let (device, vocabulary) = (head.device(), head.dims()[0]);
        let tokens = TokenMeta::right_padded(&lengths, len)?;
        let ids = ids_tensor(&ids, rows.len(), &device);
        let last = model.forward_ids(ids, &tokens, &ForwardOptions::infer(), vec![])?.last;
        let [b, t, d] = last.dims();
        let hidden = last.reshape([b * t, d]);
        let mut targets = rows.iter().flat_map(|pair| &pair.continuation);
        let mut tokens = Vec::with_capacity(wanted.len());
        for places in wanted.chunks((LOGITS / vocabulary).max(1)) {
            let n = places.len();
            let places = TensorData::new(places.to_vec(), [n]);
            let places = Tensor::<1, Int>::from_data(places, &device);
            let hidden = hidden.clone().select(0, places).reshape([1, n, d]);
            let logits = model.logits(hidden).cast(DType::F32).into_data();
            let logits: Vec<f32> = logits.iter::<f32>().collect();
            for (row, target) in logits.chunks(vocabulary).zip(&mut targets) {
                tokens.push(token(row, *target as usize)?);
            }
        }
        let mut tokens = tokens.into_iter();
        let score = |(pair, input): (&&Continuation, &Vec<u32>)| {
            let own = tokens.by_ref().take(pair.continuation.len());
            let (sum, greedy) =
                own.fold((0.0, true), |(sum, all), (log_p, best)| (sum + log_p, all && best));
            let cut = pair.len() - 1 - input.len();
            Loglikelihood { sum, greedy, tokens: pair.continuation.len(), cut }
        };
        Ok(rows.iter().zip(&inputs).map(score).collect())
    }
}

impl Continuation {
    /// Tokens of both parts.
    fn len(&self) -> usize {
        self.context.len() + self.continuation.len()
    }

    /// What the model sees: all but the last token, and of that the last `max_len`.
    fn input(&self, max_len: usize) -> Vec<u32> {
        let all = self.len() - 1;
        let ids = self.context.iter().chain(&self.continuation).take(all);
        ids.skip(all.saturating_sub(max_len)).copied().collect()
    }
}

/// log p of `target`, and whether it is the most likely token (the first of equals).
fn token(logits: &[f32], target: usize) -> Result<(f64, bool)> {
    let mut best = 0;
    for (id, value) in logits.iter().enumerate() {
        if value.is_nan() || *value == f32::INFINITY {
            return Err(Error::Evaluation {
                what: format!("the logit of id {id}"),
                value: (*value).into(),
                remedy: "look for NaN or infinite weights with `longburn inspect`".into(),
            });
        }
        if *value > logits[best] {
            best = id;
        }
    }
    let top = f64::from(logits[best]);
    let total: f64 = logits.iter().map(|value| (f64::from(*value) - top).exp()).sum();
    Ok((f64::from(logits[target]) - top - total.ln(), best == target))
}
