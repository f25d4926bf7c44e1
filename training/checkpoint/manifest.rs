//! `manifest.json`: what a checkpoint consists of, written last.

use crate::models::weights::{read_text, write_atomic};
use crate::paths::is_plain_name;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs::{self, OpenOptions};
use std::io::Read;
use std::path::Path;

/// Version of the layout of a checkpoint's folder that this program writes.
pub const FORMAT: u64 = 1;

/// Name of the file.
pub const MANIFEST: &str = "manifest.json";
/// Largest manifest that is read, bytes.
const MAX_MANIFEST: u64 = 16 << 20;

/// The files of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the layout.
    pub format_version: u64,
    /// Optimizer steps done.
    pub step: u64,
    /// What the best checkpoint has least of, where it was measured.
    #[serde(default)]
    pub score: Option<f64>,
    /// All files but the manifest, by name.
    pub files: Vec<ManifestFile>,
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its name in the folder.
    pub name: String,
    /// Its length, bytes.
    pub len: u64,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
}

impl ManifestFile {
    /// Whether the name stays within the folder.
    pub fn is_plain(&self) -> bool {
        is_plain_name(&self.name)
    }
}

impl Manifest {
    /// List what lies in `dir`, and make it last.
    pub(super) fn of(dir: &Path, step: u64, score: Option<f64>) -> Result<Self> {
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
            let path = entry.map_err(|e| Error::io(dir, e))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let (len, sha256) = digest(&path)?;
            // Some systems sync only what is open for writing.
            let file = OpenOptions::new().read(true).write(true).open(&path);
            file.and_then(|file| file.sync_all()).map_err(|e| Error::io(&path, e))?;
            files.push(ManifestFile { name, len, sha256 });
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let score = score.filter(|score| score.is_finite());
        Ok(Self { format_version: FORMAT, step, score, files })
    }

    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(MANIFEST);
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::io(&path, e.into()))?;
        write_atomic(&path, format!("{text}\n").as_bytes())
    }

    /// The manifest of a checkpoint's folder.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when there is none or it is damaged, [`Error::Unsupported`] when a
    /// later version wrote it.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let text = match read_text(&path, MAX_MANIFEST) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(broken(dir, format!("has no {MANIFEST}")));
            }
            other => other?,
        };
        let damaged = |e: serde_json::Error| broken(&path, format!("is damaged: {e}"));
        let value: Value = serde_json::from_str(&text).map_err(damaged)?;
        match value.get("format_version").and_then(Value::as_u64) {
            Some(1..=FORMAT) => {}
            Some(version) if version > FORMAT => {
                return Err(Error::Unsupported {
                    what: format!(
                        "{}: `format_version` is {version}; this program reads 1 to {FORMAT}",
                        path.display()
                    ),
                    remedy: "use the version of Longburn that wrote it, or a later one".into(),
                });
            }
            _ => return Err(broken(&path, "has no usable `format_version`".into())),
        }
        let manifest: Self = serde_json::from_value(value).map_err(damaged)?;
        // A manifest must not lead out of its folder.
        match manifest.files.iter().find(|file| !file.is_plain()) {
            Some(file) => {
                let reason = format!("has `files.name` {:?}, no plain file name", file.name);
                Err(broken(&path, reason))
            }
            None => Ok(manifest),
        }
    }

    /// All files are there, in their lengths.
    pub(super) fn check_lengths(&self, dir: &Path) -> Result<()> {
        for file in &self.files {
            let path = dir.join(&file.name);
            match fs::metadata(&path) {
                Ok(about) if about.is_file() && about.len() == file.len => {}
                Ok(about) => {
                    let reason = format!("has {} bytes, not {}", about.len(), file.len);
                    return Err(broken(&path, reason));
                }
                Err(e) => return Err(broken(&path, format!("cannot be read: {e}"))),
            }
        }
        Ok(())
    }

    /// All files have their digests.
    pub(super) fn check_digests(&self, dir: &Path) -> Result<()> {
        for file in &self.files {
            let path = dir.join(&file.name);
            if digest(&path)? != (file.len, file.sha256.clone()) {
                return Err(broken(&path, "has other bytes than were written".into()));
            }
        }
        Ok(())
    }
}

fn broken(path: &Path, reason: String) -> Error {
    let remedy = "restore it from a copy, or go on from another checkpoint".into();
    Error::Checkpoint { path: path.into(), reason, remedy }
}

/// Length, bytes, and SHA-256, hexadecimal, of a file.
///
/// # Errors
/// When it cannot be read.
pub fn digest(path: &Path) -> Result<(u64, String)> {
    let read = || {
        let mut file = fs::File::open(path)?;
        let (mut sha, mut len) = (Sha256::new(), 0);
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok((len, format!("{:x}", sha.finalize()))),
                n => {
                    sha.update(&buffer[..n]);
                    len += n as u64;
                }
            }
        }
    };
    read().map_err(|e| Error::io(path, e))
}
