//! Tasks scored by log-likelihood.

use super::EvalArgs;
use crate::output;
use clap::ValueEnum;
use longburn::datasets::{Document, Tokenizer};
use longburn::models::Blocks;
use longburn::training::eval::{
    self, ChoiceItem, ChoiceReport, ChoiceScore, LastWordItem, LastWordReport, LastWordScore,
    LoglikelihoodEval, RollingItem, RollingReport, read_rows, resumable,
};
use longburn::training::report::Progress;
use longburn::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Task {
    /// The last word of {"text"}, as LAMBADA asks for it
    Lambada,
    /// Multiple choice: {"query", "choices", "gold"}, or ARC's rows
    Choices,
    /// Perplexity by token, word and byte of whole documents, every token scored once
    Rolling,
}

impl EvalArgs {
    pub(super) fn task(
        &self,
        task: Task,
        model: &impl Blocks,
        tokenizer: &Tokenizer,
    ) -> Result<Value> {
        let Some(data) = &self.data else {
            return Err(Error::config("command line", "data", "missing", "the rows of the task"));
        };
        let limit = self.limit.unwrap_or(usize::MAX);
        let max_len = self.max_len.unwrap_or(model.config().max_context());
        let likelihood = LoglikelihoodEval::new(max_len).with_batch_size(self.batch);
        let (name, report) = match task {
            Task::Lambada => {
                let items = read_rows(data, limit, LastWordItem::from_row)?;
                let scores: Vec<LastWordScore> =
                    self.items("lambada", max_len, &items, |items| {
                        eval::last_words(model, tokenizer, items, &likelihood)
                    })?;
                ("lambada", output::value(&LastWordReport::of(&scores)?))
            }
            Task::Choices => {
                let items = read_rows(data, limit, |row| ChoiceItem::from_row(row, &self.prompt))?;
                let scores: Vec<ChoiceScore> = self.items("choices", max_len, &items, |items| {
                    eval::choices(model, tokenizer, items, &likelihood)
                })?;
                ("choices", output::value(&ChoiceReport::of(&scores)?))
            }
            Task::Rolling => {
                let mut items = self.source().open(data)?.read_all()?;
                items.truncate(limit);
                let scores: Vec<RollingItem> =
                    self.items("rolling", max_len, &items, |documents: &[Document]| {
                        eval::rolling(model, tokenizer, documents, max_len, self.batch)
                    })?;
                ("rolling", output::value(&RollingReport::of(scores)))
            }
        };
        Ok(json!({ "name": name, "max_len": max_len, "report": report }))
    }

    /// Score items, a few batches at a time, so that what is done is on file early.
    fn items<T: Clone, R: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        max_len: usize,
        items: &[T],
        mut score: impl FnMut(&[T]) -> Result<Vec<R>>,
    ) -> Result<Vec<R>> {
        let what = json!({
            "task": name, "max_len": max_len, "limit": self.limit, "prompt": self.prompt,
        });
        let mut file = self.results(what)?;
        let mut stage = Progress::new(0).stage(name, Some(items.len() as u64), "items");
        let scores = resumable(items, file.as_mut(), self.batch.saturating_mul(4), |items| {
            stage.advance(items.len() as u64);
            let items: Vec<T> = items.iter().map(|item| (*item).clone()).collect();
            score(&items)
        })?;
        stage.finish();
        Ok(scores)
    }
}

pub fn text(task: &Value) -> String {
    let report = &task["report"];
    let share = |name: &str| {
        let se = report[name]["se"].as_f64().map_or(String::new(), |se| format!(" ± {se:.4}"));
        format!("{name} {:.4}{se}\n", report[name]["value"].as_f64().unwrap_or(f64::NAN))
    };
    let number = |name: &str| format!("{name} {:.4}\n", report[name].as_f64().unwrap_or(f64::NAN));
    let counts = || {
        format!(
            "{} items; {} borders joined by the tokenizer, {} contexts cut to {} tokens\n",
            report["items"], report["joined"], report["cut"], task["max_len"]
        )
    };
    match task["name"].as_str() {
        Some("lambada") => share("acc") + &number("perplexity") + &counts(),
        Some("choices") => ["acc", "acc_norm", "acc_bytes"].map(share).concat() + &counts(),
        _ => ["token_perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"]
            .map(number)
            .concat(),
    }
}
