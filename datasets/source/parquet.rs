//! Parquet files, one row of a text column per document.

use super::{BadLines, Cursor, Document, DocumentSource, EMPTY, NOT_TEXT, SourceFile};
use super::{SKIP, SourceOptions, files_under, outside};
use crate::datasets::{Amount, DataReport};
use crate::{Error, Result};
use parquet::basic::{Compression, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Rows that are decoded at a time.
const ROWS: usize = 256;

/// A `.parquet` file, or a folder of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParquetSourceConfig {
    /// The file or folder.
    pub path: PathBuf,
    /// How it is read; a nested column is named by its path, with dots.
    #[serde(default)]
    pub options: SourceOptions,
}

pub(super) fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "parquet")
}

impl ParquetSourceConfig {
    /// Texts in the column `text`, of at most 64 MiB, bad rows are errors.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), options: SourceOptions::default() }
    }

    /// Choose column, longest text and what becomes of bad rows.
    pub fn with_options(mut self, options: SourceOptions) -> Self {
        self.options = options;
        self
    }

    /// List the files.
    ///
    /// # Errors
    /// When there is no such file, or a folder without `.parquet` files.
    pub fn init(&self) -> Result<ParquetSource> {
        let mut files = files_under(&self.path, true)?;
        if self.path.is_dir() {
            files.retain(|file| is_parquet(&file.path));
            if files.is_empty() {
                let path = self.path.display();
                return Err(Error::Data(format!("{path} holds no .parquet files")));
            }
        }
        Ok(ParquetSource {
            config: self.clone(),
            files,
            open: None,
            cursor: Cursor::default(),
            report: DataReport::default(),
        })
    }
}

/// Reads rows in order of files and row groups. Rows without text (null or blank) are dropped and
/// counted. In its cursor, `offset` and `line` count the rows of a file that are used up.
pub struct ParquetSource {
    config: ParquetSourceConfig,
    files: Vec<SourceFile>,
    /// The file that the cursor is in, once it is open.
    open: Option<OpenFile>,
    cursor: Cursor,
    report: DataReport,
}

impl ParquetSource {
    /// Bytes of the next row, or none for null; `None` at the end of the last file.
    fn next_row(&mut self) -> Result<Option<Option<ByteArray>>> {
        while let Some(SourceFile { path, .. }) = self.files.get(self.cursor.file) {
            let open = match &mut self.open {
                Some(open) => open,
                closed => {
                    let file =
                        OpenFile::new(path, self.config.options.field(), self.cursor.offset)?;
                    closed.insert(file.ok_or_else(|| outside(&self.config.path, &self.cursor))?)
                }
            };
            if let Some(row) = open.next()? {
                self.cursor.offset += 1;
                self.cursor.line += 1;
                return Ok(Some(row));
            }
            self.open = None;
            self.cursor = Cursor { file: self.cursor.file + 1, offset: 0, line: 0 };
        }
        Ok(None)
    }

    /// The text of a row, or why it is bad.
    fn text(&self, row: &ByteArray) -> Result<String, String> {
        let (len, cap) = (row.len(), self.config.options.row_cap());
        if len > cap {
            return Err(format!("{len} bytes, longer than the cap of {cap}"));
        }
        let text = std::str::from_utf8(row.data()).map_err(|_| NOT_TEXT)?;
        Ok(text.to_string())
    }
}

impl DocumentSource for ParquetSource {
    fn next_document(&mut self) -> Result<Option<Document>> {
        while let Some(row) = self.next_row()? {
            let SourceFile { path, name } = &self.files[self.cursor.file];
            let text = row.map_or(Ok(String::new()), |row| self.text(&row));
            match text {
                Ok(text) if text.trim().is_empty() => {
                    self.report.drop_document(EMPTY, Amount::text(text.chars().count()));
                }
                Ok(text) => {
                    self.report.kept += Amount::text(text.chars().count());
                    let id = format!("{name}:{}", self.cursor.line);
                    return Ok(Some(Document { id, text }));
                }
                Err(_) if self.config.options.bad_rows() == BadLines::Skip => {
                    self.report.skip("bad row")
                }
                Err(reason) => {
                    return Err(Error::Data(format!(
                        "{}, row {}, column `{}`: {reason} (remedy: mend the row, name the right \
                         column, or {SKIP})",
                        path.display(),
                        self.cursor.line,
                        self.config.options.field()
                    )));
                }
            }
        }
        Ok(None)
    }

    fn cursor(&self) -> Cursor {
        self.cursor
    }

    fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        let outside = || outside(&self.config.path, cursor);
        let open = match self.files.get(cursor.file) {
            None if *cursor == (Cursor { file: self.files.len(), offset: 0, line: 0 }) => None,
            Some(SourceFile { path, .. }) if cursor.line == cursor.offset => Some(
                OpenFile::new(path, self.config.options.field(), cursor.offset)?
                    .ok_or_else(outside)?,
            ),
            _ => return Err(outside()),
        };
        (self.open, self.cursor) = (open, *cursor);
        Ok(())
    }

    fn report(&self) -> &DataReport {
        &self.report
    }

    fn place(&self) -> String {
        self.config.path.display().to_string()
    }
}

/// A file under way.
struct OpenFile {
    path: PathBuf,
    name: String,
    reader: SerializedFileReader<File>,
    column: usize,
    /// Definition level of a row that holds a value.
    present: i16,
    /// Row group that `rows` come from, and the next one.
    group: usize,
    next_group: usize,
    rows: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Rows of the group that are not decoded yet.
    left: usize,
    decoded: VecDeque<Option<ByteArray>>,
}

