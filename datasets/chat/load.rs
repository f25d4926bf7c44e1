//! Templates where checkpoints keep them.

use super::ChatTemplate;
use super::template::MAX_SOURCE;
use crate::{Error, Result};
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// Longest `tokenizer_config.json` that is searched for a template, bytes.
const MAX_CONFIG: usize = 16 << 20;

impl ChatTemplate {
    /// The template of a checkpoint: `chat_template.jinja`, else the field `chat_template` of
    /// `tokenizer_config.json`, which may be a list of named ones. Without a `name` it is the one
    /// called "default".
    ///
    /// # Errors
    /// [`Error::Template`] when there is none, none of that name, or it is no template.
    pub fn load(dir: &Path, name: Option<&str>) -> Result<Self> {
        let wanted = name.unwrap_or("default");
        let mut file = dir.join("chat_template.jinja");
        let named: Vec<(String, String, String)> = match read_file(&file, MAX_SOURCE)? {
            Some(text) => vec![("default".into(), file.display().to_string(), text)],
            None => {
                file = dir.join("tokenizer_config.json");
                let text = read_file(&file, MAX_CONFIG)?;
                text.map_or(Ok(Vec::new()), |text| in_config(&text, &file))?
            }
        };
        if named.is_empty() {
            return Err(Error::Template {
                place: dir.display().to_string(),
                reason: "has no chat template".into(),
                remedy: "give one in chat_template.jinja, or in the field `chat_template` of \
                         tokenizer_config.json; a base model has none of its own"
                    .into(),
            });
        }
        let names: Vec<&str> = named.iter().map(|(name, ..)| name.as_str()).collect();
        let known = names.join(", ");
        match named.into_iter().find(|(name, ..)| name == wanted) {
            Some((_, place, source)) => Self::new(source, place),
            None => Err(Error::Template {
                place: file.display().to_string(),
                reason: format!("has no chat template `{wanted}`"),
                remedy: format!("name one of: {known}"),
            }),
        }
    }
}

/// The text of a file of at most `limit` bytes; `None` where there is none.
fn read_file(path: &Path, limit: usize) -> Result<Option<String>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    let refused = |reason: String| Error::Template {
        place: path.display().to_string(),
        reason,
        remedy: "take the file of the checkpoint's origin".into(),
    };
    if bytes.len() > limit {
        return Err(refused(format!("has more than {limit} bytes")));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| refused("is not UTF-8".into()))
}

/// Name, place and text of the templates in a `tokenizer_config.json`.
fn in_config(text: &str, file: &Path) -> Result<Vec<(String, String, String)>> {
    let config: Value = serde_json::from_str(text).map_err(|e| Error::Parse {
        file: file.display().to_string(),
        message: format!("{e} (remedy: take the file of the checkpoint's origin)"),
        text: None,
        span: None,
    })?;
    let field = |field: &str| format!("{}, field `{field}`", file.display());
    let bad = |name: &str, value: &Value| Error::Template {
        place: field(name),
        reason: format!("is {}", super::message::kind(value)),
        remedy: "make it a string, or a list of objects with the strings `name` and `template`"
            .into(),
    };
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => {
            Ok(vec![("default".into(), field("chat_template"), text.clone())])
        }
        Some(Value::Array(list)) => {
            let entry = |(i, entry): (usize, &Value)| {
                let name = format!("chat_template[{i}]");
                match (entry.get("name"), entry.get("template")) {
                    (Some(Value::String(called)), Some(Value::String(text))) => {
                        Ok((called.clone(), field(&name), text.clone()))
                    }
                    _ => Err(bad(&name, entry)),
                }
            };
            list.iter().enumerate().map(entry).collect()
        }
        Some(other) => Err(bad("chat_template", other)),
    }
}
