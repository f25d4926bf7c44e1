//! JSON lines, one document each.

use super::{BYTE_ORDER_MARK, Cursor, Document, DocumentSource, EMPTY, SourceFile};
use super::{files_under, outside};
use crate::datasets::{Amount, DataReport};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// What becomes of lines that give no document: longer than the cap, not JSON, or without the
/// field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadLines {
    /// Stop with an error that names file and line.
    #[default]
    Fail,
    /// Count and go on.
    Skip,
}

/// A `.jsonl` file, or a folder of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonlSourceConfig {
    /// The file or folder.
    pub path: PathBuf,
    /// Field that holds the text.
    #[serde(default = "text_field")]
    pub field: String,
    /// Longest line accepted, bytes.
    #[serde(default = "line_cap")]
    pub line_cap: usize,
    /// What becomes of bad lines.
    #[serde(default)]
    pub bad_lines: BadLines,
}

fn text_field() -> String {
    "text".into()
}

fn line_cap() -> usize {
    64 << 20
}

pub(super) fn is_jsonl(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "jsonl" || e == "ndjson")
}

impl JsonlSourceConfig {
    /// Texts in the field `text`, lines of at most 64 MiB, bad lines are errors.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            field: text_field(),
            line_cap: line_cap(),
            bad_lines: BadLines::Fail,
        }
    }

    /// Choose the field that holds the text.
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.field = field.into();
        self
    }

    /// Choose the longest line accepted, bytes.
    pub fn with_line_cap(mut self, line_cap: usize) -> Self {
        self.line_cap = line_cap;
        self
    }

    /// Choose what becomes of bad lines.
    pub fn with_bad_lines(mut self, bad_lines: BadLines) -> Self {
        self.bad_lines = bad_lines;
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
        Ok(JsonlSource {
            config: self.clone(),
            files,
            reader: None,
            cursor: Cursor::default(),
            report: DataReport::default(),
        })
    }
}

/// Reads lines in order of files. Blank lines are passed over; documents without text are
/// dropped and counted.
#[derive(Debug)]
pub struct JsonlSource {
    config: JsonlSourceConfig,
    files: Vec<SourceFile>,
    /// The file that the cursor is in, once it is open.
    reader: Option<BufReader<File>>,
    cursor: Cursor,
    report: DataReport,
}

impl JsonlSource {
    /// The next line without its end, or why it is bad; `None` at the end of the last file. The
    /// cursor stands behind it.
    fn next_line(&mut self) -> Result<Option<Result<Vec<u8>, String>>> {
        while let Some(SourceFile { path, .. }) = self.files.get(self.cursor.file) {
            let io = |e| Error::io(path, e);
            let reader = match &mut self.reader {
                Some(reader) => reader,
                closed => {
                    let mut file = File::open(path).map_err(io)?;
                    file.seek(SeekFrom::Start(self.cursor.offset)).map_err(io)?;
                    closed.insert(BufReader::new(file))
                }
            };
            let mut line = Vec::new();
            let cap = self.config.line_cap;
            // Room for the longest line and its end, `\r\n`.
            let read = reader.take(cap as u64 + 2).read_until(b'\n', &mut line).map_err(io)?;
            if read == 0 {
                self.reader = None;
                self.cursor = Cursor { file: self.cursor.file + 1, offset: 0, line: 0 };
                continue;
            }
            let mut passed = read as u64;
            if line.last() == Some(&b'\n') {
                line.pop();
                line.pop_if(|byte| *byte == b'\r');
            } else if read > cap {
                passed += reader.skip_until(b'\n').map_err(io)? as u64;
            }
            self.cursor.offset += passed;
            self.cursor.line += 1;
            return Ok(Some(if line.len() > cap {
                Err(format!("longer than the cap of {cap} bytes"))
            } else {
                Ok(line)
            }));
        }
        Ok(None)
    }

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
        while let Some(line) = self.next_line()? {
            let SourceFile { path, name } = &self.files[self.cursor.file];
            let number = self.cursor.line;
            let row = match line {
                Ok(line) if line.iter().all(u8::is_ascii_whitespace) => continue,
                Ok(line) => parse(&line).and_then(|value| {
                    let own = value.get("id").and_then(Value::as_str).map(str::to_string);
                    read(value, own.unwrap_or_else(|| format!("{name}:{number}")))
                }),
                Err(reason) => Err(reason),
            };
            match row {
                Ok(row) => return Ok(Some(row)),
                Err(_) if self.config.bad_lines == BadLines::Skip => self.report.skip("bad line"),
                Err(reason) => {
                    return Err(Error::Data(format!(
                        "{}:{number}: {reason} (remedy: mend the line, name the right field, or \
                         have bad lines skipped)",
                        path.display()
                    )));
                }
            }
        }
        Ok(None)
    }
}

fn parse(line: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(line).map_err(|_| "not UTF-8")?;
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))
}

impl DocumentSource for JsonlSource {
    fn next_document(&mut self) -> Result<Option<Document>> {
        let field = self.config.field.clone();
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
        self.cursor
    }

    fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        let outside = || outside(&self.config.path, cursor);
        match self.files.get(cursor.file) {
            None if *cursor == (Cursor { file: self.files.len(), offset: 0, line: 0 }) => {}
            None => return Err(outside()),
            Some(SourceFile { path, .. }) => {
                // A place between two lines follows a line's end, or the end of the file.
                let io = |e| Error::io(path, e);
                let mut file = File::open(path).map_err(io)?;
                let size = file.metadata().map_err(io)?.len();
                if cursor.offset > size {
                    return Err(outside());
                }
                if (1..size).contains(&cursor.offset) {
                    let mut byte = [0];
                    file.seek(SeekFrom::Start(cursor.offset - 1)).map_err(io)?;
                    file.read_exact(&mut byte).map_err(io)?;
                    if byte != *b"\n" {
                        return Err(outside());
                    }
                }
            }
        }
        self.reader = None;
        self.cursor = *cursor;
        Ok(())
    }

    fn report(&self) -> &DataReport {
        &self.report
    }

    fn place(&self) -> String {
        self.config.path.display().to_string()
    }
}
