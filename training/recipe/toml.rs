//! Reading TOML so that every complaint points into the line.

use crate::{Error, Result};
use serde::de::DeserializeOwned;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

/// Parse `text`; `file` is its name in messages.
pub(super) fn parse<T: DeserializeOwned>(text: &str, file: &str) -> Result<T> {
    let fail = |message: &str, span| {
        let message = message.trim_end();
        let (entry, said) = of_entry(text, message);
        let span = entry.or(span);
        fault(file, text, &format!("{message} (remedy: {})", remedy(said)), span)
    };
    let table = DeTable::parse(text).map_err(|e| fail(e.message(), e.span()))?;
    T::deserialize(Deserializer::from(table.clone()))
        .map_err(|e| fail(e.message(), blame::<T>(&table, &[], e.message()).or_else(|| e.span())))
}

/// What to do about a complaint of the parser or of the types.
fn remedy(message: &str) -> &'static str {
    let about = |what: &str| message.starts_with(what);
    if about("unknown field") || about("unknown variant") {
        "write one of these names, or take it out"
    } else if about("missing field") {
        "add it; docs/recipes.md lists all fields"
    } else if about("invalid") || about("data did not match") {
        "write a value of the kind that docs/recipes.md states"
    } else {
        "mend the line; https://toml.io shows the format"
    }
}

/// An error about a field, as one that points at the field's value in `text`.
pub(super) fn point(error: Error, text: &str, file: &str) -> Error {
    match error {
        Error::Config { file: of, field, value, expected } if of == file => {
            let message = format!("`{field}` is {value}; expected {expected}");
            fault(file, text, &message, locate(text, &field))
        }
        other => other,
    }
}

/// The message names the line, too, for those who do not see the text.
fn fault(file: &str, text: &str, message: &str, span: Option<Range<usize>>) -> Error {
    let message = match &span {
        Some(span) => {
            let before = &text.as_bytes()[..span.start.min(text.len())];
            let line = before.iter().filter(|b| **b == b'\n').count() + 1;
            format!("line {line}: {message}")
        }
        None => message.into(),
    };
    Error::Parse { file: file.into(), message, text: Some(text.into()), span }
}

/// Where a dotted field stands, or the innermost table around it that does.
fn locate(text: &str, field: &str) -> Option<Range<usize>> {
    let table = DeTable::parse(text).ok()?;
    let mut table = table.get_ref();
    let mut span = None;
    for part in field.split('.') {
        let (name, index) = match part.split_once('[') {
            Some((name, index)) => (name, index.trim_end_matches(']').parse::<usize>().ok()),
            None => (part, None),
        };
        let Some((key, value)) = table.iter().find(|(key, _)| key.get_ref() == name) else { break };
        let item = match (value.get_ref(), index) {
            (DeValue::Array(items), Some(index)) => items.get(index),
            _ => None,
        };
        match item.unwrap_or(value).get_ref() {
            DeValue::Table(inner) => {
                (table, span) = (inner, Some(item.map_or_else(|| key.span(), Spanned::span)));
            }
            _ => return Some(item.unwrap_or(value).span()),
        }
    }
    span
}

/// Where the entry of a list stands that a complaint begins with (`mixer[1]: unknown field ..`), or
/// its field, and the complaint itself.
fn of_entry<'a>(text: &str, message: &'a str) -> (Option<Range<usize>>, &'a str) {
    let Some((place, said)) = message.split_once("]: ") else { return (None, message) };
    if !place.split_once('[').is_some_and(|(name, _)| name.chars().all(char::is_alphanumeric)) {
        return (None, message);
    }
    let field = said.split('`').nth(1).unwrap_or_default();
    (locate(text, &format!("{place}].{field}")), said)
}

/// The key without which reading `root` would no longer end in `message`: serde forgets places
/// inside of enums that are told apart by a field.
fn blame<T: DeserializeOwned>(
    root: &Spanned<DeTable<'_>>,
    path: &[&str],
    message: &str,
) -> Option<Range<usize>> {
    if path.is_empty() && message.starts_with("missing field") {
        return None;
    }
    let mut table = root.get_ref();
    for part in path {
        table = table.iter().find(|(key, _)| key.get_ref() == part)?.1.get_ref().as_table()?;
    }
    let mut found = None;
    let mut least = 3;
    for (key, value) in table.iter() {
        let path: Vec<&str> = path.iter().copied().chain([&**key.get_ref()]).collect();
        let mut without = root.clone();
        remove(without.get_mut(), &path);
        let rank = match T::deserialize(Deserializer::from(without)) {
            Err(e) if e.message() == message => continue,
            // The field that tells the variants apart is missed in any case.
            Err(e) if e.message().starts_with("missing field `name`") => 2,
            Err(e) if e.message().starts_with("missing field") => 1,
            _ => 0,
        };
        if rank < least {
            (least, found) = (rank, Some((path, key, value)));
        }
    }
    let (path, key, value) = found?;
    match value.get_ref() {
        DeValue::Table(_) => blame::<T>(root, &path, message).or(Some(key.span())),
        _ if message.starts_with("unknown field") => Some(key.span()),
        _ => Some(value.span()),
    }
}

fn remove(table: &mut DeTable<'_>, path: &[&str]) {
    let Some((first, rest)) = path.split_first() else { return };
    let Some(key) = table.keys().find(|key| key.get_ref() == first).cloned() else { return };
    match (rest.is_empty(), table.get_mut(&key).map(Spanned::get_mut)) {
        (true, _) => drop(table.remove(&key)),
        (false, Some(DeValue::Table(inner))) => remove(inner, rest),
        _ => {}
    }
}
