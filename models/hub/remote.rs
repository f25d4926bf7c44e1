//! Questions to the Hub through `hf-hub`: asked again where that may help, never waited for
//! without end.

use super::files::ListedFile;
use super::refusal::{refusal, transient};
use super::repo::is_commit;
use super::{Digest, FetchEvent, Hub, RepoId, Watch};
use crate::{Error, HubFault, Result};
use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFError, HFRepositorySync, HFResult, RepoTypeModel, split_id};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Pauses between attempts; one attempt more than there are pauses.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_millis(2500)];
/// How often a wait looks whether bytes have come.
const TICK: Duration = Duration::from_millis(50);

/// A file as the Hub lists it, with what its bytes must amount to.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    pub listed: ListedFile,
    /// Where the listing states it. The server states it with the file in any case.
    pub digest: Option<Digest>,
}

/// A repository, asked through a cache of its own, which files leave when they have been found
/// to be right.
pub(super) struct Remote<'a> {
    hub: &'a Hub,
    repo: &'a RepoId,
    client: HFRepositorySync<RepoTypeModel>,
}

impl<'a> Remote<'a> {
    /// Files will come into `cache`. Nothing is asked yet.
    pub fn open(hub: &'a Hub, repo: &'a RepoId, cache: &Path) -> Result<Self> {
        let mut client = HFClient::builder()
            .endpoint(&hub.endpoint)
            .cache_dir(cache)
            .user_agent(concat!("longburn/", env!("CARGO_PKG_VERSION")))
            // Attempts are counted here, where a server's wish for a pause is heard.
            .retry_max_attempts(0);
        if let Some(token) = &hub.token {
            if hub.sends_in_clear() {
                tracing::warn!(
                    "{}: the access token is sent unencrypted (remedy: an address that begins with \
                     https, or HF_HUB_DISABLE_IMPLICIT_TOKEN=1)",
                    hub.endpoint
                );
            }
            client = client.token(token);
        }
        let (owner, name) = split_id(repo.id());
        match client.build_sync() {
            Ok(client) => Ok(Self { hub, repo, client: client.model(owner, name) }),
            Err(HFError::Url(e)) => Err(Error::config(
                "environment",
                "HF_ENDPOINT",
                format!("`{}`", hub.endpoint),
                format!("the address of a Hub, such as https://huggingface.co ({e})"),
            )),
            Err(error) => Err(refusal(error, hub, repo, None)),
        }
    }

    /// The commit that the revision stands for.
    pub fn commit(&self, watch: Watch<'_>) -> Result<String> {
        let info = self.ask(None, watch, |_| {
            let (client, revision) = (self.client.clone(), self.repo.revision().to_string());
            move || client.info().revision(revision).send()
        })?;
        // It becomes the name of a folder.
        info.sha.filter(|sha| is_commit(sha)).ok_or_else(|| Error::Hub {
            repo: self.repo.to_string(),
            fault: HubFault::Network,
            reason: format!("{} names no commit: it is not a Hub", self.hub.endpoint),
            remedy: "check HF_ENDPOINT".into(),
        })
    }

    /// All files at the top of the repository.
    pub fn listing(&self, commit: &str, watch: Watch<'_>) -> Result<Vec<RemoteFile>> {
        let entries = self.ask(None, watch, |_| {
            let (client, commit) = (self.client.clone(), commit.to_string());
            move || client.list_tree().revision(commit).send()
        })?;
        let file = |entry| match entry {
            RepoTreeEntry::File { oid, size, path, lfs, .. } => {
                // In large storage, `oid` is that of the pointer to the file.
                let digest = match lfs {
                    Some(lfs) => lfs.sha256.as_deref().and_then(Digest::of_name),
                    None => Digest::of_name(&oid),
                };
                Some(RemoteFile { listed: ListedFile { name: path, bytes: size }, digest })
            }
            RepoTreeEntry::Directory { .. } => None,
        };
        Ok(entries.into_iter().filter_map(file).collect())
    }

