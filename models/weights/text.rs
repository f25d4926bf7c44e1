//! Small text files, and texts short enough for an error message.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// Read a UTF-8 file of at most `limit` bytes; a larger one is refused before it is read.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let refused = |message: String| Error::Parse {
        file: path.display().to_string(),
        message,
        text: None,
        span: None,
    };
    // Looked at before it is opened, which a pipe would never return from.
    let about = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !about.is_file() {
        return Err(refused("is not a file (remedy: name the file itself)".into()));
    }
    if about.len() > limit {
        let length = about.len();
        return Err(refused(format!(
            "has {length} bytes; at most {limit} are read (remedy: check that this is the file \
             you mean)"
        )));
    }
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut bytes = Vec::with_capacity(about.len() as usize);
    file.take(limit).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map_err(|e| {
        let error = e.utf8_error();
        refused(format!("is not UTF-8: {error} (remedy: save it as UTF-8, or get it again)"))
    })
}

/// [`read_text`] of a file without which nothing goes on; `remedy` is for where there is none.
pub(crate) fn read_needed(path: &Path, limit: u64, remedy: &str) -> Result<String> {
    read_text(path, limit).map_err(|error| match error {
        Error::Io { path, source } if source.kind() == ErrorKind::NotFound => {
            let text = format!("there is no such file (remedy: {remedy})");
            Error::io(path, io::Error::new(ErrorKind::NotFound, text))
        }
        other => other,
    })
}

/// `text`, cut after `limit` characters.
pub(crate) fn shortened(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.into(),
    }
}
