//! Blocks of documents: where every token lies once each document of a row begins with a block of
//! its own.
//!
//! Rows that hold one document from their first token on are in place already and nothing is
//! copied. Packed rows and rows with padding are laid out anew, so that no block holds tokens of
//! two documents and a document has the same blocks wherever it lies.

use super::Pool;
use crate::attention::rows::gather_tokens;
use crate::positional::Positions;
use crate::{Error, Result};
use burn::tensor::{Bool, Device, Tensor, TensorData};
use longburn_kernels::TokenMeta;
use std::ops::Range;

/// Larger than what pooling may meet, and finite in sums of a few.
const FAR: f32 = 1e30;

/// A block of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cell {
    /// First and last block, counted in the row, of the block's document.
    pub document: (usize, usize),
    /// Position of its first token.
    pub start: i64,
    /// Tokens in it, 1 to the size of a block; 0 for a place without a block.
    pub tokens: usize,
}

impl Cell {
    const EMPTY: Self = Self { document: (0, 0), start: 0, tokens: 0 };

    /// Number of blocks of the document.
    pub fn of(&self) -> usize {
        self.document.1 + 1 - self.document.0
    }
}

/// The blocks of a batch and the places of its tokens in them.
#[derive(Clone, Debug)]
pub struct BlockLayout {
    block: usize,
    batch: usize,
    /// Tokens per row before and after.
    len: (usize, usize),
    /// Blocks per row.
    blocks: usize,
    /// Of the tokens as they are laid out.
    tokens: TokenMeta,
    /// Token of every place and place of every token, counted over all rows; none in place.
    moves: Option<(Vec<i32>, Vec<i32>)>,
    /// `[B, N]`
    cells: Vec<Cell>,
    /// Whether all rows have the same blocks.
    uniform: bool,
}

impl BlockLayout {
    /// Blocks of `block` tokens.
    ///
    /// # Errors
    /// [`Error::Config`] for blocks of no token; [`Error::Unsupported`] where a document is not
    /// one run of tokens.
    pub fn of(tokens: &TokenMeta, block: usize) -> Result<Self> {
        if block == 0 {
            return Err(Error::config("mixer", "block", 0, "at least 1 token"));
        }
        let (batch, len) = (tokens.batch(), tokens.len());
        let runs = (0..batch).map(|b| runs(tokens, b)).collect::<Result<Vec<_>>>()?;
        // A block longer than all documents holds each whole, and needs no more room than that.
        let longest = runs.iter().flatten().map(Range::len).max().unwrap_or(1);
        let block = block.min(longest);
        let rows: Vec<Vec<Cell>> =
            (0..batch).map(|b| cells(&runs[b], tokens.pos(), b * len, block)).collect();
        let blocks = rows.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let uniform = rows.iter().all(|row| *row == rows[0]);
        let mut layout = Self {
            block,
            batch,
            len: (len, len),
            blocks,
            tokens: tokens.clone(),
            moves: None,
            cells: Vec::with_capacity(batch * blocks),
            uniform,
        };
        for mut row in rows {
            row.resize(blocks, Cell::EMPTY);
            layout.cells.append(&mut row);
        }
        layout.lay_out(tokens, &runs)?;
        Ok(layout)
    }

    /// Find the place of every token, and move them where they are not there already.
    fn lay_out(&mut self, tokens: &TokenMeta, runs: &[Vec<Range<usize>>]) -> Result<()> {
        let (len, wide) = (self.len.0, self.blocks * self.block);
        let mut from = vec![-1i32; self.batch * wide];
        let mut to = vec![-1i32; self.batch * len];
        for b in 0..self.batch {
            let mut place = b * wide;
            for run in &runs[b] {
                for t in run.clone() {
                    (from[place], to[b * len + t]) = ((b * len + t) as i32, place as i32);
                    place += 1;
                }
                place = b * wide + (place - b * wide).next_multiple_of(self.block);
            }
        }
        let at = |b: usize, t: usize| (b * wide + t) as i32;
        let stays = |(n, place): (usize, &i32)| *place < 0 || *place == at(n / len, n % len);
        if to.iter().enumerate().all(stays) {
            return Ok(());
        }
        let read = |list: &[i32], padding: i32| -> Vec<i32> {
            from.iter().map(|&t| if t < 0 { padding } else { list[t as usize] }).collect()
        };
        let (pos, segment) = (read(tokens.pos(), 0), read(tokens.segment(), -1));
        self.tokens = TokenMeta::new(self.batch, wide, pos, segment)?;
        self.len.1 = wide;
        self.moves = Some((from, to));
        Ok(())
    }

