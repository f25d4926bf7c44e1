//! One process at a time in the folder of a run.

use crate::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::Path;

const NAME: &str = ".lock";

/// The folder of a run, held by this process until the value is dropped or the process ends,
/// however it ends.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Take `dir`.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process has it, or the disk.
    pub fn acquire(dir: &Path) -> Result<Self> {
        let path = dir.join(NAME);
        let mut options = OpenOptions::new();
        // The text of whoever has it must outlive the attempt.
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(|e| Error::io(&path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let holder = match text.trim() {
                    "" => "another process".into(),
                    pid => format!("process {pid}"),
                };
                return Err(Error::Locked { dir: dir.into(), holder });
            }
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {
                tracing::warn!("{}: this file system has no locks", path.display());
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(path, e)),
        }
        // For the message above only: a full disk is no reason not to go on.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }

    /// Whether another process has `dir`, without taking it.
    ///
    /// # Errors
    /// As [`RunLock::acquire`].
    pub fn check(dir: &Path) -> Result<()> {
        if dir.join(NAME).exists() { Self::acquire(dir).map(drop) } else { Ok(()) }
    }

    /// Whether `name` is that of the file that the lock leaves in the folder.
    pub fn is_lock(name: &str) -> bool {
        name == NAME
    }
}
