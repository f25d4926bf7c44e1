//! How rotary frequencies are scaled: what each kind is told, and what it refuses.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How the frequencies are scaled, with the field names of `config.json`.
///
/// f_i is θ^(−2i/d), L the length of the pre-training, s the factor. Static NTK is no kind of its
/// own: it is another θ, see [`RopeConfig::ntk`](super::RopeConfig::ntk).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeKind {
    /// f_i as trained.
    Default,
    /// Position Interpolation (2306.15595): positions divided by `factor`.
    Linear {
        /// Stretch, at least 1.
        factor: f64,
    },
    /// Dynamic NTK: θ grows with the current length T once it is beyond L, to
    /// θ·(s·T/L − (s − 1))^(d/(d−2)).
    Dynamic {
        /// s, at least 1.
        factor: f64,
        /// L. In `config.json` this is `max_position_embeddings`.
        original_max_position_embeddings: usize,
    },
    /// YaRN (2309.00071), as all checkpoints and inference programs compute it.
    Yarn(Yarn),
    /// NTK-by-parts as the YaRN paper writes it: between the two numbers of turns, the share that
    /// is kept grows linearly with the turns (in [`Yarn`], with the index). No `config.json` can
    /// say this.
    #[serde(rename = "by_parts")]
    ByParts {
        /// s, at least 1.
        factor: f64,
        /// Pairs with at most so many turns within L are stretched in full; 1 in the paper.
        beta_slow: f64,
        /// Pairs with at least so many turns within L are kept; 32 in the paper.
        beta_fast: f64,
        /// L
        original_max_position_embeddings: usize,
    },
    /// LongRoPE (2402.13753): a divisor per pair, one list up to L and one beyond.
    LongRope(LongRope),
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
    /// The first pairs rotate with the frequencies of the whole width, the rest do not rotate.
    Proportional {
        /// Stretch, at least 1.
        #[serde(default = "one")]
        factor: f64,
        /// Share of the pairs that rotate, 0 to 1.
        #[serde(default = "one")]
        partial_rotary_factor: f64,
    },
}

/// Settings of [`RopeKind::Yarn`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Yarn {
    /// s, at least 1.
    pub factor: f64,
    /// L
    pub original_max_position_embeddings: usize,
    /// Pairs with more turns within L than this are kept.
    #[serde(default = "thirty_two")]
    pub beta_fast: f64,
    /// Pairs with fewer turns within L than this are stretched in full.
    #[serde(default = "one")]
    pub beta_slow: f64,
    /// Factor of cosines and sines; where not set it follows from the two below, or from s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_factor: Option<f64>,
    /// With `mscale_all_dim`, both not 0, the factor is a ratio (DeepSeek).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale: Option<f64>,
    /// See `mscale`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale_all_dim: Option<f64>,
    /// Round the ends of the ramp to whole pairs.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub truncate: bool,
}

impl Yarn {
    /// The paper's settings.
    pub fn new(factor: f64, original_max_position_embeddings: usize) -> Self {
        Self {
            factor,
            original_max_position_embeddings,
            beta_fast: thirty_two(),
            beta_slow: one(),
            attention_factor: None,
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        }
    }
}

/// Settings of [`RopeKind::LongRope`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LongRope {
    /// s, of which the attention factor is made; at least 1.
    pub factor: f64,
    /// L
    pub original_max_position_embeddings: usize,
    /// Divisors up to L, one per pair.
    pub short_factor: Vec<f64>,
    /// Divisors beyond L, one per pair.
    pub long_factor: Vec<f64>,
    /// Factor of cosines and sines for both lists; √(1 + ln s / ln L) where not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_factor: Option<f64>,
}

fn one() -> f64 {
    1.0
}

fn thirty_two() -> f64 {
    32.0
}

fn yes() -> bool {
    true
}

fn is_yes(x: &bool) -> bool {
    *x
}

impl RopeKind {
    /// The names that `config.json` may have in `rope_type`.
    pub const NAMES: [&str; 7] =
        ["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"];