    /// Tokens per block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Blocks per row, N.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// The tokens as they are laid out.
    pub fn tokens(&self) -> &TokenMeta {
        &self.tokens
    }

    /// Block `n` of row `b`.
    pub(super) fn cell(&self, b: usize, n: usize) -> Cell {
        self.cells[b * self.blocks + n]
    }

    /// All blocks, `[B, N]`.
    pub(super) fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// Rows that constants need: one where all are alike.
    pub(super) fn rows(&self) -> usize {
        if self.uniform { self.batch.min(1) } else { self.batch }
    }

    /// Number of documents.
    pub(super) fn documents(&self) -> usize {
        let first =
            |(n, cell): (usize, &Cell)| cell.tokens > 0 && cell.document.0 == n % self.blocks;
        self.cells.iter().enumerate().filter(|entry| first(*entry)).count()
    }

    /// Tokens to their places; what lies where no token is has no meaning.
    ///
    /// # Shapes
    /// `[B, H, T, D]` -> `[B, H, T', D]`
    pub fn spread(&self, x_BHTD: Tensor<4>) -> Tensor<4> {
        match &self.moves {
            Some((from, _)) => moved(x_BHTD, from),
            None => x_BHTD,
        }
    }

    /// Back from [`spread`](Self::spread), with zeros for padding.
    ///
    /// # Shapes
    /// `[B, H, T', D]` -> `[B, H, T, D]`
    pub fn collect(&self, x_BHTD: Tensor<4>) -> Tensor<4> {
        let Some((_, to)) = &self.moves else { return x_BHTD };
        let y = moved(x_BHTD, to);
        if to.iter().all(|place| *place >= 0) {
            return y;
        }
        let hidden = to.iter().map(|place| *place < 0).collect::<Vec<_>>();
        let hidden = TensorData::new(hidden, [self.batch, 1, self.len.0, 1]);
        let hidden = Tensor::<4, Bool>::from_data(hidden, &y.device()).expand(y.dims());
        y.mask_fill(hidden, 0.0)
    }

    /// Pool the tokens of every block, one pooling behind the other along the channels, always in
    /// the order max, min, avg. A last block that is cut off is pooled over its own tokens.
    ///
    /// # Shapes
    /// `[B, H, T', D]` as laid out -> `[B, H, N, pools · D]`
    pub fn pool(&self, x_BHTD: Tensor<4>, pools: &[Pool]) -> Tensor<4> {
        let ([b, h, t, d], device) = (x_BHTD.dims(), x_BHTD.device());
        let (n, block) = (self.blocks, self.block);
        let x = match (n * block).cmp(&t) {
            std::cmp::Ordering::Less => x_BHTD.narrow(2, 0, n * block),
            std::cmp::Ordering::Equal => x_BHTD,
            std::cmp::Ordering::Greater => {
                let rest = Tensor::zeros([b, h, n * block - t, d], (&device, x_BHTD.dtype()));
                Tensor::cat(vec![x_BHTD, rest], 2)
            }
        };
        let x: Tensor<5> = x.reshape([b, h, n, block, d]);
        let rows = self.rows();
        let of_rows = &self.cells[..rows * n];
        let hidden = of_rows.iter().any(|cell| cell.tokens < block).then(|| {
            let hidden = |cell: &Cell| (0..block).map(|i| i >= cell.tokens).collect::<Vec<_>>();
            let data: Vec<bool> = of_rows.iter().flat_map(hidden).collect();
            let data = TensorData::new(data, [rows, 1, n, block, 1]);
            Tensor::<5, Bool>::from_data(data, &device).expand([b, h, n, block, d])
        });
        let count = |cell: &Cell| cell.tokens.max(1) as f32;
        let counts = TensorData::new(of_rows.iter().map(count).collect(), [rows, 1, n, 1, 1]);
        let counts = Tensor::<5>::from_data(counts, (&device, x.dtype()));
        let pooled = pooled(x, hidden.map(|hidden| (hidden, counts)), pools);
        if of_rows.iter().all(|cell| cell.tokens > 0) {
            return pooled;
        }
        let empty = of_rows.iter().map(|cell| cell.tokens == 0).collect::<Vec<_>>();
        let empty = Tensor::<4, Bool>::from_data(TensorData::new(empty, [rows, 1, n, 1]), &device);
        let empty = empty.expand(pooled.dims());
        pooled.mask_fill(empty, 0.0)
    }