impl OpenFile {
    /// A file from row `start` on; `None` where it has fewer.
    fn new(path: &Path, name: &str, start: u64) -> Result<Option<Self>> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let damaged = |reason| broken(path, None, name, reason);
        let reader = guarded(|| SerializedFileReader::new(file)).map_err(damaged)?;
        let schema = reader.metadata().file_metadata().schema_descr_ptr();
        let columns = schema.columns();
        let Some(column) = columns.iter().position(|column| column.path().string() == name) else {
            let names: Vec<_> = columns.iter().map(|column| column.path().string()).collect();
            return Err(Error::config(
                path.display().to_string(),
                "column",
                format!("`{name}`"),
                format!("one of the file's columns: {}", names.join(", ")),
            ));
        };
        let described = &columns[column];
        if described.physical_type() != Type::BYTE_ARRAY || described.max_rep_level() > 0 {
            let list = if described.max_rep_level() > 0 { "a list of " } else { "" };
            let value = format!("`{name}` of type {list}{}", described.physical_type());
            let expected = "a column of strings (BYTE_ARRAY, one per row)";
            return Err(Error::config(path.display().to_string(), "column", value, expected));
        }
        let mut open = Self {
            path: path.into(),
            name: name.into(),
            column,
            present: described.max_def_level(),
            reader,
            group: 0,
            next_group: 0,
            rows: None,
            left: 0,
            decoded: VecDeque::new(),
        };
        Ok(open.skip(start)?.then_some(open))
    }

    /// Pass over rows; whether there were as many.
    fn skip(&mut self, rows: u64) -> Result<bool> {
        let mut rest = rows as usize;
        while rest > 0 {
            if self.left == 0 && !self.open_group()? {
                return Ok(false);
            }
            let step = rest.min(self.left);
            let skipped = match &mut self.rows {
                // A whole group need not be decoded.
                _ if step == self.left => Ok(step),
                Some(rows) => guarded(|| rows.skip_records(step)),
                None => Ok(0),
            };
            let skipped = skipped.map_err(|reason| self.damaged(reason))?;
            if skipped != step {
                return Err(self.damaged(format!("{skipped} rows where {step} were expected")));
            }
            self.left -= step;
            rest -= step;
        }
        Ok(true)
    }

    /// Enter the next row group; false after the last.
    fn open_group(&mut self) -> Result<bool> {
        if self.next_group == self.reader.num_row_groups() {
            return Ok(false);
        }
        (self.group, self.next_group) = (self.next_group, self.next_group + 1);
        check_compression(
            &self.path,
            self.reader.metadata().row_group(self.group).column(self.column),
        )?;
        let rows = guarded(|| {
            let group = self.reader.get_row_group(self.group)?;
            Ok((group.metadata().num_rows(), group.get_column_reader(self.column)?))
        });
        match rows.map_err(|reason| self.damaged(reason))? {
            (count, ColumnReader::ByteArrayColumnReader(rows)) if count >= 0 => {
                (self.rows, self.left) = (Some(rows), count as usize);
                Ok(true)
            }
            (count, _) => Err(self.damaged(format!("{count} rows of another type"))),
        }
    }

    fn next(&mut self) -> Result<Option<Option<ByteArray>>> {
        loop {
            if let Some(row) = self.decoded.pop_front() {
                return Ok(Some(row));
            }
            if self.left == 0 {
                if !self.open_group()? {
                    return Ok(None);
                }
                continue;
            }
            self.decode()?;
        }
    }

    /// Decode the next rows of the group.
    fn decode(&mut self) -> Result<()> {
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let count = self.left.min(ROWS);
        let read = match &mut self.rows {
            Some(rows) => {
                guarded(|| rows.read_records(count, Some(&mut levels), None, &mut values))
            }
            None => Ok((0, 0, 0)),
        };
        let (records, _, _) = read.map_err(|reason| self.damaged(reason))?;
        if records == 0 {
            let reason = format!("{} rows fewer than the file's index says", self.left);
            return Err(self.damaged(reason));
        }
        self.left = self.left.saturating_sub(records);
        let mut values = values.into_iter();
        // A column that is never null has no levels.
        for row in 0..records {
            let present = levels.get(row).is_none_or(|level| *level == self.present);
            self.decoded.push_back(if present { values.next() } else { None });
        }
        Ok(())
    }

    fn damaged(&self, reason: impl ToString) -> Error {
        broken(&self.path, Some(self.group), &self.name, reason.to_string())
    }
}

/// Whether a column is compressed in a way that is built in.
pub(super) fn check_compression(path: &Path, column: &ColumnChunkMetaData) -> Result<()> {
    let codec = match column.compression() {
        Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_) => return Ok(()),
        other => format!("{other:?}"),
    };
    // Without the level, which no file states.
    let codec = codec.split('(').next().unwrap_or_default();
    Err(Error::Unsupported {
        what: format!(
            "{}: column `{}` is compressed with {codec}; what is read is uncompressed, Snappy and \
             Zstandard",
            path.display(),
            column.column_path().string()
        ),
        remedy: "write the file again with one of these, such as \
                 `pandas.read_parquet(FILE).to_parquet(FILE, compression=\"zstd\")`"
            .into(),
    })
}

/// Run a decoder on bytes from outside; where it panics on them, that is an error like any other.
pub(super) fn guarded<T>(decode: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the decoder gave up on it".into()),
    }
}

fn broken(path: &Path, group: Option<usize>, column: &str, reason: String) -> Error {
    let group = group.map_or("metadata".to_string(), |group| format!("row group {group}"));
    Error::Data(format!(
        "{}, {group}, column `{column}`: damaged: {reason} (remedy: fetch or write the file again)",
        path.display()
    ))
}
