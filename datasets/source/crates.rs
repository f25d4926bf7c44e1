//! The Rust sources of the crates that a `Cargo.lock` names, as Cargo has unpacked them.
//!
//! They are real text that is there wherever a Rust program has just been built.

use super::{Document, EMPTY, NOT_TEXT, SourceFile, files_under, read_text};
use crate::datasets::{Amount, DataReport};
use crate::paths::is_plain_name;
use crate::{Error, Result};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Which crates become documents, and where they are looked for.
#[derive(Clone, Debug)]
pub struct CrateSourceConfig {
    lock: String,
    folders: Vec<PathBuf>,
    min_bytes: u64,
    max_bytes: u64,
    enough: usize,
}

/// Crates as documents, one each.
#[derive(Clone, Debug)]
pub struct Crates {
    /// `NAME-VERSION` and the `.rs` files joined in order of their paths; sorted by name.
    pub documents: Vec<Document>,
    /// Of all names and texts in order.
    pub sha256: String,
    /// What was left out.
    pub report: DataReport,
}

#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    source: Option<String>,
}

impl CrateSourceConfig {
    /// Crates of 20 to 200 kB named in the text of a `Cargo.lock`, from Cargo's registry folders
    /// below `CARGO_HOME` (`~/.cargo` where that is not set).
    pub fn new(lock: impl Into<String>) -> Self {
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
        let this = Self {
            lock: lock.into(),
            folders: Vec::new(),
            min_bytes: 20_000,
            max_bytes: 200_000,
            enough: 200,
        };
        match home {
            Some(home) => this.with_cargo_home(home),
            None => this,
        }
    }

    /// Look below this folder in place of `CARGO_HOME`.
    pub fn with_cargo_home(mut self, home: impl AsRef<Path>) -> Self {
        let registries = std::fs::read_dir(home.as_ref().join("registry/src"));
        self.folders = registries
            .map(|entries| entries.filter_map(|e| Some(e.ok()?.path())).collect())
            .unwrap_or_default();
        self.folders.sort();
        self
    }

    /// Look in a folder that `cargo vendor` wrote, too.
    pub fn with_vendor(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders.push(folder.into());
        self
    }

    /// Choose the sizes of crates, bytes of `.rs` files. Where fewer than `enough` crates lie
    /// within, every crate of at least `min` bytes is taken, cut to `max`.
    pub fn with_sizes(mut self, min: u64, max: u64, enough: usize) -> Self {
        (self.min_bytes, self.max_bytes, self.enough) = (min, max, enough);
        self
    }

    /// Read the crates. Of several versions of a crate the last in the lock file is taken: their
    /// texts are nearly the same, and one must not be held out while another is trained on.
    ///
    /// # Errors
    /// When the lock file does not parse, a file cannot be read, or no sources are found.
    pub fn read(&self) -> Result<Crates> {
        let lock: Lock = toml::from_str(&self.lock).map_err(|e| Error::Parse {
            file: "Cargo.lock".into(),
            message: e.message().to_string(),
            text: None,
            span: e.span(),
        })?;
        let mut report = DataReport::default();
        let mut found = BTreeMap::new();
        for package in lock.package.iter().filter(|p| p.source.is_some()) {
            let Some(folder) = self.folder(package) else {
                report.skip("crate not unpacked here");
                continue;
            };
            let mut files = files_under(&folder, false)?;
            files.retain(|file| file.path.extension().is_some_and(|e| e == "rs"));
            let mut bytes = 0;
            for SourceFile { path, .. } in &files {
                bytes += std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
            }
            let id = format!("{}-{}", package.name, package.version);
            if found.insert(&package.name, (id, bytes, files)).is_some() {
                report.skip("other version of a crate");
            }
        }
        let within = |bytes: u64| (self.min_bytes..=self.max_bytes).contains(&bytes);
        let cut = found.values().filter(|(_, bytes, _)| within(*bytes)).count() < self.enough;
        let mut documents = Vec::new();
        for (id, bytes, files) in found.into_values() {
            let too_long = !cut && bytes > self.max_bytes;
            if bytes < self.min_bytes || too_long {
                let size = if too_long { "larger" } else { "smaller" };
                report.skip(&format!("crate {size} than wanted"));
                continue;
            }
            let text = self.join(&files, &mut report)?;
            let amount = Amount::text(text.chars().count());
            if text.trim().is_empty() {
                report.drop_document(EMPTY, amount);
                continue;
            }
            report.kept += amount;
            documents.push(Document { id, text });
        }
        if documents.is_empty() {
            return Err(self.nothing_found(&report));
        }
        documents.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Crates { sha256: digest(&documents), documents, report })
    }

    /// Where a package's sources lie.
    fn folder(&self, package: &Package) -> Option<PathBuf> {
        let Package { name, version, .. } = package;
        let names = [format!("{name}-{version}"), name.clone()];
        // A lock file from elsewhere must not lead out of the folders.
        let names = names.iter().filter(|name| is_plain_name(name));
        let mut places = names.flat_map(|name| self.folders.iter().map(move |f| f.join(name)));
        places.find(|place| place.is_dir())
    }

    /// The files of a crate, one behind the other, cut to `max_bytes`.
    fn join(&self, files: &[SourceFile], report: &mut DataReport) -> Result<String> {
        let mut text = String::new();
        for SourceFile { path, .. } in files {
            match read_text(path)? {
                Some(file) => text.push_str(&file),
                None => report.skip(NOT_TEXT),
            }
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
        }
        let end = text.floor_char_boundary(self.max_bytes as usize);
        if end < text.len() {
            report.truncated += Amount::text(text[end..].chars().count());
            text.truncate(end);
        }
        Ok(text)
    }

    fn nothing_found(&self, report: &DataReport) -> Error {
        let folders: Vec<_> = self.folders.iter().map(|f| f.display().to_string()).collect();
        let folders = match folders.len() {
            0 => "Cargo's registry folder, which was not found".to_string(),
            _ => folders.join(", "),
        };
        Error::Data(format!(
            "no crate sources of at least {} bytes in {folders}: {report} (remedy: run \
             `cargo fetch`, or train on a text of your own with `--data PATH`, a folder of text or \
             a .jsonl)",
            self.min_bytes
        ))
    }
}

/// Lengths are hashed with the texts, so that moving a boundary changes the sum.
fn digest(documents: &[Document]) -> String {
    let mut hash = Sha256::new();
    for part in documents.iter().flat_map(|d| [&d.id, &d.text]) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
