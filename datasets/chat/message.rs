//! One turn of a conversation.

use super::python;
use crate::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value};

/// A message: `role`, `content`, and whatever else a template may look at (`tool_calls`, `name`
/// ...), in the order in which it was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Message(Map<String, Value>);

impl Message {
    /// A text by `role`: "system", "user", "assistant", or what else the template knows.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let mut fields = Map::new();
        fields.insert("role".into(), Value::String(role.into()));
        fields.insert("content".into(), Value::String(content.into()));
        Self(fields)
    }

    /// Add a field, or replace one.
    pub fn with_field(mut self, name: impl Into<String>, value: Value) -> Self {
        self.0.insert(name.into(), value);
        self
    }

    /// Who speaks.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// A field, where there is one.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// As templates see it.
    pub(super) fn value(&self) -> minijinja::Value {
        python::map(&self.0)
    }

    /// From one JSON object; `field` is its name in the reason why not. Fields that are null are
    /// left out, as `transformers` does.
    fn read(value: Value, field: &str) -> Result<Self, String> {
        let Value::Object(mut fields) = value else {
            return Err(format!("field `{field}` is {}; expected an object", kind(&value)));
        };
        fields.retain(|_, value| !value.is_null());
        match fields.get("role") {
            Some(Value::String(role)) if !role.is_empty() => {}
            Some(Value::String(_)) => return Err(format!("field `{field}.role` is empty")),
            Some(other) => {
                return Err(format!("field `{field}.role` is {}; expected a string", kind(other)));
            }
            None => return Err(format!("no field `{field}.role`")),
        }
        match fields.get("content") {
            Some(Value::String(_) | Value::Array(_) | Value::Object(_)) => {}
            Some(other) => {
                let kind = kind(other);
                return Err(format!(
                    "field `{field}.content` is {kind}; expected a string, parts or an object"
                ));
            }
            // A call of a tool may stand without a text.
            None if fields.len() > 1 => {}
            None => return Err(format!("no field `{field}.content`")),
        }
        Ok(Self(fields))
    }

    /// A list of messages; `field` is its name in the reason why not.
    pub(super) fn read_list(value: Value, field: &str) -> Result<Vec<Self>, String> {
        let Value::Array(list) = value else {
            let kind = kind(&value);
            return Err(format!("field `{field}` is {kind}; expected a list of messages"));
        };
        if list.is_empty() {
            return Err(format!("field `{field}` is empty; expected at least one message"));
        }
        let read = |(i, value)| Self::read(value, &format!("{field}[{i}]"));
        list.into_iter().enumerate().map(read).collect()
    }

    /// The messages of a JSON text: a list of them, or an object that holds it in `messages`;
    /// `file` is its name in messages of errors.
    ///
    /// # Errors
    /// [`Error::Parse`] for what is no JSON, [`Error::Data`] with the field for what is no
    /// conversation.
    pub fn parse_list(text: &str, file: &str) -> Result<Vec<Self>> {
        const REMEDY: &str =
            r#"(remedy: write a list such as [{"role": "user", "content": "Hello"}])"#;
        let value: Value = serde_json::from_str(text).map_err(|e| Error::Parse {
            file: file.into(),
            message: format!("not JSON: {e} {REMEDY}"),
            text: None,
            span: None,
        })?;
        let list = match value {
            Value::Object(mut row) => row.remove("messages").ok_or("no field `messages`".into()),
            list => Ok(list),
        };
        let messages = list.and_then(|list| Self::read_list(list, "messages"));
        messages.map_err(|reason: String| Error::Data(format!("{file}: {reason} {REMEDY}")))
    }
}

/// What a JSON value is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