    /// Download a file; its blob.
    pub fn download(&self, commit: &str, file: &RemoteFile, watch: Watch<'_>) -> Result<PathBuf> {
        let name = &file.listed.name;
        let path = self.ask(Some(name), watch, |counter| {
            let (client, commit, name) = (self.client.clone(), commit.to_string(), name.clone());
            move || {
                let download = client.download_file().filename(name).revision(commit);
                download.progress(Counter(counter)).send()
            }
        })?;
        std::fs::canonicalize(&path).map_err(|e| Error::io(path, e))
    }

    /// Ask until there is an answer, a refusal, or no more patience. `question` makes a question
    /// of a counter of bytes.
    fn ask<T: Send + 'static, Q: FnOnce() -> HFResult<T> + Send + 'static>(
        &self,
        file: Option<&str>,
        watch: Watch<'_>,
        question: impl Fn(Arc<AtomicU64>) -> Q,
    ) -> Result<T> {
        let mut seen = 0;
        let mut pauses = PAUSES.iter().copied();
        let mut waited = Duration::ZERO;
        loop {
            let counter = Arc::new(AtomicU64::new(0));
            let error = match self.wait(question(counter.clone()), &counter, &mut seen, watch) {
                Some(Ok(answer)) => return Ok(answer),
                Some(Err(HFError::Io(e))) => return Err(Error::io(&self.hub.cache, e)),
                Some(Err(error)) => error,
                None => return Err(self.silent(file)),
            };
            let pause = match (transient(&error), pauses.next()) {
                (Some(wish), Some(pause)) => wish.unwrap_or(pause),
                _ => return Err(refusal(error, self.hub, self.repo, file)),
            };
            waited += pause;
            if waited > self.hub.patience {
                return Err(refusal(error, self.hub, self.repo, file));
            }
            if pause >= Duration::from_secs(1) {
                let line = format!("the Hub does not answer; next attempt in {pause:?}");
                watch(FetchEvent::Note(line));
            }
            thread::sleep(pause);
        }
    }

    /// The answer; none where no byte has come for too long. `seen` is how many were told before.
    fn wait<T: Send + 'static>(
        &self,
        question: impl FnOnce() -> HFResult<T> + Send + 'static,
        counter: &AtomicU64,
        seen: &mut u64,
        watch: Watch<'_>,
    ) -> Option<HFResult<T>> {
        let (sender, answer) = channel();
        // A question that is never answered is left to itself.
        thread::spawn(move || _ = sender.send(question()));
        let (mut had, mut since) = (0, Instant::now());
        loop {
            let done = answer.recv_timeout(TICK);
            let has = counter.load(Ordering::Relaxed);
            if has > *seen {
                watch(FetchEvent::Bytes(has - *seen));
                *seen = has;
            }
            match done {
                Ok(answer) => return Some(answer),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if has != had {
                (had, since) = (has, Instant::now());
            }
            if since.elapsed() > self.hub.patience {
                return None;
            }
        }
    }

    fn silent(&self, file: Option<&str>) -> Error {
        let place = file.map_or(String::new(), |file| format!("{file}: "));
        Error::Hub {
            repo: self.repo.to_string(),
            fault: HubFault::Network,
            reason: format!(
                "{place}{} has sent nothing for {:?}",
                self.hub.endpoint, self.hub.patience
            ),
            remedy: "try again; what has come already is kept".into(),
        }
    }
}

/// Counts the bytes of one file.
struct Counter(Arc<AtomicU64>);

impl ProgressHandler for Counter {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        let bytes = match event {
            DownloadEvent::Progress { files } => files.iter().map(|f| f.bytes_completed).max(),
            DownloadEvent::AggregateProgress { bytes_completed, .. } => Some(*bytes_completed),
            _ => None,
        };
        self.0.fetch_max(bytes.unwrap_or(0), Ordering::Relaxed);
    }
}