    /// Positions of the first tokens of the blocks, `[B, N]`.
    ///
    /// # Errors
    /// Never for a layout; positions check their own sizes.
    pub fn starts(&self) -> Result<Positions> {
        let starts = self.cells.iter().map(|cell| cell.start).collect();
        Positions::new(self.batch, self.blocks, starts, 1)
    }

    /// Blocks that blocks of queries do not see: of other documents, and later ones.
    ///
    /// # Shapes
    /// `[B or 1, 1, range, N]`, true where hidden
    pub(super) fn hidden(&self, range: Range<usize>, device: &Device) -> Tensor<4, Bool> {
        let (rows, n) = (self.rows(), self.blocks);
        let mut data = Vec::with_capacity(rows * range.len() * n);
        for b in 0..rows {
            for i in range.clone() {
                let cell = self.cell(b, i);
                let seen = |j: usize| cell.tokens > 0 && (cell.document.0..=i).contains(&j);
                data.extend((0..n).map(|j| !seen(j)));
            }
        }
        Tensor::from_data(TensorData::new(data, [rows, 1, range.len(), n]), device)
    }
}

/// Pool blocks; `partial` says which tokens are none, and how many there are.
///
/// # Shapes
/// x `[B, H, N, block, D]` -> `[B, H, N, pools · D]`; hidden like x, counts `[B or 1, 1, N, 1, 1]`
pub(super) fn pooled(
    x: Tensor<5>,
    partial: Option<(Tensor<5, Bool>, Tensor<5>)>,
    pools: &[Pool],
) -> Tensor<4> {
    let [b, h, n, _, d] = x.dims();
    let filled = |value: f32| match &partial {
        Some((hidden, _)) => x.clone().mask_fill(hidden.clone(), value),
        None => x.clone(),
    };
    let pool = |pool: Pool| {
        let one = match (pool, &partial) {
            (Pool::Max, _) => filled(-FAR).max_dim(3),
            (Pool::Min, _) => filled(FAR).min_dim(3),
            (Pool::Avg, Some((_, counts))) => filled(0.0).sum_dim(3) / counts.clone(),
            (Pool::Avg, None) => x.clone().mean_dim(3),
        };
        one.reshape([b, h, n, d])
    };
    let wanted = Pool::ALL.into_iter().filter(|one| pools.contains(one));
    Tensor::cat(wanted.map(pool).collect(), 3)
}

/// Tokens `list`, counted over all rows of the batch; the first one where there is none.
fn moved(x_BHTD: Tensor<4>, list: &[i32]) -> Tensor<4> {
    let places: Vec<usize> = list.iter().map(|i| (*i).max(0) as usize).collect();
    gather_tokens(x_BHTD, &places)
}

/// Runs of tokens of one document each in row `b`.
fn runs(tokens: &TokenMeta, b: usize) -> Result<Vec<Range<usize>>> {
    let len = tokens.len();
    let segments = &tokens.segment()[b * len..(b + 1) * len];
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut known = std::collections::BTreeSet::new();
    for (t, segment) in segments.iter().enumerate().filter(|(_, segment)| **segment >= 0) {
        match runs.last_mut().filter(|run| run.end == t && segments[run.start] == *segment) {
            Some(run) => run.end = t + 1,
            None if known.insert(*segment) => runs.push(t..t + 1),
            None => {
                return Err(Error::Unsupported {
                    what: format!("blocks of document {segment} of row {b}, which is in pieces"),
                    remedy: "give every document one run of tokens and a number of its own".into(),
                });
            }
        }
    }
    Ok(runs)
}

/// Blocks of the documents of a row, one behind the other.
fn cells(runs: &[Range<usize>], pos: &[i32], row: usize, block: usize) -> Vec<Cell> {
    let mut cells = Vec::new();
    for run in runs {
        let first = cells.len();
        let document = (first, first + run.len().div_ceil(block) - 1);
        for start in run.clone().step_by(block) {
            let tokens = block.min(run.end - start);
            cells.push(Cell { document, start: i64::from(pos[row + start]), tokens });
        }
    }
    cells
}
