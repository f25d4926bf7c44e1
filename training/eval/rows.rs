//! Items of a task from JSON lines.

use crate::datasets::source::{Lines, files_under, json_line};
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// Longest row, bytes.
const CAP: usize = 64 << 20;

/// The first `limit` rows of a `.jsonl` (or `.jsonl.zst`) file, made into items by `parse`. Blank
/// lines are passed over.
///
/// # Errors
/// A file that cannot be read, a line that is no JSON or that `parse` refuses (both with file and
/// line), or no row at all.
pub fn read_rows<T>(
    path: &Path,
    limit: usize,
    parse: impl Fn(&Value) -> Result<T, String>,
) -> Result<Vec<T>> {
    let mut lines = Lines::new(path, files_under(path, true)?, CAP);
    let mut items = Vec::new();
    while items.len() < limit {
        let Some(line) = lines.next()? else { break };
        if line.bytes.as_ref().is_ok_and(|bytes| bytes.iter().all(u8::is_ascii_whitespace)) {
            continue;
        }
        let item = line.bytes.and_then(|bytes| json_line(&bytes)).and_then(|row| parse(&row));
        items.push(item.map_err(|reason| {
            Error::Data(format!(
                "{}:{}: {reason} (remedy: mend the row, or name the task that it is of)",
                line.path.display(),
                line.number
            ))
        })?);
    }
    if items.is_empty() {
        return Err(Error::Data(format!("{}: there are no rows to evaluate", path.display())));
    }
    Ok(items)
}
