//! Which files a thing was made from, without reading all of them.

use super::source::{SourceFile, files_under};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::UNIX_EPOCH;

/// Bytes at the beginning and at the end of a file that are looked at.
const END: u64 = 1 << 20;

/// What can be told of a file without reading all of it. This form stands in checkpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    /// Length, bytes.
    pub len: u64,
    /// When it was last written, nanoseconds since 1970.
    pub modified: u64,
    /// SHA-256 of its first and last mebibyte, hexadecimal.
    pub sha256: String,
    /// SHA-256 of all of it, where someone took it; of a small file, the ends are all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<String>,
}

impl FileStamp {
    /// Stamp one file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(path: &Path) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let mut file = File::open(path).map_err(io)?;
        let about = file.metadata().map_err(io)?;
        let len = about.len();
        let mut bytes = Vec::new();
        file.by_ref().take(END).read_to_end(&mut bytes).map_err(io)?;
        if len > END {
            file.seek(SeekFrom::Start(END.max(len - END))).map_err(io)?;
            file.take(END).read_to_end(&mut bytes).map_err(io)?;
        }
        let since = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified = since.map_or(0, |since| since.as_nanos() as u64);
        Ok(Self { len, modified, sha256: hex(&Sha256::digest(&bytes)), whole: None })
    }

    /// Stamp the files of a source by their names: one file, or all below a folder.
    ///
    /// # Errors
    /// When there are none, or one cannot be read.
    pub fn of_source(path: &Path) -> Result<BTreeMap<String, Self>> {
        let files = files_under(path, true)?;
        files.into_iter().map(|SourceFile { path, name }| Ok((name, Self::of(&path)?))).collect()
    }

    /// Whether there is something between the first and the last mebibyte.
    pub fn has_middle(&self) -> bool {
        self.len > 2 * END
    }

    /// How the file has changed since, in words; `None` where it is the same as far as can be told.
    /// A copy is the same, whatever its time.
    pub fn difference(&self, new: &Self) -> Option<String> {
        let date = self.modified != new.modified;
        match (&self.whole, &new.whole) {
            _ if self.len != new.len => Some(format!("had {} bytes, has {}", self.len, new.len)),
            _ if self.sha256 != new.sha256 && self.has_middle() => {
                Some("has other contents in its first or last mebibyte".into())
            }
            _ if self.sha256 != new.sha256 => Some("has other contents".into()),
            (Some(old), Some(new)) if old != new => {
                Some("has other contents between its first and its last mebibyte".into())
            }
            (None, _) | (_, None) if date && self.has_middle() => Some(
                "was written again; its length, first and last mebibyte are the same, of the \
                 rest no sum was kept"
                    .into(),
            ),
            _ => None,
        }
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
