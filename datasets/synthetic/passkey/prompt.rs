//! The pass-key prompt of filler text.

use crate::datasets::Tokenizer;
use crate::datasets::synthetic::{LegacyRandom, check_depth};
use crate::streams::Draw;
use crate::{Error, Result};
use rand_chacha::rand_core::RngCore;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What stands for the key in a template.
const KEY: &str = "{key}";

/// Longest prompt that is made, tokens.
const LONGEST: usize = 1 << 20;

/// Sentences of a prompt: task, filler, information, filler, question, a line each.
///
/// A TOML file with these four strings replaces the wording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasskeyTemplate {
    /// Says what is to be done.
    pub task: String,
    /// Is repeated to make the prompt long.
    pub filler: String,
    /// Holds the key, as `{key}`.
    pub information: String,
    /// Ends right in front of the key.
    pub question: String,
}

impl Default for PasskeyTemplate {
    fn default() -> Self {
        Self {
            task: "The text below has a pass key in one place. Look out for it: the end of the \
                   text asks for it."
                .into(),
            filler: "The tram left on time. Rain ran down the window. A dog slept by the door. \
                     Nobody was in a hurry."
                .into(),
            information: "The pass key is {key}. Do not forget it, {key} is the pass key.".into(),
            question: "What was the pass key? The pass key is".into(),
        }
    }
}

impl PasskeyTemplate {
    /// Read a template.
    ///
    /// # Errors
    /// When the file is missing or is not a template.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let template: Self = toml::from_str(&text).map_err(|e| Error::Parse {
            file: path.display().to_string(),
            message: e.message().to_string(),
            span: e.span(),
            text: Some(text.clone()),
        })?;
        template.check(&path.display().to_string())?;
        Ok(template)
    }

    fn check(&self, file: &str) -> Result<()> {
        if !self.information.contains(KEY) {
            let expected = "a sentence with `{key}` in it";
            return Err(Error::config(file, "information", &self.information, expected));
        }
        if self.filler.trim().is_empty() {
            return Err(Error::config(file, "filler", &self.filler, "a sentence to repeat"));
        }
        Ok(())
    }

    /// The prompt as LongLoRA's test (arXiv 2309.12307) makes it, measured in characters: `n` of
    /// filler in all, `prefix` of them in front of the key, both parts cut where they end. Key and
    /// prefix follow from `seed` by that test's generator.
    ///
    /// Returns prompt, key and prefix. The test's own wording can be read from a file.
    ///
    /// # Errors
    /// `n` = 0, for which the test's generator has no place to draw.
    pub fn longlora(&self, n: usize, seed: u32) -> Result<(String, u32, usize)> {
        if n == 0 {
            return Err(Error::config("passkey", "filler characters", n, "at least 1"));
        }
        let mut random = LegacyRandom::new(seed);
        let prefix = random.below(n as u32) as usize;
        let key = 1 + random.below(49_999);
        let passage = self.filler.trim();
        let repeats = n.div_ceil(passage.chars().count() + 1) + 1;
        let stream = vec![passage; repeats].join(" ");
        let filler = |n: usize| stream.chars().take(n).collect::<String>();
        let information = self.information.replace(KEY, &key.to_string());
        let lines =
            [&self.task, &filler(prefix), &information, &filler(n - prefix), &self.question];
        Ok((lines.map(String::as_str).join("\n"), key, prefix))
    }

    fn prompt(&self, key: &str, before: usize, after: usize) -> String {
        let filler = |n: usize| vec![self.filler.trim(); n].join(" ");
        let information = self.information.replace(KEY, key);
        let parts =
            [self.task.clone(), filler(before), information, filler(after), self.question.clone()];
        let lines: Vec<_> = parts.iter().map(|p| p.trim_end()).filter(|p| !p.is_empty()).collect();
        lines.join("\n")
    }
}

/// Characters of filler in step `step` (from 1) of LongLoRA's test, whose lengths are `interval`
/// tokens apart: 3.75 characters a token, rounded down to a multiple of 1024.
pub fn longlora_filler(step: usize, interval: usize) -> usize {
    15 * step * interval / 4 / 1024 * 1024
}

/// Configuration of [`PasskeyPrompt`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PasskeyPromptConfig {
    /// The wording.
    pub template: PasskeyTemplate,
    /// Digits of a key.
    pub digits: u32,
}

impl Default for PasskeyPromptConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl PasskeyPromptConfig {
    /// Keys of five digits, own wording.
    pub fn new() -> Self {
        Self { template: PasskeyTemplate::default(), digits: 5 }
    }

