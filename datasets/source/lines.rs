//! Lines of files, plain or compressed with Zstandard.

use super::{Cursor, SourceFile, outside};
use crate::{Error, Result};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The lines of some files, one file after the other; a line longer than the cap is passed over
/// without being held in memory.
pub(crate) struct Lines {
    root: PathBuf,
    files: Vec<SourceFile>,
    cap: usize,
    /// The file that the cursor is in, once it is open.
    reader: Option<Reader>,
    cursor: Cursor,
}

/// A line without its end, and where it stands.
pub(crate) struct Line {
    /// Its bytes, or why there are none.
    pub bytes: Result<Vec<u8>, String>,
    /// The file.
    pub path: PathBuf,
    /// The file's name below the source's folder.
    pub name: String,
    /// Number in the file, from 1.
    pub number: u64,
}

enum Reader {
    Plain(BufReader<File>),
    Zstd(Box<BufReader<zstd::Decoder<'static, BufReader<File>>>>),
}

impl Lines {
    /// Lines of `files`, which are what `root` stands for, of at most `cap` bytes each.
    pub fn new(root: &Path, files: Vec<SourceFile>, cap: usize) -> Self {
        Self { root: root.into(), files, cap, reader: None, cursor: Cursor::default() }
    }

    /// The next line; `None` at the end of the last file. The cursor stands behind it.
    ///
    /// # Errors
    /// A file that cannot be read, or is no whole Zstandard stream though its name says so.
    pub fn next(&mut self) -> Result<Option<Line>> {
        while let Some(SourceFile { path, name }) = self.files.get(self.cursor.file) {
            let number = self.cursor.line + 1;
            let reader = match &mut self.reader {
                Some(reader) => reader,
                closed => match Reader::open_at(path, self.cursor.offset)? {
                    Some(reader) => closed.insert(reader),
                    None => return Err(outside(&self.root, &self.cursor)),
                },
            };
            let failed = |e| reading(path, number, e);
            let mut line = Vec::new();
            // Room for the longest line and its end, `\r\n`.
            let room = self.cap as u64 + 2;
            let read = reader.by_ref().take(room).read_until(b'\n', &mut line).map_err(failed)?;
            if read == 0 {
                self.reader = None;
                self.cursor = Cursor { file: self.cursor.file + 1, offset: 0, line: 0 };
                continue;
            }
            let mut passed = read as u64;
            if line.last() == Some(&b'\n') {
                line.pop();
                line.pop_if(|byte| *byte == b'\r');
            } else if read > self.cap {
                passed += reader.skip_until(b'\n').map_err(failed)? as u64;
            }
            self.cursor.offset += passed;
            self.cursor.line = number;
            let bytes = if line.len() > self.cap {
                Err(format!("longer than the cap of {} bytes", self.cap))
            } else {
                Ok(line)
            };
            return Ok(Some(Line { bytes, path: path.clone(), name: name.clone(), number }));
        }
        Ok(None)
    }

    /// Where the next line begins, in bytes of the decompressed text.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Go to where lines of the same files stood.
    ///
    /// # Errors
    /// When that is not between two lines.
    pub fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        let reader = match self.files.get(cursor.file) {
            None if *cursor == (Cursor { file: self.files.len(), offset: 0, line: 0 }) => None,
            None => return Err(outside(&self.root, cursor)),
            Some(SourceFile { path, .. }) => Some(
                Reader::open_at(path, cursor.offset)?.ok_or_else(|| outside(&self.root, cursor))?,
            ),
        };
        (self.reader, self.cursor) = (reader, *cursor);
        Ok(())
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines")
            .field("root", &self.root)
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// A file from byte `offset` of its text on; `None` where that is not between two lines.
    fn open_at(path: &Path, offset: u64) -> Result<Option<Self>> {
        let io = |e| Error::io(path, e);
        let file = BufReader::new(File::open(path).map_err(io)?);
        let mut reader = if is_zstd(path) {
            let decoder = zstd::Decoder::with_buffer(file).map_err(io)?;
            Self::Zstd(Box::new(BufReader::new(decoder)))
        } else {
            Self::Plain(file)
        };
        let Some(before) = offset.checked_sub(1) else { return Ok(Some(reader)) };
        // A place between two lines follows a line's end, or is the end of the file.
        let failed = |e| reading(path, 1, e);
        match &mut reader {
            Self::Plain(file) => file.seek(SeekFrom::Start(before)).map_err(io)?,
            Self::Zstd(text) => {
                io::copy(&mut text.by_ref().take(before), &mut io::sink()).map_err(failed)?
            }
        };
        let mut byte = [0];
        let found = reader.read(&mut byte).map_err(failed)? == 1;
        let between = byte == *b"\n" || reader.fill_buf().map_err(failed)?.is_empty();
        Ok((found && between).then_some(reader))
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Zstd(reader) => reader.read(buffer),
        }
    }
}

impl BufRead for Reader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self {
            Self::Plain(reader) => reader.fill_buf(),
            Self::Zstd(reader) => reader.fill_buf(),
        }
    }

    fn consume(&mut self, amount: usize) {
        match self {
            Self::Plain(reader) => reader.consume(amount),
            Self::Zstd(reader) => reader.consume(amount),
        }
    }
}

/// Whether a file's name says that it is compressed.
pub(super) fn is_zstd(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "zst")
}

fn reading(path: &Path, line: u64, error: io::Error) -> Error {
    if !is_zstd(path) {
        return Error::io(path, error);
    }
    Error::Data(format!(
        "{}:{line}: the Zstandard data is damaged or cut short: {error} (remedy: fetch or compress \
         the file again; `zstd --test FILE` checks it)",
        path.display()
    ))
}
