//! Writing safetensors files and whole checkpoints.

use super::header::{MAX_HEADER, METADATA};
use super::tensor::{HostTensor, RawTensor, SaveDtype, Saved, check_range};
use super::{INDEX, SINGLE, index};
use crate::atomic::{Staged, folder, sync_folder};
use crate::{Error, Result};
use safetensors::View;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;

/// Write one safetensors file. The same input gives the same bytes; an existing file is
/// replaced in one step.
///
/// # Errors
/// A tensor whose bytes do not fit its shape and type, or the disk.
pub fn write_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, RawTensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let views = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    stage(path, views, metadata)?.commit()?;
    sync_folder(folder(path))
}

/// Write the weights of a model into `dir` (made if need be) as `model.safetensors`, or, where
/// they exceed `max_shard_bytes`, as numbered shards with an index.
///
/// Weights of an earlier save in the folder are replaced. A kill at any moment leaves the old
/// weights, the new ones, or a folder that does not open, but never a mixture.
///
/// # Errors
/// A name that comes twice, a tensor whose values do not fit its shape or leave the range of
/// `dtype`, or the disk.
pub fn save_weights(
    dir: &Path,
    tensors: &[HostTensor],
    dtype: SaveDtype,
    max_shard_bytes: Option<u64>,
) -> Result<()> {
    let mut sorted: Vec<&HostTensor> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(Error::shape("save_weights", format!("`{}` comes twice", pair[0].name)));
    }
    for tensor in &sorted {
        tensor.check()?;
        check_range(&tensor.name, &tensor.data, dtype)?;
    }
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let file = |name: &str, group: &[&HostTensor]| {
        let views = group.iter().map(|t| (t.name.as_str(), Saved(t, dtype))).collect();
        stage(&dir.join(name), views, &metadata)
    };

    let groups = split(&sorted, dtype, max_shard_bytes.unwrap_or(u64::MAX));
    if let [all] = &groups[..] {
        // Readers prefer the single file, so that its rename is the moment of change.
        file(SINGLE, all)?.commit()?;
        sync_folder(dir)?;
        return remove_stale(dir, &BTreeSet::from([SINGLE.to_string()]));
    }
    let mut weight_map = BTreeMap::new();
    let mut staged = Vec::new();
    let mut kept = BTreeSet::from([INDEX.to_string()]);
    let mut total = 0;
    for (i, group) in groups.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, groups.len());
        staged.push(file(&name, group)?);
        weight_map.extend(group.iter().map(|t| (t.name.as_str(), name.clone())));
        total += group.iter().map(|t| size(t, dtype)).sum::<u64>();
        kept.insert(name);
    }
    let text = index::text(total, &weight_map);
    let index = Staged::write(&dir.join(INDEX), |out| out.write_all(text.as_bytes()))?;
    // Shards of an earlier save can have the same names: without its index first, a kill
    // between the renames would leave old and new shards under one index.
    remove(&dir.join(INDEX))?;
    sync_folder(dir)?;
    for shard in staged {
        shard.commit()?;
    }
    sync_folder(dir)?;
    index.commit()?;
    sync_folder(dir)?;
    remove_stale(dir, &kept)
}

fn size(tensor: &HostTensor, dtype: SaveDtype) -> u64 {
    Saved(tensor, dtype).data_len() as u64
}

/// Runs of tensors of at most `limit` bytes each; a tensor above it stands alone.
fn split<'a>(tensors: &[&'a HostTensor], dtype: SaveDtype, limit: u64) -> Vec<Vec<&'a HostTensor>> {
    let mut groups = vec![Vec::new()];
    let mut filled = 0;
    for tensor in tensors {
        let bytes = size(tensor, dtype);
        if filled + bytes > limit && filled > 0 {
            groups.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(group) = groups.last_mut() {
            group.push(*tensor);
        }
    }
    groups
}

/// Remove the weights of earlier saves, except `kept`: the index first, then what it lists.
fn remove_stale(dir: &Path, kept: &BTreeSet<String>) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(|e| Error::io(dir, e))?;
    let shards = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_shard(name));
    let mut stale = vec![INDEX.to_string(), SINGLE.to_string()];
    stale.extend(shards);
    stale.retain(|name| !kept.contains(name));
    for name in stale {
        remove(&dir.join(name))?;
    }
    sync_folder(dir)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

/// `model-00001-of-00002.safetensors`
pub(super) fn is_shard(name: &str) -> bool {
    let number = |s: &str| s.len() >= 5 && s.bytes().all(|b| b.is_ascii_digit());
    name.strip_prefix("model-")
        .and_then(|rest| rest.strip_suffix(".safetensors"))
        .and_then(|rest| rest.split_once("-of-"))
        .is_some_and(|(i, n)| number(i) && number(n))
}

/// Write header and data beside `path`: widest types first (so that each is aligned), then by
/// name, as the reference implementation does.
fn stage<V: View>(
    path: &Path,
    mut views: Vec<(&str, V)>,
    metadata: &BTreeMap<String, String>,
) -> Result<Staged> {
    views.sort_by(|(a, left), (b, right)| right.dtype().cmp(&left.dtype()).then(a.cmp(b)));
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert(METADATA.into(), json!(metadata));
    }
    let mut end = 0;
    for (name, view) in &views {
        let bits = view.shape().iter().try_fold(view.dtype().bitsize(), |n, d| n.checked_mul(*d));
        if *name == METADATA || bits != view.data_len().checked_mul(8) {
            let (dtype, shape, length) = (view.dtype(), view.shape(), view.data_len());
            let reason = format!("{dtype:?} {shape:?} with {length} bytes cannot be written");
            return Err(Error::shape(*name, reason));
        }
        let start = end;
        end += view.data_len();
        let entry = json!({
            "dtype": view.dtype(), "shape": view.shape(), "data_offsets": [start, end],
        });
        header.insert((*name).into(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    if header.len() as u64 > MAX_HEADER {
        let reason = format!("{} tensors need a header above {MAX_HEADER} bytes", views.len());
        return Err(Error::shape(path.display().to_string(), reason));
    }
    Staged::write(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        views.iter().try_for_each(|(_, view)| out.write_all(&view.data()))
    })
}
