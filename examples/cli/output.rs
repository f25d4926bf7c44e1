//! Standard output: text for people, one object for programs. Files and folders that are to be
//! written are looked at before any work.

use longburn::models::weights::obstacle;
use longburn::{Error, Result};
use serde_json::Value;
use std::io::Write;
use std::path::Path;

/// Write `text` as it is.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|e| Error::io("standard output", e))
}

/// A line on standard error. Who closed it has read enough, and what runs goes on.
pub fn note(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Write one object, on one line.
pub fn json(value: &Value) -> Result<()> {
    print(&format!("{value}\n"))
}

/// `serde_json` value of something that cannot fail to have one.
pub fn value(of: &impl serde::Serialize) -> Value {
    serde_json::to_value(of).unwrap_or(Value::Null)
}

/// What a verb is going to write, by the name of the option.
pub enum Target<'a> {
    File(&'static str, &'a Path),
    /// New or empty.
    Folder(&'static str, &'a Path),
}

impl<'a> Target<'a> {
    /// The file of an option, where it is given.
    pub fn file(option: &'static str, path: &'a Option<std::path::PathBuf>) -> Option<Self> {
        path.as_deref().map(|path| Self::File(option, path))
    }

    /// Whether it can be written.
    ///
    /// # Errors
    /// [`Error::Config`] with the option, the path, and what is there.
    pub fn check(&self) -> Result<()> {
        let (option, path) = match self {
            Self::File(option, path) | Self::Folder(option, path) => (option, path),
        };
        let (found, expected) = match self {
            Self::File(..) => (file_obstacle(path), "a file in a folder that is there"),
            Self::Folder(..) => {
                (folder_obstacle(path), "a new or empty folder, so that nothing is overwritten")
            }
        };
        match found {
            None => Ok(()),
            Some(found) => {
                let value = format!("{} ({found})", path.display());
                Err(Error::config("command line", *option, value, expected))
            }
        }
    }
}

fn file_obstacle(path: &Path) -> Option<String> {
    if path.is_dir() {
        return Some("a folder has that name".into());
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match folder.exists() {
        true => obstacle(folder),
        false => Some(format!("there is no folder {}", folder.display())),
    }
}

fn folder_obstacle(path: &Path) -> Option<String> {
    let first = std::fs::read_dir(path).ok().and_then(|mut entries| entries.next()?.ok());
    match first {
        Some(entry) => Some(format!("it holds {}", entry.file_name().to_string_lossy())),
        None => obstacle(path),
    }
}
