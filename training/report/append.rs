//! Appending on a disk that may be full: a whole piece or nothing, and a trouble told of once.

use crate::{Error, Result};
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

/// A file that grows by whole pieces.
#[derive(Debug)]
pub(super) struct Appender {
    path: PathBuf,
    /// Open for appending.
    file: File,
    /// The length before a piece that was written in part and could not be taken back.
    whole: Option<u64>,
}

impl Appender {
    pub fn new(path: PathBuf, file: File) -> Self {
        Self { path, file, whole: None }
    }

    /// Append `piece`. Where there is no room for all of it, the file is as it was.
    pub fn append(&mut self, piece: &[u8]) -> Result<()> {
        self.try_append(piece).map_err(|e| Error::io(&self.path, e))
    }

    fn try_append(&mut self, piece: &[u8]) -> io::Result<()> {
        if let Some(len) = self.whole {
            self.file.set_len(len)?;
            self.whole = None;
        }
        let len = self.file.metadata()?.len();
        // One call for the whole piece: a kill between two calls could not tear it.
        self.file.write_all(piece).inspect_err(|_| {
            self.whole = self.file.set_len(len).is_err().then_some(len);
        })
    }
}

/// A trouble that does not stop a run: told of when it begins and when it is over.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    lasts: bool,
}

impl Outage {
    /// How writing `what` went.
    pub fn tell(&mut self, what: &str, done: Result<()>) {
        match &done {
            Err(error) if !self.lasts => {
                tracing::warn!("{error}; the run goes on, and {what} too when it can be written");
            }
            Ok(()) if self.lasts => tracing::warn!("{what} can be written again"),
            _ => {}
        }
        self.lasts = done.is_err();
    }
}
