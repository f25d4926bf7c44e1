//! The text: the Rust sources of this project's dependencies, split into documents for training
//! and for evaluation, and the rows that are taken from them.

use crate::corpus::{self, Corpus};
use crate::recipe::{Recipe, TextPart};
use longburn::datasets::{
    BpeConfig, IGNORE, Row, Side, TokenBatch, TokenDocument, Tokenizer, WindowSampler,
};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::{Error, Result};
use std::sync::Arc;

pub struct Text {
    pub tokenizer: Tokenizer,
    pub crates: usize,
    train: Arc<[TokenDocument]>,
    held_out: Vec<TokenDocument>,
}

/// What a row of evaluation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Held-out text as it stands.
    Text,
    /// Its first half twice; only the second one counts.
    Repeated,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Repeated, Self::Text];

    pub fn title(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Repeated => "repeated text",
        }
    }
}

impl Text {
    pub fn read(recipe: &Recipe) -> Result<Self> {
        let crates = corpus::crates()?.documents;
        let count = crates.len();
        let TextPart { vocabulary, hold_out, tokenizer_documents, .. } = recipe.text;
        let config = BpeConfig::new(vocabulary);
        let Corpus { tokenizer, train, mut held_out, .. } =
            Corpus::new(crates, hold_out, (&config, tokenizer_documents))?;
        held_out.retain(|document| document.ids.len() > recipe.base.length);
        if held_out.is_empty() {
            let length = recipe.base.length;
            return Err(Error::Data(format!("no held-out document has more than {length} tokens")));
        }
        Ok(Self { tokenizer, crates: count, train: train.into(), held_out })
    }

    /// Batches of training rows, some of them with their first half twice.
    pub fn rows(
        &self,
        recipe: &Recipe,
        batch: usize,
        seed: u64,
    ) -> Result<impl FnMut(u64, u32) -> Result<Option<TokenBatch>>> {
        let (length, repeated) = (recipe.base.length, recipe.text.repeated);
        let streams = Streams::new(seed);
        let sampler = WindowSampler::new(self.train.clone(), length, 1, streams)?;
        // Two micro-batches make a step.
        let per_micro = batch.div_ceil(2);
        Ok(move |step: u64, micro: u32| {
            let mut rng = streams.rng(Purpose::Synthetic, step, micro, 0);
            let rows = (0..per_micro).map(|_| {
                let window = sampler.window(&mut rng);
                let half = &window.ids[..length / 2];
                let source = format!("{}[{}..]", window.document, window.start);
                match rng.unit() < repeated {
                    true => Row::single([half, half].concat(), None, source),
                    false => Row::single(window.ids.to_vec(), window.next, source),
                }
            });
            TokenBatch::stack(rows.collect(), Side::Right, 0).map(Some)
        })
    }

    /// Rows of evaluation, from evenly spread places of the held-out documents.
    pub fn windows(&self, recipe: &Recipe, kind: Kind) -> Result<Vec<TokenBatch>> {
        let (length, count) = (recipe.base.length, recipe.evaluate.windows);
        let documents = &self.held_out;
        let each = count.div_ceil(documents.len());
        (0..count)
            .map(|i| {
                let ids = &documents[i % documents.len()].ids;
                let start = (ids.len() - length) * (i / documents.len()) / each;
                let ids = &ids[start..start + length];
                let half = &ids[..length / 2];
                let row = match kind {
                    Kind::Text => ids.to_vec(),
                    Kind::Repeated => [half, half].concat(),
                };
                let mut batch = TokenBatch::from_rows(vec![row], Side::Right, 0)?;
                if kind == Kind::Repeated {
                    // Label t is token t + 1; the first one repeated is that at half the length.
                    batch.labels[..length / 2 - 1].fill(IGNORE);
                }
                Ok(batch)
            })
            .collect()
    }
}
