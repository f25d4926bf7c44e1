//! Checkpoints of a run: folders `step-NNNNNN` that appear whole or not at all.
//!
//! A save writes everything into `.tmp-step-NNNNNN-<pid>`, syncs it, lists it with lengths and
//! digests in `manifest.json`, the last file, and only then gives the folder its name. A kill at
//! any moment leaves the checkpoints that were there, and at most a `.tmp-` folder, which the next
//! start removes. One that is replaced is called `.old-step-NNNNNN` until the new one has the name;
//! the next start gives it back where a kill came in between. As one folder is one unit, model and optimizer cannot be of different steps.

mod inputs;
mod lock;
mod manifest;

pub use inputs::Inputs;
pub use lock::RunLock;
pub use manifest::{FORMAT, MANIFEST, Manifest, ManifestFile, digest};

use crate::models::weights::{is_unfinished, sync_folder, write_atomic};
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Good checkpoints that are never given up.
pub const KEEP: usize = 2;

const TEMPORARY: &str = ".tmp-";
/// In front of the name of a checkpoint that is being replaced.
const REPLACED: &str = ".old-";
const LATEST: &str = "latest";

/// A checkpoint whose files are all there, in the lengths that its manifest names.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Its folder.
    pub dir: PathBuf,
    /// What is in it.
    pub manifest: Manifest,
}

impl Checkpoint {
    /// # Errors
    /// [`Error::Checkpoint`] when a file is missing or has another length,
    /// [`Error::Unsupported`] when a later version wrote it. Digests are left to
    /// [`Checkpoint::verify`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        let manifest = Manifest::read(&dir)?;
        manifest.check_lengths(&dir)?;
        Ok(Self { dir, manifest })
    }

    /// Read all files and compare their digests.
    ///
    /// # Errors
    /// [`Error::Checkpoint`], naming the file that has changed.
    pub fn verify(&self) -> Result<()> {
        self.manifest.check_digests(&self.dir)
    }

    /// Optimizer steps done.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }
}

/// The checkpoints of one run. One process at a time may hold it: see [`RunLock`].
#[derive(Debug)]
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
    /// Steps whose digests turned out wrong: no good ones, whatever their lengths say.
    refused: Mutex<BTreeSet<u64>>,
}

