//! The text: documents split into training and held-out ones, a tokenizer trained on the former,
//! and the rows that the trainer and the evaluation take from them.

use crate::corpus::{self, Corpus};
use crate::recipe::{KeyRows, Recipe, TextPart};
use longburn::datasets::source::open;
use longburn::datasets::synthetic::{Passkey, PasskeyConfig, stratified_depth};
use longburn::datasets::{
    BpeConfig, DataReport, Document, Row, Side, TokenBatch, TokenDocument, Tokenizer, WindowSampler,
};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::training::eval::PasskeyItem;
use longburn::training::report::Progress;
use longburn::{Error, Result};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// Everything that is read, trained on and evaluated on.
pub struct Text {
    pub origin: String,
    pub sha256: String,
    pub tokenizer: Tokenizer,
    pub train: Arc<[TokenDocument]>,
    pub held_out: Vec<TokenDocument>,
    pub passkey: Passkey,
    pub report: DataReport,
}

impl Text {
    pub fn read(data: Option<&Path>, recipe: &Recipe, progress: &Progress) -> Result<Self> {
        let mut stage = progress.stage("text and tokenizer", Some(2), "steps");
        let (documents, origin, sha256, read) = match data {
            Some(path) => from_path(path)?,
            None => {
                let crates = corpus::crates()?;
                let n = crates.documents.len();
                let origin = format!("the Rust sources of {n} crates in this project's Cargo.lock");
                (crates.documents, origin, crates.sha256, crates.report)
            }
        };
        stage.advance(1);
        let TextPart { vocabulary, hold_out, tokenizer_documents } = recipe.text;
        let config = BpeConfig::new(vocabulary).with_single_digits(true);
        let Corpus { tokenizer, train, held_out, report } =
            Corpus::new(documents, hold_out, (&config, tokenizer_documents))?;
        let long = |d: &&TokenDocument| d.ids.len() > recipe.extend.length;
        if held_out.iter().filter(long).count() == 0 {
            return Err(Error::Data(format!(
                "no held-out document has more than {} tokens (remedy: give longer texts with \
                 --data PATH)",
                recipe.extend.length
            )));
        }
        let passkey = PasskeyConfig::new()
            .with_words(recipe.passkey.words)
            .with_key_words(recipe.passkey.key_words)
            .init(&tokenizer)?;
        stage.advance(1);
        stage.finish();
        let report = read.then(&report);
        Ok(Self { origin, sha256, tokenizer, train: train.into(), held_out, passkey, report })
    }

    /// Batches of training rows, `made_of` says of what at a step (from 1). Rows with a key end
    /// with the question for it.
    pub fn rows(
        &self,
        (length, batch): (usize, usize),
        made_of: impl Fn(u64) -> KeyRows,
        seed: u64,
    ) -> Result<impl FnMut(u64, u32) -> Result<Option<TokenBatch>>> {
        let streams = Streams::new(seed);
        let sampler = WindowSampler::new(self.train.clone(), length, 1, streams)?;
        let passkey = self.passkey.clone();
        // Two micro-batches make a step.
        let per_micro = batch / 2;
        Ok(move |step: u64, micro: u32| {
            let mut rng = streams.rng(Purpose::Synthetic, step, micro, 0);
            let KeyRows { doubled, share, repeats: [least, most], .. } = made_of(step);
            let mut rows = Vec::with_capacity(per_micro);
            for _ in 0..per_micro {
                let window = sampler.window(&mut rng);
                let source = format!("{}[{}..]", window.document, window.start);
                rows.push(if rng.unit() < doubled {
                    let half = &window.ids[..length / 2];
                    Row::single([half, half].concat(), None, source)
                } else if rng.unit() < share {
                    let repeats = least + rng.below(most - least + 1);
                    let ids = passkey.training_row(window.ids, length, repeats, &mut rng)?;
                    Row::single(ids, None, source)
                } else {
                    Row::single(window.ids.to_vec(), window.next, source)
                });
            }
            TokenBatch::stack(rows, Side::Right, 0).map(Some)
        })
    }

    /// The first `length` tokens from evenly spread places of the held-out documents.
    pub fn windows(&self, length: usize, count: usize) -> Vec<Vec<u32>> {
        let long: Vec<_> = self.held_out.iter().filter(|d| d.ids.len() > length).collect();
        let each = count.div_ceil(long.len());
        let mut windows = Vec::new();
        for i in 0..count {
            let document = long[i % long.len()];
            let room = document.ids.len() - length;
            let start = room * (i / long.len()) / each;
            windows.push(document.ids[start..start + length].to_vec());
        }
        windows
    }

    /// Pass-key tests of `length` tokens, depths spread evenly.
    pub fn keys(&self, length: usize, count: usize) -> Result<Vec<PasskeyItem>> {
        let long: Vec<_> = self.held_out.iter().filter(|d| d.ids.len() > length).collect();
        let mut items = Vec::with_capacity(count);
        for i in 0..count {
            // Not a training seed: the tests are the same for every seed and arm.
            let mut rng =
                Streams::new(0x6B65_7973).rng(Purpose::Synthetic, i as u64, 0, length as u32);
            let depth = stratified_depth(i % 8, 8, &mut rng)?;
            let ids = &long[i % long.len()].ids;
            let start = rng.below(ids.len() - length + 1);
            let document = &ids[start..start + length];
            let (prompt, answer) =
                self.passkey.evaluation_row(document, length, depth, &mut rng)?;
            items.push(PasskeyItem::new(prompt, answer, depth).with_length(length));
        }
        Ok(items)
    }
}

fn from_path(path: &Path) -> Result<(Vec<Document>, String, String, DataReport)> {
    let mut source = open(path)?;
    let documents = source.read_all()?;
    let mut hash = Sha256::new();
    for document in &documents {
        hash.update(document.id.as_bytes());
        hash.update(document.text.as_bytes());
    }
    let sha256 = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    let origin = format!("{} documents of {}", documents.len(), path.display());
    Ok((documents, origin, sha256, source.report().clone()))
}
