//! Rows of a `.jsonl` or `.parquet` file as conversations, and conversations as tokens of which a model learns
//! those of the assistant.

use super::message::kind;
use super::{ChatTemplate, Message};
use crate::datasets::source::{JsonlSourceConfig, parquet_rows};
use crate::datasets::{Amount, DataReport, DocumentSource, TokenDocument, Tokenizer};
use crate::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// Where a row holds its conversation: in a list of messages, or as a question and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChatRows {
    /// Field with the list of messages.
    pub messages: String,
    /// Instead of a list: field with what the user says.
    pub question: Option<String>,
    /// Instead of a list: field with what the assistant answers.
    pub answer: Option<String>,
    /// System message of conversations that do not begin with one.
    pub system: Option<String>,
}

impl Default for ChatRows {
    fn default() -> Self {
        Self { messages: "messages".into(), question: None, answer: None, system: None }
    }
}

/// Messages with the name of the row that they are from.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// `file:line`, or the row's own `id`.
    pub id: String,
    /// In their order; at least one.
    pub messages: Vec<Message>,
}

/// A conversation as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationTokens {
    /// Name and ids, as the template wrote them: no special token is added.
    pub document: TokenDocument,
    /// `[T]`, whether a token is the assistant's.
    pub targets: Vec<bool>,
}

impl ChatRows {
    /// Lists of messages in the field `messages`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Choose the field that holds the list of messages.
    pub fn with_messages(mut self, field: impl Into<String>) -> Self {
        self.messages = field.into();
        self
    }

    /// Take two fields, each a text, for the user's message and the assistant's.
    pub fn with_pair(mut self, question: impl Into<String>, answer: impl Into<String>) -> Self {
        (self.question, self.answer) = (Some(question.into()), Some(answer.into()));
        self
    }

    /// Begin conversations with this system message where they have none.
    pub fn with_system(mut self, text: impl Into<String>) -> Self {
        self.system = Some(text.into());
        self
    }

    /// The fields name one form of row.
    ///
    /// # Errors
    /// [`Error::Config`] for a question without its answer, or the reverse.
    pub fn validate(&self) -> Result<()> {
        let (missing, other) = match (&self.question, &self.answer) {
            (Some(_), None) => ("answer", "question"),
            (None, Some(_)) => ("question", "answer"),
            _ => return Ok(()),
        };
        let expected = format!("the name of a field beside `{other}`");
        Err(Error::config("chat rows", missing, "missing", expected))
    }

    /// All conversations of a `.jsonl` (or `.jsonl.zst`) or `.parquet` file, or a folder of one
    /// kind. Those in which the assistant says nothing are dropped and counted.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate); when a file cannot be read, when no conversation is
    /// left, and [`Error::Data`] with file, line and field for a row that holds none.
    pub fn read(&self, path: &Path) -> Result<(Vec<Conversation>, DataReport)> {
        self.validate()?;
        let row = |value, id| Ok(Conversation { id, messages: self.messages(value)? });
        let (all, read) = match parquet_rows(path, row)? {
            Some(rows) => (rows, DataReport::default()),
            None => {
                let mut source = JsonlSourceConfig::new(path).init()?;
                let mut rows = Vec::new();
                while let Some(conversation) = source.next_row(row)? {
                    rows.push(conversation);
                }
                (rows, source.report().clone())
            }
        };
        let (mut conversations, mut report) = (Vec::new(), DataReport::default());
        for conversation in all {
            let length = |m: &Message| match m.get("content") {
                Some(Value::String(text)) => text.chars().count(),
                _ => 0,
            };
            let amount = Amount::text(conversation.messages.iter().map(length).sum());
            if !conversation.messages.iter().any(answers) {
                report.drop_document("nothing said by the assistant", amount);
                continue;
            }
            report.kept += amount;
            conversations.push(conversation);
        }
        if conversations.is_empty() {
            return Err(Error::Data(format!(
                "{}: no conversation: {report} (remedy: give rows in which the assistant answers)",
                path.display()
            )));
        }
        Ok((conversations, read.then(&report)))
    }

    fn messages(&self, mut row: Value) -> Result<Vec<Message>, String> {
        if !row.is_object() {
            return Err(format!("the row is {}; expected an object", kind(&row)));
        }
        let mut take = |field: &str| match row.get_mut(field).map(Value::take) {
            None | Some(Value::Null) => Err(format!("no field `{field}`")),
            Some(value) => Ok(value),
        };
        let mut text = |field: &str| match take(field)? {
            Value::String(text) => Ok(text),
            other => Err(format!("field `{field}` is {}; expected a string", kind(&other))),
        };
        let mut messages = match (&self.question, &self.answer) {
            (Some(question), Some(answer)) => {
                let question = Message::new("user", text(question)?);
                vec![question, Message::new("assistant", text(answer)?)]
            }
            _ => Message::read_list(take(&self.messages)?, &self.messages)?,
        };
        if let Some(system) = self.system.as_deref().filter(|_| messages[0].role() != "system") {
            messages.insert(0, Message::new("system", system));
        }
        Ok(messages)
    }
}

/// Whether there is something to learn from a message.
fn answers(message: &Message) -> bool {
    message.role() == "assistant"
        && match message.get("content") {
            Some(Value::String(text)) => !text.trim().is_empty(),
            Some(Value::Array(parts)) => !parts.is_empty(),
            _ => true,
        }
}

/// Render and tokenise conversations, on all threads. Those whose first `len` tokens hold none of
/// the assistant's but the first are dropped and counted: there is nothing to predict.
///
/// A token that stands for both the assistant's text and another counts as the assistant's.
///
/// # Errors
/// [`Error::Template`] with the row for what the template refuses, and when the tokenizer cannot
/// represent a text.
pub fn encode_conversations(
    conversations: &[Conversation],
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    len: usize,
) -> Result<(Vec<ConversationTokens>, DataReport)> {
    let tokens = |conversation: &Conversation| {
        let (text, spans) = template.render_spans(&conversation.messages).map_err(|e| match e {
            Error::Template { place, reason, remedy } => {
                Error::Template { place: format!("{}: {place}", conversation.id), reason, remedy }
            }
            other => other,
        })?;
        let ranges = tokenizer.encode_ranges(&text)?;
        let mut targets: Vec<bool> = Vec::with_capacity(ranges.len());
        for (_, range) in &ranges {
            // A token without bytes of its own goes on with a character of the one before.
            let learned = match range.is_empty() {
                true => targets.last().copied().unwrap_or(false),
                false => spans.iter().any(|s| s.start < range.end && range.start < s.end),
            };
            targets.push(learned);
        }
        let ids = ranges.into_iter().map(|(id, _)| id).collect();
        let document = TokenDocument { id: conversation.id.clone(), ids };
        Ok((text.chars().count() as u64, ConversationTokens { document, targets }))
    };
    let all: Vec<_> = conversations.par_iter().map(tokens).collect::<Result<_>>()?;
    let (mut kept, mut report) = (Vec::with_capacity(all.len()), DataReport::default());
    for (characters, tokens) in all {
        let n = tokens.targets.len() as u64;
        let amount = Amount { documents: 1, characters, tokens: n };
        if tokens.targets.iter().take(len).skip(1).any(|learned| *learned) {
            report.kept += amount;
            kept.push(tokens);
        } else {
            report.drop_document("no token of the assistant within a row", amount);
        }
    }
    Ok((kept, report))
}
