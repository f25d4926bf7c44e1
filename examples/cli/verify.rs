//! Files of a folder against the sums that its `manifest.json` has of them, or against the digests
//! that name them in the cache of the Hub.

use crate::output;
use longburn::models::hub::verify_snapshot;
use longburn::training::checkpoint::{MANIFEST, Manifest, ManifestFile, digest};
use longburn::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

/// Compare every file that the manifest lists, or that lies in the cache of the Hub; say so where
/// there is nothing to compare with.
///
/// # Errors
/// [`Error::Weights`] with all files that differ or are missing, and those of [`Manifest::read`].
pub fn verify(dir: &Path) -> Result<Value> {
    if !dir.join(MANIFEST).exists() {
        return match verify_snapshot(dir)? {
            Some(found) => Ok(output::value(&found)),
            None => Ok(json!({ "manifest": "none: there are no sums to compare with" })),
        };
    }
    let manifest = Manifest::read(dir)?;
    let mut faults = Vec::new();
    for listed in &manifest.files {
        if let Some(fault) = fault(dir, listed)? {
            faults.push(format!("{}: {fault}", listed.name));
        }
    }
    if faults.is_empty() {
        let bytes: u64 = manifest.files.iter().map(|file| file.len).sum();
        return Ok(json!({
            "manifest": MANIFEST,
            "step": manifest.step,
            "files": manifest.files.len(),
            "bytes": bytes,
            "equal": true,
        }));
    }
    Err(Error::Weights {
        file: dir.into(),
        reason: format!(
            "{} of {} files are not what {MANIFEST} lists: {}",
            faults.len(),
            manifest.files.len(),
            faults.join("; ")
        ),
        remedy: "go back to another checkpoint, or copy the files again from where they are whole"
            .into(),
    })
}

/// What is wrong with a file, if anything.
fn fault(dir: &Path, listed: &ManifestFile) -> Result<Option<String>> {
    let path = dir.join(&listed.name);
    let length = match std::fs::metadata(&path) {
        Ok(about) if about.is_file() => about.len(),
        Ok(_) => return Ok(Some("is not a file".into())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Some("is missing".into())),
        Err(e) => return Err(Error::io(path, e)),
    };
    if length != listed.len {
        return Ok(Some(format!("has {length} bytes, not {}", listed.len)));
    }
    let (_, found) = digest(&path)?;
    let differs = !found.eq_ignore_ascii_case(&listed.sha256);
    Ok(differs.then(|| format!("has sha256 {found}, not {}", listed.sha256)))
}
