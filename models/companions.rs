//! Files of a checkpoint's folder that go with its weights: tokenizer, chat template, settings.

use super::weights::write_atomic;
use crate::{Error, Result};
use std::io::ErrorKind;
use std::path::Path;

pub(crate) const COMPANIONS: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// Copy, byte for byte, what `from` has of them.
///
/// # Errors
/// [`Error::Io`] with the file that cannot be read or written.
pub fn copy_companions(from: &Path, to: &Path) -> Result<()> {
    for name in COMPANIONS {
        let file = from.join(name);
        match std::fs::read(&file) {
            Ok(bytes) => write_atomic(&to.join(name), &bytes)?,
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(file, e)),
        }
    }
    Ok(())
}
