//! Which query-key pairs of a job count.

use super::inputs;
use longburn::attention::{LongGenConfig, LongLoraConfig, MixerConfig};
use longburn::kernel::{BlockList, BlockStride, Mask, MaskSpec, TokenMeta};
use longburn::{Error, Result};
use serde::{Deserialize, Serialize};

/// Which causal pairs count. A further pattern is a variant here and a line in [`MaskKind::spec`]
/// or [`mask`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum MaskKind {
    /// All of them.
    Dense,
    /// The last `window` positions and the first `sinks`.
    Window { window: usize, sinks: usize },
    /// Groups of one part in `parts` of the length, shifted for half of the heads.
    Longlora { parts: usize },
    /// The `local` nearest blocks of `block` positions and one in `stride` before them, with a
    /// phase per key head.
    Stride { block: usize, local: usize, stride: usize },
    /// Blocks chosen at random for every head and block of queries, `density` of the earlier ones.
    Blocks { block: usize, density: f64 },
    /// Documents of `tokens` each, packed into a row.
    Documents { tokens: usize },
    /// LongGen's sparse layers: the `local` nearest blocks of `block` positions, the first `sinks` ones
    /// and, where there is a stride, one in so many of those between, with a phase per key head.
    Longgen { block: usize, local: usize, sinks: usize, stride: Option<usize> },
}

impl MaskKind {
    /// The rules for the kernels.
    pub fn spec(self, key_heads: usize) -> MaskSpec {
        match self {
            Self::Dense | Self::Blocks { .. } | Self::Documents { .. } => MaskSpec::causal(),
            Self::Window { window, sinks } => {
                MaskSpec::causal().with_window(Some(window)).with_sinks(sinks)
            }
            Self::Longlora { parts } => MaskSpec::causal()
                .with_groups(LongLoraConfig::new().with_group_ratio(parts).groups()),
            Self::Stride { block, local, stride } => {
                MaskSpec::causal().with_stride(BlockStride::new(block, local, stride, key_heads))
            }
            Self::Longgen { block, local, sinks, stride } => {
                longgen(block, local, sinks, stride).spec(key_heads)
            }
        }
    }

    /// The mixer of a model.
    ///
    /// # Errors
    /// For what a Llama does not have.
    pub fn mixer(self) -> Result<MixerConfig> {
        match self {
            Self::Dense => Ok(MixerConfig::Dense),
            Self::Window { .. }
            | Self::Stride { .. }
            | Self::Blocks { .. }
            | Self::Documents { .. } => Err(Error::Unsupported {
                what: format!("a Llama with a mask of {self}"),
                remedy: "measure such masks by `longburn bench attention`".into(),
            }),
            Self::Longlora { parts } => {
                Ok(MixerConfig::LongLora(LongLoraConfig::new().with_group_ratio(parts)))
            }
            Self::Longgen { block, local, sinks, stride } => {
                Ok(MixerConfig::LongGen(longgen(block, local, sinks, stride)))
            }
        }
    }
}

fn longgen(block: usize, local: usize, sinks: usize, stride: Option<usize>) -> LongGenConfig {
    let near =
        LongGenConfig::new().with_block(block).with_local_blocks(local).with_sink_blocks(sinks);
    LongGenConfig { stride, ..near }
}

impl std::fmt::Display for MaskKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dense => f.write_str("dense"),
            Self::Window { window, sinks: 0 } => write!(f, "window {window}"),
            Self::Window { window, sinks } => write!(f, "window {window}, {sinks} sinks"),
            Self::Longlora { parts } => write!(f, "LongLoRA groups of 1/{parts}"),
            Self::Stride { block, local, stride } => {
                write!(f, "stride {stride}, {local} near, blocks of {block}")
            }
            Self::Blocks { block, density } => {
                write!(f, "{density} of the blocks of {block}")
            }
            Self::Documents { tokens } => write!(f, "documents of {tokens}"),
            Self::Longgen { block, local, sinks, stride } => {
                f.write_str("LongGen")?;
                if let Some(stride) = stride {
                    write!(f, ", stride {stride}")?;
                }
                write!(f, ", {local} near, {sinks} first, blocks of {block}")
            }
        }
    }
}

/// The mask of a call over whole rows, for so many query and key heads.
///
/// # Errors
/// What masks refuse.
pub fn mask(kind: MaskKind, batch: usize, len: usize, heads: (usize, usize)) -> Result<Mask> {
    let (heads, key_heads) = heads;
    let tokens = match kind {
        MaskKind::Documents { tokens: 0 } => {
            return Err(Error::config("command line", "documents", 0, "at least 1"));
        }
        MaskKind::Documents { tokens } => {
            let count = len.div_ceil(tokens);
            let document = |i| tokens.min(len - i * tokens);
            let row: Vec<usize> = (0..count).map(document).collect();
            TokenMeta::packed(&vec![row; batch], len)?
        }
        _ => TokenMeta::contiguous(batch, len, 0),
    };
    let mask = Mask::new(kind.spec(key_heads), tokens.clone(), tokens, heads)?;
    let MaskKind::Blocks { block, density } = kind else { return Ok(mask) };
    if !(density > 0.0 && density <= 1.0) {
        return Err(Error::config("command line", "density", density, "above 0 and up to 1"));
    }
    if block == 0 {
        return Err(Error::config("command line", "block", block, "at least 1"));
    }
    let blocks = len.div_ceil(block);
    let of_head = |h| (0..blocks).map(move |q| inputs::blocks((h, q), blocks, density));
    let of_row: Vec<Vec<usize>> = (0..heads).flat_map(of_head).collect();
    // The same in all rows.
    let lists: Vec<Vec<usize>> = (0..batch).flat_map(|_| of_row.clone()).collect();
    let list = BlockList::from_lists([batch, heads, len, len], [block; 2], &lists)?;
    Ok(mask.with_blocks(list)?)
}
