//! Names and shapes of the weights that mixers have beside, or instead of, q, k, v and o.

use super::{Mamba1Config, Mamba2Config, MixerConfig};
use crate::{Error, Result};

/// Largest size of a mixer: far above any model, far below what overflows.
const LARGEST: usize = 1 << 26;
/// Widest head, and most of what a layer has per head or group.
const WIDEST: usize = 1 << 16;
/// Most numbers in one tensor of a layer.
const MOST: usize = 1 << 32;

/// Names within the mixer, and shapes.
type Weights = Vec<(&'static str, Vec<usize>)>;

impl MixerConfig {
    /// Whether a layer of width `hidden` can be spoken of: no size is 0 or beyond all models.
    ///
    /// # Errors
    /// [`Error::Config`] with the mixer's field.
    pub fn check_sizes(&self, hidden: usize) -> Result<()> {
        let sizes = match self {
            Self::Dense | Self::LongLora(_) | Self::LongGen(_) | Self::Anchor => Vec::new(),
            Self::Lact(config) => return config.widths(hidden).map(drop),
            Self::Seer(c) => {
                vec![("block", c.block, LARGEST), ("gate_dim", c.gate_dim.unwrap_or(1), WIDEST)]
            }
            Self::Mamba1(c) => vec![
                ("d_state", c.d_state, LARGEST),
                ("d_conv", c.d_conv, LARGEST),
                ("expand", c.inner(hidden), LARGEST),
                ("dt_rank", c.rank(hidden), LARGEST),
            ],
            Self::Mamba2(c) => vec![
                ("d_state", c.d_state, LARGEST),
                ("d_conv", c.d_conv, LARGEST),
                ("expand", c.inner(hidden), LARGEST),
                ("head_dim", c.head_dim, LARGEST),
                ("n_groups", c.n_groups, LARGEST),
            ],
        };
        let bad = |field: &str, size: usize, expected: String| {
            Err(Error::config(format!("mixer {}", self.name()), field, size, expected))
        };
        if let Some((field, size, most)) =
            sizes.iter().find(|(_, size, most)| !(1..=*most).contains(size))
        {
            return bad(field, *size, format!("from 1 to {most}"));
        }
        // Each by itself may be one that goes, and the product of two none that can be had.
        let numbers =
            |shape: &[usize]| shape.iter().fold(1usize, |n, axis| n.saturating_mul(*axis));
        let large = self.own_weights(hidden).into_iter().find(|(_, shape)| numbers(shape) > MOST);
        match (large, sizes.iter().max_by_key(|(_, size, _)| *size)) {
            (Some((name, shape)), Some((field, size, _))) => bad(
                field,
                *size,
                format!("sizes with which no weight has over {MOST} numbers; {name} has {shape:?}"),
            ),
            _ => Ok(()),
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
