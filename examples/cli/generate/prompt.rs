//! What is continued.

use crate::load;
use clap::Args;
use longburn::datasets::{ChatTemplate, Message, Tokenizer};
use longburn::{Error, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct PromptArgs {
    #[command(flatten)]
    source: Source,
    /// With --chat, instead of a file: what the user says
    #[arg(long, value_name = "TEXT", requires = "chat")]
    user: Option<String>,
    /// With --user: the system message
    #[arg(long, value_name = "TEXT", requires = "user")]
    system: Option<String>,
    /// With --chat: a file with a template, or the name of one that the checkpoint has
    #[arg(long, value_name = "FILE|NAME", requires = "chat")]
    template: Option<String>,
    /// With --prompts: so many at once
    #[arg(long, value_name = "N", default_value_t = 8, requires = "prompts")]
    pub batch: usize,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// The text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// File with the text to continue
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// JSON file with the ids to continue, such as [1, 5, 9]
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
    /// File with many texts to continue: one a line, or a .jsonl file with `prompt` fields
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Answer in a conversation, through the checkpoint's chat template: that of --user, or of a
    /// JSON file such as [{"role": "user", "content": "Hello"}]
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    chat: Option<Option<PathBuf>>,
}

/// A list of ids, or a list with one such row.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a list of ids, such as [1, 5, 9], or a list with one row")]
enum Ids {
    Flat(Vec<u32>),
    Row([Vec<u32>; 1]),
}

impl PromptArgs {
    /// Whether a tokenizer is needed.
    pub fn is_text(&self) -> bool {
        self.source.ids.is_none()
    }

    pub fn is_chat(&self) -> bool {
        self.source.chat.is_some()
    }

    /// File of many prompts.
    pub fn many(&self) -> Option<&Path> {
        self.source.prompts.as_deref()
    }

    /// The one prompt of the checkpoint in `dir`.
    pub fn ids(
        &self,
        dir: &Path,
        tokenizer: Option<&Tokenizer>,
        vocabulary: usize,
    ) -> Result<Vec<u32>> {
        if let Some(file) = &self.source.ids {
            let ids = match load::json(file, "write ids, such as [1, 5, 9]")? {
                Ids::Flat(ids) | Ids::Row([ids]) => ids,
            };
            load::check_ids(&ids, vocabulary, file, 0)?;
            return Ok(ids);
        }
        let Some(tokenizer) = tokenizer else { return Ok(Vec::new()) };
        let ids = if let Some(file) = &self.source.chat {
            let template = self.template(dir)?.with_tokenizer(tokenizer);
            let text = template.render(&self.messages(file.as_deref())?, true)?;
            // The template has written every special token itself.
            tokenizer.encode(&text, false)?
        } else {
            let text = match (&self.source.prompt_file, &self.source.prompt) {
                (Some(file), _) => load::text(file)?,
                (None, text) => text.clone().unwrap_or_default(),
            };
            tokenizer.encode(&text, true)?
        };
        if ids.is_empty() {
            return Err(Error::config("command line", "prompt", "empty", "at least one token"));
        }
        Ok(ids)
    }

    fn messages(&self, file: Option<&Path>) -> Result<Vec<Message>> {
        let bad = |value: &str| {
            let expected = "one of --user TEXT and a file with messages";
            Err(Error::config("command line", "chat", value, expected))
        };
        match (file, &self.user) {
            (Some(_), Some(_)) => bad("a file beside --user"),
            (None, None) => bad("without messages"),
            (Some(file), None) => {
                let text = load::text(file)?;
                Message::parse_list(&text, &file.display().to_string())
            }
            (None, Some(user)) => {
                let system = self.system.as_ref().map(|text| Message::new("system", text));
                Ok(system.into_iter().chain([Message::new("user", user)]).collect())
            }
        }
    }

    fn template(&self, dir: &Path) -> Result<ChatTemplate> {
        match &self.template {
            Some(file) if Path::new(file).is_file() => {
                let text = load::text(Path::new(file))?;
                ChatTemplate::new(text, file)
            }
            name => ChatTemplate::load(dir, name.as_deref()),
        }
    }
}
