//! Rotary position embedding (RoFormer, arXiv 2104.09864), half layout, with the scalings of
//! [`RopeKind`].
//!
//! Angles are computed on the host in f64 from integer positions and rounded once to f32, so
//! that a position of one million is as exact as position one.
//!
//! *Length and cache.* The frequencies of `dynamic` and `longrope` depend on the current length T:
//! the largest position of the row in this call plus one. Every row of a batch has its own, and so
//! is what it would be alone; in `transformers` the longest row sets T for all (here
//! [`Rope::table_at`]). A cache holds keys as they were rotated when they came, so in decoding the
//! old keys keep the frequencies of the T at which they came, and a cached text differs from the
//! same text in one pass once T passes L. `transformers` does the same; it is the default here
//! for that reason. With `ForwardOptions::with_unrotated_cache` the keys stay unrotated in the cache, and
//! all are rotated in every step with the frequencies of its T, so that queries and keys agree. That
//! is one pass for a single layer; what deeper layers cache still came of the lengths of its time.
//! Only running the whole sequence at every step is one pass altogether.

use super::frequencies::{attention_factor, frequencies, ntk_base};
use super::{Positions, RopeKind};
use crate::{Error, Result};
use burn::tensor::{Device, Tensor, TensorData};
use longburn_kernels::fused::rotate_half;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};

/// Configuration of [`Rope`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeConfig {
    /// Base θ.
    pub theta: f64,
    /// Rotated width d, even; channels of a head behind it pass through.
    pub dim: usize,
    /// Scaling.
    pub kind: RopeKind,
}

impl RopeConfig {
    /// Plain RoPE.
    pub fn new(theta: f64, dim: usize) -> Self {
        Self { theta, dim, kind: RopeKind::Default }
    }

    /// Choose the scaling.
    pub fn with_kind(mut self, kind: RopeKind) -> Self {
        self.kind = kind;
        self
    }

    /// Stretch the positions `factor` times more than they already are.
    ///
    /// # Errors
    /// When another scaling than linear is in place.
    pub fn interpolated(&self, factor: f64) -> Result<Self> {
        let kind = match &self.kind {
            RopeKind::Default => RopeKind::Linear { factor },
            RopeKind::Linear { factor: old } => RopeKind::Linear { factor: old * factor },
            other => {
                return Err(Error::Unsupported {
                    what: format!(
                        "position interpolation of a checkpoint with rope type {}",
                        other.name()
                    ),
                    remedy: "extend the checkpoint that its positions were scaled from".into(),
                });
            }
        };
        Ok(self.clone().with_kind(kind))
    }

    /// Static NTK-aware scaling: θ·α^(d/(d−2)), so that the fastest pair stays as it is and the
    /// slowest turns α times slower.
    ///
    /// # Errors
    /// α below 1, fewer than 4 rotated channels, or a scaling in place.
    pub fn ntk(&self, alpha: f64) -> Result<Self> {
        if self.kind != RopeKind::Default {
            let expected = "default, to change the base of";
            return Err(Error::config("rope", "rope_type", self.kind.name(), expected));
        }
        if !(alpha >= 1.0 && alpha.is_finite()) {
            return Err(Error::config("rope", "alpha", alpha, "a number of at least 1"));
        }
        if self.dim < 4 {
            return Err(Error::config(
                "rope",
                "dim",
                self.dim,
                "at least 4 rotated channels (ntk)",
            ));
        }
        Ok(Self { theta: ntk_base(self.theta, self.dim, alpha), ..self.clone() })
    }

    /// The linear factor in place (1 where there is none).
    pub fn linear_factor(&self) -> f64 {
        match self.kind {
            RopeKind::Linear { factor } => factor,
            _ => 1.0,
        }
    }

    /// Check and build.
    ///
    /// # Errors
    /// θ not above 0, odd width, a factor below 1, lists of another length than half the width,
    /// or bounds out of order.
    pub fn init(&self) -> Result<Rope> {
        let bad = |field: &str, value: String, expected: &str| {
            Err(Error::config("rope", field, value, expected))
        };
        if self.dim == 0 || !self.dim.is_multiple_of(2) {
            return bad("dim", self.dim.to_string(), "a positive even width");
        }
        if !(self.theta > 0.0 && self.theta.is_finite()) {
            return bad("rope_theta", self.theta.to_string(), "a positive number");
        }
        self.kind.check(self.theta, self.dim)?;
        let attention_factor = attention_factor(&self.kind);
        Ok(Rope { config: self.clone(), attention_factor, last: Default::default() })
    }
}

/// Rotary encoding; build by [`RopeConfig::init`].
#[derive(Clone, Debug)]
pub struct Rope {
    config: RopeConfig,
    attention_factor: f64,
    last: Arc<Mutex<Option<Last>>>,
}

/// The tables that were asked for last: every step of a training has the same positions, and so has
/// every layer that rotates keys out of a cache.
#[derive(Clone, Debug)]
struct Last {
    positions: Positions,
    /// Of every row.
    lengths: Vec<usize>,
    device: Device,
    /// Cosines and sines.
    tables: [Tensor<4>; 2],
}

/// Cosines and sines of one set of positions, shared by all layers.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// `[B or 1, 1, T, D/2]`
    pub cos: Tensor<4>,
    /// `[B or 1, 1, T, D/2]`
    pub sin: Tensor<4>,
    rope: Rope,
}

impl Rope {
    /// The configuration.
    pub fn config(&self) -> &RopeConfig {
        &self.config
    }

