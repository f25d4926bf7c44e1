//! One update for three layers. GPT-NeoX stores q, k and v as one layer, and PEFT adapts that.
//!
//! An update of the fused layer is one of each of the three: all have its A, and each its own rows
//! of B. Trained here, the three get an A each, as everywhere. Written as one update they are
//! then one of rank 3·r: the A's below each other, and a B that is zero outside of three blocks.
//! `rank_pattern` and `alpha_pattern` tell PEFT, which computes the same. The file's metadata say
//! that it is made up of blocks, so that it is read back with rank r. Where all three have the
//! same A, as they do when they were read from PEFT and not trained since, one A is written.

use crate::models::stored;
use crate::models::weights::HostTensor;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;

/// Name in the metadata.
pub(super) const METADATA: &str = "longburn.query_key_value";
/// Names of the parts there.
const PARTS: [&str; 3] = ["q", "k", "v"];

/// How the updates of q, k and v lie in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fused {
    /// One A for all three.
    Shared,
    /// An A for each of these parts, 0 for q, 1 for k, 2 for v.
    Blocks(Vec<usize>),
}

impl Fused {
    /// From the metadata of a file; PEFT's own has none of this.
    pub fn read(metadata: &BTreeMap<String, String>) -> Option<Self> {
        let Some(text) = metadata.get(METADATA) else { return Some(Self::Shared) };
        let part = |name: &str| PARTS.iter().position(|known| *known == name);
        let parts = text.split(',').map(part).collect::<Option<Vec<_>>>()?;
        parts.is_sorted_by(|a, b| a < b).then_some(Self::Blocks(parts))
    }

    /// For the metadata of a file.
    pub fn to_metadata(&self) -> Option<(String, String)> {
        let Self::Blocks(parts) = self else { return None };
        let names: Vec<_> = parts.iter().map(|part| PARTS[*part]).collect();
        Some((METADATA.into(), names.join(",")))
    }

    /// Rank of the one update over that of each of the three.
    pub fn times(&self) -> usize {
        match self {
            Self::Shared => 1,
            Self::Blocks(parts) => parts.len(),
        }
    }

    /// The α with which the one update is scaled as the three are by `alpha`.
    pub fn alpha(&self, alpha: f64, rslora: bool) -> f64 {
        let times = self.times() as f64;
        alpha * if rslora { times.sqrt() } else { times }
    }

    /// Which rows of A, and columns of B, a part has; none where it has no update.
    pub fn rows(&self, part: usize, rank: usize) -> Range<usize> {
        match self {
            Self::Shared => 0..rank,
            Self::Blocks(parts) => match parts.iter().position(|p| *p == part) {
                Some(at) => at * rank..(at + 1) * rank,
                None => 0..0,
            },
        }
    }

    /// Tensors of the file from named ones: factors of q, k and v become those of one update.
    pub fn join(&self, named: Vec<HostTensor>, heads: usize) -> Vec<HostTensor> {
        let mut tensors = Vec::new();
        let mut parts: BTreeMap<String, BTreeMap<usize, HostTensor>> = BTreeMap::new();
        for tensor in named {
            match stored::place(&tensor.name) {
                (_, None) => tensors.push(tensor),
                (name, Some(part)) => _ = parts.entry(name).or_default().insert(part, tensor),
            }
        }
        for (name, parts) in parts {
            let joined = match name.ends_with("lora_A.weight") {
                true => self.join_a(&parts),
                false => self.join_b(&parts, heads),
            };
            let (shape, data) = joined;
            tensors.push(HostTensor { name, shape, data });
        }
        tensors
    }

    fn join_a(&self, parts: &BTreeMap<usize, HostTensor>) -> (Vec<usize>, Vec<f32>) {
        let taken: Vec<&HostTensor> = parts.values().take(self.times()).collect();
        let rows = taken.iter().map(|a| a.shape[0]).sum();
        let columns = taken.first().map_or(0, |a| a.shape[1]);
        (vec![rows, columns], taken.iter().flat_map(|a| &a.data).copied().collect())
    }

    fn join_b(&self, parts: &BTreeMap<usize, HostTensor>, heads: usize) -> (Vec<usize>, Vec<f32>) {
        let Some((rows, rank)) = parts.values().next().map(|b| (b.shape[0], b.shape[1])) else {
            return (vec![0, 0], Vec::new());
        };
        let width = self.times() * rank;
        let wide = |part: usize| {
            let mut data = vec![0.0; rows * width];
            if let Some(b) = parts.get(&part) {
                for (to, from) in data.chunks_mut(width).zip(b.data.chunks(rank)) {
                    to[self.rows(part, rank)].copy_from_slice(from);
                }
            }
            data
        };
        let three = [wide(0), wide(1), wide(2)];
        (vec![3 * rows, width], stored::interleave(&three.each_ref().map(|b| &b[..]), heads))
    }
}

/// The update that a file holds for a layer, `[R, in]` and `[out, R]`, cut to the rows and columns
/// that belong to it; the others must not matter to it.
pub(super) fn cut(
    (a, b): (Vec<f32>, Vec<f32>),
    width: usize,
    rows: &Range<usize>,
    key: &str,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let inside = |i: usize| rows.contains(&(i % width.max(1)));
    if b.iter().enumerate().any(|(i, x)| *x != 0.0 && !inside(i)) {
        return Err(Error::Config {
            file: key.into(),
            field: format!("metadata {METADATA}"),
            value: "not what the tensor holds".into(),
            expected: "a tensor that is zero outside of the blocks of q, k and v, or no such entry"
                .into(),
        });
    }
    let columns = a.len() / width.max(1);
    let a = a[rows.start * columns..rows.end * columns].to_vec();
    Ok((a, b.chunks(width.max(1)).flat_map(|row| &row[rows.clone()]).copied().collect()))
}
