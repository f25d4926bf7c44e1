//! What a download is asked for, and what came of it.

use super::files::{ListedFile, Need};
use super::{Hub, RepoId};
use crate::{Error, HubFault, Result};
use serde::Serialize;
use std::path::PathBuf;

/// How much to fetch.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    pub(super) need: Need,
    pub(super) force: bool,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self { need: Need::Model, force: false }
    }
}

impl FetchOptions {
    /// The whole model, as far as it is not in the cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// How much of the repository.
    pub fn with_need(self, need: Need) -> Self {
        Self { need, ..self }
    }

    /// Whether files that are in the cache are downloaded again.
    pub fn with_force(self, force: bool) -> Self {
        Self { force, ..self }
    }
}

/// A repository as it is in the cache now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fetched {
    /// Folder with the files.
    pub dir: PathBuf,
    /// The commit that the revision stands for.
    pub commit: String,
    /// The Hub was not reached: this is what the cache had.
    pub offline: bool,
    /// The files that were looked at, each of the length and digest that the Hub states. Empty
    /// where it was not reached.
    pub files: Vec<FetchedFile>,
    /// Weights, as the Hub lists them; downloaded or not.
    pub weights: Vec<ListedFile>,
}

/// One file of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FetchedFile {
    /// Name in the repository.
    pub name: String,
    /// Length, bytes.
    pub bytes: u64,
    /// What its bytes were compared with: `sha256`, `git-sha1`; `None` where the server states no
    /// digest and its length alone was.
    pub verified: Option<&'static str>,
    /// Whether it came now, and was not in the cache.
    pub downloaded: bool,
}

/// What happens in a download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchEvent {
    /// A line for whoever waits.
    Note(String),
    /// So many bytes are to come, or to be read.
    Begin {
        /// Of what.
        title: String,
        /// How many.
        bytes: u64,
    },
    /// So many more have.
    Bytes(u64),
    /// All have.
    End,
}

/// Hears of what happens in a download.
pub type Watch<'a> = &'a mut dyn FnMut(FetchEvent);

impl Hub {
    /// Have all of a repository that Longburn reads in the cache, as it is on the Hub now: what is
    /// not there is downloaded, what is there is compared.
    ///
    /// Where the Hub cannot be reached, or `HF_HUB_OFFLINE` is set, a snapshot in the cache in
    /// which nothing is missing is used as it is, and `watch` hears of it.
    ///
    /// # Errors
    /// [`Error::Hub`], whose fault says what kind of obstacle it is; [`Error::Io`] for the disk.
    pub fn fetch(
        &self,
        repo: &RepoId,
        options: &FetchOptions,
        watch: Watch<'_>,
    ) -> Result<Fetched> {
        let error = match self.try_fetch(repo, options, watch) {
            Err(error @ Error::Hub { fault: HubFault::Network | HubFault::Offline, .. }) => error,
            done => return done,
        };
        if cfg!(not(feature = "hub")) || options.force {
            return Err(error);
        }
        let Some(snapshot) = self.complete(repo, options.need) else {
            let gap = self.gap(repo, options.need);
            return Err(match error {
                Error::Hub { repo, fault, reason, remedy } => {
                    Error::Hub { repo, fault, reason: format!("{reason}; {gap}"), remedy }
                }
                other => other,
            });
        };
        let line = format!("warning: {error}; using the cached commit {}", snapshot.commit);
        watch(FetchEvent::Note(line));
        Ok(Fetched {
            dir: snapshot.dir,
            commit: snapshot.commit,
            offline: true,
            files: Vec::new(),
            weights: Vec::new(),
        })
    }

    #[cfg(feature = "hub")]
    fn try_fetch(
        &self,
        repo: &RepoId,
        options: &FetchOptions,
        watch: Watch<'_>,
    ) -> Result<Fetched> {
        if self.offline {
            let reason = "HF_HUB_OFFLINE is set, so nothing is downloaded".into();
            return Err(self.switched_off(repo, reason, "unset HF_HUB_OFFLINE".into()));
        }
        super::online::fetch(self, repo, options, watch)
    }

    #[cfg(not(feature = "hub"))]
    fn try_fetch(&self, repo: &RepoId, _: &FetchOptions, _: Watch<'_>) -> Result<Fetched> {
        let reason = "this longburn was built without the feature `hub`, which downloads".into();
        Err(self.switched_off(repo, reason, super::locate::INSTALL.into()))
    }

    fn switched_off(&self, repo: &RepoId, reason: String, remedy: String) -> Error {
        Error::Hub { repo: repo.to_string(), fault: HubFault::Offline, reason, remedy }
    }
}