impl Checkpoints {
    /// The checkpoints in `dir`, which is made if need be. What killed saves left is removed, what
    /// they were about to replace is put back.
    ///
    /// # Errors
    /// The disk.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        let entries = fs::read_dir(&dir).map_err(|e| Error::io(&dir, e))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(TEMPORARY) && path.is_dir() {
                fs::remove_dir_all(&path).map_err(|e| Error::io(&path, e))?;
            } else if let Some(name) = name.strip_prefix(REPLACED).filter(|n| step_of(n).is_some())
            {
                let standing = dir.join(name);
                match standing.exists() {
                    true => fs::remove_dir_all(&path).map_err(|e| Error::io(&path, e))?,
                    false => fs::rename(&path, standing).map_err(|e| Error::io(&path, e))?,
                }
            } else if is_unfinished(&name) {
                fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
            }
        }
        Ok(Self { dir, keep: KEEP, refused: Mutex::default() })
    }

    /// Keep so many of the newest, at least [`KEEP`], and the best beside them.
    pub fn with_keep(mut self, keep: usize) -> Self {
        self.keep = keep.max(KEEP);
        self
    }

    /// Newest first, the broken ones, too.
    fn all(&self) -> Result<Vec<(u64, PathBuf)>> {
        let entries = fs::read_dir(&self.dir).map_err(|e| Error::io(&self.dir, e))?;
        let mut found: Vec<_> = entries
            .flatten()
            .filter_map(|entry| Some((step_of(entry.file_name().to_str()?)?, entry.path())))
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        Ok(found)
    }

    /// The good ones, newest first.
    ///
    /// # Errors
    /// The disk.
    pub fn good(&self) -> Result<Vec<Checkpoint>> {
        let all = self.all()?.into_iter();
        Ok(all.filter_map(|(_, path)| Checkpoint::open(path).ok()).collect())
    }

    /// The newest one whose digests are right; every broken one that is passed over is told of in
    /// a warning. None where there is no checkpoint at all.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when there are some and all are broken, [`Error::Unsupported`] when
    /// a later version wrote the newest: going on from an older one would lose its steps.
    pub fn newest(&self) -> Result<Option<Checkpoint>> {
        let mut broken = None;
        for (step, path) in self.all()? {
            let opened = Checkpoint::open(&path).and_then(|c| c.verify().map(|()| c));
            match opened {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(error @ Error::Unsupported { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!("passed over a broken checkpoint: {error}");
                    self.refused().insert(step);
                    broken.get_or_insert(error);
                }
            }
        }
        broken.map_or(Ok(None), Err)
    }

    /// Save what `write` puts into the folder that it is given, about `bytes` in all, as the
    /// checkpoint of `step`; `score` is what makes one the best, lower being better. One of the
    /// same step is replaced, and old ones are removed.
    ///
    /// # Errors
    /// What `write` returns, [`Error::Checkpoint`] where the disk has too little room (bytes and
    /// a tenth), or the disk. All earlier checkpoints are as they were.
    pub fn save(
        &self,
        step: u64,
        bytes: u64,
        score: Option<f64>,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Checkpoint> {
        self.check_room(bytes)?;
        let (dir, staged) = (self.dir.join(folder_name(step)), self.temporary(step));
        let saved = (|| {
            fs::create_dir(&staged).map_err(|e| Error::io(&staged, e))?;
            write(&staged)?;
            let manifest = Manifest::of(&staged, step, score)?;
            manifest.write(&staged)?;
            sync_folder(&staged)?;
            let old = self.dir.join(format!("{REPLACED}{}", folder_name(step)));
            if dir.exists() {
                // A folder cannot be renamed onto one with files in it.
                remove(&old);
                fs::rename(&dir, &old).map_err(|e| Error::io(&dir, e))?;
            }
            fs::rename(&staged, &dir).map_err(|e| {
                let _ = fs::rename(&old, &dir);
                Error::io(&dir, e)
            })?;
            sync_folder(&self.dir)?;
            remove(&old);
            self.refused().remove(&step);
            Ok(Checkpoint { dir, manifest })
        })();
        if saved.is_err() {
            remove(&staged);
            return saved;
        }
        // The checkpoint stands; what follows is for convenience and tidiness.
        let latest = write_atomic(&self.dir.join(LATEST), folder_name(step).as_bytes());
        if let Err(error) = latest.and_then(|()| self.prune()) {
            tracing::warn!("{error}");
        }
        saved
    }

    fn refused(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn temporary(&self, step: u64) -> PathBuf {
        self.dir.join(format!("{TEMPORARY}{}-{}", folder_name(step), std::process::id()))
    }

    fn check_room(&self, bytes: u64) -> Result<()> {
        let free = fs4::available_space(&self.dir).map_err(|e| Error::io(&self.dir, e))?;
        let needed = bytes.saturating_add(bytes / 10);
        if needed <= free {
            return Ok(());
        }
        Err(Error::Checkpoint {
            path: self.dir.clone(),
            reason: format!("a save needs {needed} bytes, and the disk has {free} left"),
            remedy: "free some space; the earlier checkpoints are intact".into(),
        })
    }

    /// Remove all good checkpoints but the newest and the best. Broken ones do not count and are
    /// left to whoever wants to look into them.
    fn prune(&self) -> Result<()> {
        let mut good = self.good()?;
        good.retain(|checkpoint| !self.refused().contains(&checkpoint.step()));
        let score = |c: &Checkpoint| c.manifest.score.unwrap_or(f64::INFINITY);
        let best = good.iter().map(score).fold(f64::INFINITY, f64::min);
        // The first of equals is the newest.
        let best = good.iter().find(|c| best < f64::INFINITY && score(c) == best);
        for old in good.iter().skip(self.keep).filter(|c| Some(*c) != best) {
            // Renamed first: a kill must not leave half a checkpoint under its name.
            let doomed = self.temporary(old.step());
            fs::rename(&old.dir, &doomed).map_err(|e| Error::io(&old.dir, e))?;
            remove(&doomed);
        }
        Ok(())
    }
}

/// What cannot be removed now is removed at the next start.
fn remove(temporary: &Path) {
    if temporary.exists()
        && let Err(error) = fs::remove_dir_all(temporary)
    {
        tracing::warn!("{}: {error}", temporary.display());
    }
}

fn folder_name(step: u64) -> String {
    format!("step-{step:06}")
}

fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-")?;
    let plain = digits.len() >= 6 && digits.bytes().all(|b| b.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}
