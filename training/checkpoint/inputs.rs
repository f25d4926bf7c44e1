//! Fingerprints of the files that a run reads: going on with other data would not be going on.

use super::digest;
use crate::Result;
use crate::datasets::FileStamp;
use crate::datasets::source::{SourceFile, files_under};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Differences told one by one.
const TOLD: usize = 20;

/// The files that a run reads, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Inputs(pub BTreeMap<String, FileStamp>);

impl Inputs {
    /// These files, and all files in these folders but hidden ones.
    ///
    /// # Errors
    /// When one cannot be read, or a folder holds none.
    pub fn of(paths: &[PathBuf]) -> Result<Self> {
        Self::since(paths, None)
    }

    /// The same; what `before` knows of large files that have not been written since is taken over,
    /// so that they need not be read.
    ///
    /// # Errors
    /// As [`Inputs::of`].
    pub fn since(paths: &[PathBuf], before: Option<&Self>) -> Result<Self> {
        let mut files = BTreeMap::new();
        for root in paths {
            for SourceFile { path, .. } in files_under(root, true)? {
                let name = path.display().to_string();
                let mut stamp = FileStamp::of(&path)?;
                if stamp.has_middle() {
                    let old = before.and_then(|before| before.0.get(&name));
                    let known = old.and_then(|old| old.whole.clone());
                    let same = |whole: &String| {
                        old == Some(&FileStamp { whole: Some(whole.clone()), ..stamp.clone() })
                    };
                    stamp.whole = match known.filter(same) {
                        Some(whole) => Some(whole),
                        None => Some(digest(&path)?.1),
                    };
                }
                files.insert(name, stamp);
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
