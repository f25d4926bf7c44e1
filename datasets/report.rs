//! What became of the data: the account that every source, tokenisation and packing closes with.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// So much text; what was not counted (tokens before tokenisation, say) is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Documents.
    pub documents: u64,
    /// Characters.
    pub characters: u64,
    /// Tokens.
    pub tokens: u64,
}

impl Amount {
    /// One document of so many characters.
    pub fn text(characters: usize) -> Self {
        Self { documents: 1, characters: characters as u64, tokens: 0 }
    }

    /// One document of so many tokens.
    pub fn tokens(tokens: usize) -> Self {
        Self { documents: 1, characters: 0, tokens: tokens as u64 }
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.documents += other.documents;
        self.characters += other.characters;
        self.tokens += other.tokens;
    }
}

/// Account of a data source or of a step of its preparation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataReport {
    /// What is left to use.
    pub kept: Amount,
    /// What was cut off documents that were kept, and how many those are.
    pub truncated: Amount,
    /// Whole documents left out, by reason.
    pub dropped: BTreeMap<String, Amount>,
    /// Files, lines or crates that gave no document, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Tokens of padding.
    pub padding: u64,
}

impl DataReport {
    /// Count a document left out.
    pub fn drop_document(&mut self, reason: &str, amount: Amount) {
        *self.dropped.entry(reason.to_string()).or_default() += amount;
    }

    /// Count something that gave no document.
    pub fn skip(&mut self, reason: &str) {
        *self.skipped.entry(reason.to_string()).or_default() += 1;
    }

    /// Account of this step and the next: losses of both, and what the next one kept.
    pub fn then(mut self, next: &Self) -> Self {
        self.kept = next.kept;
        self.truncated += next.truncated;
        for (reason, amount) in &next.dropped {
            self.drop_document(reason, *amount);
        }
        for (reason, count) in &next.skipped {
            *self.skipped.entry(reason.clone()).or_default() += count;
        }
        self.padding += next.padding;
        self
    }

    /// Account of this source and another one beside it.
    pub fn beside(self, other: &Self) -> Self {
        let mut kept = self.kept;
        kept += other.kept;
        Self { kept, ..self.then(other) }
    }

    /// Share of the text that was cut off or dropped, by tokens where both were counted in
    /// tokens, else by characters.
    pub fn lost_share(&self) -> f64 {
        let mut lost = self.truncated;
        self.dropped.values().for_each(|amount| lost += *amount);
        let share = |lost: u64, kept: u64| lost as f64 / (lost + kept).max(1) as f64;
        if self.kept.tokens > 0 {
            share(lost.tokens, self.kept.tokens)
        } else {
            share(lost.characters, self.kept.characters)
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", count(self.documents, "document"))?;
        for (n, unit) in [(self.characters, "character"), (self.tokens, "token")] {
            if n > 0 {
                write!(f, ", {}", count(n, unit))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for DataReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kept)?;
        if self.truncated.documents > 0 {
            write!(f, "; truncated: {}", self.truncated)?;
        }
        for (reason, amount) in &self.dropped {
            write!(f, "; dropped ({reason}): {amount}")?;
        }
        let share = 100.0 * self.lost_share();
        if share > 0.0 {
            write!(f, "; {share:.2} % lost")?;
        }
        for (reason, n) in &self.skipped {
            write!(f, "; skipped ({reason}): {}", digits(*n))?;
        }
        if self.padding > 0 {
            write!(f, "; {} of padding", count(self.padding, "token"))?;
        }
        Ok(())
    }
}

fn count(n: u64, unit: &str) -> String {
    format!("{} {unit}{}", digits(n), if n == 1 { "" } else { "s" })
}

/// 1234567 as 1,234,567.
fn digits(n: u64) -> String {
    let plain = n.to_string();
    let mut out = String::with_capacity(plain.len() * 4 / 3);
    for (i, c) in plain.chars().enumerate() {
        if i > 0 && (plain.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_every_loss() {
        let mut report = DataReport {
            kept: Amount { documents: 2, characters: 0, tokens: 1_234_500 },
            truncated: Amount { documents: 1, characters: 0, tokens: 65_500 },
            ..Default::default()
        };
        report.drop_document("empty", Amount::tokens(0));
        report.skip("not UTF-8 text");
        let mut read = DataReport { kept: Amount::text(9), ..Default::default() };
        read.skip("not UTF-8 text");
        assert_eq!(
            read.then(&report).to_string(),
            "2 documents, 1,234,500 tokens; truncated: 1 document, 65,500 tokens; dropped \
             (empty): 1 document; 5.04 % lost; skipped (not UTF-8 text): 2"
        );
    }
}
