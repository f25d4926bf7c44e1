//! JSON lines, one document each, plain or compressed with Zstandard.

use super::lines::{Lines, is_zstd};
use super::{BYTE_ORDER_MARK, Cursor, Document, DocumentSource, EMPTY, SKIP};
use super::{SourceOptions, files_under};
use crate::datasets::{Amount, DataReport};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What becomes of lines, rows or files that give no document: longer than the cap, not UTF-8, not
/// JSON, or without the field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadLines {
    /// Stop with an error that names the place.
    #[default]
    Fail,
    /// Count and go on.
    Skip,
}

/// A `.jsonl` or `.jsonl.zst` file, or a folder of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonlSourceConfig {
    /// The file or folder.
    pub path: PathBuf,
    /// How it is read.
    #[serde(default)]
    pub options: SourceOptions,
}

pub(super) fn is_jsonl(path: &Path) -> bool {
    let path = if is_zstd(path) { path.with_extension("") } else { path.to_path_buf() };
    path.extension().is_some_and(|e| e == "jsonl" || e == "ndjson")
}

impl JsonlSourceConfig {
    /// Texts in the field `text`, lines of at most 64 MiB, bad lines are errors.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), options: SourceOptions::default() }
    }

    /// Choose field, longest line and what becomes of bad lines.
    pub fn with_options(mut self, options: SourceOptions) -> Self {
        self.options = options;
        self
    }

    /// List the files.
    ///
    /// # Errors
    /// When there is no such file, or a folder without `.jsonl` files.
    pub fn init(&self) -> Result<JsonlSource> {
        let mut files = files_under(&self.path, true)?;
        if self.path.is_dir() {
            files.retain(|file| is_jsonl(&file.path));
            if files.is_empty() {
                let path = self.path.display();
                return Err(Error::Data(format!("{path} holds no .jsonl files")));
            }
        }
        let lines = Lines::new(&self.path, files, self.options.row_cap());
        Ok(JsonlSource { config: self.clone(), lines, report: DataReport::default() })
    }
}

/// Reads lines in order of files. Blank lines are passed over; documents without text are
/// dropped and counted.
#[derive(Debug)]
pub struct JsonlSource {
    config: JsonlSourceConfig,
    lines: Lines,
    report: DataReport,
}

impl JsonlSource {
    /// The next line that is not blank, as `read` understands its JSON and its name: the line's
    /// own `id` where it has one, else its file and number. Bad lines, and those that `read`
    /// gives a reason against, are treated as the configuration says. `None` at the end.
    ///
    /// # Errors
    /// When a file cannot be read, and for bad lines where they are not skipped.
    pub fn next_row<T>(
        &mut self,
        read: impl Fn(Value, String) -> Result<T, String>,
    ) -> Result<Option<T>> {
        while let Some(line) = self.lines.next()? {
            let row = match line.bytes {
                Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => continue,
                Ok(bytes) => json_line(&bytes).and_then(|value| {
                    let own = value.get("id").and_then(Value::as_str).map(str::to_string);
                    read(value, own.unwrap_or_else(|| format!("{}:{}", line.name, line.number)))
                }),
                Err(reason) => Err(reason),
            };
            match row {
                Ok(row) => return Ok(Some(row)),
                Err(_) if self.config.options.bad_rows() == BadLines::Skip => {
                    self.report.skip("bad line")
                }
                Err(reason) => {
                    return Err(Error::Data(format!(
                        "{}:{}: {reason} (remedy: mend the line, name the right field, or {SKIP})",
                        line.path.display(),
                        line.number
                    )));
                }
            }
        }
        Ok(None)
    }
}

/// The JSON value of a line, or what is wrong with it.
pub(crate) fn json_line(line: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(line).map_err(|_| "not UTF-8")?;
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))
}

impl DocumentSource for JsonlSource {
    fn next_document(&mut self) -> Result<Option<Document>> {
        let field = self.config.options.field().to_string();
        let text = |mut value: Value, id| match value.get_mut(&field).map(Value::take) {
            Some(Value::String(text)) => Ok(Document { id, text }),
            Some(_) => Err(format!("field `{field}` is not a string")),
            None => Err(format!("no field `{field}`")),
        };
        while let Some(document) = self.next_row(text)? {
            let amount = Amount::text(document.text.chars().count());
            if document.text.trim().is_empty() {
                self.report.drop_document(EMPTY, amount);
                continue;
            }
            self.report.kept += amount;
            return Ok(Some(document));
        }
        Ok(None)
    }

    fn cursor(&self) -> Cursor {
        self.lines.cursor()
    }

    fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        self.lines.seek(cursor)
    }

    fn report(&self) -> &DataReport {
        &self.report
    }

    fn place(&self) -> String {
        self.config.path.display().to_string()
    }
}
