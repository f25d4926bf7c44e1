//! Tokenised documents, and documents set aside for evaluation.

use super::{Amount, Conversation, DataReport, Document, TokenIds, Tokenizer};
use crate::{Error, Result};

/// A document as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenDocument {
    /// Name of the document.
    pub id: String,
    /// Its tokens.
    pub ids: TokenIds,
}

/// Tokenise documents, on all threads; `add_special` as in [`Tokenizer::encode`]. Documents
/// without a token of their own (nothing, or special tokens only) are dropped and counted.
///
/// # Errors
/// When the tokenizer cannot represent a text.
pub fn tokenize(
    documents: &[Document],
    tokenizer: &Tokenizer,
    add_special: bool,
) -> Result<(Vec<TokenDocument>, DataReport)> {
    let texts: Vec<_> = documents.iter().map(|d| d.text.as_str()).collect();
    let encoded = documents.iter().zip(tokenizer.encode_batch(&texts, add_special)?);
    let encoded = encoded.map(|(document, ids)| Encoded {
        document: TokenDocument { id: document.id.clone(), ids: ids.into() },
        characters: document.text.chars().count() as u64,
    });
    Ok(with_tokens(encoded, tokenizer))
}

/// A document as token ids, with the length of its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Name and ids.
    pub document: TokenDocument,
    /// Characters of the text.
    pub characters: u64,
}

/// Those of the documents that have a token of their own; the others are counted.
pub fn with_tokens(
    documents: impl IntoIterator<Item = Encoded>,
    tokenizer: &Tokenizer,
) -> (Vec<TokenDocument>, DataReport) {
    let (mut out, mut report) = (Vec::new(), DataReport::default());
    for Encoded { document, characters } in documents {
        let amount = Amount { documents: 1, characters, tokens: document.ids.len() as u64 };
        if document.ids.iter().all(|id| tokenizer.is_special(*id)) {
            report.drop_document("no tokens of its own", amount);
            continue;
        }
        report.kept += amount;
        out.push(document);
    }
    (out, report)
}

/// What has a name: a document, as text or as tokens, a conversation.
pub trait Named {
    /// The name.
    fn name(&self) -> &str;
}

impl Named for Document {
    fn name(&self) -> &str {
        &self.id
    }
}

impl Named for Conversation {
    fn name(&self) -> &str {
        &self.id
    }
}

impl Named for Encoded {
    fn name(&self) -> &str {
        &self.document.id
    }
}

/// Split whole documents into training and held-out ones: in order of their names, every
/// `every`-th is held out, or the last one where there are fewer.
///
/// # Errors
/// With fewer than two documents, or `every` below 2.
pub fn split<T: Named>(mut documents: Vec<T>, every: usize) -> Result<(Vec<T>, Vec<T>)> {
    if every < 2 {
        return Err(Error::config("split", "every", every, "at least 2"));
    }
    if documents.len() < 2 {
        return Err(Error::Data(format!(
            "{} cannot be split into training and held-out documents (remedy: give at least two)",
            if documents.is_empty() { "no document" } else { "one document" }
        )));
    }
    documents.sort_by(|a, b| a.name().cmp(b.name()));
    let held = every.min(documents.len());
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for (i, document) in documents.into_iter().enumerate() {
        if i % held == held - 1 { &mut held_out } else { &mut train }.push(document);
    }
    Ok((train, held_out))
}
