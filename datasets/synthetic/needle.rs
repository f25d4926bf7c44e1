//! A needle in a haystack: one sentence with a number in it stands somewhere in real text, and the
//! end asks for the number.
//!
//! After the test of G. Kamradt (2023), with three differences: the answer is a number that is
//! drawn, so that it can be scored without a judge; the wording is ours; and prompt and answer
//! together have exactly the length asked for, where the original keeps 200 tokens free.

use super::check_depth;
use super::passkey::continuation;
use crate::datasets::Tokenizer;
use crate::streams::Draw;
use crate::{Error, Result};
use rand_chacha::rand_core::RngCore;
use serde::{Deserialize, Serialize};

/// What stands for the number.
const KEY: &str = "{key}";

/// Wording of a needle test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NeedleConfig {
    /// The sentence that is hidden; holds the number as `{key}`.
    pub needle: String,
    /// Ends right in front of the number.
    pub question: String,
    /// Digits of the number.
    pub digits: u32,
}

impl Default for NeedleConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl NeedleConfig {
    /// The number of a lighthouse, five digits.
    pub fn new() -> Self {
        Self {
            needle:
                "\nThe keeper wrote the number of the lighthouse on the wall: the number of the \
                     lighthouse is {key}.\n"
                    .into(),
            question: "\nWhat is the number of the lighthouse? The number of the lighthouse is"
                .into(),
            digits: 5,
        }
    }

    /// Choose the sentence that is hidden.
    pub fn with_needle(mut self, needle: impl Into<String>) -> Self {
        self.needle = needle.into();
        self
    }

    /// Choose the question.
    pub fn with_question(mut self, question: impl Into<String>) -> Self {
        self.question = question.into();
        self
    }

    /// Choose the digits of the number.
    pub fn with_digits(mut self, digits: u32) -> Self {
        self.digits = digits;
        self
    }

    /// Tokenise a haystack of documents, which is repeated where it is too short.
    ///
    /// # Errors
    /// A needle without `{key}`, digits outside of 1 to 18, or a haystack without tokens.
    pub fn init<'a>(
        &self,
        tokenizer: &'a Tokenizer,
        haystack: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Needle<'a>> {
        if !self.needle.contains(KEY) {
            let expected = "a sentence with `{key}` in it";
            return Err(Error::config("needle", "needle", &self.needle, expected));
        }
        if !(1..=18).contains(&self.digits) {
            return Err(Error::config("needle", "digits", self.digits, "1 to 18"));
        }
        let mut ids = Vec::new();
        for document in haystack {
            ids.extend(tokenizer.encode(document.as_ref(), false)?);
        }
        if ids.is_empty() {
            return Err(Error::Data("the haystack has no tokens (remedy: give it text)".into()));
        }
        Ok(Needle { config: self.clone(), tokenizer, haystack: ids })
    }
}

/// Makes needle tests of a wanted length with the needle at a wanted depth.
#[derive(Clone, Debug)]
pub struct Needle<'a> {
    config: NeedleConfig,
    tokenizer: &'a Tokenizer,
    haystack: Vec<u32>,
}

/// A needle test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeedleSample {
    /// BOS where the tokenizer has one, haystack with needle, question.
    pub ids: Vec<u32>,
    /// The number's tokens behind the question.
    pub answer_ids: Vec<u32>,
    /// The number.
    pub answer: String,
    /// Tokens of the haystack in front of the needle.
    pub place: usize,
}

impl Needle<'_> {
    /// Prompt and answer of `len` tokens together; the needle stands behind the last sentence that
    /// ends at `depth` (0 first, 1 last) of the haystack or before, at its front where none does,
    /// and at its very end for a depth of 1.
    ///
    /// # Errors
    /// A depth outside of 0 to 1, or a length without room for a token of haystack.
    pub fn sample(
        &self,
        len: usize,
        depth: f64,
        rng: &mut (impl RngCore + ?Sized),
    ) -> Result<NeedleSample> {
        check_depth(depth)?;
        let NeedleConfig { needle, question, digits } = &self.config;
        let least = 10_usize.pow(digits - 1);
        let answer = (least + rng.below(9 * least)).to_string();
        let needle = self.tokenizer.encode(&needle.replace(KEY, &answer), false)?;
        let (question, answer_ids) =
            continuation(self.tokenizer, question, &format!(" {answer}"), false)?;
        let bos: Vec<u32> = self.tokenizer.special_ids().bos.into_iter().collect();
        let fixed = bos.len() + needle.len() + question.len() + answer_ids.len();
        let room = len.checked_sub(fixed).filter(|room| *room > 0).ok_or_else(|| {
            let reason = format!("needle, question and answer take {fixed} tokens of {len}");
            Error::shape("needle", format!("{reason} (remedy: a longer length)"))
        })?;
        let hay: Vec<u32> = self.haystack.iter().copied().cycle().take(room).collect();
        let mut place = (depth * room as f64) as usize;
        if place < room {
            while place > 0 && !self.ends_sentence(hay[place - 1])? {
                place -= 1;
            }
        }
        let ids = [&bos[..], &hay[..place], &needle, &hay[place..], &question].concat();
        Ok(NeedleSample { ids, answer_ids, answer, place })
    }

    fn ends_sentence(&self, id: u32) -> Result<bool> {
        let text = self.tokenizer.decode(&[id], false)?;
        Ok(text.trim_end().ends_with(['.', '!', '?']))
    }
}
