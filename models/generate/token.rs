//! Tokens that are appended one by one, where the whole model has kernels for that.

use super::generator::by_rows;
use crate::attention::{Compute, KvCache, State};
use crate::models::{Blocks, Place, ids_tensor};
use crate::{Error, Result};
use burn::tensor::{DType, Tensor};
use longburn_kernels::{TokenMeta, TokenPass, Tokens};

/// The kernels of a model, and what they have to know of its rows.
#[derive(Default)]
pub(super) struct OneByOne {
    /// Asked for once, when the first token comes.
    pass: Option<Option<TokenPass>>,
    /// With the token that is about to be appended.
    rows: Option<Vec<Row>>,
}

/// A row that is padding, then one document, then, once it has ended, padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    /// Where the document begins; behind all tokens where it did not yet.
    start: usize,
    /// Its number, and the position of its last token.
    document: Option<(i32, i32)>,
    ended: bool,
}

impl Row {
    /// Nothing yet.
    const NEW: Self = Self { start: 0, document: None, ended: false };

    /// With one token more; none where it does not go on as such rows do.
    fn then(self, pos: i32, segment: i32) -> Option<Self> {
        match self.document {
            None if segment < 0 => Some(Self { start: self.start + 1, ..self }),
            Some(_) if segment < 0 => Some(Self { ended: true, ..self }),
            _ if segment == TokenMeta::ANCHOR => None,
            None => Some(Self { document: Some((segment, pos)), ..self }),
            Some((of, last)) => {
                let goes_on = !self.ended && segment == of && pos > last;
                goes_on.then_some(Self { document: Some((of, pos)), ..self })
            }
        }
    }

    /// All rows of `tokens`.
    fn of(tokens: &TokenMeta) -> Option<Vec<Self>> {
        let ids = |b: usize| b * tokens.len()..(b + 1) * tokens.len();
        let row = |b| {
            let mut all = tokens.pos()[ids(b)].iter().zip(&tokens.segment()[ids(b)]);
            all.try_fold(Self::NEW, |row, (pos, segment)| row.then(*pos, *segment))
        };
        (0..tokens.batch()).map(row).collect()
    }

    /// The rows with one token more each.
    fn all_then(rows: &[Self], tokens: &TokenMeta) -> Option<Vec<Self>> {
        let next = tokens.pos().iter().zip(tokens.segment());
        let next = rows.iter().zip(next).map(|(row, (pos, segment))| row.then(*pos, *segment));
        (rows.len() == tokens.batch()).then(|| next.collect())?
    }

    /// The first of `len` tokens that the one behind them sees.
    fn sees_from(self, len: usize) -> usize {
        if self.ended { len } else { self.start.min(len) }
    }
}

impl OneByOne {
    /// After tokens that did not come through here.
    pub fn forget(&mut self) {
        self.rows = None;
    }

    /// Whether [`step`](Self::step) can append this token of every row.
    pub fn takes<M: Blocks>(
        &mut self,
        model: &M,
        compute: Compute,
        states: &[State],
        tokens: &TokenMeta,
    ) -> bool {
        let few = tokens.batch() <= TokenPass::ROWS;
        if compute != Compute::Bf16
            || !few
            || caches(states).is_none_or(|x| x.len() != model.num_blocks())
        {
            return false;
        }
        let made = || TokenPass::new(&model.token_model()?);
        if self.pass.get_or_insert_with(made).is_none() {
            return false;
        }
        let before = self.rows.take().or_else(|| rows_of(states));
        self.rows = before.and_then(|rows| Row::all_then(&rows, tokens));
        self.rows.is_some()
    }

    /// Appends a token to every row: logits and states. Only where it [takes](Self::takes) them.
    pub fn step<M: Blocks>(
        &mut self,
        model: &M,
        ids: &[u32],
        tokens: &TokenMeta,
        states: Vec<State>,
    ) -> Result<(Vec<Vec<f32>>, Vec<State>)> {
        let (Some(Some(pass)), Some(rows)) = (&mut self.pass, &self.rows) else {
            return Err(Error::shape("Generator", "a token that does not go on from the others"));
        };
        let (batch, device) = (tokens.batch(), model.head().device());
        let Place { rope, .. } = model.place(tokens, &device);
        let x = model.embed(ids_tensor(ids, batch, &device)).cast(DType::BF16);
        let width = x.dims()[2];
        let angles = |x: Tensor<4>| {
            let [rows, _, _, half] = x.dims();
            x.reshape([rows, half])
        };
        let mut before = None;
        let mut caches = Vec::with_capacity(states.len());
        for state in states {
            let State::Kv(cache) = state else {
                return Err(state.foreign("attention"));
            };
            let (room, of_cache) = cache.into_room();
            caches.push(room);
            before.get_or_insert(of_cache);
        }
        let before = before.ok_or_else(|| Error::shape("Generator", "a model without layers"))?;
        let len = before.len();
        let starts = rows.iter().map(|row| row.sees_from(len)).collect();
        let given = Tokens {
            x: x.reshape([batch, width]),
            cos: angles(rope.cos),
            sin: angles(rope.sin),
            caches,
            len,
            starts,
        };
        let (logits, caches) = pass.step(given)?;
        // While the card is at it.
        let after = before.concat(tokens)?;
        drop(before);
        let states =
            caches.into_iter().map(|room| State::Kv(KvCache::in_room(room, after.clone())));
        let states = states.collect();
        Ok((by_rows(logits.into_data(), batch), states))
    }
}

/// All states, where they are keys and values of the same number of tokens.
fn caches(states: &[State]) -> Option<Vec<&KvCache>> {
    let caches: Vec<_> = states
        .iter()
        .map(|state| match state {
            State::Kv(cache) => Some(cache),
            _ => None,
        })
        .collect::<Option<_>>()?;
    let len = caches.first()?.tokens.len();
    caches.iter().all(|cache| cache.tokens.len() == len && len > 0).then_some(caches)
}

/// What the rows of caches are, where all layers have the same.
fn rows_of(states: &[State]) -> Option<Vec<Row>> {
    let caches = caches(states)?;
    let first = &caches[0].tokens;
    caches.iter().all(|cache| cache.tokens == *first).then(|| Row::of(first))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(segments: &[i32]) -> Option<Row> {
        let pos = (0..segments.len() as i32).collect();
        let tokens = TokenMeta::new(1, segments.len(), pos, segments.to_vec()).unwrap();
        Row::of(&tokens).map(|rows| rows[0])
    }

    #[test]
    fn rows_are_padding_and_one_document() {
        let row = rows(&[-1, -1, 0, 0]).unwrap();
        assert_eq!((row.start, row.document, row.ended), (2, Some((0, 3)), false));
        assert_eq!((row.sees_from(4), row.then(3, 0), row.then(4, 1)), (2, None, None));
        let ended = row.then(0, -1).unwrap();
        assert_eq!((ended.sees_from(5), ended.then(9, 0)), (5, None));
        assert_eq!(ended.then(0, -1), Some(ended));
        let new = rows(&[-1, -1]).unwrap();
        assert_eq!((new.sees_from(2), new.then(0, 7).unwrap().document), (2, Some((7, 0))));
        for other in [&[0, 1][..], &[0, -1, 0], &[0, TokenMeta::ANCHOR]] {
            assert_eq!(rows(other), None, "{other:?}");
        }
    }
}
