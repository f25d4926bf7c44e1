//! The report of a run that is still running, written again now and then.

use super::Report;
use crate::Result;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Writes a page that reloads itself, at most so often. What is written at the end of the run
/// takes its place.
#[derive(Debug)]
pub struct LivePage {
    path: PathBuf,
    every: Duration,
    written: Option<Instant>,
}

impl LivePage {
    /// A page at `path`; with `every` zero it is never written.
    pub fn new(path: impl Into<PathBuf>, every: Duration) -> Self {
        Self { path: path.into(), every, written: None }
    }

    /// Write what `report` gives, if it is time: at first at once. Whether it was.
    ///
    /// # Errors
    /// What `report` returns, and [`crate::Error::Io`].
    pub fn update(&mut self, report: impl FnOnce() -> Result<Report>) -> Result<bool> {
        let early = self.written.is_some_and(|at| at.elapsed() < self.every);
        if self.every.is_zero() || early {
            return Ok(false);
        }
        // Counted from the beginning of the writing, so that the page comes as often as promised.
        self.written = Some(Instant::now());
        let seconds = self.every.as_secs().clamp(1, u64::from(u32::MAX)) as u32;
        report()?.refreshed_every(seconds).save(&self.path).map(|()| true)
    }
}
