//! Which files a thing was made from, without reading all of them.

use super::source::{SourceFile, files_under};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::UNIX_EPOCH;

/// Bytes at either end of a file that are hashed.
const END: u64 = 64 << 10;

/// What tells a file from others of its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileStamp {
    /// Path below the folder that was named, or the file's name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Time of the last change, nanoseconds since 1970.
    pub modified: u64,
    /// SHA-256 of the first and last 64 KiB, hexadecimal.
    pub ends: String,
}

impl FileStamp {
    /// Stamp one file under a name.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of(path: &Path, name: impl Into<String>) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let mut file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        let modified = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        let mut bytes = Vec::new();
        file.by_ref().take(END).read_to_end(&mut bytes).map_err(io)?;
        let rest = metadata.len().saturating_sub(END);
        file.seek(SeekFrom::Start(metadata.len() - rest.min(END))).map_err(io)?;
        file.take(END).read_to_end(&mut bytes).map_err(io)?;
        Ok(Self {
            name: name.into(),
            size: metadata.len(),
            modified: modified.map_or(0, |t| t.as_nanos() as u64),
            ends: hex(&Sha256::digest(&bytes)),
        })
    }

    /// Stamp the files of a source: one file, or all below a folder.
    ///
    /// # Errors
    /// When there are none, or one cannot be read.
    pub fn of_source(path: &Path) -> Result<Vec<Self>> {
        let files = files_under(path, true)?;
        files.into_iter().map(|SourceFile { path, name }| Self::of(&path, name)).collect()
    }
}

/// SHA-256 of a value's JSON, hexadecimal.
///
/// # Errors
/// When the value cannot be expressed in JSON.
pub fn fingerprint(of: &impl Serialize) -> Result<String> {
    let json = serde_json::to_vec(of).map_err(|e| Error::Data(format!("fingerprint: {e}")))?;
    Ok(hex(&Sha256::digest(&json)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
