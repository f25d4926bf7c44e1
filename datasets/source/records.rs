//! Whole rows of Parquet files, all columns, as JSON: what a row of a `.jsonl` file would be.

use super::parquet::{check_compression, guarded, is_parquet};
use super::{SourceFile, files_under};
use crate::{Error, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Map, Value};
use std::fs::File;
use std::path::Path;

/// Every row of a `.parquet` file, or a folder of them, as `read` understands it and its name
/// (the row's own `id` where it has one, else its file and number). `None` where the path is of
/// another kind.
///
/// # Errors
/// When a file cannot be read or is damaged, and [`Error::Data`] with file and row for one that
/// `read` gives a reason against.
pub(crate) fn parquet_rows<T>(
    root: &Path,
    read: impl Fn(Value, String) -> Result<T, String>,
) -> Result<Option<Vec<T>>> {
    let files = files_under(root, true)?;
    if !files.iter().all(|file| is_parquet(&file.path)) {
        return Ok(None);
    }
    let mut found = Vec::new();
    for SourceFile { path, name } in files {
        let damaged = |row: usize, reason: String| {
            Error::Data(format!(
                "{}, row {row}: damaged: {reason} (remedy: fetch or write the file again)",
                path.display()
            ))
        };
        let file = File::open(&path).map_err(|e| Error::io(&path, e))?;
        let reader = guarded(|| SerializedFileReader::new(file)).map_err(|e| damaged(1, e))?;
        for column in reader.metadata().row_groups().iter().flat_map(|group| group.columns()) {
            check_compression(&path, column)?;
        }
        let mut rows = guarded(|| reader.get_row_iter(None)).map_err(|e| damaged(1, e))?;
        for number in 1.. {
            let row = guarded(|| rows.next().transpose()).map_err(|e| damaged(number, e))?;
            let Some(row) = row else { break };
            let row = object(row.get_column_iter()).and_then(|value| {
                let own = value.get("id").and_then(Value::as_str).map(str::to_string);
                read(value, own.unwrap_or_else(|| format!("{name}:{number}")))
            });
            found.push(row.map_err(|reason| {
                Error::Data(format!(
                    "{}, row {number}: {reason} (remedy: mend the row, or name the right column)",
                    path.display()
                ))
            })?);
        }
    }
    Ok(Some(found))
}

fn object<'a>(columns: impl Iterator<Item = (&'a String, &'a Field)>) -> Result<Value, String> {
    let column = |(name, field): (&String, &Field)| Ok::<_, String>((name.clone(), value(field)?));
    columns.map(column).collect::<Result<Map<_, _>, String>>().map(Value::Object)
}

fn value(field: &Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(is) => (*is).into(),
        Field::Byte(n) => (*n).into(),
        Field::Short(n) => (*n).into(),
        Field::Int(n) => (*n).into(),
        Field::Long(n) => (*n).into(),
        Field::UByte(n) => (*n).into(),
        Field::UShort(n) => (*n).into(),
        Field::UInt(n) => (*n).into(),
        Field::ULong(n) => (*n).into(),
        Field::Float(x) => (*x).into(),
        Field::Double(x) => (*x).into(),
        Field::Str(text) => text.clone().into(),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => return Err("a string is not UTF-8".into()),
        },
        Field::Group(row) => object(row.get_column_iter())?,
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().map(value).collect::<Result<_, _>>()?)
        }
        // Dates, decimals, maps: nothing that a conversation is made of.
        other => other.to_string().into(),
    })
}
