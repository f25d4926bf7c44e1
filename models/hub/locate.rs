//! A folder for whatever names a model.

use super::files::{CONFIG, ListedFile, Need};
use super::{FetchEvent, FetchOptions, Hub, RepoId, Watch};
use crate::{Error, HubFault, Result};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

const TOKENIZER: &str = "tokenizer.json";

/// What [`Hub::describe`] found.
#[derive(Clone, Debug)]
pub struct Described {
    /// Folder with the configuration, at least.
    pub dir: PathBuf,
    /// The weights as the Hub lists them, where they have not been downloaded.
    pub listed: Option<Vec<ListedFile>>,
}

impl Hub {
    /// The folder that `name` stands for: a folder of that name, else the snapshot of a repository
    /// of that name in the cache, else one that is downloaded now (feature `hub`).
    ///
    /// # Errors
    /// [`Error::Io`] for what is neither a folder nor the name of a repository; [`Error::Hub`] for
    /// a repository that cannot be had; and those of [`Hub::fetch`].
    pub fn locate(&self, name: &Path, need: Need, watch: Watch<'_>) -> Result<PathBuf> {
        if name.exists() {
            return folder(name);
        }
        let repo = named(name)?;
        match self.complete(&repo, need) {
            Some(snapshot) => {
                let has = |name: &str| snapshot.dir.join(name).is_file();
                if need == Need::Model && has(CONFIG) && !has(TOKENIZER) {
                    // Not every repository has one, and only the Hub knows.
                    watch(FetchEvent::Note(format!(
                        "warning: the snapshot of {repo} in the cache has no {TOKENIZER}; if the \
                         repository has one, this gets it: longburn fetch {repo}"
                    )));
                }
                Ok(snapshot.dir)
            }
            None => self.get(&repo, need, watch).map(|(dir, _)| dir),
        }
    }

    /// The same for whoever wants to look at it only: weights are not downloaded.
    ///
    /// # Errors
    /// As [`Hub::locate`].
    pub fn describe(&self, name: &Path, watch: Watch<'_>) -> Result<Described> {
        if name.exists() {
            return Ok(Described { dir: folder(name)?, listed: None });
        }
        let repo = named(name)?;
        if let Some(snapshot) = self.complete(&repo, Need::Model) {
            return Ok(Described { dir: snapshot.dir, listed: None });
        }
        let (dir, listed) = self.get(&repo, Need::Description, watch)?;
        Ok(Described { dir, listed: Some(listed) })
    }

    /// Download what is not in the cache; an error tells of both readings of the name.
    fn get(
        &self,
        repo: &RepoId,
        need: Need,
        watch: Watch<'_>,
    ) -> Result<(PathBuf, Vec<ListedFile>)> {
        if self.offline || cfg!(not(feature = "hub")) {
            return Err(self.absent(repo, need));
        }
        watch(FetchEvent::Note(format!("there is no folder {repo}: asking {}", self.endpoint)));
        match self.fetch(repo, &FetchOptions::new().with_need(need), watch) {
            Ok(fetched) => Ok((fetched.dir, fetched.weights)),
            Err(Error::Hub { repo, fault, reason, remedy }) => Err(Error::Hub {
                reason: format!(
                    "there is no such folder, and as a repository of the Hub: {reason}"
                ),
                repo,
                fault,
                remedy,
            }),
            Err(other) => Err(other),
        }
    }

    /// Why what is in the cache does not do.
    pub(super) fn gap(&self, repo: &RepoId, need: Need) -> String {
        match self.snapshot(repo) {
            None => format!(
                "the cache {} has no revision {} of {}",
                self.cache.display(),
                repo.revision(),
                repo.id()
            ),
            Some(snapshot) => format!(
                "the snapshot {} in the cache lacks {}",
                snapshot.dir.display(),
                snapshot.missing(need).join(", ")
            ),
        }
    }

    fn absent(&self, repo: &RepoId, need: Need) -> Error {
        let in_cache = self.gap(repo, need);
        let remedy = match (cfg!(feature = "hub"), self.offline) {
            (false, _) => format!(
                "check the path; to download repositories, build with the feature: {INSTALL}"
            ),
            (true, true) => "check the path, or unset HF_HUB_OFFLINE to download".into(),
            (true, false) => format!("check the path, or: longburn fetch {repo}"),
        };
        Error::Hub {
            repo: repo.to_string(),
            fault: HubFault::Offline,
            reason: format!("there is no such folder, and {in_cache}"),
            remedy,
        }
    }
}

/// How to get a build that downloads.
pub(super) const INSTALL: &str = "cargo install --path . --locked --features hub";

/// What is there must be a folder.
fn folder(name: &Path) -> Result<PathBuf> {
    if name.is_dir() {
        return Ok(name.into());
    }
    let text = "is a file; a model or an adapter is a folder (remedy: name the folder with its \
                configuration and weights)";
    Err(Error::io(name, io::Error::new(ErrorKind::NotADirectory, text)))
}

/// The repository that a path which does not exist may mean.
fn named(name: &Path) -> Result<RepoId> {
    let repo = name.to_str().and_then(|text| RepoId::parse(text).ok());
    repo.ok_or_else(|| {
        let text = format!(
            "there is no such folder, and it is no name of a repository of the Hub either, which \
             is org/name or org/name@revision (remedy: name the folder that holds {CONFIG})"
        );
        Error::io(name, io::Error::new(ErrorKind::NotFound, text))
    })
}