    /// Choose the wording.
    pub fn with_template(mut self, template: PasskeyTemplate) -> Self {
        self.template = template;
        self
    }

    /// Choose the digits of a key.
    pub fn with_digits(mut self, digits: u32) -> Self {
        self.digits = digits;
        self
    }

    /// Check and build.
    ///
    /// # Errors
    /// A template without key or filler; digits outside of 1 to 18.
    pub fn init(&self) -> Result<PasskeyPrompt> {
        self.template.check("passkey template")?;
        if !(1..=18).contains(&self.digits) {
            return Err(Error::config("passkey", "digits", self.digits, "1 to 18"));
        }
        Ok(PasskeyPrompt { template: self.template.clone(), digits: self.digits })
    }
}

/// Makes prompts of a wanted length with the key at a wanted depth.
#[derive(Clone, Debug)]
pub struct PasskeyPrompt {
    template: PasskeyTemplate,
    digits: u32,
}

/// A prompt and its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct PasskeySample {
    /// Ends right in front of the answer, without a space.
    pub prompt: String,
    /// The key.
    pub answer: String,
    /// Tokens of the prompt, the tokenizer's special ones included.
    pub ids: Vec<u32>,
    /// Tokens that follow the prompt's in the tokenisation of prompt and answer together; those
    /// of the answer alone can differ.
    pub answer_ids: Vec<u32>,
    /// Share of the filler in front of the key.
    pub depth: f64,
}

impl PasskeyPrompt {
    /// A prompt with as much filler as fits into `len` tokens together with the answer, and a
    /// random key as near to `depth` (0 first, 1 last) as whole fillers allow.
    ///
    /// # Errors
    /// A depth outside of 0 to 1, or a length without room for the sentences around the filler or
    /// above a million.
    pub fn sample(
        &self,
        tokenizer: &Tokenizer,
        len: usize,
        depth: f64,
        rng: &mut (impl RngCore + ?Sized),
    ) -> Result<PasskeySample> {
        check_depth(depth)?;
        if len > LONGEST {
            return Err(Error::config("passkey", "len", len, format!("at most {LONGEST} tokens")));
        }
        let least = 10_usize.pow(self.digits - 1);
        let answer = (least + rng.below(9 * least)).to_string();
        let make = |fillers: usize| -> Result<(PasskeySample, usize)> {
            let before = (depth * fillers as f64).round() as usize;
            let prompt = self.template.prompt(&answer, before, fillers - before);
            let (ids, answer_ids) = continuation(tokenizer, &prompt, &format!(" {answer}"), true)?;
            let tokens = ids.len() + answer_ids.len();
            let depth = if fillers == 0 { depth } else { before as f64 / fillers as f64 };
            let answer = answer.clone();
            Ok((PasskeySample { prompt, answer, ids, answer_ids, depth }, tokens))
        };
        let (_, base) = make(0)?;
        if base > len {
            return Err(Error::shape(
                "passkey",
                format!("task, key, question and answer take {base} tokens of {len}"),
            ));
        }
        // Tokens are nearly additive in the fillers; what the estimate misses is stepped off.
        let unit = make(8)?.1.saturating_sub(base) / 8;
        if unit == 0 {
            let filler = &self.template.filler;
            return Err(Error::config("passkey template", "filler", filler, "text with tokens"));
        }
        let mut fillers = (len - base) / unit;
        let mut best = loop {
            let (sample, tokens) = make(fillers)?;
            if tokens <= len {
                break sample;
            }
            fillers = fillers.saturating_sub(((tokens - len) / unit).max(1));
        };
        loop {
            fillers += 1;
            let (sample, tokens) = make(fillers)?;
            if tokens > len {
                return Ok(best);
            }
            best = sample;
        }
    }
}

/// Tokens of `text`, and those that `more` adds behind it.
pub(in crate::datasets::synthetic) fn continuation(
    tokenizer: &Tokenizer,
    text: &str,
    more: &str,
    add_special: bool,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let alone = tokenizer.encode(text, add_special)?;
    let mut whole = tokenizer.encode(&format!("{text}{more}"), add_special)?;
    // A template may close with a special token, which is no part of the answer.
    while whole.last().is_some_and(|id| tokenizer.is_special(*id)) {
        whole.pop();
    }
    let shared = alone.iter().zip(&whole).take_while(|(a, b)| a == b).count();
    let added = whole.split_off(shared);
    Ok((whole, added))
}
