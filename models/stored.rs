//! How a checkpoint stores what the key map names. Nearly always as it is; GPT-NeoX alone keeps
//! the q, k and v projections of a layer as one tensor, head after head the rows of q, k and v.
//!
//! In memory they are three layers as everywhere, so that all mixers, and low-rank updates by
//! role, work on it too. The key map gives them the names of three tensors, `…query_key_value.q.…`
//! and so on; the functions here join those for saving and take them apart in loading.

use super::weights::HostTensor;
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Name of the layer that holds all three.
pub(super) const FUSED: &str = ".query_key_value.";
/// Its parts, in the order in which each head has them.
pub(super) const PARTS: [&str; 3] = ["q.", "k.", "v."];

/// The tensor that holds `name`, and which third of it `name` is.
pub(super) fn place(name: &str) -> (String, Option<usize>) {
    for (index, part) in PARTS.iter().enumerate() {
        if let Some((layer, rest)) = name.split_once(&format!("{FUSED}{part}")) {
            return (format!("{layer}{FUSED}{rest}"), Some(index));
        }
    }
    (name.into(), None)
}

/// Shapes of the stored tensors from those of the named ones.
pub(super) fn shapes(
    named: impl IntoIterator<Item = (String, Vec<usize>)>,
) -> BTreeMap<String, Vec<usize>> {
    let mut stored: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (name, shape) in named {
        let (name, _) = place(&name);
        match stored.get_mut(&name) {
            Some(rows) => rows[0] += shape[0],
            None => _ = stored.insert(name, shape),
        }
    }
    stored
}

/// Stored tensors from named ones, in the order in which they first appear.
pub fn join(named: Vec<HostTensor>, heads: usize) -> Vec<HostTensor> {
    let mut stored: Vec<HostTensor> = Vec::new();
    let mut parts: BTreeMap<String, Vec<HostTensor>> = BTreeMap::new();
    for tensor in named {
        match place(&tensor.name) {
            (_, None) => stored.push(tensor),
            (name, Some(_)) => parts.entry(name).or_default().push(tensor),
        }
    }
    for (name, mut three) in parts {
        three.sort_by_key(|tensor| place(&tensor.name).1);
        let mut shape = three[0].shape.clone();
        shape[0] = three.iter().map(|tensor| tensor.shape[0]).sum();
        let parts: Vec<&[f32]> = three.iter().map(|tensor| &tensor.data[..]).collect();
        stored.push(HostTensor { name, shape, data: interleave(&parts, heads) });
    }
    stored
}

/// The rows of each head, part after part.
pub(super) fn interleave(parts: &[&[f32]], heads: usize) -> Vec<f32> {
    let per_head = parts.first().map_or(0, |part| part.len()) / heads.max(1);
    let rows = |head: usize| {
        parts.iter().flat_map(move |part| &part[head * per_head..(head + 1) * per_head]).copied()
    };
    (0..heads).flat_map(rows).collect()
}

/// The values of `name` out of the stored tensors that `load` reads.
pub(super) fn part_of(
    name: &str,
    heads: usize,
    load: impl FnOnce(&str) -> Result<Vec<f32>>,
) -> Result<Vec<f32>> {
    let (stored, part) = place(name);
    let data = load(&stored)?;
    let Some(part) = part else { return Ok(data) };
    let per_head = data.len() / (3 * heads.max(1));
    if per_head * 3 * heads != data.len() || per_head == 0 {
        let reason = format!("{} values do not make q, k and v of {heads} heads", data.len());
        return Err(Error::shape(stored, reason));
    }
    let rows = data.chunks_exact(3 * per_head);
    Ok(rows.flat_map(|head| &head[part * per_head..(part + 1) * per_head]).copied().collect())
}
