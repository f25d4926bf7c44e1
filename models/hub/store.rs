//! Writing into the cache, in the layout of Python's `huggingface_hub`: `blobs/` by digest,
//! `snapshots/COMMIT/` with links to them, `refs/` from names to commits.

use super::repo::is_commit;
use super::{FetchEvent, Hub, RepoId, Watch};
use crate::models::weights::{sync_folder, write_atomic};
use crate::{Error, Result};
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How the names of folders with unfinished downloads begin.
const STAGING: &str = ".longburn-";

/// A folder for unfinished downloads, on the disk of the cache and of no other download.
pub(super) fn staging(hub: &Hub, repo: &RepoId) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    hub.cache.join(repo.folder()).join(format!("{STAGING}{}-{number}", std::process::id()))
}

/// The folder of one repository, held against other downloads until it is dropped.
pub(super) struct Store {
    folder: PathBuf,
    staging: PathBuf,
    commit: String,
    _lock: File,
}

impl Drop for Store {
    fn drop(&mut self) {
        // Left behind, it costs space until the next download.
        let _ = fs::remove_dir_all(&self.staging);
    }
}

impl Store {
    /// Take the repository's folder, made if need be; wait while another process downloads into
    /// it. What downloads that were killed left there is removed.
    pub fn open(
        hub: &Hub,
        repo: &RepoId,
        commit: String,
        staging: PathBuf,
        watch: Watch<'_>,
    ) -> Result<Self> {
        let folder = hub.cache.join(repo.folder());
        // Beside the locks of Python's tools, which are named by the digests of files.
        let locks = hub.cache.join(".locks").join(repo.folder());
        for dir in [&locks, &folder.join("blobs"), &folder.join("snapshots").join(&commit)] {
            fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        }
        let path = locks.join("longburn.lock");
        let lock = File::create(&path).map_err(|e| Error::io(&path, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let line = format!("another process downloads {repo}: waiting for it");
                watch(FetchEvent::Note(line));
                lock.lock().map_err(|e| Error::io(&path, e))?;
            }
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {
                tracing::warn!("{}: this file system has no locks", path.display());
                return Ok(Self { folder, staging, commit, _lock: lock });
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(path, e)),
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(STAGING) {
                // What cannot be removed costs space and nothing else.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(Self { folder, staging, commit, _lock: lock })
    }

    /// The folder of the commit.
    pub fn snapshot(&self) -> PathBuf {
        self.folder.join("snapshots").join(&self.commit)
    }

    /// Where the blob of this name lies, or will.
    pub fn blob(&self, name: &str) -> PathBuf {
        self.folder.join("blobs").join(name)
    }

    /// Empty the folder of unfinished downloads.
    pub fn clear(&self) -> Result<()> {
        match fs::remove_dir_all(&self.staging) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(&self.staging, e)),
            _ => Ok(()),
        }
    }

    /// Let the blobs of `bytes` bytes be found among the unfinished downloads of `repo`, too: one
    /// of them may be the file that is wanted, known from another commit.
    pub fn lend(&self, repo: &RepoId, bytes: u64) {
        let dir = self.staging.join(repo.folder()).join("blobs");
        for entry in fs::read_dir(self.folder.join("blobs")).into_iter().flatten().flatten() {
            let same = entry.metadata().is_ok_and(|about| about.is_file() && about.len() == bytes);
            if same {
                // Where a disk has no links, the file is downloaded again.
                let _ = fs::create_dir_all(&dir)
                    .and_then(|()| fs::hard_link(entry.path(), dir.join(entry.file_name())));
            }
        }
    }

    /// Give `file`, whose bytes are right, its place as the blob `blob` and the name `name`.
    pub fn publish(&self, file: &Path, blob: &str, name: &str) -> Result<()> {
        let (target, failed) = (self.blob(blob), |e| Error::io(file, e));
        // Some programs see a name before they see the bytes, after a power cut.
        File::open(file).and_then(|f| f.sync_all()).map_err(failed)?;
        fs::rename(file, &target).map_err(failed)?;
        let pointer = self.snapshot().join(name);
        link(&target, blob, &pointer).map_err(|e| Error::io(&pointer, e))?;
        sync_folder(&self.folder.join("blobs"))?;
        sync_folder(&self.snapshot())
    }

    /// Remove a file of the snapshot and the blob behind it.
    pub fn discard(&self, name: &str, blob: Option<&Path>) -> Result<()> {
        let pointer = self.snapshot().join(name);
        for path in blob.into_iter().chain([&*pointer]) {
            match fs::remove_file(path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io(path, e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Let `revision` stand for the commit.
    pub fn name_it(&self, revision: &str) -> Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        let dir = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        write_atomic(&path, self.commit.as_bytes())
    }

    /// There is room for `bytes` more.
    ///
    /// # Errors
    /// [`Error::Io`] with both numbers.
    pub fn check_room(&self, bytes: u64) -> Result<()> {
        let free = fs4::available_space(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
        if bytes <= free {
            return Ok(());
        }
        let text = format!(
            "{bytes} bytes are to be downloaded, and the disk has {free} left (remedy: free some \
             space, or choose another disk with HF_HUB_CACHE or --cache)"
        );
        Err(Error::io(&self.folder, std::io::Error::new(ErrorKind::StorageFull, text)))
    }
}

/// Put a link to the blob in the place of whatever is there.
#[cfg(unix)]
fn link(_: &Path, blob: &str, pointer: &Path) -> std::io::Result<()> {
    let fresh = pointer.with_extension("longburn-link");
    let _ = fs::remove_file(&fresh);
    std::os::unix::fs::symlink(Path::new("../../blobs").join(blob), &fresh)?;
    fs::rename(fresh, pointer)
}

/// Where links need privileges, a copy, as Python's tools do.
#[cfg(not(unix))]
fn link(target: &Path, _: &str, pointer: &Path) -> std::io::Result<()> {
    fs::copy(target, pointer).map(drop)
}
