//! What a recipe or a command line says of a source beside its path.

use super::jsonl::is_jsonl;
use super::parquet::is_parquet;
use super::{BadLines, DocumentSource, JsonlSourceConfig, ParquetSourceConfig, TextSourceConfig};
use super::{SourceFile, files_under};
use crate::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Settings for whatever kind of source a path turns out to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceOptions {
    /// Field of a JSON line, or column of a Parquet file, that holds the text; "text" where not
    /// set.
    pub text_field: Option<String>,
    /// Longest line, row or text file accepted, bytes; 64 MiB for lines and rows and no limit for
    /// files where not set.
    pub line_cap: Option<usize>,
    /// What becomes of lines, rows and files that give no document. Where not set, a bad line or
    /// row is an error, and a file that is no text is skipped and counted.
    pub bad_lines: Option<BadLines>,
}

impl SourceOptions {
    /// The usual settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Choose the field or column that holds the text.
    pub fn with_text_field(mut self, field: Option<String>) -> Self {
        self.text_field = field;
        self
    }

    /// Choose the longest line, row or file accepted, bytes.
    pub fn with_line_cap(mut self, bytes: Option<usize>) -> Self {
        self.line_cap = bytes;
        self
    }

    /// Choose what becomes of bad lines, rows and files.
    pub fn with_bad_lines(mut self, policy: Option<BadLines>) -> Self {
        self.bad_lines = policy;
        self
    }

    /// Field or column that holds the text.
    pub(super) fn field(&self) -> &str {
        self.text_field.as_deref().unwrap_or("text")
    }

    /// Longest line or row, bytes.
    pub(super) fn row_cap(&self) -> usize {
        self.line_cap.unwrap_or(64 << 20)
    }

    /// What becomes of bad lines and rows.
    pub(super) fn bad_rows(&self) -> BadLines {
        self.bad_lines.unwrap_or_default()
    }

    /// A source for what a person names: a `.jsonl` (`.ndjson`, with or without `.zst`) or
    /// `.parquet` file, a folder of one of these kinds, or text (a file, or a folder with
    /// everything in it that is UTF-8 text). A path with a `text_field` that is of neither kind is
    /// taken as JSON lines.
    ///
    /// # Errors
    /// When there is no such file or folder, or it is empty.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Box<dyn DocumentSource>> {
        let path = path.as_ref();
        let files = files_under(path, true)?;
        let all = |kind: fn(&Path) -> bool| files.iter().all(|f: &SourceFile| kind(&f.path));
        Ok(if all(is_parquet) {
            Box::new(ParquetSourceConfig::new(path).with_options(self.clone()).init()?)
        } else if all(is_jsonl) || self.text_field.is_some() {
            Box::new(JsonlSourceConfig::new(path).with_options(self.clone()).init()?)
        } else {
            let bad = self.bad_lines.unwrap_or(BadLines::Skip);
            let config = TextSourceConfig::new(path).with_bad_files(bad);
            Box::new(config.with_file_cap(self.line_cap).init()?)
        })
    }
}
