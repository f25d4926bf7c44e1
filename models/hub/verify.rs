//! A snapshot against the digests that its blobs are named by.

use super::Digest;
use super::cache::blob_of;
use crate::{Error, Result};
use serde::Serialize;
use std::fs;
use std::path::Path;

/// What was compared in a snapshot, all of it equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifiedSnapshot {
    /// Files whose bytes amount to the SHA-256 that the Hub names them by.
    pub sha256: usize,
    /// Files whose bytes amount to git's digest, which the Hub names small files by.
    pub git_sha1: usize,
    /// Bytes compared.
    pub bytes: u64,
    /// Files for which the cache has no digest.
    pub without_digest: Vec<String>,
}

/// Compare the files of a snapshot of the cache with their digests; `None` where `dir` is none.
///
/// # Errors
/// [`Error::Weights`] with all files that differ.
pub fn verify_snapshot(dir: &Path) -> Result<Option<VerifiedSnapshot>> {
    let failed = |e| Error::io(dir, e);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name());
    }
    names.sort();
    if !names.iter().any(|name| blob_of(&dir.join(name)).is_some()) {
        return Ok(None);
    }
    let (mut found, mut faults) = (VerifiedSnapshot::default(), Vec::new());
    for name in names {
        let (pointer, name) = (dir.join(&name), name.to_string_lossy().into_owned());
        let blob = blob_of(&pointer);
        let of = blob.as_deref().and_then(Path::file_name).map(|n| n.to_string_lossy());
        let Some(digest) = of.and_then(|of| Digest::of_name(&of)) else {
            if !pointer.is_dir() {
                found.without_digest.push(name);
            }
            continue;
        };
        if !pointer.exists() {
            faults.push(format!("{name}: is missing"));
            continue;
        }
        if let Some(other) = digest.differs(&pointer, &mut |n| found.bytes += n)? {
            faults.push(format!("{name}: has {} {other}, not {}", digest.kind(), digest.hex()));
        }
        match digest {
            Digest::Sha256(_) => found.sha256 += 1,
            Digest::Git(_) => found.git_sha1 += 1,
        }
    }
    if faults.is_empty() {
        return Ok(Some(found));
    }
    Err(Error::Weights {
        file: dir.into(),
        reason: format!("{} files are not what the Hub has: {}", faults.len(), faults.join("; ")),
        remedy: "`longburn fetch` of the same repository gets what is damaged again".into(),
    })
}
