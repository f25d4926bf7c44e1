//! Tasks scored by log-likelihood: multiple choice and the last word.

use super::loglikelihood::{Continuation, EncodedPair, Loglikelihood, LoglikelihoodEval};
use crate::datasets::Tokenizer;
use crate::models::Blocks;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A question with answers to choose from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChoiceItem {
    /// What stands in front of every choice.
    pub context: String,
    /// The choices; a space is put between the context and each.
    pub choices: Vec<String>,
    /// Number of the right one, from 0.
    pub gold: usize,
}

/// A text whose last word is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastWordItem {
    /// All words but the last.
    pub context: String,
    /// The last word, without the space in front.
    pub word: String,
}

impl ChoiceItem {
    /// From a row in the harness's shape, `{"query", "choices": [..], "gold": number}`, or in that
    /// of ARC, `{"question", "choices": {"text": [..], "label": [..]}, "answerKey"}`, whose
    /// question becomes a context by putting it for `{question}` into `prompt`.
    ///
    /// # Errors
    /// What is wrong with the row, in words.
    pub fn from_row(row: &Value, prompt: &str) -> Result<Self, String> {
        let text = |field: &str| row.get(field).and_then(Value::as_str);
        let context = match (text("query"), text("question")) {
            (Some(query), _) => query.to_string(),
            (None, Some(question)) => prompt.replace("{question}", question),
            (None, None) => return Err("neither `query` nor `question` is a string".into()),
        };
        let strings = |value: Option<&Value>, field: &str| -> Result<Vec<String>, String> {
            let list = value.and_then(Value::as_array);
            let list = list.ok_or_else(|| format!("field `{field}` is not a list"))?;
            let text = |v: &Value| v.as_str().map(str::to_string);
            let list: Option<Vec<_>> = list.iter().map(text).collect();
            list.ok_or_else(|| format!("field `{field}` holds something that is not a string"))
        };
        let (choices, gold) = match row.get("choices") {
            Some(Value::Object(arc)) => {
                let labels = strings(arc.get("label"), "choices.label")?;
                let key = text("answerKey").ok_or("field `answerKey` is not a string")?;
                let gold = labels.iter().position(|label| label == key);
                let gold = gold.ok_or_else(|| format!("answerKey `{key}` is not in {labels:?}"))?;
                (strings(arc.get("text"), "choices.text")?, gold)
            }
            list => {
                let choices = strings(list, "choices")?;
                let gold = match row.get("gold") {
                    Some(Value::Number(n)) => n.as_u64().map(|n| n as usize),
                    Some(Value::String(s)) => choices.iter().position(|choice| choice == s),
                    _ => None,
                };
                (choices, gold.ok_or("field `gold` is neither a number nor one of the choices")?)
            }
        };
        if gold >= choices.len() {
            return Err(format!("the answer is number {gold} of {} choices", choices.len()));
        }
        if let Some(empty) = choices.iter().position(String::is_empty) {
            return Err(format!("choice {empty} is empty"));
        }
        Ok(Self { context, choices, gold })
    }
}

impl LastWordItem {
    /// From a row `{"text"}`; words are what single spaces divide.
    ///
    /// # Errors
    /// What is wrong with the row, in words.
    pub fn from_row(row: &Value) -> Result<Self, String> {
        let text = row.get("text").and_then(Value::as_str);
        let text = text.ok_or("field `text` is not a string")?;
        match text.rsplit_once(' ') {
            Some((context, word)) if !word.is_empty() => {
                Ok(Self { context: context.into(), word: word.into() })
            }
            _ => Err("the text has no last word behind a space".into()),
        }
    }
}

/// What a model makes of a [`ChoiceItem`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceScore {
    /// One per choice.
    pub choices: Vec<Loglikelihood>,
    /// Whether the likeliest choice is right.
    pub right: bool,
    /// The same by likelihood per character of the choice, without the space.
    pub right_norm: bool,
    /// The same per UTF-8 byte.
    pub right_bytes: bool,
    /// Choices whose border to the context the tokenizer joined.
    pub joined: usize,
}

/// What a model makes of a [`LastWordItem`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastWordScore {
    /// Of the word with its space.
    pub word: Loglikelihood,
    /// Whether the tokenizer joined the word to what stands in front of it.
    pub joined: bool,
}

