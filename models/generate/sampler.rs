//! Choosing the next token on the host.

use crate::streams::{Draw, Purpose, Streams};
use crate::{Error, Result};

/// Chooses tokens from logits: the most likely one, or a draw from the most likely few.
///
/// The draw of one step depends on seed and step alone, so a text can be replayed from anywhere.
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f64,
    top_p: f64,
    streams: Streams,
}

impl Sampler {
    /// Temperature 0 is greedy; `top_p` 1 draws from all tokens.
    ///
    /// # Errors
    /// A negative or infinite temperature, `top_p` outside (0, 1].
    pub fn new(temperature: f64, top_p: f64, seed: u64) -> Result<Self> {
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Err(Error::config("generate", "temperature", temperature, "0 or more"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::config("generate", "top_p", top_p, "above 0, at most 1"));
        }
        Ok(Self { temperature, top_p, streams: Streams::new(seed) })
    }

    /// The token of step `step`. Among equals the lowest id wins.
    ///
    /// # Errors
    /// [`Error::Logits`] when a logit is NaN or +∞, or none is above −∞.
    pub fn pick(&self, logits: &[f32], step: u64) -> Result<u32> {
        let mut best = 0;
        for (id, x) in logits.iter().enumerate() {
            if x.is_nan() || *x == f32::INFINITY {
                return Err(Error::Logits { step, token: id as u32, value: *x });
            }
            if *x > logits[best] {
                best = id;
            }
        }
        match logits.get(best) {
            Some(x) if x.is_finite() => {}
            other => {
                let value = other.copied().unwrap_or(f32::NAN);
                return Err(Error::Logits { step, token: best as u32, value });
            }
        }
        if self.temperature == 0.0 {
            return Ok(best as u32);
        }
        let top = logits[best] as f64;
        let weight = |x: f32| ((x as f64 - top) / self.temperature).exp();
        let mut likely: Vec<(u32, f64)> =
            logits.iter().enumerate().map(|(id, x)| (id as u32, weight(*x))).collect();
        likely.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let all: f64 = likely.iter().map(|(_, w)| w).sum();
        let mut held = 0.0;
        let enough = likely.iter().position(|(_, w)| {
            held += w;
            held >= self.top_p * all
        });
        likely.truncate(enough.map_or(likely.len(), |last| last + 1));
        let mut left = held * self.streams.rng(Purpose::Sampling, step, 0, 0).unit();
        let drawn = likely.iter().find(|(_, w)| {
            left -= w;
            left < 0.0
        });
        Ok(drawn.map_or(best as u32, |(id, _)| *id))
    }
}
