//! Longer positions without training: the configuration that each method leads to.

use super::ModelConfig;
use crate::models::weights::read_text;
use crate::positional::{LongRope, RopeKind, Yarn};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Largest file of divisors that is read, bytes.
const MAX_FACTORS: u64 = 1 << 20;

/// A way to stretch the positions of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub enum Extension {
    /// Position Interpolation. The factor is a whole number of times the one in place, and
    /// `max_position_embeddings` stays what it was, as inference programs expect of it (they
    /// multiply it by the factor).
    Linear,
    /// Static NTK: another θ, and nothing else, so that any program can read it.
    Ntk,
    /// Dynamic NTK: as trained up to the present length, then θ grows with the length at hand.
    Dynamic,
    /// YaRN with the paper's bounds.
    Yarn,
    /// LongRoPE with divisors found elsewhere.
    LongRope {
        /// Divisors up to the present length, one per rotary pair.
        short_factor: Vec<f64>,
        /// Divisors beyond it.
        long_factor: Vec<f64>,
    },
    /// Llama 3.1's blend with its bounds, 1 and 4.
    Llama3,
}

/// The name of an [`Extension`], as recipes have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExtendMethod {
    /// [`Extension::Linear`]
    #[default]
    Linear,
    /// [`Extension::Ntk`]
    Ntk,
    /// [`Extension::Dynamic`]
    Dynamic,
    /// [`Extension::Yarn`]
    Yarn,
    /// [`Extension::LongRope`]
    LongRope,
    /// [`Extension::Llama3`]
    Llama3,
}

/// A file of LongRoPE's divisors.
#[derive(Deserialize)]
struct Factors {
    short_factor: Option<Vec<f64>>,
    long_factor: Vec<f64>,
}

impl ExtendMethod {
    /// Whether the method goes with a file of divisors, or without one.
    ///
    /// # Errors
    /// [`Error::Config`] for LongRoPE without a file, and for another method with one.
    pub fn check(self, factors: Option<&Path>) -> Result<()> {
        match (self, factors) {
            (Self::LongRope, None) => {
                let expected = "a JSON file with `long_factor`, a list of one number per rotary \
                                pair, and if wanted `short_factor`";
                Err(Error::config("extend", "factors", "missing", expected))
            }
            (Self::LongRope, Some(_)) | (_, None) => Ok(()),
            (_, Some(path)) => {
                let expected = "nothing, unless the method is longrope";
                Err(Error::config("extend", "factors", path.display(), expected))
            }
        }
    }

    /// The method with its settings for a model. `factors` is a JSON file with the lists
    /// `long_factor` and, if wanted, `short_factor` (ones where it is not there).
    ///
    /// # Errors
    /// Those of [`check`](Self::check), and of a file that cannot be read or has other lists.
    pub fn init(self, config: &ModelConfig, factors: Option<&Path>) -> Result<Extension> {
        self.check(factors)?;
        Ok(match self {
            Self::Linear => Extension::Linear,
            Self::Ntk => Extension::Ntk,
            Self::Dynamic => Extension::Dynamic,
            Self::Yarn => Extension::Yarn,
            Self::Llama3 => Extension::Llama3,
            Self::LongRope => {
                let path = factors.unwrap_or(Path::new(""));
                let file = path.display().to_string();
                let text = read_text(path, MAX_FACTORS)?;
                let pairs = config.rope.dim / 2;
                let remedy = format!("a list of {pairs} numbers above 0, one per rotary pair");
                let Factors { short_factor, long_factor } =
                    serde_json::from_str(&text).map_err(|e| {
                        let remedy = format!("`long_factor` is {remedy}; `short_factor` may be");
                        super::parse_error(&e, &text, &file, &remedy)
                    })?;
                let short_factor = short_factor.unwrap_or_else(|| vec![1.0; pairs]);
                for (field, list) in
                    [("short_factor", &short_factor), ("long_factor", &long_factor)]
                {
                    let bad = list.iter().find(|x| !(**x > 0.0 && x.is_finite()));
                    let found = match bad {
                        _ if list.len() != pairs => format!("{} numbers", list.len()),
                        Some(bad) => format!("a list with {bad} in it"),
                        None => continue,
                    };
                    return Err(Error::config(file, field, found, remedy));
                }
                Extension::LongRope { short_factor, long_factor }
            }
        })
    }
}

impl Extension {
    /// The name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Ntk => "ntk",
            Self::Dynamic => "dynamic",
            Self::Yarn => "yarn",
            Self::LongRope { .. } => "longrope",
            Self::Llama3 => "llama3",
        }
    }
}

impl ModelConfig {
    /// This model reaching `to` tokens by `method`.
    ///
    /// # Errors
    /// [`Error::Config`] when it reaches as far already or the method's settings do not fit, and
    /// [`Error::Unsupported`] when its positions are scaled already (linear on linear is not:
    /// the factors multiply).
    pub fn extended(&self, method: &Extension, to: usize) -> Result<Self> {
        if !self.architecture.has_attention() {
            return Err(Error::Unsupported {
                what: format!(
                    "extending {}, which has no positions",
                    self.architecture.model_type()
                ),
                remedy: "use it at any length as it is".into(),
            });
        }
        let reach = self.max_context();
        if to <= reach {
            let expected = format!("more than the {reach} tokens that the model reaches already");
            return Err(Error::config("extend", "to", to, expected));
        }
        let most = super::check::limit("max_position_embeddings");
        if to > most {
            return Err(Error::config("extend", "to", to, format!("at most {most}")));
        }
        let mut config = self.clone();
        if *method == Extension::Linear {
            config.rope = self.rope.interpolated(to.div_ceil(reach) as f64)?;
            return Ok(config);
        }
        if self.rope.kind != RopeKind::Default {
            return Err(Error::Unsupported {
                what: format!(
                    "extending a checkpoint with rope type {} by {}",
                    self.rope.kind.name(),
                    method.name()
                ),
                remedy: "extend the checkpoint that its positions were scaled from".into(),
            });
        }
        let original = self.max_position_embeddings;
        let factor = to as f64 / original as f64;
        let kind = match method {
            Extension::Linear | Extension::Ntk => RopeKind::Default,
            Extension::Dynamic => {
                RopeKind::Dynamic { factor, original_max_position_embeddings: original }
            }
            Extension::Yarn => RopeKind::Yarn(Yarn::new(factor, original)),
            Extension::LongRope { short_factor, long_factor } => RopeKind::LongRope(LongRope {
                factor,
                original_max_position_embeddings: original,
                short_factor: short_factor.clone(),
                long_factor: long_factor.clone(),
                attention_factor: None,
            }),
            Extension::Llama3 => RopeKind::Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: original,
            },
        };
        if *method == Extension::Ntk {
            config.rope = self.rope.ntk(factor)?;
        }
        // Dynamic NTK takes its original length from this field.
        if *method != Extension::Dynamic {
            config.max_position_embeddings = to;
        }
        config.rope.kind = kind;
        config.rope.init()?;
        Ok(config)
    }
}