/// Score multiple choices.
///
/// # Errors
/// Those of [`EncodedPair::encode`] and [`LoglikelihoodEval::eval`].
pub fn choices(
    model: &impl Blocks,
    tokenizer: &Tokenizer,
    items: &[ChoiceItem],
    eval: &LoglikelihoodEval,
) -> Result<Vec<ChoiceScore>> {
    let pair = |item: &ChoiceItem, choice: &String| {
        EncodedPair::encode(tokenizer, &item.context, &format!(" {choice}"))
    };
    let pairs = items.iter().flat_map(|item| item.choices.iter().map(|c| pair(item, c)));
    let (pairs, joined) = unzip(pairs)?;
    let mut scores = eval.eval(model, &pairs)?.into_iter().zip(joined);
    let score = |item: &ChoiceItem| {
        let own: Vec<_> = scores.by_ref().take(item.choices.len()).collect();
        let right = |size: fn(&str) -> usize| {
            let per = own.iter().zip(&item.choices);
            let per: Vec<f64> = per.map(|((l, _), c)| l.sum / size(c) as f64).collect();
            first_largest(&per) == item.gold
        };
        ChoiceScore {
            right: right(|_| 1),
            right_norm: right(|choice| choice.chars().count()),
            right_bytes: right(str::len),
            joined: own.iter().filter(|(_, joined)| *joined).count(),
            choices: own.into_iter().map(|(likelihood, _)| likelihood).collect(),
        }
    };
    Ok(items.iter().map(score).collect())
}

/// Score last words.
///
/// # Errors
/// Those of [`EncodedPair::encode`] and [`LoglikelihoodEval::eval`].
pub fn last_words(
    model: &impl Blocks,
    tokenizer: &Tokenizer,
    items: &[LastWordItem],
    eval: &LoglikelihoodEval,
) -> Result<Vec<LastWordScore>> {
    let pair = |item: &LastWordItem| {
        EncodedPair::encode(tokenizer, &item.context, &format!(" {}", item.word))
    };
    let (pairs, joined) = unzip(items.iter().map(pair))?;
    let scores = eval.eval(model, &pairs)?.into_iter().zip(joined);
    Ok(scores.map(|(word, joined)| LastWordScore { word, joined }).collect())
}

fn unzip(
    pairs: impl Iterator<Item = Result<EncodedPair>>,
) -> Result<(Vec<Continuation>, Vec<bool>)> {
    let pairs = pairs.map(|pair| pair.map(|EncodedPair { pair, joined }| (pair, joined)));
    pairs.collect()
}

fn first_largest(values: &[f64]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Mean.
    pub value: f64,
    /// Standard error of it; `None` of fewer than two items.
    pub se: Option<f64>,
}

impl Share {
    /// Share of what is true.
    ///
    /// # Errors
    /// Of nothing.
    pub fn of(hits: impl IntoIterator<Item = bool>) -> Result<Self> {
        let hits: Vec<bool> = hits.into_iter().collect();
        if hits.is_empty() {
            return Err(Error::Data("evaluation: there are no items".into()));
        }
        let n = hits.len() as f64;
        let value = hits.iter().filter(|hit| **hit).count() as f64 / n;
        // √(Σ(x − mean)² / (n − 1) / n), of zeros and ones.
        let se = (hits.len() > 1).then(|| (value * (1.0 - value) / (n - 1.0)).sqrt());
        Ok(Self { value, se })
    }
}

/// Figures of multiple choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChoiceReport {
    /// Items.
    pub items: usize,
    /// By likelihood.
    pub acc: Share,
    /// By likelihood per character.
    pub acc_norm: Share,
    /// By likelihood per byte.
    pub acc_bytes: Share,
    /// Choices whose border to the context the tokenizer joined.
    pub joined: usize,
    /// Choices whose context was cut for want of room.
    pub cut: usize,
}

impl ChoiceReport {
    /// Of all items.
    ///
    /// # Errors
    /// Of none.
    pub fn of(scores: &[ChoiceScore]) -> Result<Self> {
        let cut = |score: &ChoiceScore| score.choices.iter().filter(|c| c.cut > 0).count();
        Ok(Self {
            items: scores.len(),
            acc: Share::of(scores.iter().map(|score| score.right))?,
            acc_norm: Share::of(scores.iter().map(|score| score.right_norm))?,
            acc_bytes: Share::of(scores.iter().map(|score| score.right_bytes))?,
            joined: scores.iter().map(|score| score.joined).sum(),
            cut: scores.iter().map(cut).sum(),
        })
    }
}

/// Figures of last words.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LastWordReport {
    /// Items.
    pub items: usize,
    /// Words every token of which is the likeliest.
    pub acc: Share,
    /// e^(−mean over items of log p of the word): per word, not per token.
    pub perplexity: f64,
    /// Words whose border to the context the tokenizer joined.
    pub joined: usize,
    /// Words whose context was cut for want of room.
    pub cut: usize,
}

impl LastWordReport {
    /// Of all items.
    ///
    /// # Errors
    /// Of none.
    pub fn of(scores: &[LastWordScore]) -> Result<Self> {
        let acc = Share::of(scores.iter().map(|score| score.word.greedy))?;
        let sum: f64 = scores.iter().map(|score| score.word.sum).sum();
        Ok(Self {
            items: scores.len(),
            acc,
            perplexity: (-sum / scores.len() as f64).exp(),
            joined: scores.iter().filter(|score| score.joined).count(),
            cut: scores.iter().filter(|score| score.word.cut > 0).count(),
        })
    }
}
