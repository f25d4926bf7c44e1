//! Names and shapes of the weights that mixers have beside, or instead of, q, k, v and o.

use super::{Mamba1Config, Mamba2Config, MixerConfig};
use crate::{Error, Result};

/// Largest size of a mixer: far above any model, far below what overflows.
const LARGEST: usize = 1 << 26;

/// Names within the mixer, and shapes.
type Weights = Vec<(&'static str, Vec<usize>)>;

impl MixerConfig {
    /// Whether a layer of width `hidden` can be spoken of: no size is 0 or beyond all models.
    ///
    /// # Errors
    /// [`Error::Config`] with the mixer's field.
    pub fn check_sizes(&self, hidden: usize) -> Result<()> {
        let sizes = match self {
            Self::Dense | Self::LongLora(_) | Self::LongGen(_) | Self::Anchor | Self::Seer(_) => {
                Vec::new()
            }
            Self::Lact(config) => return config.widths(hidden).map(drop),
            Self::Mamba1(c) => vec![
                ("d_state", c.d_state),
                ("d_conv", c.d_conv),
                ("expand", c.inner(hidden)),
                ("dt_rank", c.rank(hidden)),
            ],
            Self::Mamba2(c) => vec![
                ("d_state", c.d_state),
                ("d_conv", c.d_conv),
                ("expand", c.inner(hidden)),
                ("head_dim", c.head_dim),
                ("n_groups", c.n_groups),
            ],
        };
        match sizes.into_iter().find(|(_, size)| !(1..=LARGEST).contains(size)) {
            None => Ok(()),
            Some((field, size)) => {
                let expected = format!("from 1 to {LARGEST}");
                Err(Error::config(format!("mixer {}", self.name()), field, size, expected))
            }
        }
    }

    /// Weights beside q, k, v and o in a model of width `hidden`.
    pub fn own_weights(&self, hidden: usize) -> Weights {
        match self {
            Self::Dense | Self::LongLora(_) | Self::LongGen(_) | Self::Anchor | Self::Seer(_) => {
                Vec::new()
            }
            Self::Lact(config) => config.own_weights(hidden),
            Self::Mamba1(config) => mamba1(config, hidden),
            Self::Mamba2(config) => mamba2(config, hidden),
        }
    }
}

fn mamba1(config: &Mamba1Config, hidden: usize) -> Weights {
    let (e, r, n) = (config.inner(hidden), config.rank(hidden), config.d_state);
    let mut weights = around(hidden, 2 * e, e, config.bias);
    weights.extend(conv(e, config.d_conv, config.conv_bias));
    weights.extend([
        ("x_proj.weight", vec![r + 2 * n, e]),
        ("dt_proj.weight", vec![e, r]),
        ("dt_proj.bias", vec![e]),
        ("A_log", vec![e, n]),
        ("D", vec![e]),
    ]);
    weights
}

fn mamba2(config: &Mamba2Config, hidden: usize) -> Weights {
    let (e, heads) = (config.inner(hidden), config.heads(hidden));
    let convolved = e + 2 * config.n_groups * config.d_state;
    let mut weights = around(hidden, e + convolved + heads, e, config.bias);
    weights.extend(conv(convolved, config.d_conv, config.conv_bias));
    weights.extend([
        ("dt_bias", vec![heads]),
        ("A_log", vec![heads]),
        ("D", vec![if config.d_has_head_dim { e } else { heads }]),
    ]);
    weights.extend(config.rms_norm.then(|| ("norm.weight", vec![e])));
    weights
}

/// The projections in and out.
fn around(hidden: usize, projected: usize, inner: usize, bias: bool) -> Weights {
    let mut weights =
        vec![("in_proj.weight", vec![projected, hidden]), ("out_proj.weight", vec![hidden, inner])];
    if bias {
        weights.extend([("in_proj.bias", vec![projected]), ("out_proj.bias", vec![hidden])]);
    }
    weights
}

fn conv(channels: usize, taps: usize, bias: bool) -> Weights {
    let weight = ("conv1d.weight", vec![channels, 1, taps]);
    std::iter::once(weight).chain(bias.then(|| ("conv1d.bias", vec![channels]))).collect()
}
