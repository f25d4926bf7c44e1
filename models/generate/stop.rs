//! Strings that end a text.

use crate::{Error, Result};

/// Watches a text that arrives in pieces for strings that end it. What could be the beginning of
/// one is held back until it is known not to be, so a stop string never shows, whatever tokens it
/// is spread over.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
    found: bool,
}

impl StopStrings {
    /// Stop at the first of `strings` that appears; without any, all text passes.
    ///
    /// # Errors
    /// An empty string, which every text holds.
    pub fn new(strings: impl IntoIterator<Item = impl Into<String>>) -> Result<Self> {
        let strings: Vec<String> = strings.into_iter().map(Into::into).collect();
        if strings.iter().any(String::is_empty) {
            return Err(Error::config(
                "generate",
                "stop string",
                "empty",
                "at least one character",
            ));
        }
        Ok(Self { strings, held: String::new(), found: false })
    }

    /// Take the next piece; the text that is certain to come before any stop string, often none.
    pub fn push(&mut self, piece: &str) -> String {
        if self.found {
            return String::new();
        }
        self.held.push_str(piece);
        let first = self.strings.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = first {
            self.found = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let safe = self.held.len() - self.unsure();
        let rest = self.held.split_off(safe);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop string has appeared; nothing behind it is handed out.
    pub fn found(&self) -> bool {
        self.found
    }

    /// What was held back, when no more text comes.
    pub fn finish(self) -> String {
        self.held
    }

    /// Bytes at the end of the held text that a stop string could begin with.
    fn unsure(&self) -> usize {
        let longest = |stop: &String| {
            let begins = stop.char_indices().map(|(at, _)| at).skip(1);
            begins.filter(|at| self.held.ends_with(&stop[..*at])).max().unwrap_or(0)
        };
        self.strings.iter().map(longest).max().unwrap_or(0)
    }
}