    /// Radians per position in a sequence of `length` tokens, `[D/2]`. The length matters to the
    /// kinds that [follow it](RopeKind::follows_length) only.
    pub fn inv_freq(&self, length: usize) -> Vec<f64> {
        frequencies(&self.config.kind, self.config.theta, self.config.dim, length)
    }

    /// What cosines and sines are multiplied by; logits get its square.
    pub fn attention_factor(&self) -> f64 {
        self.attention_factor
    }

    /// Tables for `positions`, each row with the frequencies of its own length; one row where all
    /// rows are equal.
    pub fn table(&self, positions: &Positions, device: &Device) -> RopeTable {
        self.tables(positions, |b| positions.row_length(b), device)
    }

    /// The same with the frequencies of one length in all rows, whatever theirs are: with that of
    /// the longest ([`Positions::length`]) the tables of `transformers`.
    pub fn table_at(&self, positions: &Positions, length: usize, device: &Device) -> RopeTable {
        self.tables(positions, |_| length, device)
    }

    fn tables(
        &self,
        positions: &Positions,
        length: impl Fn(usize) -> usize,
        device: &Device,
    ) -> RopeTable {
        let rows = if positions.uniform() { positions.batch().min(1) } else { positions.batch() };
        let lengths: Vec<_> = (0..rows).map(length).collect();
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |last: &&Last| {
            last.positions == *positions
                && last.lengths == lengths
                && last.device == *device
                // Devices are equal whether they build a graph or not; one that does has a strategy.
                && last.device.gradient_checkpointing_strategy()
                    == device.gradient_checkpointing_strategy()
        };
        let found = last().as_ref().filter(same).map(|last| last.tables.clone());
        if let Some([cos, sin]) = found {
            return RopeTable { cos, sin, rope: self.clone() };
        }
        // Before others take their place in memory.
        *last() = None;
        let scale = 1.0 / positions.denominator() as f64;
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for (b, length) in lengths.iter().enumerate() {
            let inv_freq = self.inv_freq(*length);
            for &p in positions.row(b) {
                for f in &inv_freq {
                    let (s, c) = (p as f64 * scale * f).sin_cos();
                    cos.push((c * self.attention_factor) as f32);
                    sin.push((s * self.attention_factor) as f32);
                }
            }
        }
        let shape = [rows, 1, positions.len(), self.config.dim / 2];
        let tensor = |x: Vec<f32>| Tensor::from_data(TensorData::new(x, shape), device);
        let tables = [tensor(cos), tensor(sin)];
        let [cos, sin] = tables.clone();
        *last() =
            Some(Last { positions: positions.clone(), lengths, device: device.clone(), tables });
        RopeTable { cos, sin, rope: self.clone() }
    }
}

impl RopeTable {
    /// What it was made by.
    pub fn rope(&self) -> &Rope {
        &self.rope
    }

    /// Rotate the first D channels: `(x1, x2) -> (x1·cos − x2·sin, x2·cos + x1·sin)` with x1 and
    /// x2 the two halves of D; channels behind D pass through.
    ///
    /// # Shapes
    /// x_BHTD `[B, H, T, >= D]` -> the same
    pub fn rotate(&self, x_BHTD: Tensor<4>) -> Tensor<4> {
        rotate_half(x_BHTD, self.cos.clone(), self.sin.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of Llama 3.1, computed independently.
    #[test]
    fn llama3_blends_between_long_and_short_wavelengths() {
        let kind = RopeKind::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let plain = RopeConfig::new(5e5, 128);
        let scaled = plain.clone().with_kind(kind).init().unwrap();
        let plain = plain.init().unwrap();
        for (i, expected) in [
            (28, plain.inv_freq(0)[28]),
            (29, 0.002_166_570_8),
            (32, 0.000_524_846_16),
            (34, 0.000_178_507_81),
            (35, 9.556_212_4e-5),
            (63, 3.068_926e-7),
        ] {
            let got = scaled.inv_freq(0)[i];
            assert!((got / expected - 1.0).abs() < 1e-6, "{i}: {got} {expected}");
        }
    }

    /// What was asked for last is only given where all is the same: positions, the length that sets
    /// frequencies, and whether a graph is built.
    #[test]
    fn tables_are_those_that_were_asked_for() {
        let kind = RopeKind::Dynamic { factor: 2.0, original_max_position_embeddings: 8 };
        let config = RopeConfig::new(1e4, 4).with_kind(kind);
        let (rope, device) = (config.init().unwrap(), Device::default());
        let near = Positions::range(1, 6, 0);
        let asked = [(&near, 6), (&near, 6), (&near, 40), (&Positions::range(1, 6, 3), 40)];
        for (positions, length) in asked {
            let new = || config.init().unwrap().table_at(positions, length, &device);
            let (got, want) = (rope.clone().table_at(positions, length, &device), new());
            for (got, want) in [(got.cos, want.cos), (got.sin, want.sin)] {
                assert_eq!(got.into_data(), want.into_data(), "{positions:?} at {length}");
            }
        }
        for device in [device.clone().inner(), device.clone().inner().autodiff()] {
            let table = rope.table_at(&near, 6, &device);
            assert_eq!(table.cos.device().is_autodiff(), device.is_autodiff());
        }
        let (a, b) = (rope.table_at(&near, 6, &device), rope.table_at(&near, 40, &device));
        assert_ne!(a.cos.into_data(), b.cos.into_data());
    }
}
