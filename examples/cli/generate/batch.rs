//! Many prompts, several at once.

use super::stop::Text;
use super::{facts, warn_of_length};
use crate::{Globals, load, output};
use longburn::attention::Mixer;
use longburn::datasets::Tokenizer;
use longburn::datasets::source::{DocumentSource, JsonlSourceConfig, SourceOptions};
use longburn::models::generate::StopStrings;
use longburn::models::{Blocks, Decoder, GenerateConfig, generate_from};
use longburn::{Error, Result};
use serde_json::json;
use std::path::Path;

/// All that generation needs beside the prompts.
pub struct Job<'a> {
    pub model: &'a Decoder<Mixer>,
    pub tokenizer: &'a Tokenizer,
    pub settings: GenerateConfig,
    pub stops: StopStrings,
}

impl Job<'_> {
    pub fn run(&self, file: &Path, batch: usize, globals: &Globals) -> Result<()> {
        if batch == 0 {
            return Err(Error::config("command line", "batch", 0, "at least 1"));
        }
        let texts = read(file)?;
        let prompts: Vec<Vec<u32>> = texts
            .iter()
            .map(|(place, text)| match self.tokenizer.encode(text, true) {
                Ok(ids) if ids.is_empty() => {
                    let place = format!("{}:{place}", file.display());
                    Err(Error::config(place, "prompt", "empty", "at least one token"))
                }
                ids => ids,
            })
            .collect::<Result<_>>()?;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let context = self.model.config().max_context();
        warn_of_length(longest.saturating_add(self.settings.max_new_tokens), context);

        let (mut results, mut tokens, mut seconds) = (Vec::new(), 0, 0.0);
        for (n, (prompts, texts)) in prompts.chunks(batch).zip(texts.chunks(batch)).enumerate() {
            let text = |prompt: &Vec<u32>| {
                (String::new(), Text::new(Some(self.tokenizer), prompt, self.stops.clone()))
            };
            let mut written: Vec<_> = prompts.iter().map(text).collect();
            let done = generate_from(self.model, n * batch, prompts, &self.settings, |row, id| {
                let (whole, text) = &mut written[row];
                let (piece, flow) = text.push(id, self.settings.stop.contains(&id))?;
                whole.push_str(&piece);
                Ok(flow)
            })?;
            seconds +=
                done.iter().map(|d| d.seconds_prefill + d.seconds_decode).fold(0.0, f64::max);
            for ((done, (mut whole, text)), (_, prompt)) in done.iter().zip(written).zip(texts) {
                whole.push_str(&text.finish()?);
                tokens += done.new_tokens;
                if globals.json {
                    let mut fields = facts(done, Some(whole));
                    fields["prompt"] = prompt.as_str().into();
                    results.push(fields);
                } else {
                    let number = results.len() + 1;
                    results.push(json!(null));
                    output::print(&format!("[{number}] {prompt}{whole}\n"))?;
                }
            }
        }
        if globals.json {
            return output::json(&json!({
                "results": results,
                "seed": self.settings.seed,
                "device": globals.device.to_string(),
            }));
        }
        let speed = tokens as f64 / seconds;
        output::note(format_args!(
            "{} texts, {tokens} tokens in {seconds:.2} s, {speed:.1} tokens/s",
            results.len()
        ));
        Ok(())
    }
}

/// Prompts with the lines that they stand in.
fn read(file: &Path) -> Result<Vec<(usize, String)>> {
    let prompts: Vec<(usize, String)> = if file.extension().is_some_and(|e| e == "jsonl") {
        let options = SourceOptions::new().with_text_field(Some("prompt".into()));
        let mut source = JsonlSourceConfig::new(file).with_options(options).init()?;
        let mut prompts = Vec::new();
        while let Some(document) = source.next_document()? {
            prompts.push((source.cursor().line as usize, document.text));
        }
        prompts
    } else {
        let text = load::text(file)?;
        let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
        lines.map(|(line, number)| (number, line.to_string())).collect()
    };
    if prompts.is_empty() {
        return Err(Error::Data(format!("{}: there is no prompt in it", file.display())));
    }
    Ok(prompts)
}
