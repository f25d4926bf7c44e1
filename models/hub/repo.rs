//! Names of repositories.

use crate::models::weights::shortened;
use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// Longest part of a name, characters.
const LONGEST: usize = 96;
/// The revision that is meant where none is named.
const MAIN: &str = "main";

/// A repository of the Hub: `org/name`, or `name` alone for some old ones; `@revision` may follow,
/// a branch, a tag or a commit.
///
/// ```
/// use longburn::models::hub::RepoId;
///
/// let repo = RepoId::parse("org/name@v1.0")?;
/// assert_eq!((repo.id(), repo.revision()), ("org/name", "v1.0"));
/// assert_eq!(RepoId::parse("org/name")?.revision(), "main");
/// assert!(RepoId::parse("../name").is_err());
/// # Ok::<(), longburn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoId {
    id: String,
    revision: Option<String>,
}

impl RepoId {
    /// Read a name.
    ///
    /// # Errors
    /// [`Error::Config`] that says what a name looks like.
    pub fn parse(text: &str) -> Result<Self> {
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let parts: Vec<&str> = id.split('/').collect();
        if parts.len() > 2 || !parts.iter().all(|part| is_part(part)) || id.ends_with(".git") {
            return Err(refused(
                "name",
                id,
                "org/name, each of letters, digits, `-`, `_` and `.`, neither at an end, at most \
                 96 characters",
            ));
        }
        let repo = Self { id: id.into(), revision: None };
        revision.map_or(Ok(repo.clone()), |revision| repo.with_revision(revision))
    }

    /// The same repository at `revision`.
    ///
    /// # Errors
    /// [`Error::Config`] when that cannot be the name of a branch, a tag or a commit.
    pub fn with_revision(self, revision: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+/".contains(c);
        let parts = || revision.split('/');
        // Each part becomes a folder of the cache.
        let sound = parts().all(|part| !part.is_empty() && !part.starts_with('.'));
        if !sound || !revision.chars().all(plain) || revision.len() > 255 {
            return Err(refused("revision", revision, "a branch, a tag or a commit"));
        }
        Ok(Self { revision: Some(revision.into()), ..self })
    }

    /// `org/name`, without a revision.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Branch, tag or commit; `main` where none was named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// The folder of the cache that holds it.
    pub fn folder(&self) -> String {
        format!("models--{}", self.id.replace('/', "--"))
    }
}

impl FromStr for RepoId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.id),
            None => f.write_str(&self.id),
        }
    }
}

/// Whether `revision` is a commit in full, which never changes its meaning.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_part(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let edge = |c: char| c == '-' || c == '.';
    !part.is_empty()
        && part.len() <= LONGEST
        && part.chars().all(plain)
        && !part.starts_with(edge)
        && !part.ends_with(edge)
        && !part.contains("--")
        && !part.contains("..")
}

fn refused(field: &str, value: &str, expected: &str) -> Error {
    Error::config("repository", field, format!("`{}`", shortened(value, 100)), expected)
}