    /// The name in `rope_type`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Linear { .. } => "linear",
            Self::Dynamic { .. } => "dynamic",
            Self::Yarn(_) => "yarn",
            Self::ByParts { .. } => "by_parts",
            Self::LongRope(_) => "longrope",
            Self::Llama3 { .. } => "llama3",
            Self::Proportional { .. } => "proportional",
        }
    }

    /// s; 1 where nothing is stretched.
    pub fn factor(&self) -> f64 {
        match self {
            Self::Default => 1.0,
            Self::Linear { factor }
            | Self::Dynamic { factor, .. }
            | Self::ByParts { factor, .. }
            | Self::Llama3 { factor, .. }
            | Self::Proportional { factor, .. } => *factor,
            Self::Yarn(yarn) => yarn.factor,
            Self::LongRope(long) => long.factor,
        }
    }

    /// L, for the kinds that have one.
    pub fn original_length(&self) -> Option<usize> {
        match self {
            Self::Default | Self::Linear { .. } | Self::Proportional { .. } => None,
            Self::Dynamic { original_max_position_embeddings: length, .. }
            | Self::ByParts { original_max_position_embeddings: length, .. }
            | Self::Llama3 { original_max_position_embeddings: length, .. } => Some(*length),
            Self::Yarn(yarn) => Some(yarn.original_max_position_embeddings),
            Self::LongRope(long) => Some(long.original_max_position_embeddings),
        }
    }

    /// Whether the frequencies depend on the length of the sequence at hand.
    pub fn follows_length(&self) -> bool {
        matches!(self, Self::Dynamic { .. } | Self::LongRope(_))
    }

    /// Whether frequencies of `dim` rotated channels over base `theta` can be made of this.
    pub(super) fn check(&self, theta: f64, dim: usize) -> Result<()> {
        let bad = |field: &str, value: String, expected: &str| {
            Err(Error::config("rope", field, value, expected))
        };
        let factor = self.factor();
        if !(factor >= 1.0 && factor.is_finite()) {
            return bad("factor", factor.to_string(), "a number of at least 1");
        }
        // ln L divides, and below 2 tokens there is nothing to extend.
        if let Some(length) = self.original_length().filter(|length| *length < 2) {
            let expected = "the length of the pre-training, at least 2 tokens";
            return bad("original_max_position_embeddings", length.to_string(), expected);
        }
        let (Self::Yarn(Yarn { attention_factor: set, .. })
        | Self::LongRope(LongRope { attention_factor: set, .. })) = self
        else {
            return self.check_bounds(theta, dim);
        };
        match set {
            Some(a) if !(*a > 0.0 && a.is_finite()) => {
                bad("attention_factor", a.to_string(), "a positive number, or nothing")
            }
            _ => self.check_bounds(theta, dim),
        }
    }

    fn check_bounds(&self, theta: f64, dim: usize) -> Result<()> {
        let bad = |field: &str, value: String, expected: &str| {
            Err(Error::config("rope", field, value, expected))
        };
        match self {
            Self::Dynamic { .. } if dim < 4 => {
                bad("dim", dim.to_string(), "at least 4 rotated channels (dynamic)")
            }
            Self::Yarn(_) if theta <= 1.0 => {
                bad("rope_theta", theta.to_string(), "more than 1 (yarn)")
            }
            Self::Yarn(Yarn { beta_fast, beta_slow, .. })
            | Self::ByParts { beta_fast, beta_slow, .. }
                if !(*beta_slow > 0.0 && beta_fast >= beta_slow && beta_fast.is_finite()) =>
            {
                let value = format!("{beta_fast} (beta_slow is {beta_slow})");
                bad("beta_fast", value, "at least beta_slow, both above 0")
            }
            Self::Yarn(yarn) => {
                for (field, value) in
                    [("mscale", yarn.mscale), ("mscale_all_dim", yarn.mscale_all_dim)]
                {
                    if let Some(m) = value.filter(|m| !(*m >= 0.0 && m.is_finite())) {
                        return bad(field, m.to_string(), "a number of at least 0, or nothing");
                    }
                }
                Ok(())
            }
            Self::LongRope(long) => {
                for (field, list) in
                    [("short_factor", &long.short_factor), ("long_factor", &long.long_factor)]
                {
                    if list.len() != dim / 2 {
                        let expected = format!("{} numbers, one per rotary pair", dim / 2);
                        return bad(field, format!("{} numbers", list.len()), &expected);
                    }
                    if let Some(x) = list.iter().find(|x| !(**x > 0.0 && x.is_finite())) {
                        return bad(field, x.to_string(), "positive numbers only");
                    }
                }
                Ok(())
            }
            Self::Llama3 { low_freq_factor: low, high_freq_factor: high, .. }
                if !(*low > 0.0 && high > low && high.is_finite()) =>
            {
                let value = format!("{high} (low_freq_factor is {low})");
                bad("high_freq_factor", value, "more than low_freq_factor, both above 0")
            }
            Self::Proportional { partial_rotary_factor: share, .. }
                if !(0.0..=1.0).contains(share) =>
            {
                bad("partial_rotary_factor", share.to_string(), "a number from 0 to 1")
            }
            _ => Ok(()),
        }
    }
}
