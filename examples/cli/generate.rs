//! `longburn generate`

use crate::{Globals, load, output};
use clap::Args;
use longburn::datasets::Tokenizer;
use longburn::models::{Blocks, GenerateConfig, generate};
use longburn::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Continue a text
///
/// Greedy unless a temperature is given. The text appears as it is made; with --json it comes in
/// one object.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn generate MODEL --prompt 'Once upon a time' --max-new-tokens 64
  longburn generate MODEL --prompt-file prompt.txt --temperature 0.8 --top-p 0.95 --seed 1")]
pub struct GenerateArgs {
    /// Folder of a checkpoint in Hugging Face form
    dir: PathBuf,
    #[command(flatten)]
    prompt: Prompt,
    /// Stop after so many new tokens
    #[arg(long, default_value_t = 128, value_name = "N")]
    max_new_tokens: usize,
    /// Divides the logits; 0 takes the most likely token
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    temperature: f64,
    /// Draw from the fewest tokens that hold this share of the probability
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    top_p: f64,
    /// Feed the prompt in pieces of so many tokens, to save memory
    #[arg(long, value_name = "N")]
    prefill_chunk: Option<usize>,
    /// Go on behind the model's end-of-text ids
    #[arg(long)]
    ignore_eos: bool,
    /// Folder of an adapter in PEFT form
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Prompt {
    /// The text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// File with the text to continue
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// JSON file with the ids to continue, such as [1, 5, 9]
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
}

/// A list of ids, or a list with one such row.
#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    Flat(Vec<u32>),
    Row([Vec<u32>; 1]),
}

impl GenerateArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let model = load::model(&self.dir, self.adapter.as_deref(), globals)?;
        let tokenizer = match self.prompt.ids {
            Some(_) => load::tokenizer(&self.dir, &model)?,
            None => Some(load::needed_tokenizer(&self.dir, &model)?),
        };
        let config = model.config();
        let prompt = self.prompt(tokenizer.as_ref(), config.vocab_size)?;
        let longest = prompt.len() + self.max_new_tokens;
        if longest > config.max_context() {
            eprintln!(
                "note: {longest} tokens are more than the model's context of {}",
                config.max_context()
            );
        }
        let stop: &[u32] = if self.ignore_eos { &[] } else { &config.eos_token_ids };
        let settings = GenerateConfig::new()
            .with_max_new_tokens(self.max_new_tokens)
            .with_temperature(self.temperature)
            .with_top_p(self.top_p)
            .with_seed(globals.seed.unwrap_or(0))
            .with_prefill_chunk(self.prefill_chunk)
            .with_stop(stop);

        let mut stream = tokenizer.as_ref().map(|t| t.decode_stream(&prompt, true));
        let mut text = String::new();
        let mut shown = Ok(());
        let mut show = |piece: Option<String>| -> Result<()> {
            let Some(piece) = piece else { return Ok(()) };
            text.push_str(&piece);
            if globals.json { Ok(()) } else { output::print(&piece) }
        };
        let done = generate(&model, &prompt, &settings, |id| {
            if let (Some(stream), Ok(())) = (&mut stream, &shown) {
                shown = stream.push(id).and_then(&mut show);
            }
        })?;
        shown?;
        if let Some(stream) = stream {
            stream.finish().and_then(&mut show)?;
        }
        if globals.json {
            return output::json(&json!({
                "text": if tokenizer.is_some() { Value::from(text) } else { Value::Null },
                "ids": done.ids,
                "stopped": done.stopped,
                "prompt_tokens": done.prompt_tokens,
                "new_tokens": done.new_tokens,
                "seconds_prefill": done.seconds_prefill,
                "seconds_decode": done.seconds_decode,
                "tokens_per_second": done.tokens_per_second,
                "seed": settings.seed,
                "device": globals.device.to_string(),
            }));
        }
        if tokenizer.is_none() {
            output::print(&output::value(&done.ids).to_string())?;
        }
        output::print("\n")?;
        eprintln!(
            "{} tokens after {} of prompt; prefill {:.2} s, then {:.1} tokens/s",
            done.new_tokens, done.prompt_tokens, done.seconds_prefill, done.tokens_per_second
        );
        Ok(())
    }

    fn prompt(&self, tokenizer: Option<&Tokenizer>, vocabulary: usize) -> Result<Vec<u32>> {
        if let Some(file) = &self.prompt.ids {
            let ids = match load::json(file)? {
                Ids::Flat(ids) | Ids::Row([ids]) => ids,
            };
            load::check_ids(&ids, vocabulary, file, 0)?;
            return Ok(ids);
        }
        let text = match (&self.prompt.prompt_file, &self.prompt.prompt) {
            (Some(file), _) => std::fs::read_to_string(file).map_err(|e| Error::io(file, e))?,
            (None, text) => text.clone().unwrap_or_default(),
        };
        let ids = tokenizer.map_or(Ok(Vec::new()), |t| t.encode(&text, true))?;
        if ids.is_empty() {
            return Err(Error::config("command line", "prompt", "empty", "at least one token"));
        }
        Ok(ids)
    }
}
