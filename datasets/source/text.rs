//! Text files, one document each.

use super::{Cursor, Document, DocumentSource, EMPTY, NOT_TEXT, SourceFile, files_under, outside};
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
}

impl TextSourceConfig {
    /// Every UTF-8 text file below `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), extensions: None }
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
        Ok(TextSource { root: self.path.clone(), files, next: 0, report: DataReport::default() })
    }
}

/// Reads files in order of their paths. Files that are not UTF-8 text are skipped, empty ones
/// dropped; both are counted.
#[derive(Clone, Debug)]
pub struct TextSource {
    root: PathBuf,
    files: Vec<SourceFile>,
    next: usize,
    report: DataReport,
}

impl DocumentSource for TextSource {
    fn next_document(&mut self) -> Result<Option<Document>> {
        while let Some(file) = self.files.get(self.next) {
            let text = super::read_text(&file.path)?;
            self.next += 1;
            match text {
                None => self.report.skip(NOT_TEXT),
                Some(text) if text.trim().is_empty() => {
                    self.report.drop_document(EMPTY, Amount::text(text.chars().count()));
                }
                Some(text) => {
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
            return Err(outside(&self.root, cursor));
        }
        self.next = cursor.file;
        Ok(())
    }

    fn report(&self) -> &DataReport {
        &self.report
    }

    fn place(&self) -> String {
        self.root.display().to_string()
    }
}
