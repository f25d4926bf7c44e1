//! `model.safetensors.index.json`: which shard holds which tensor.

use super::header::Distinct;
use super::text::{read_text, shortened};
use crate::paths::is_plain_name;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Largest index that is read, bytes; a hundred thousand tensors take about ten million.
const MAX_INDEX: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: Distinct,
}

/// The tensors of each shard, by the shard's plain file name.
pub(super) fn read(file: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let text = read_text(file, MAX_INDEX)?;
    let index: Index = serde_json::from_str(&text).map_err(|e| {
        refused(file, format!("is not an index: {}", shortened(&e.to_string(), 300)))
    })?;
    let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (tensor, shard) in index.weight_map.0 {
        if !is_plain_name(&shard) {
            let shard = shortened(&shard, 100);
            return Err(refused(file, format!("names the shard {shard:?}, not a plain file name")));
        }
        shards.entry(shard).or_default().insert(tensor);
    }
    if shards.is_empty() {
        return Err(refused(file, "lists no tensor".into()));
    }
    Ok(shards)
}

/// The shards that an index names, plain file names.
pub(crate) fn shards(file: &Path) -> Result<Vec<String>> {
    Ok(read(file)?.into_keys().collect())
}

/// The text of an index, tensors sorted.
pub(super) fn text(total_size: u64, weight_map: &BTreeMap<&str, String>) -> String {
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    format!("{index:#}\n")
}

fn refused(file: &Path, reason: String) -> Error {
    Error::Weights {
        file: file.into(),
        reason,
        remedy: "get the index and all its shards again, from a source you trust".into(),
    }
}
