//! Conversations of a recipe: `[data]` with `kind = "chat"`.

use super::data::{HeldOut, Tokens};
use super::sections::{DataKind, Recipe, Rows};
use crate::datasets::{
    ChatRows, ChatTemplate, Conversation, ConversationTokens, DataReport, Pack, Tokenizer,
    encode_conversations,
};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// `[data.chat]`: how rows are conversations, and conversations text. All of it has defaults:
/// messages in the field `messages`, and the checkpoint's template.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatSection {
    /// The template itself; that of the tokenizer's folder where not set. It is written beside
    /// what was trained.
    #[serde(default)]
    pub template: Option<String>,
    /// Name of the template, where the tokenizer's folder has several; "default" where not set.
    #[serde(default)]
    pub template_name: Option<String>,
    /// Field with the list of messages; "messages" where not set.
    #[serde(default)]
    pub messages: Option<String>,
    /// Instead of a list: field with what the user says.
    #[serde(default)]
    pub question: Option<String>,
    /// Instead of a list: field with what the assistant answers.
    #[serde(default)]
    pub answer: Option<String>,
    /// System message of conversations that do not begin with one.
    #[serde(default)]
    pub system: Option<String>,
}

impl ChatSection {
    fn rows(&self) -> ChatRows {
        let plain = ChatRows::default();
        ChatRows {
            messages: self.messages.clone().unwrap_or(plain.messages),
            question: self.question.clone(),
            answer: self.answer.clone(),
            system: self.system.clone(),
        }
    }
}

impl Recipe {
    /// What must hold of `[data]` and its conversations.
    pub(super) fn check_chat(&self) -> Result<()> {
        let data = &self.data;
        if data.kind == DataKind::Text {
            return match &data.chat {
                None => Ok(()),
                Some(_) => Err(self.bad("data.chat", "set", "kind = \"chat\" in [data] with it")),
            };
        }
        if data.rows == Rows::Windows {
            return Err(self.bad("data.rows", "\"windows\"", "\"packed\" for conversations"));
        }
        if data.text_field.is_some() {
            return Err(self.bad("data.text_field", "set", "fields named in [data.chat]"));
        }
        for (field, set) in [
            ("data.mix", !data.mix.is_empty()),
            ("data.line_cap", data.line_cap.is_some()),
            ("data.bad_lines", data.bad_lines.is_some()),
            ("data.cache", data.cache.is_some()),
        ] {
            if set {
                return Err(self.bad(field, "set", "kind = \"text\" in [data] with it"));
            }
        }
        if matches!(data.pack, Some(Pack::Concat | Pack::Split)) {
            let expected = "\"truncate\" or \"drop\": the rest of a conversation is none";
            return Err(self.bad("data.pack", "set to break conversations", expected));
        }
        if self.model.path.is_none() && self.model.tokenizer.is_none() {
            let expected = "a tokenizer: none is learned from conversations";
            return Err(self.bad("model.tokenizer", "missing", expected));
        }
        let Some(chat) = &data.chat else { return Ok(()) };
        chat.rows().validate().map_err(|e| self.within("data.chat", e))?;
        if let (Some(_), Some(_)) = (&chat.messages, &chat.question) {
            let expected = "no list beside `question` and `answer`";
            return Err(self.bad("data.chat.messages", "set", expected));
        }
        if let (Some(_), Some(_)) = (&chat.template, &chat.template_name) {
            let expected = "no name beside `template`";
            return Err(self.bad("data.chat.template_name", "set", expected));
        }
        self.given_template().map(|_| ())
    }

    /// The template that stands in the recipe.
    fn given_template(&self) -> Result<Option<ChatTemplate>> {
        let Some(text) = self.data.chat.as_ref().and_then(|chat| chat.template.as_ref()) else {
            return Ok(None);
        };
        let place = format!("{}, field `data.chat.template`", self.file);
        ChatTemplate::new(text, place).map(Some)
    }

    fn template(&self, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        let template = match self.given_template()? {
            Some(template) => template,
            None => {
                let name = self.data.chat.as_ref().and_then(|chat| chat.template_name.as_deref());
                ChatTemplate::load(self.tokenizer_dir().unwrap_or(Path::new("")), name)?
            }
        };
        Ok(template.with_tokenizer(tokenizer))
    }
}

/// Conversations of a run before tokenisation.
pub(super) struct Chats {
    train: Vec<Conversation>,
    held_out: Vec<Conversation>,
    read: DataReport,
    /// Of `held_out`, where it has files of its own.
    held_out_read: DataReport,
}

impl Chats {
    pub fn read(recipe: &Recipe) -> Result<Self> {
        let data = &recipe.data;
        let rows = data.chat.clone().unwrap_or_default().rows();
        let (conversations, read) = rows.read(&data.train)?;
        let (train, mut held_out) = recipe.split(conversations)?;
        let mut held_out_read = DataReport::default();
        if let Some(path) = &data.held_out {
            (held_out, held_out_read) = rows.read(path)?;
        }
        Ok(Self { train, held_out, read, held_out_read })
    }

    pub fn tokenize(self, recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Tokens> {
        let template = recipe.template(tokenizer)?;
        let length = recipe.train.length;
        let encode = |list: &[_]| encode_conversations(list, &template, tokenizer, length);
        let (train, report) = encode(&self.train)?;
        if train.is_empty() {
            return Err(Error::Data(format!("no conversation to train on: {report}")));
        }
        let (held_out, held_out_report) = encode(&self.held_out)?;
        let part = |ConversationTokens { document, targets }| (document, targets);
        let (documents, targets) = train.into_iter().map(part).unzip::<_, _, Vec<_>, Vec<_>>();
        let counted =
            |ConversationTokens { document, targets }| HeldOut { document, targets: Some(targets) };
        let held_out = held_out.into_iter().map(counted).collect();
        Ok(Tokens {
            documents,
            targets: Some(targets),
            report: self.read.then(&report),
            held_out,
            held_out_report: self.held_out_read.then(&held_out_report),
        })
    }
}
