//! What each token does to the state of its row.

use crate::{Error, TokenMeta};
use burn::tensor::{Bool, Device, Tensor, TensorData};
use std::sync::Arc;

/// What one token does to the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Adds to the state that it finds.
    Next,
    /// Begins a document: what the state held is forgotten.
    First,
    /// Padding: the state passes by unchanged, and the output is zero.
    Skip,
}

/// The steps of a batch, `[B * T]`; cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    batch: usize,
    len: usize,
    steps: Arc<Vec<Step>>,
}

impl Steps {
    /// One document per row, which goes on from the state that it is given.
    pub fn plain(batch: usize, len: usize) -> Self {
        Self { batch, len, steps: Arc::new(vec![Step::Next; batch * len]) }
    }

    /// Steps of `tokens`, and the document that each row is in behind them.
    ///
    /// `before` is what an earlier call returned here: the document that each row's state is of,
    /// negative where no token has come yet. The first document of a row without a past goes on
    /// from the state that it is given.
    ///
    /// # Errors
    /// When `before` is for another number of rows, or a document comes after one with a higher
    /// number: a state cannot be taken up again.
    pub fn of(tokens: &TokenMeta, before: Option<&[i32]>) -> Result<(Self, Vec<i32>), Error> {
        let (batch, len) = (tokens.batch(), tokens.len());
        let mut last = before.map_or_else(|| vec![-1; batch], <[i32]>::to_vec);
        if last.len() != batch {
            let reason = format!("{batch} rows go on from states of {}", last.len());
            return Err(Error::shape("Steps", reason));
        }
        let mut steps = Vec::with_capacity(batch * len);
        for (row, last) in last.iter_mut().enumerate() {
            for (t, &segment) in tokens.segment()[row * len..(row + 1) * len].iter().enumerate() {
                steps.push(match segment {
                    ..0 => Step::Skip,
                    _ if *last < 0 || segment == *last => Step::Next,
                    _ if segment > *last => Step::First,
                    _ => {
                        let reason = format!(
                            "row {row}, token {t}: document {segment} comes after document {last}; \
                             the documents of a row must be numbered in their order"
                        );
                        return Err(Error::shape("Steps", reason));
                    }
                });
                *last = (*last).max(segment);
            }
        }
        Ok((Self { batch, len, steps: Arc::new(steps) }, last))
    }

    /// Rows.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Tokens per row.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Steps of one row.
    pub fn row(&self, row: usize) -> &[Step] {
        &self.steps[row * self.len..(row + 1) * self.len]
    }

    /// Whether every token just goes on.
    pub fn is_plain(&self) -> bool {
        self.steps.iter().all(|step| *step == Step::Next)
    }

    /// Whether some token is padding.
    pub fn has_padding(&self) -> bool {
        self.steps.contains(&Step::Skip)
    }

    /// Where the step is `wanted`, `[B, T, 1]`; none where it is nowhere.
    pub(crate) fn mask(&self, wanted: Step, device: &Device) -> Option<Tensor<3, Bool>> {
        let data: Vec<bool> = self.steps.iter().map(|step| *step == wanted).collect();
        let shape = [self.batch, self.len, 1];
        data.contains(&true).then(|| Tensor::from_data(TensorData::new(data, shape), device))
    }

    /// 1 where the step is not `zero`, 0 where it is, `[B, T, 1]`.
    pub(crate) fn but(&self, zero: Step, device: &Device) -> Tensor<3> {
        let data: Vec<f32> = self.steps.iter().map(|s| f32::from(*s != zero)).collect();
        Tensor::from_data(TensorData::new(data, [self.batch, self.len, 1]), device)
    }

    /// Where the `k` inputs lie that end with each token, oldest first, `[B * T * k]`: 0..k in the
    /// tail of the tokens before, from k on in these tokens, −1 where the document has no more.
    /// Padding has none at all.
    pub(crate) fn taps(&self, k: usize) -> Vec<i32> {
        let mut taps = vec![-1; self.batch * self.len * k];
        for row in 0..self.batch {
            self.walk(row, k, |t, past| {
                taps[(row * self.len + t) * k..][..k].copy_from_slice(past);
            });
        }
        taps
    }

    /// The last `k` inputs of each row's state behind the tokens, as [`taps`](Self::taps) has them,
    /// `[B * k]`.
    pub(crate) fn tail(&self, k: usize) -> Vec<i32> {
        (0..self.batch).flat_map(|row| self.walk(row, k, |_, _| {})).collect()
    }

    /// Calls `visit` for every token but padding with the `k` inputs that end there.
    fn walk(&self, row: usize, k: usize, mut visit: impl FnMut(usize, &[i32])) -> Vec<i32> {
        let mut past: Vec<i32> = (0..k as i32).collect();
        for (t, step) in self.row(row).iter().enumerate() {
            match step {
                Step::Skip => continue,
                Step::First => past.fill(-1),
                Step::Next => {}
            }
            past.rotate_left(1);
            past[k - 1] = (k + t) as i32;
            visit(t, &past);
        }
        past
    }
}
