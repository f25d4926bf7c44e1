//! What is in the cache.

use super::files::{Need, missing};
use super::repo::is_commit;
use super::{Hub, RepoId};
use std::fs;
use std::path::{Path, PathBuf};

/// One commit of a repository in the cache; files of it may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The folder, with files under the names of the repository.
    pub dir: PathBuf,
    /// The commit, 40 hexadecimal digits.
    pub commit: String,
}

impl Snapshot {
    /// Files that are needed and not there.
    pub fn missing(&self, need: Need) -> Vec<String> {
        missing(&self.dir, need)
    }
}

impl Hub {
    /// The snapshot that the cache has of a repository's revision, if any.
    pub fn snapshot(&self, repo: &RepoId) -> Option<Snapshot> {
        let folder = self.cache.join(repo.folder());
        let commit = match repo.revision() {
            commit if is_commit(commit) => commit.to_string(),
            name => read_ref(&folder.join("refs").join(name))?,
        };
        let dir = folder.join("snapshots").join(&commit);
        dir.is_dir().then_some(Snapshot { dir, commit })
    }

    /// Its folder, where nothing is missing in it.
    pub fn complete(&self, repo: &RepoId, need: Need) -> Option<Snapshot> {
        self.snapshot(repo).filter(|snapshot| snapshot.missing(need).is_empty())
    }
}

fn read_ref(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    // It becomes the name of a folder.
    Some(text.trim().to_string()).filter(|text| is_commit(text))
}

/// The blob that a file of a snapshot is a link to.
pub(super) fn blob_of(pointer: &Path) -> Option<PathBuf> {
    let target = fs::read_link(pointer).ok()?;
    let blob = pointer.parent()?.join(target);
    (blob.parent()?.file_name()? == "blobs").then_some(blob)
}
