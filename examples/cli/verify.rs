//! Files of a folder against the sums that its `manifest.json` has of them, or against the digests
//! that name them in the cache of the Hub.

use crate::output;
use longburn::models::hub::verify_snapshot;
use longburn::training::checkpoint::{
    FORMAT, MANIFEST, MAX_MANIFEST, Manifest, ManifestFile, digest,
};
use longburn::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

/// Compare every file that the manifest lists, or that lies in the cache of the Hub; say so where
/// there is nothing to compare with.
///
/// # Errors
/// [`Error::Weights`] with all files that differ or are missing, and for an unusable manifest.
pub fn verify(dir: &Path) -> Result<Value> {
    let path = dir.join(MANIFEST);
    let Some(manifest) = read(&path)? else {
        return match verify_snapshot(dir)? {
            Some(found) => Ok(output::value(&found)),
            None => Ok(json!({ "manifest": "none: there are no sums to compare with" })),
        };
    };
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

fn read(path: &Path) -> Result<Option<Manifest>> {
    let damaged = |reason: String| Error::Weights {
        file: path.into(),
        reason,
        remedy: "copy the folder again from where it is whole, or remove the file and go without"
            .into(),
    };
    let length = match std::fs::metadata(path) {
        Ok(about) => about.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    if length > MAX_MANIFEST {
        return Err(damaged(format!("has {length} bytes; at most {MAX_MANIFEST} are read")));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|e| damaged(format!("is no manifest: {e}")))?;
    if manifest.format_version != FORMAT {
        let version = manifest.format_version;
        return Err(damaged(format!("has `format_version` {version}; expected {FORMAT}")));
    }
    match manifest.files.iter().find(|file| !file.is_plain()) {
        Some(file) => {
            let name = &file.name;
            Err(damaged(format!("has `files.name` {name:?}; expected a plain file name")))
        }
        None => Ok(Some(manifest)),
    }
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
