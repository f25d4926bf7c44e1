//! Text files, one document each.

use super::{BadLines, Cursor, Document, DocumentSource, EMPTY, NOT_TEXT, SourceFile};
use super::{files_under, outside};
use crate::datasets::{Amount, DataReport};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A text file, or a folder of them with all folders below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextSourceConfig {
    /// The file or folder.
    pub path: PathBuf,
    /// Endings of the files to take (`txt`, `md` ...); every UTF-8 text file where not given.
    #[serde(default)]
    pub extensions: Option<Vec<String>>,
    /// Longest file accepted, bytes; any where not given.
    #[serde(default)]
    pub file_cap: Option<usize>,
    /// What becomes of files that are not UTF-8 text (a NUL marks a binary one) or too long.
    #[serde(default = "skip")]
    pub bad_files: BadLines,
}

fn skip() -> BadLines {
    BadLines::Skip
}

impl TextSourceConfig {
    /// Every UTF-8 text file below `path`; others are skipped and counted.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), extensions: None, file_cap: None, bad_files: skip() }
    }

    /// Choose the longest file accepted, bytes.
    pub fn with_file_cap(mut self, bytes: Option<usize>) -> Self {
        self.file_cap = bytes;
        self
    }

    /// Choose what becomes of files that are no text.
    pub fn with_bad_files(mut self, policy: BadLines) -> Self {
        self.bad_files = policy;
        self
    }

    /// Take files with these endings only, with or without the dot.
    pub fn with_extensions(mut self, extensions: Option<Vec<String>>) -> Self {
        self.extensions = extensions;
        self
    }

    /// List the files.
    ///
    /// # Errors
    /// When there is no such file or folder, or none of its files has one of the endings.
    pub fn init(&self) -> Result<TextSource> {
        let mut files = files_under(&self.path, true)?;
        if let Some(extensions) = &self.extensions {
            let taken = |file: &SourceFile| {
                let ending = file.path.extension().unwrap_or_default();
                extensions.iter().any(|e| ending.eq_ignore_ascii_case(e.trim_start_matches('.')))
            };
            files.retain(taken);
            if files.is_empty() {
                return Err(Error::Data(format!(
                    "{} holds no files with the endings {}",
                    self.path.display(),
                    extensions.join(", ")
                )));
            }
        }
        Ok(TextSource { config: self.clone(), files, next: 0, report: DataReport::default() })
    }
}

/// Reads files in order of their paths, a byte order mark left out. Files that are not UTF-8 text
/// are skipped (or an error, by the policy), empty ones dropped; both are counted.
#[derive(Clone, Debug)]
pub struct TextSource {
    config: TextSourceConfig,
    files: Vec<SourceFile>,
    next: usize,
    report: DataReport,
}

impl DocumentSource for TextSource {
    fn next_document(&mut self) -> Result<Option<Document>> {
        while let Some(file) = self.files.get(self.next) {
            let text = match too_long(file, self.config.file_cap)? {
                true => Err(TOO_LONG),
                false => super::read_text(&file.path)?.ok_or(NOT_TEXT),
            };
            self.next += 1;
            match text {
                Err(reason) if self.config.bad_files == BadLines::Skip => self.report.skip(reason),
                Err(reason) => {
                    return Err(Error::Data(format!(
                        "{}: {reason} (remedy: take it out of the data, convert it, or have bad \
                         files skipped)",
                        file.path.display()
                    )));
                }
                Ok(text) if text.trim().is_empty() => {
                    self.report.drop_document(EMPTY, Amount::text(text.chars().count()));
                }
                Ok(text) => {
                    self.report.kept += Amount::text(text.chars().count());
                    return Ok(Some(Document { id: file.name.clone(), text }));
                }
            }
        }
        Ok(None)
    }

    fn cursor(&self) -> Cursor {
        Cursor { file: self.next, offset: 0, line: 0 }
    }

    fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        if cursor.file > self.files.len() || cursor.offset != 0 {
            return Err(outside(&self.config.path, cursor));
        }
        self.next = cursor.file;
        Ok(())
    }

    fn report(&self) -> &DataReport {
        &self.report
    }

    fn place(&self) -> String {
        self.config.path.display().to_string()
    }
}

/// Reason under which files above the cap are skipped.
const TOO_LONG: &str = "longer than the cap";

fn too_long(file: &SourceFile, cap: Option<usize>) -> Result<bool> {
    let Some(cap) = cap else { return Ok(false) };
    let metadata = std::fs::metadata(&file.path).map_err(|e| Error::io(&file.path, e))?;
    Ok(metadata.len() > cap as u64)
}
