//! Results of an evaluation on disk, item by item, so that one that was interrupted goes on.
//!
//! A file of JSON lines: the first says what is measured, every other holds one item's result.

use crate::datasets::FileStamp;
use crate::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Version of the layout.
const FORMAT: u64 = 1;

/// A results file that belongs to one evaluation.
#[derive(Debug)]
pub struct ResultsFile {
    path: PathBuf,
    file: File,
    done: BTreeMap<usize, Value>,
}

impl ResultsFile {
    /// Open the results of the evaluation that `settings` describes, or begin them. `settings`
    /// holds everything that the results follow from: the model, the data, the task's numbers.
    ///
    /// A last line that an interruption left incomplete is taken off.
    ///
    /// # Errors
    /// [`Error::Config`] for the results of something else, naming the setting that differs;
    /// [`Error::Parse`] for a file that is no results file; [`Error::Io`], also where another
    /// process is writing the file.
    pub fn open(path: &Path, settings: &Value) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(io)?;
        file.try_lock().map_err(|e| match e {
            std::fs::TryLockError::Error(e) => io(e),
            std::fs::TryLockError::WouldBlock => io(std::io::Error::other(
                "another evaluation is writing it (remedy: wait for it, or name another file)",
            )),
        })?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(io)?;
        let mut this = Self { path: path.into(), file, done: BTreeMap::new() };
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].lines().enumerate();
        let Some((_, first)) = lines.next() else {
            if !text.is_empty() {
                return Err(this.fault(0, "no results file".into()));
            }
            this.line(&json!({ "longburn_results": FORMAT, "settings": settings }))?;
            return Ok(this);
        };
        let header = this.parse(0, first)?;
        if header["longburn_results"] != FORMAT {
            return Err(this.fault(0, format!("no results file of format {FORMAT}")));
        }
        if let Some((field, found, wanted)) = difference("", &header["settings"], settings) {
            let expected = format!(
                "{wanted}, as in this evaluation (remedy: name another results file, or take this \
                 one away)"
            );
            let file = path.display().to_string();
            return Err(Error::config(file, format!("settings{field}"), found, expected));
        }
        for (number, line) in lines {
            let mut entry = this.parse(number, line)?;
            let item = entry["item"].as_u64();
            let item = item.ok_or_else(|| this.fault(number, "`item` is not a number".into()))?;
            this.done.insert(item as usize, entry["result"].take());
        }
        this.file.set_len(whole as u64).map_err(io)?;
        this.file.seek(SeekFrom::Start(whole as u64)).map_err(io)?;
        Ok(this)
    }

    /// Items that have a result.
    pub fn len(&self) -> usize {
        self.done.len()
    }

    /// Whether there is no result yet.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    fn get<R: DeserializeOwned>(&self, item: usize) -> Result<Option<R>> {
        let read = |value: &Value| {
            R::deserialize(value).map_err(|e| Error::Parse {
                file: self.path.display().to_string(),
                message: format!("result of item {item}: {e}"),
                text: None,
                span: None,
            })
        };
        self.done.get(&item).map(read).transpose()
    }

    fn put(&mut self, item: usize, result: &impl Serialize) -> Result<()> {
        let value = serde_json::to_value(result)
            .map_err(|e| Error::Data(format!("result of item {item}: {e}")))?;
        self.line(&json!({ "item": item, "result": value }))?;
        self.done.insert(item, value);
        Ok(())
    }

    /// One line, in one write.
    fn line(&mut self, value: &Value) -> Result<()> {
        let written = self.file.write_all(format!("{value}\n").as_bytes());
        written.map_err(|e| Error::io(&self.path, e))
    }

    fn parse(&self, number: usize, line: &str) -> Result<Value> {
        serde_json::from_str(line).map_err(|e| self.fault(number, e.to_string()))
    }

    fn fault(&self, number: usize, message: String) -> Error {
        Error::Parse {
            file: self.path.display().to_string(),
            message: format!(
                "line {}: {message} (remedy: name another results file, or take this one away)",
                number + 1
            ),
            text: None,
            span: None,
        }
    }
}

/// The first place where two values differ, and what is there.
fn difference(at: &str, found: &Value, wanted: &Value) -> Option<(String, String, String)> {
    match (found, wanted) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            let at = |key: &String| format!("{at}.{key}");
            keys.into_iter().find_map(|key| difference(&at(key), &found[key], &wanted[key]))
        }
        _ if found == wanted => None,
        _ => Some((at.into(), found.to_string(), wanted.to_string())),
    }
}

/// Results of all items in their order: those on file, and for the others what `score` makes of
/// them, `chunk` items at a time, which goes to the file as soon as it is there.
///
/// # Errors
/// Those of `score`, and of the file.
pub fn resumable<T, R: Serialize + DeserializeOwned>(
    items: &[T],
    mut file: Option<&mut ResultsFile>,
    chunk: usize,
    mut score: impl FnMut(&[&T]) -> Result<Vec<R>>,
) -> Result<Vec<R>> {
    let mut results = Vec::with_capacity(items.len());
    for item in 0..items.len() {
        results.push(match &file {
            Some(file) => file.get(item)?,
            None => None,
        });
    }
    let open: Vec<usize> = (0..items.len()).filter(|i| results[*i].is_none()).collect();
    for chunk in open.chunks(chunk.max(1)) {
        let members: Vec<&T> = chunk.iter().map(|i| &items[*i]).collect();
        for (i, result) in chunk.iter().zip(score(&members)?) {
            if let Some(file) = &mut file {
                file.put(*i, &result)?;
            }
            results[*i] = Some(result);
        }
    }
    let missing = || Error::Data("an item of the evaluation has no result".into());
    results.into_iter().map(|result| result.ok_or_else(missing)).collect()
}

/// What tells the model in a folder (with an adapter) from others, for [`ResultsFile::open`]: name,
/// size and ends of its configuration, tokenizer and weights, not their dates.
///
/// # Errors
/// When a file cannot be read.
pub fn model_stamp(dir: &Path, adapter: Option<&Path>) -> Result<Value> {
    let stamp = |dir: &Path| -> Result<Value> {
        let mut stamps = FileStamp::of_source(dir)?;
        stamps.retain(|name, _| {
            !name.contains('/') && (name.ends_with(".json") || name.ends_with(".safetensors"))
        });
        Ok(stamps.into_iter().map(undated).collect::<serde_json::Map<_, _>>().into())
    };
    Ok(json!({ "model": stamp(dir)?, "adapter": adapter.map(stamp).transpose()? }))
}

/// The same of a data file or folder.
///
/// # Errors
/// When a file cannot be read.
pub fn data_stamp(path: &Path) -> Result<Value> {
    let stamps = FileStamp::of_source(path)?;
    Ok(stamps.into_iter().map(undated).collect::<serde_json::Map<_, _>>().into())
}

fn undated((name, stamp): (String, FileStamp)) -> (String, Value) {
    (name, format!("{} bytes, {}", stamp.len, &stamp.sha256[..16]).into())
}
