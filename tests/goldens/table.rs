//! `tests/goldens.toml`: which check reads which files.

use crate::{CHECKS, Check, Failure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The number of pending patterns may fall, never rise: lower this with the list.
const MOST_PENDING: usize = 38;

/// What is to happen with a file.
#[derive(Clone, Copy)]
pub enum Entry {
    /// Nothing reads it yet.
    Pending,
    /// Run this.
    Check(Check),
}

/// Patterns of GROUP/NAME (`*` stands for any text) with what is to happen.
pub struct Table(Vec<(String, Entry)>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    pending_patterns: usize,
    checks: BTreeMap<String, Vec<String>>,
    pending: Vec<String>,
}

impl Table {
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path)?;
        let file: File = toml::from_str(&text)?;
        let count = file.pending.len();
        if file.pending_patterns != count || count > MOST_PENDING {
            return Err(format!(
                "goldens.toml: {count} pending patterns where pending_patterns says {} and at \
                 most {MOST_PENDING} are allowed",
                file.pending_patterns
            )
            .into());
        }
        let mut entries: Vec<(String, Entry)> =
            file.pending.into_iter().map(|pattern| (pattern, Entry::Pending)).collect();
        for (name, patterns) in file.checks {
            let Some((_, check)) = CHECKS.iter().find(|(known, _)| *known == name) else {
                return Err(format!("goldens.toml: there is no check `{name}`").into());
            };
            entries.extend(patterns.into_iter().map(|pattern| (pattern, Entry::Check(*check))));
        }
        Ok(Self(entries))
    }

    /// The entry for `name`. Of several patterns that match, the one with the most letters
    /// decides.
    pub fn find(&self, name: &str) -> Result<Option<Entry>, Failure> {
        let letters = |pattern: &str| pattern.chars().filter(|c| *c != '*').count();
        let matching: Vec<_> = self.0.iter().filter(|(p, _)| matches(p, name)).collect();
        let most = matching.iter().map(|(p, _)| letters(p)).max();
        let best: Vec<_> = matching.into_iter().filter(|(p, _)| Some(letters(p)) == most).collect();
        match best[..] {
            [] => Ok(None),
            [(_, entry)] => Ok(Some(*entry)),
            [(a, _), (b, _), ..] => {
                Err(format!("goldens.toml: {name} matches `{a}` as well as `{b}`").into())
            }
        }
    }
}

/// Whether `pattern`, in which `*` stands for any text, is all of `text`.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|tail| {
            tail.char_indices()
                .map(|(i, _)| i)
                .chain([tail.len()])
                .any(|i| matches(rest, &tail[i..]))
        }),
    }
}
