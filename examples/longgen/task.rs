//! Rows of retrieval: needles in filler, and one query for each at the end.

use burn::tensor::Device;
use longburn::datasets::{IGNORE, Row, Side, TokenBatch};
use longburn::models::{Blocks, Decoder, ForwardOptions, ids_tensor};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::{Error, Result};
use serde::Deserialize;

/// Sizes of a row. A needle is one token that stands for a key and a value; a query is one that
/// stands for a key, and what follows it is to be the value.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Tokens per row.
    pub length: usize,
    /// Needles per row, each with another key.
    pub keys: usize,
    /// Values of a key.
    pub values: usize,
    /// Words that mean nothing.
    pub filler: usize,
    /// Last tokens of a row, which hold its queries and no needle.
    pub front: usize,
}

/// A query: where it stands, where its needle does, and the value.
pub struct Query {
    row: usize,
    at: usize,
    needle: usize,
    value: usize,
}

/// What a model made of a query.
pub struct Answer {
    /// Tokens from the needle to the query.
    pub distance: usize,
    /// Place of the needle.
    pub needle: usize,
    /// Whether it was found.
    pub right: bool,
}

impl Task {
    pub fn check(&self) -> Result<()> {
        for (field, value) in
            [("keys", self.keys), ("values", self.values), ("filler", self.filler)]
        {
            if value == 0 {
                return Err(Error::config("task", field, 0, "at least 1"));
            }
        }
        if self.front < 2 * self.keys || self.length < self.front + self.keys {
            let expected = "room for every query with its answer, and a row with room for needles";
            return Err(Error::config("task", "front", self.front, expected));
        }
        Ok(())
    }

    /// Filler, values, queries, needles, in this order.
    pub fn vocabulary(&self) -> usize {
        self.filler + self.values + self.keys + self.keys * self.values
    }

    /// Batch `n` of `rows` rows.
    pub fn batch(&self, seed: u64, n: u64, rows: usize) -> Result<(TokenBatch, Vec<Query>)> {
        let (mut all, mut queries) = (Vec::with_capacity(rows), Vec::new());
        for row in 0..rows {
            let mut rng = Streams::new(seed).rng(Purpose::Synthetic, n, row as u32, 0);
            let mut ids: Vec<u32> =
                (0..self.length).map(|_| rng.below(self.filler) as u32).collect();
            let mut places: Vec<usize> = (0..self.length - self.front).collect();
            rng.shuffle(&mut places);
            let mut order: Vec<usize> = (0..self.keys).collect();
            rng.shuffle(&mut order);
            let mut labels = vec![IGNORE; self.length];
            let first = self.length - 2 * self.keys;
            for (i, key) in order.into_iter().enumerate() {
                let (value, needle, at) = (rng.below(self.values), places[i], first + 2 * i);
                let (of_values, of_queries) = (self.filler, self.filler + self.values);
                let of_needles = of_queries + self.keys;
                ids[needle] = (of_needles + key * self.values + value) as u32;
                ids[at] = (of_queries + key) as u32;
                ids[at + 1] = (of_values + value) as u32;
                labels[at] = (of_values + value) as i64;
                queries.push(Query { row, at, needle, value });
            }
            all.push(Row { labels, ..Row::single(ids, None, "needles") });
        }
        Ok((TokenBatch::stack(all, Side::Right, 0)?, queries))
    }

    /// What the model says to every query of batch `n`.
    pub fn answers(&self, model: &Decoder, seed: u64, n: u64, rows: usize) -> Result<Vec<Answer>> {
        let (batch, queries) = self.batch(seed, n, rows)?;
        let ids = ids_tensor(&batch.ids, rows, &Device::default());
        let options = ForwardOptions::infer();
        let last = model.forward_ids(ids, &batch.tokens, &options, vec![])?.last;
        let logits: Vec<f32> = model.logits(last).into_data().iter::<f32>().collect();
        let answer = |query: &Query| {
            let vocabulary = self.vocabulary();
            let start = (query.row * self.length + query.at) * vocabulary + self.filler;
            let values = &logits[start..start + self.values];
            let best = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            Answer {
                distance: query.at - query.needle,
                needle: query.needle,
                right: best.is_some_and(|(value, _)| value == query.value),
            }
        };
        Ok(queries.iter().map(answer).collect())
    }
}
