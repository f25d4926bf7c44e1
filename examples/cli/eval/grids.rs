//! Needles and pass keys, length by depth.

use super::EvalArgs;
use longburn::datasets::Tokenizer;
use longburn::datasets::synthetic::{NeedleConfig, PasskeyPromptConfig, stratified_depth};
use longburn::models::Blocks;
use longburn::streams::{Purpose, Streams};
use longburn::training::eval::{PasskeyEval, PasskeyItem, PasskeyReport, resumable};
use longburn::training::report::{Progress, Table};
use longburn::{Error, Result};
use serde_json::{Value, json};

/// Longest prompts and windows, tokens.
const LONGEST: usize = 1 << 20;
/// Most samples, depths and rows at a time.
const MOST: usize = 10_000;
/// Most tokens of all prompts together, which lie in memory.
const MOST_TOKENS: usize = 1 << 28;

impl EvalArgs {
    /// Numbers that cannot be meant, before anything is read.
    pub(super) fn check_numbers(&self) -> Result<()> {
        for (field, values, most) in [
            ("passkey", &self.passkey[..], LONGEST),
            ("needle", &self.needle, LONGEST),
            ("max-len", self.max_len.as_slice(), LONGEST),
            ("stride", self.stride.as_slice(), LONGEST),
            ("passkey-samples", &[self.passkey_samples], MOST),
            ("depths", &[self.depths], MOST),
            ("needle-samples", &[self.needle_samples], MOST),
            ("batch", &[self.batch], MOST),
        ] {
            if let Some(value) = values.iter().find(|value| !(1..=most).contains(*value)) {
                let expected = format!("from 1 to {most}");
                return Err(Error::config("command line", field, value, expected));
            }
        }
        for (field, lengths, samples) in [
            ("passkey", &self.passkey, self.passkey_samples),
            ("needle", &self.needle, self.depths * self.needle_samples),
        ] {
            let tokens = lengths.iter().sum::<usize>().saturating_mul(samples);
            if tokens > MOST_TOKENS {
                let value = format!("{samples} prompts of each length, {tokens} tokens in all");
                let expected = format!("at most {MOST_TOKENS} tokens: fewer or shorter prompts");
                return Err(Error::config("command line", field, value, expected));
            }
        }
        Ok(())
    }

    pub(super) fn passkeys(
        &self,
        model: &impl Blocks,
        tokenizer: &Tokenizer,
        seed: u64,
    ) -> Result<PasskeyReport> {
        let config = PasskeyPromptConfig::new();
        let prompts = config.init()?;
        let mut items = Vec::new();
        for &length in &self.passkey {
            for i in 0..self.passkey_samples {
                let mut rng =
                    Streams::new(seed).rng(Purpose::Synthetic, i as u64, length as u32, 0);
                let depth = stratified_depth(i, self.passkey_samples, &mut rng)?;
                let sample = prompts.sample(tokenizer, length, depth, &mut rng)?;
                let item = PasskeyItem::new(sample.ids, sample.answer_ids, sample.depth);
                items.push(item.with_length(length));
            }
        }
        let what = json!({
            "passkey": self.passkey, "samples": self.passkey_samples, "seed": seed,
            "prompt": config,
        });
        let eval = PasskeyEval::new().with_batch_size(self.batch);
        self.grid(model, &eval, &items, "Pass keys", what)
    }

    pub(super) fn needles(
        &self,
        model: &impl Blocks,
        tokenizer: &Tokenizer,
        seed: u64,
    ) -> Result<PasskeyReport> {
        let Some(data) = &self.data else {
            return Err(Error::config("command line", "data", "missing", "text for the haystack"));
        };
        let mut texts = self.source().open(data)?.read_all()?;
        texts.truncate(self.documents.unwrap_or(usize::MAX));
        let config = NeedleConfig::new();
        let needle = config.init(tokenizer, texts.iter().map(|document| &document.text))?;
        let mut items = Vec::new();
        for &length in &self.needle {
            for d in 0..self.depths {
                // From the very beginning to the very end; a single depth lies in the middle.
                let depth = match self.depths {
                    1 => 0.5,
                    n => d as f64 / (n - 1) as f64,
                };
                for i in 0..self.needle_samples {
                    let at = (d * self.needle_samples + i) as u64;
                    let mut rng = Streams::new(seed).rng(Purpose::Synthetic, at, length as u32, 1);
                    let sample = needle.sample(length, depth, &mut rng)?;
                    let item = PasskeyItem::new(sample.ids, sample.answer_ids, depth);
                    items.push(item.with_length(length));
                }
            }
        }
        let what = json!({
            "needle": self.needle, "depths": self.depths, "samples": self.needle_samples,
            "documents": self.documents, "seed": seed, "prompt": config,
        });
        let eval = PasskeyEval::new().with_batch_size(self.batch).with_depth_buckets(self.depths);
        self.grid(model, &eval, &items, "Needles", what)
    }

    fn grid(
        &self,
        model: &impl Blocks,
        eval: &PasskeyEval,
        items: &[PasskeyItem],
        title: &str,
        what: Value,
    ) -> Result<PasskeyReport> {
        let mut file = self.results(what)?;
        let mut stage = Progress::new(0).stage(title, Some(items.len() as u64), "prompts");
        let exact = resumable(items, file.as_mut(), self.batch, |items| {
            stage.advance(items.len() as u64);
            eval.exact(model, items)
        })?;
        stage.finish();
        let report = eval.report(items, exact)?;
        if let Some(svg) = &self.svg {
            report.heatmap(&format!("{title} found (%)")).save(svg)?;
        }
        Ok(report)
    }
}

/// By length, then length by depth.
pub fn text(what: &str, report: &PasskeyReport) -> String {
    let mut table = Table::new([&format!("{what} at length"), "right", "of", "share"]);
    table = table.decimals(0, 0);
    for cell in &report.by_length {
        table.push([
            (cell.length as u64).into(),
            (cell.exact as u64).into(),
            (cell.total as u64).into(),
            cell.rate.into(),
        ]);
    }
    let mut grid = Table::new(["length", "depth (%)", "right", "of"]).decimals(1, 0);
    for cell in &report.cells {
        grid.push([
            (cell.length as u64).into(),
            (100.0 * cell.depth).into(),
            (cell.exact as u64).into(),
            (cell.total as u64).into(),
        ]);
    }
    format!("{}\n{}", table.to_text(), grid.to_text())
}
