//! Choosing the next token on the host.

use super::GenerateConfig;
use crate::streams::{Draw, Purpose, Streams};
use crate::{Error, Result};

/// Chooses tokens from logits: the most likely one, or a draw from the most likely few.
///
/// In this order, which is that of `transformers`: the repetition penalty changes the logits of
/// tokens that were there; at temperature 0 the largest is taken; else the temperature divides
/// them, top-k keeps the k largest, top-p the fewest that hold its share of what is left, min-p
/// those near enough to the largest; one of these is drawn. Every filter keeps at least one token.
///
/// The draw depends on seed, step and row alone, so a text can be replayed from anywhere.
#[derive(Clone, Debug)]
pub struct Sampler {
    repetition_penalty: f64,
    temperature: f64,
    top_k: usize,
    top_p: f64,
    min_p: f64,
    streams: Streams,
}

impl Sampler {
    /// With the settings of `config` that choose tokens.
    ///
    /// # Errors
    /// Those of [`GenerateConfig::validate`].
    pub fn new(config: &GenerateConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            repetition_penalty: config.repetition_penalty,
            temperature: config.temperature,
            top_k: config.top_k,
            top_p: config.top_p,
            min_p: config.min_p,
            streams: Streams::new(config.seed),
        })
    }

    /// The token of step `step` in row `row` of a batch, behind the ids `before` (prompt and new
    /// ones). Among equals the lowest id wins.
    ///
    /// # Errors
    /// [`Error::Logits`] when a logit is NaN or +∞, or none is above −∞.
    pub fn pick(&self, logits: &[f32], before: &[u32], step: u64, row: u32) -> Result<u32> {
        let likely = self.candidates(logits, before, step)?;
        let total: f64 = likely.iter().map(|(_, weight)| weight).sum();
        let mut left = total * self.streams.rng(Purpose::Sampling, step, row, 0).unit();
        let drawn = likely.iter().find(|(_, weight)| {
            left -= weight;
            left < 0.0
        });
        Ok(drawn.unwrap_or(&likely[0]).0)
    }

    /// What [`pick`](Self::pick) draws from: ids and their probabilities, the most likely first;
    /// one id at temperature 0. Never empty.
    ///
    /// # Errors
    /// As [`pick`](Self::pick); `step` is for the message.
    pub fn candidates(&self, logits: &[f32], before: &[u32], step: u64) -> Result<Vec<(u32, f64)>> {
        check(logits, step)?;
        let mut scores: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
        if self.repetition_penalty != 1.0 {
            self.penalize(&mut scores, logits, before);
        }
        let mut likely: Vec<(u32, f64)> = (0u32..).zip(scores).collect();
        let by_score = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if self.temperature == 0.0 {
            // `check` has seen that there is a token.
            let best = likely.iter().min_by(|a, b| by_score(a, b)).map_or(0, |(id, _)| *id);
            return Ok(vec![(best, 1.0)]);
        }
        likely.sort_by(by_score);
        if self.top_k > 0 && self.top_k < likely.len() {
            let last = likely[self.top_k - 1].1;
            likely.truncate(likely.partition_point(|(_, score)| *score >= last));
        }
        let top = likely[0].1;
        likely.iter_mut().for_each(|(_, x)| *x = ((*x - top) / self.temperature).exp());
        self.keep_share(&mut likely);
        // The first weight is 1, so weights are shares of the most likely token's probability.
        likely.truncate(likely.partition_point(|(_, weight)| *weight >= self.min_p).max(1));
        let total: f64 = likely.iter().map(|(_, weight)| weight).sum();
        likely.iter_mut().for_each(|(_, weight)| *weight /= total);
        Ok(likely)
    }

    /// Each id counts once, however often it is there.
    fn penalize(&self, scores: &mut [f64], logits: &[f32], before: &[u32]) {
        for &id in before {
            if let Some(score) = scores.get_mut(id as usize) {
                let logit = f64::from(logits[id as usize]);
                let penalty = self.repetition_penalty;
                *score = if logit < 0.0 { logit * penalty } else { logit / penalty };
            }
        }
    }

    /// Top-p: keep a token where those before it do not hold the share yet.
    fn keep_share(&self, likely: &mut Vec<(u32, f64)>) {
        if self.top_p >= 1.0 {
            return;
        }
        let enough = self.top_p * likely.iter().map(|(_, weight)| weight).sum::<f64>();
        let mut held = 0.0;
        let kept = likely.iter().position(|(_, weight)| {
            held += weight;
            held >= enough
        });
        likely.truncate(kept.map_or(likely.len(), |last| last + 1));
    }
}

/// Some token can be chosen.
fn check(logits: &[f32], step: u64) -> Result<()> {
    let mut best = f32::NEG_INFINITY;
    for (token, value) in (0u32..).zip(logits.iter().copied()) {
        if value.is_nan() || value == f32::INFINITY {
            return Err(Error::Logits { step, token, value });
        }
        best = best.max(value);
    }
    match logits {
        [] => Err(Error::Logits { step, token: 0, value: f32::NAN }),
        _ if best == f32::NEG_INFINITY => Err(Error::Logits { step, token: 0, value: best }),
        _ => Ok(()),
    }
}
