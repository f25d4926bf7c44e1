//! Standard output: text for people, one object for programs.

use longburn::{Error, Result};
use serde_json::Value;
use std::io::Write;

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
