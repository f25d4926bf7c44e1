//! `longburn generate`

mod batch;
mod prompt;
mod stop;

use crate::{Globals, load, output};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use longburn::attention::Compute;
use longburn::models::generate::{Finish, Generated, StopStrings};
use longburn::models::{Blocks, GenerateConfig, generate_batch};
use longburn::{Error, Result};
use prompt::PromptArgs;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Continue a text, answer in a conversation
///
/// Greedy unless a temperature is given; sampling settings take effect in the order penalty,
/// temperature, top-k, top-p, min-p. The text appears as it is made; with --json it comes in one
/// object. It ends at the end-of-text ids that config.json and generation_config.json name; in a
/// conversation, at the tokenizer's, too.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn generate MODEL --prompt 'Once upon a time' --max-new-tokens 64
  longburn generate MODEL --chat --user 'Who are you?'
  longburn generate MODEL --prompt-file prompt.txt --temperature 0.8 --top-p 0.95 --seed 1")]
pub struct GenerateArgs {
    /// Folder of a checkpoint in Hugging Face form, or a repository of the Hub: org/name
    dir: PathBuf,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Stop after so many new tokens
    #[arg(long, default_value_t = 128, value_name = "N")]
    max_new_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// End the text in front of this string; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// End the text with this id, too; may be given several times
    #[arg(long, value_name = "ID")]
    stop_id: Vec<u32>,
    /// Go on behind the model's end-of-text ids
    #[arg(long)]
    ignore_eos: bool,
    /// Feed the prompt in pieces of so many tokens, to save memory
    #[arg(long, value_name = "N")]
    prefill_chunk: Option<usize>,
    /// What passes compute in, and with it what a cache holds
    #[arg(long, default_value = "f32", value_name = "NAME", value_parser = computes())]
    compute: Compute,
    #[command(flatten)]
    with: load::AdapterArgs,
}

fn computes() -> impl TypedValueParser<Value = Compute> {
    PossibleValuesParser::new(["f32", "bf16"]).map(|name| match name.as_str() {
        "bf16" => Compute::Bf16,
        _ => Compute::F32,
    })
}

#[derive(Args)]
struct SamplingArgs {
    /// Divides the logits; 0 takes the most likely token
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from so many of the most likely tokens; 0 for all
    #[arg(long, default_value_t = 0, value_name = "N")]
    top_k: usize,
    /// Draw from the fewest tokens that hold this share of the probability
    #[arg(long, default_value_t = 1.0, value_name = "X", allow_negative_numbers = true)]
    top_p: f64,
    /// Leave out tokens below this share of the most likely one's probability
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    min_p: f64,
    /// Above 1 makes tokens that were there already less likely
    #[arg(long, default_value_t = 1.0, value_name = "X", allow_negative_numbers = true)]
    repetition_penalty: f64,
}

impl GenerateArgs {
    pub fn models(&mut self) -> Vec<&mut PathBuf> {
        std::iter::once(&mut self.dir).chain(&mut self.with.adapter).collect()
    }

    pub fn run(&self, globals: &Globals) -> Result<()> {
        let stops = StopStrings::new(&self.stop)?;
        let model = load::model_in(&self.dir, &self.with, self.compute, globals)?;
        let tokenizer = match self.prompt.is_text() || !self.stop.is_empty() {
            true => Some(load::needed_tokenizer(&self.dir, &model)?),
            false => load::tokenizer(&self.dir, &model)?,
        };
        let config = model.config();
        let mut stop = self.stop_id.clone();
        if let Some(id) = stop.iter().find(|id| **id as usize >= config.vocab_size) {
            let expected = format!("an id below {}, the model's vocabulary", config.vocab_size);
            return Err(Error::config("command line", "stop-id", id, expected));
        }
        if !self.ignore_eos {
            stop.extend(stop::ids(&self.dir, config, self.prompt.is_chat(), tokenizer.as_ref())?);
        }
        let settings = GenerateConfig::new()
            .with_max_new_tokens(self.max_new_tokens)
            .with_temperature(self.sampling.temperature)
            .with_top_k(self.sampling.top_k)
            .with_top_p(self.sampling.top_p)
            .with_min_p(self.sampling.min_p)
            .with_repetition_penalty(self.sampling.repetition_penalty)
            .with_seed(globals.seed.unwrap_or(0))
            .with_prefill_chunk(self.prefill_chunk)
            .with_compute(self.compute)
            .with_stop(&stop);
        settings.validate()?;
        if let (Some(file), Some(tokenizer)) = (self.prompt.many(), &tokenizer) {
            let job = batch::Job { model: &model, tokenizer, settings, stops };
            return job.run(file, self.prompt.batch, globals);
        }
        let prompt = self.prompt.ids(&self.dir, tokenizer.as_ref(), config.vocab_size)?;
        warn_of_length(prompt.len().saturating_add(self.max_new_tokens), config.max_context());

        let mut text = stop::Text::new(tokenizer.as_ref(), &prompt, stops);
        let mut whole = String::new();
        let mut show = |piece: String| -> Result<()> {
            whole.push_str(&piece);
            if globals.json { Ok(()) } else { output::print(&piece) }
        };
        let done = generate_batch(&model, &[&prompt], &settings, |_, id| {
            let (piece, flow) = text.push(id, stop.contains(&id))?;
            show(piece)?;
            Ok(flow)
        })?;
        show(text.finish()?)?;
        let Some(done) = done.into_iter().next() else { return Ok(()) };
        if globals.json {
            let mut fields = facts(&done, tokenizer.is_some().then_some(whole));
            fields["seed"] = settings.seed.into();
            fields["device"] = globals.device.to_string().into();
            return output::json(&fields);
        }
        if tokenizer.is_none() {
            output::print(&output::value(&done.ids).to_string())?;
        }
        output::print("\n")?;
        output::note(format_args!(
            "{} tokens after {} of prompt; prefill {:.2} s, then {:.1} tokens/s",
            done.new_tokens, done.prompt_tokens, done.seconds_prefill, done.tokens_per_second
        ));
        Ok(())
    }
}

fn warn_of_length(longest: usize, context: usize) {
    if longest > context {
        output::note(format_args!(
            "note: {longest} tokens are more than the model's context of {context}"
        ));
    }
}

/// What programs are told of a text.
fn facts(done: &Generated, text: Option<String>) -> Value {
    json!({
        "text": text,
        "ids": done.ids,
        "stopped": done.finish != Finish::Length,
        "finish": done.finish,
        "prompt_tokens": done.prompt_tokens,
        "new_tokens": done.new_tokens,
        "seconds_prefill": done.seconds_prefill,
        "seconds_decode": done.seconds_decode,
        "tokens_per_second": done.tokens_per_second,
    })
}
