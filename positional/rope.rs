//! Rotary position embedding (RoFormer, arXiv 2104.09864), half layout, with the scalings
//! linear (Position Interpolation, 2306.15595) and llama3.
//!
//! Angles are computed on the host in f64 from integer positions and rounded once to f32, so
//! that a position of one million is as exact as position one.

use super::Positions;
use crate::{Error, Result};
use burn::tensor::{Device, Tensor, TensorData};
use longburn_kernels::fused::rotate_half;
use serde::{Deserialize, Serialize};

/// How the frequencies are scaled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeKind {
    /// θ^(−2i/d) as trained.
    Default,
    /// Positions divided by `factor`.
    Linear {
        /// Stretch, at least 1.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a blend between.
    Llama3 {
        /// Stretch of the long wavelengths, at least 1.
        factor: f64,
        /// Wavelengths above original / this are stretched in full.
        low_freq_factor: f64,
        /// Wavelengths below original / this are kept.
        high_freq_factor: f64,
        /// Length of the pre-training, tokens.
        original_max_position_embeddings: usize,
    },
}

/// Configuration of [`Rope`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeConfig {
    /// Base θ.
    pub theta: f64,
    /// Rotated width, even.
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
            RopeKind::Llama3 { .. } => {
                return Err(Error::Unsupported {
                    what: "position interpolation of a llama3-scaled checkpoint".into(),
                    remedy: "extend it with its own rope type instead".into(),
                });
            }
        };
        Ok(self.clone().with_kind(kind))
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
    /// θ not above 0, odd width, a factor below 1, or llama3 bounds out of order.
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
        let factor = match &self.kind {
            RopeKind::Default => 1.0,
            RopeKind::Linear { factor } | RopeKind::Llama3 { factor, .. } => *factor,
        };
        if !(factor >= 1.0 && factor.is_finite()) {
            return bad("factor", factor.to_string(), "a number of at least 1");
        }
        if let RopeKind::Llama3 { low_freq_factor: low, high_freq_factor: high, .. } = &self.kind
            && !(*low > 0.0 && high > low)
        {
            let value = format!("{high} (low_freq_factor is {low})");
            return bad("high_freq_factor", value, "more than low_freq_factor, both above 0");
        }
        Ok(Rope { config: self.clone(), inv_freq: self.inv_freq() })
    }

    /// f_i, `[D/2]`, radians per position.
    fn inv_freq(&self) -> Vec<f64> {
        let base = (0..self.dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / self.dim as f64));
        match &self.kind {
            RopeKind::Default => base.collect(),
            RopeKind::Linear { factor } => base.map(|f| f / factor).collect(),
            RopeKind::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: length,
            } => base
                .map(|f| {
                    let turns = *length as f64 * f / std::f64::consts::TAU;
                    if turns < *low {
                        f / factor
                    } else if turns > *high {
                        f
                    } else {
                        let keep = (turns - low) / (high - low);
                        (1.0 - keep) * f / factor + keep * f
                    }
                })
                .collect(),
        }
    }
}

/// Rotary encoding; build by [`RopeConfig::init`].
#[derive(Clone, Debug)]
pub struct Rope {
    config: RopeConfig,
    inv_freq: Vec<f64>,
}

/// Cosines and sines of one set of positions, shared by all layers.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// `[B or 1, 1, T, D/2]`
    pub cos: Tensor<4>,
    /// `[B or 1, 1, T, D/2]`
    pub sin: Tensor<4>,
}

impl Rope {
    /// The configuration.
    pub fn config(&self) -> &RopeConfig {
        &self.config
    }

    /// f_i, `[D/2]`, radians per position.
    pub fn inv_freq(&self) -> &[f64] {
        &self.inv_freq
    }

    /// Tables for `positions`; one row where all rows are equal.
    pub fn table(&self, positions: &Positions, device: &Device) -> RopeTable {
        let rows = if positions.uniform() { positions.batch().min(1) } else { positions.batch() };
        let scale = 1.0 / positions.denominator() as f64;
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for b in 0..rows {
            for &p in positions.row(b) {
                for f in &self.inv_freq {
                    let (s, c) = (p as f64 * scale * f).sin_cos();
                    cos.push(c as f32);
                    sin.push(s as f32);
                }
            }
        }
        let shape = [rows, 1, positions.len(), self.inv_freq.len()];
        let tensor = |x: Vec<f32>| Tensor::from_data(TensorData::new(x, shape), device);
        RopeTable { cos: tensor(cos), sin: tensor(sin) }
    }
}

impl RopeTable {
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
            (28, plain.inv_freq()[28]),
            (29, 0.002_166_570_8),
            (32, 0.000_524_846_16),
            (34, 0.000_178_507_81),
            (35, 9.556_212_4e-5),
            (63, 3.068_926e-7),
        ] {
            let got = scaled.inv_freq()[i];
            assert!((got / expected - 1.0).abs() < 1e-6, "{i}: {got} {expected}");
        }
    }
}
