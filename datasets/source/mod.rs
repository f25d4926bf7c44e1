//! Where documents come from.

mod crates;
mod jsonl;
mod lines;
mod options;
mod parquet;
mod records;
mod text;

pub use self::parquet::{ParquetSource, ParquetSourceConfig};
pub use crates::{CrateSourceConfig, Crates};
pub use jsonl::{BadLines, JsonlSource, JsonlSourceConfig};
pub use options::SourceOptions;
pub use text::{TextSource, TextSourceConfig};

pub(crate) use jsonl::json_line;
pub(crate) use lines::Lines;
pub(crate) use records::parquet_rows;

use super::DataReport;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A text with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Name for reports and messages: a path, `file:line`, or what the data says.
    pub id: String,
    /// The text.
    pub text: String,
}

/// Where a source stands: in front of a byte of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Files used up.
    pub file: usize,
    /// Bytes of the next file's text used up (in Parquet files: rows); 0 in sources of whole files.
    pub offset: u64,
    /// Lines or rows that those are.
    pub line: u64,
}

/// A sequence of documents that can be left and entered again.
pub trait DocumentSource {
    /// The next document; `None` at the end.
    ///
    /// # Errors
    /// When a file cannot be read, or holds what the source's policy does not accept.
    fn next_document(&mut self) -> Result<Option<Document>>;

    /// Where the source stands.
    fn cursor(&self) -> Cursor;

    /// Go to where a source over the same files stood.
    ///
    /// # Errors
    /// When there is no such place.
    fn seek(&mut self, cursor: &Cursor) -> Result<()>;

    /// What was read and left out so far.
    fn report(&self) -> &DataReport;

    /// Where the documents come from, for messages.
    fn place(&self) -> String {
        "the source".into()
    }

    /// All documents that are left.
    ///
    /// # Errors
    /// Those of [`next_document`](Self::next_document), and when there is none.
    fn read_all(&mut self) -> Result<Vec<Document>> {
        let mut documents = Vec::new();
        while let Some(document) = self.next_document()? {
            documents.push(document);
        }
        if documents.is_empty() {
            return Err(Error::Data(format!(
                "no document in {}: {} (remedy: name a file or folder with text)",
                self.place(),
                self.report()
            )));
        }
        Ok(documents)
    }
}

/// A source for what a person names, with the usual settings: see [`SourceOptions::open`].
///
/// # Errors
/// When there is no such file or folder, or it is empty.
pub fn open(path: impl AsRef<Path>) -> Result<Box<dyn DocumentSource>> {
    SourceOptions::default().open(path)
}

/// A file of a source.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    pub path: PathBuf,
    /// Path below the source's folder with `/`, or the file's name.
    pub name: String,
}

/// All files below a folder, sorted by path, hidden ones left out; or the one file.
pub(crate) fn files_under(root: &Path, follow_links: bool) -> Result<Vec<SourceFile>> {
    let visible = |entry: &walkdir::DirEntry| {
        entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with('.')
    };
    let walk = walkdir::WalkDir::new(root).follow_links(follow_links).into_iter();
    let mut files = Vec::new();
    for entry in walk.filter_entry(visible) {
        let entry = entry.map_err(|e| {
            let path = e.path().unwrap_or(root).to_path_buf();
            let looped = || std::io::Error::other("a link leads back to a folder above it");
            Error::io(path, e.into_io_error().unwrap_or_else(looped))
        })?;
        if !entry.file_type().is_file() {
            continue;
        }
        let below = entry.path().strip_prefix(root).unwrap_or(entry.path());
        let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
        let name = if parts.is_empty() {
            entry.file_name().to_string_lossy().into_owned()
        } else {
            parts.join("/")
        };
        files.push(SourceFile { path: entry.into_path(), name });
    }
    if files.is_empty() {
        return Err(Error::Data(format!("{} holds no files", root.display())));
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// A whole file as text, byte order mark stripped; `None` where it is not UTF-8 text (a NUL
/// marks a binary file).
fn read_text(path: &Path) -> Result<Option<String>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    if bytes.contains(&0) {
        return Ok(None);
    }
    Ok(String::from_utf8(bytes).ok().map(|mut text| {
        if text.starts_with(BYTE_ORDER_MARK) {
            text.drain(..BYTE_ORDER_MARK.len_utf8());
        }
        text
    }))
}

const BYTE_ORDER_MARK: char = '\u{feff}';

/// Reason under which documents without text are dropped.
const EMPTY: &str = "empty";

/// How lines and rows that cannot be used are passed over.
const SKIP: &str = "skip bad lines: `bad_lines = \"skip\"` in [data] of a recipe, \
                    `--skip-bad-lines` of longburn eval";

/// Reason under which files that are not text are skipped.
const NOT_TEXT: &str = "not UTF-8 text";

fn outside(source: &Path, cursor: &Cursor) -> Error {
    Error::Data(format!(
        "{}: {cursor:?} is not a place in it (remedy: resume with the data that the run started \
         with)",
        source.display()
    ))
}
