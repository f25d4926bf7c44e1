//! Settings of a program of one's own, which are no recipe of the trainer's.

use crate::{Error, Result};
use serde::de::DeserializeOwned;
use std::path::Path;
use std::process::ExitCode;

/// Reads TOML from `path`, or from the file that was compiled in: a name and a text. Returns what it
/// says, and the name of the file for later messages.
///
/// # Errors
/// [`Error::Io`] for a file that cannot be read, [`Error::Parse`] with its text and the place for one
/// that says something else.
pub fn settings<T: DeserializeOwned>(
    path: Option<&Path>,
    built_in: (&str, &str),
) -> Result<(T, String)> {
    let (file, text) = match path {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
            (path.display().to_string(), text)
        }
        None => (built_in.0.to_string(), built_in.1.to_string()),
    };
    match toml::from_str(&text) {
        Ok(settings) => Ok((settings, file)),
        Err(e) => {
            let (message, span) = (e.to_string(), e.span());
            Err(Error::Parse { file, message, text: Some(text), span })
        }
    }
}

/// How a program ends: what went wrong is said on standard error.
pub fn exit_code(ended: Result<()>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
