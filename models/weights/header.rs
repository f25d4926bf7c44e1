//! The header of a safetensors file, checked in full before it is believed.

use super::text::shortened;
use crate::{Error, Result};
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::path::Path;

/// Largest header the format allows, bytes.
pub(super) const MAX_HEADER: u64 = 100_000_000;
/// Key of the free-form entry.
pub(super) const METADATA: &str = "__metadata__";

/// A header that agrees with itself and with the length of its file.
pub(super) struct Header {
    pub tensors: BTreeMap<String, TensorInfo>,
    pub metadata: BTreeMap<String, String>,
    /// Where the offsets count from.
    pub data_start: usize,
}

/// Read the header of `bytes`, which are all of `file`.
pub(super) fn parse(bytes: &[u8], file: &Path) -> Result<Header> {
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(Error::Weights {
            file: file.into(),
            reason: "is a Git LFS pointer, not the weights".into(),
            remedy: "fetch the weights with `git lfs pull`".into(),
        });
    }
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(cut_short(file, format!("has {} bytes, less than any header", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        let reason = format!("claims a header of {length} bytes; the format allows {MAX_HEADER}");
        return Err(malformed(file, &reason));
    }
    let length = length as usize;
    let Some(text) = rest.get(..length) else {
        let reason = format!("claims a header of {length} bytes, but {} follow", rest.len());
        return Err(cut_short(file, reason));
    };
    let text = std::str::from_utf8(text)
        .map_err(|e| malformed(file, &format!("has a header that is not UTF-8: {e}")))?;
    let Entries { mut tensors, metadata } = serde_json::from_str(text)
        .map_err(|e| malformed(file, &format!("has an unusable header: {e}")))?;

    tensors.sort_by_key(|(_, info)| info.data_offsets);
    // Offsets without gap or overlap, sizes equal to shape times type, no overflow.
    let checked = Metadata::new(None, tensors)
        .map_err(|e| malformed(file, &format!("has an unusable header: {e}")))?;
    let (data, claimed) = (rest.len() - length, checked.data_len());
    if data < claimed {
        return Err(cut_short(file, format!("has {data} bytes of data; {claimed} are announced")));
    }
    if data > claimed {
        let reason = format!("has {} bytes behind the last tensor", data - claimed);
        return Err(malformed(file, &reason));
    }
    let tensors = checked.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
    Ok(Header { tensors, metadata, data_start: 8 + length })
}

fn cut_short(file: &Path, reason: String) -> Error {
    let remedy = "the file is cut short: download or copy it again".into();
    Error::Weights { file: file.into(), reason, remedy }
}

fn malformed(file: &Path, reason: &str) -> Error {
    Error::Weights {
        file: file.into(),
        reason: shortened(reason, 300),
        remedy: "the file is damaged or no safetensors file: get it again, from a source you trust"
            .into(),
    }
}

/// The header's object. Read entry by entry and straight into its types: nothing is buffered,
/// and a key that comes twice is seen.
struct Entries {
    tensors: Vec<(String, TensorInfo)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut tensors = BTreeMap::new();
                let mut metadata = None;
                while let Some(key) = map.next_key::<String>()? {
                    let again = if key == METADATA {
                        metadata.replace(map.next_value::<Distinct>()?.0).is_some()
                    } else {
                        let info = map.next_value::<TensorInfo>()?;
                        tensors.insert(key.clone(), info).is_some()
                    };
                    if again {
                        return Err(A::Error::custom(format!("key `{key}` comes twice")));
                    }
                }
                Ok(Entries {
                    tensors: tensors.into_iter().collect(),
                    metadata: metadata.unwrap_or_default(),
                })
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// An object of strings in which no key comes twice.
pub(super) struct Distinct(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DistinctVisitor;
        impl<'de> Visitor<'de> for DistinctVisitor {
            type Value = Distinct;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Distinct, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if entries.contains_key(&key) {
                        return Err(A::Error::custom(format!("key `{key}` comes twice")));
                    }
                    entries.insert(key, value);
                }
                Ok(Distinct(entries))
            }
        }
        deserializer.deserialize_map(DistinctVisitor)
    }
}
