//! Typed look-ups in a JSON object, with errors that name file, field, value and expectation.

use crate::models::weights::shortened;
use crate::{Error, Result};
use serde_json::{Map, Value};

/// One object of the file.
pub(super) struct Fields<'a> {
    pub file: &'a str,
    /// Dotted path of the object within the file, with a trailing dot; empty at the top.
    pub path: String,
    pub map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The value; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether the key is there, be it `null`.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The error for this field.
    pub fn error(&self, key: &str, expected: impl Into<String>) -> Error {
        let value = match self.map.get(key) {
            None => "missing".into(),
            Some(value) => shortened(&value.to_string(), 60),
        };
        Error::config(self.file, format!("{}{key}", self.path), value, expected)
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: impl FnOnce() -> String,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.error(key, expected())),
        }
    }

    /// An integer in `range`.
    pub fn integer(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<Option<usize>> {
        let expected = || format!("an integer from {} to {}", range.start(), range.end());
        self.typed(key, expected, |v| {
            let n = usize::try_from(v.as_u64()?).ok()?;
            range.contains(&n).then_some(n)
        })
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, || "a number".into(), Value::as_f64)
    }

    /// A list of numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let expected = || "a list of numbers".into();
        self.typed(key, expected, |v| v.as_array()?.iter().map(Value::as_f64).collect())
    }

    /// `true` or `false`.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, || "true or false".into(), Value::as_bool)
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, || "a string".into(), Value::as_str)
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        let expected = || "a list of strings".into();
        self.typed(key, expected, |v| v.as_array()?.iter().map(Value::as_str).collect())
    }

    /// A token id, or a list of them.
    pub fn token_ids(&self, key: &str) -> Result<Option<Vec<u32>>> {
        let id = |v: &Value| u32::try_from(v.as_u64()?).ok();
        let expected = || "a token id or a list of token ids".into();
        self.typed(key, expected, |v| match v {
            Value::Array(list) => list.iter().map(id).collect(),
            one => Some(vec![id(one)?]),
        })
    }

    /// An object; an empty one counts as absent.
    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let map = self.typed(key, || "an object or null".into(), Value::as_object)?;
        Ok(map.filter(|m| !m.is_empty()).map(|map| Fields {
            file: self.file,
            path: format!("{}{key}.", self.path),
            map,
        }))
    }
}
