//! Where a text ends.

use longburn::datasets::{DecodeStream, Tokenizer};
use longburn::models::ModelConfig;
use longburn::models::generate::StopStrings;
use longburn::{Error, Result};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::Path;

/// The ids that end a text: what `config.json` and `generation_config.json` call end-of-text, and
/// in a conversation the tokenizer's own end, which ends a turn.
pub fn ids(
    dir: &Path,
    config: &ModelConfig,
    chat: bool,
    tokenizer: Option<&Tokenizer>,
) -> Result<Vec<u32>> {
    let mut ids = config.eos_token_ids.clone();
    let file = dir.join("generation_config.json");
    if file.exists() {
        let remedy = "get it again from where the checkpoint is from, or remove it";
        let settings: Value = crate::load::json(&file, remedy)?;
        let bad = |value: &Value| {
            let place = file.display().to_string();
            Error::config(place, "eos_token_id", value, "an id, or a list of ids")
        };
        let id = |value: &Value| {
            value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| bad(value))
        };
        match settings.get("eos_token_id") {
            None | Some(Value::Null) => {}
            Some(Value::Array(list)) => {
                for value in list {
                    ids.push(id(value)?);
                }
            }
            Some(value) => ids.push(id(value)?),
        }
    }
    if chat {
        ids.extend(tokenizer.and_then(|tokenizer| tokenizer.special_ids().eos));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// Ids as text, up to a stop string.
pub struct Text<'a> {
    stream: Option<DecodeStream<'a>>,
    stops: StopStrings,
}

impl<'a> Text<'a> {
    /// Behind `prompt`; without a tokenizer there is no text.
    pub fn new(tokenizer: Option<&'a Tokenizer>, prompt: &[u32], stops: StopStrings) -> Self {
        Self { stream: tokenizer.map(|t| t.decode_stream(prompt, true)), stops }
    }

    /// The text that is certain with this id, and whether to go on. An id that ends the text has
    /// none, special token or not.
    pub fn push(&mut self, id: u32, ends: bool) -> Result<(String, ControlFlow<()>)> {
        let Some(stream) = self.stream.as_mut().filter(|_| !ends) else {
            return Ok((String::new(), ControlFlow::Continue(())));
        };
        let piece = stream.push(id)?.map(|piece| self.stops.push(&piece)).unwrap_or_default();
        let found = self.stops.found();
        Ok((piece, if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }))
    }

    /// What is left when no id follows.
    pub fn finish(mut self) -> Result<String> {
        let rest = self.stream.map(DecodeStream::finish).transpose()?.flatten();
        let mut text = rest.map(|piece| self.stops.push(&piece)).unwrap_or_default();
        text.push_str(&self.stops.finish());
        Ok(text)
    }
}
