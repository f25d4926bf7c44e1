//! Fingerprints of the files that a run reads: going on with other data would not be going on.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Bytes at the beginning and at the end of a file that are looked at.
const EDGE: u64 = 1 << 20;
/// Differences told one by one.
const TOLD: usize = 20;

/// What can be told of a file without reading all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Length, bytes.
    pub len: u64,
    /// When it was last written, nanoseconds since 1970.
    pub modified: u64,
    /// SHA-256 of its first and last mebibyte.
    pub sha256: String,
}

/// The files that a run reads, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Inputs(pub BTreeMap<String, InputFile>);

impl Inputs {
    /// These files, and all files in these folders but hidden ones.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn of(paths: &[PathBuf]) -> Result<Self> {
        let mut files = BTreeMap::new();
        for root in paths {
            let visible = |entry: &walkdir::DirEntry| {
                entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with('.')
            };
            let walk = walkdir::WalkDir::new(root).follow_links(true).into_iter();
            for entry in walk.filter_entry(visible) {
                let entry = entry.map_err(|e| {
                    let path = e.path().unwrap_or(root).to_path_buf();
                    let looped = || io::Error::other("a link leads back to a folder above it");
                    Error::io(path, e.into_io_error().unwrap_or_else(looped))
                })?;
                if entry.file_type().is_file() {
                    let path = entry.path();
                    let file = InputFile::of(path).map_err(|e| Error::io(path, e))?;
                    files.insert(path.display().to_string(), file);
                }
            }
        }
        Ok(Self(files))
    }

    /// How `now` differs, in words; empty where nothing does.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (path, old) in &self.0 {
            let said = now.0.get(path).map_or(Some("is gone".into()), |new| old.difference(new));
            found.extend(said.map(|said| format!("{path} {said}")));
        }
        let new = now.0.keys().filter(|path| !self.0.contains_key(*path));
        found.extend(new.map(|path| format!("{path} is new")));
        if found.len() > TOLD {
            let more = found.split_off(TOLD).len();
            found.push(format!("and {more} more"));
        }
        found
    }
}

impl InputFile {
    fn of(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let about = file.metadata()?;
        let (len, mut sha) = (about.len(), Sha256::new());
        let mut feed = |file: &mut File, from: u64| {
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(from))?;
            file.take(EDGE).read_to_end(&mut bytes)?;
            sha.update(&bytes);
            io::Result::Ok(())
        };
        feed(&mut file, 0)?;
        if len > EDGE {
            feed(&mut file, EDGE.max(len - EDGE))?;
        }
        let since = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified = since.map_or(0, |since| since.as_nanos() as u64);
        Ok(Self { len, modified, sha256: format!("{:x}", sha.finalize()) })
    }

    fn difference(&self, new: &Self) -> Option<String> {
        if self.len != new.len {
            Some(format!("had {} bytes, has {}", self.len, new.len))
        } else if self.sha256 != new.sha256 {
            Some("has other contents".into())
        } else if self.modified != new.modified && self.len > 2 * EDGE {
            // A copy of a small file is known to be the same, whatever its time; of a large one
            // the middle is not.
            Some("was written again; its length and both ends are the same".into())
        } else {
            None
        }
    }
}
