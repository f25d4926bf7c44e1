//! A download from beginning to end.

use super::cache::blob_of;
use super::files::{self, Need};
use super::remote::{Remote, RemoteFile};
use super::store::{self, Store};
use super::{Digest, FetchEvent, FetchOptions, Fetched, FetchedFile, Hub, RepoId, Watch};
use crate::models::weights::shortened;
use crate::{Error, HubFault, Result};
use std::fs;
use std::io::Read;
use std::path::Path;

/// Downloads of a file whose bytes turn out to be others than the Hub lists.
const ATTEMPTS: usize = 2;

/// Have what `options` asks for in the cache, right to the last bit.
pub(super) fn fetch(
    hub: &Hub,
    repo: &RepoId,
    options: &FetchOptions,
    watch: Watch<'_>,
) -> Result<Fetched> {
    let staging = store::staging(hub, repo);
    let remote = Remote::open(hub, repo, &staging)?;
    let commit = remote.commit(watch)?;
    let listing = remote.listing(&commit, watch)?;
    let names: Vec<&str> = listing.iter().map(|file| &*file.listed.name).collect();
    files::check(repo, &names, options.need)?;
    let store = Store::open(hub, repo, commit.clone(), staging, watch)?;
    let mut job = Job { repo, remote, commit: &commit, store: &store, force: options.force, watch };

    let named = |wanted: &dyn Fn(&str) -> bool| -> Vec<&RemoteFile> {
        listing.iter().filter(|file| wanted(&file.listed.name)).collect()
    };
    // Small ones first: where weights are, the rest is.
    let mut done = job.all("Configuration and tokenizer", &named(&files::is_small))?;
    let weights = files::weights(repo, &names, &store.snapshot())?;
    let weights = named(&|name| weights.iter().any(|weight| weight == name));
    if options.need == Need::Model {
        done.extend(job.all("Weights", &weights)?);
    }
    store.name_it(repo.revision())?;
    Ok(Fetched {
        dir: store.snapshot(),
        commit,
        offline: false,
        files: done,
        weights: weights.into_iter().map(|file| file.listed.clone()).collect(),
    })
}

struct Job<'a, 'w> {
    repo: &'a RepoId,
    remote: Remote<'a>,
    commit: &'a str,
    store: &'a Store,
    force: bool,
    watch: Watch<'w>,
}

impl Job<'_, '_> {
    fn all(&mut self, title: &str, files: &[&RemoteFile]) -> Result<Vec<FetchedFile>> {
        let snapshot = self.store.snapshot();
        let there = |file: &&&RemoteFile| snapshot.join(&file.listed.name).is_file();
        let absent = files.iter().filter(|file| self.force || !there(file));
        self.store.check_room(absent.map(|file| file.listed.bytes).sum())?;
        let bytes = files.iter().map(|file| file.listed.bytes).sum();
        (self.watch)(FetchEvent::Begin { title: title.into(), bytes });
        let done = files.iter().map(|file| self.one(file)).collect();
        (self.watch)(FetchEvent::End);
        done
    }

    fn one(&mut self, file: &RemoteFile) -> Result<FetchedFile> {
        let (name, bytes) = (&file.listed.name, file.listed.bytes);
        let fetched = |digest: Option<Digest>, downloaded| FetchedFile {
            name: name.clone(),
            bytes,
            verified: digest.map(|digest| digest.kind()),
            downloaded,
        };
        let pointer = self.store.snapshot().join(name);
        if pointer.is_file() && !self.force {
            let blob = blob_of(&pointer);
            match check(&pointer, file, blob.as_deref(), self.watch)? {
                Ok(digest) => return Ok(fetched(digest, false)),
                Err(fault) => {
                    self.note(format!("{name} in the cache {fault}: it is downloaded again"));
                    self.store.discard(name, blob.as_deref())?;
                }
            }
        }
        let mut fault = String::new();
        for attempt in 1..=ATTEMPTS {
            self.store.clear()?;
            if attempt == 1 && !self.force {
                self.store.lend(self.repo, bytes);
            }
            let came = self.remote.download(self.commit, file, self.watch)?;
            let blob = came.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !is_blob_name(blob) {
                return Err(self.damaged(name, format!("has the unusable digest {blob:?}")));
            }
            match check(&came, file, Some(&came), &mut |_| {})? {
                Ok(digest) => {
                    if digest.is_none() {
                        let line =
                            format!("warning: no digest is known of {name}, only its length");
                        self.note(line);
                    }
                    self.store.publish(&came, blob, name)?;
                    return Ok(fetched(digest, true));
                }
                Err(found) => fault = found + &beginning(&came, bytes),
            }
            // A blob of that name that was there before is no better.
            let other = self.store.blob(blob);
            if other.is_file() && check(&other, file, Some(&other), &mut |_| {})?.is_err() {
                self.store.discard(name, Some(&other))?;
            }
            if attempt < ATTEMPTS {
                self.note(format!("{name} {fault}: it is downloaded again"));
            }
        }
        Err(self.damaged(name, format!("{fault}, {ATTEMPTS} times")))
    }

    fn damaged(&self, name: &str, fault: String) -> Error {
        Error::Hub {
            repo: self.repo.to_string(),
            fault: HubFault::Damaged,
            reason: format!("{name} {fault}; it was removed"),
            remedy: "try again, without a proxy or mirror in between; should it stay so, tell the \
                     owners of the repository"
                .into(),
        }
    }

    fn note(&mut self, line: String) {
        (self.watch)(FetchEvent::Note(line));
    }
}

/// The strongest digest that the file was found to have, or how it differs. `blob` is named by the
/// digest that came with the file.
fn check(
    path: &Path,
    file: &RemoteFile,
    blob: Option<&Path>,
    watch: Watch<'_>,
) -> Result<Result<Option<Digest>, String>> {
    let length = fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if length != file.listed.bytes {
        let listed = file.listed.bytes;
        return Ok(Err(format!("has {length} bytes, the Hub lists {listed}")));
    }
    let named = blob.and_then(Path::file_name).and_then(|name| Digest::of_name(name.to_str()?));
    let mut known: Vec<Digest> = named.into_iter().chain(file.digest.clone()).collect();
    known.dedup();
    for (i, digest) in known.iter().enumerate() {
        let read = &mut |n| {
            if i == 0 {
                watch(FetchEvent::Bytes(n))
            }
        };
        if let Some(found) = digest.differs(path, read)? {
            let (kind, expected) = (digest.kind(), digest.hex());
            return Ok(Err(format!("has {kind} {found}, the Hub lists {expected}")));
        }
    }
    known.sort_by_key(|digest| matches!(digest, Digest::Git(_)));
    Ok(Ok(known.into_iter().next()))
}

/// How a file begins that is much too short: proxies put their excuses there.
fn beginning(path: &Path, bytes: u64) -> String {
    let mut start = Vec::new();
    let read = fs::File::open(path).and_then(|f| f.take(300).read_to_end(&mut start));
    let short = read.is_ok_and(|n| n < 300 && (n as u64) < bytes);
    match std::str::from_utf8(&start) {
        Ok(text) if short && !text.trim().is_empty() && !text.contains(char::is_control) => {
            format!(" (it says {:?})", shortened(text.trim(), 120))
        }
        _ => String::new(),
    }
}

/// Servers choose the names of blobs.
fn is_blob_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    !name.is_empty() && name.len() <= 128 && name.bytes().all(plain)
}
