//! What the gate learns: the largest attention weight of every block, and the divergence from it.
//!
//! Neither all weights nor all scores are ever there: rows are taken in pieces, whose gradients
//! are found at once and only scaled in the backward pass.

use super::{BlockLayout, DecodeGate, Reduction, SeerConfig};
use crate::Result;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use longburn_kernels::{AttentionOptions, Branch, Mask, Reduce, attention_stats};
use std::ops::Range;

/// Logit of a block that may not be chosen.
const LOW: f32 = -1e20;
/// Scores of a piece.
pub(crate) const PIECE: usize = 1 << 18;

/// Attention whose weights are learned from, as `layout` lays its tokens out.
#[derive(Clone, Debug)]
pub struct Teacher<'a> {
    /// Rotated queries `[B, H, T', D]` and keys `[B, K, T', D]`.
    pub branch: Branch,
    /// `[B, H, T']`
    pub lse: Tensor<3>,
    /// Where the blocks are.
    pub layout: &'a BlockLayout,
    /// Which code runs.
    pub options: AttentionOptions,
}

impl Teacher<'_> {
    /// Largest weights of blocks of `height` queries, for the queries `range`.
    fn largest(&self, range: Range<usize>, height: usize) -> Result<Tensor<4>> {
        let Branch { q, k, mask } = &self.branch;
        let len = range.len();
        let queries = mask.queries().slice(range.clone())?;
        let mask = Mask::new(mask.spec().clone(), queries, mask.keys().clone(), mask.heads())?;
        let branch = Branch { q: q.clone().narrow(2, range.start, len), k: k.clone(), mask };
        let lse = self.lse.clone().narrow(2, range.start, len);
        let reduce = Reduce::BlockMax { queries: height, keys: self.layout.block() };
        let found = attention_stats(&branch, lse, reduce, &self.options)?;
        // Statistics are without a graph; what they are compared with is not.
        let found = if q.is_autodiff() { Tensor::from_inner(found) } else { found };
        Ok(found.narrow(3, 0, self.layout.blocks()))
    }

    /// Largest weight of every pair of blocks, for some blocks of queries; each row divided by its
    /// sum.
    ///
    /// # Shapes
    /// -> `[B, H, range, N]`
    ///
    /// # Errors
    /// What the statistics of attention refuse.
    pub fn block_targets(&self, range: Range<usize>) -> Result<Tensor<4>> {
        let (block, tokens) = (self.layout.block(), self.layout.tokens().len());
        let queries = range.start * block..(range.end * block).min(tokens);
        let largest = self.largest(queries, block)?;
        // A row that sees something has a weight of at least one in so many keys.
        let sum = largest.clone().sum_dim(3).clamp_min(1e-20);
        Ok(largest / sum)
    }

    /// Largest weight that single queries give to every block *before their own*, over the query
    /// heads of a key head, for some queries; each row divided by its sum.
    ///
    /// # Shapes
    /// -> `[B, K, range, N]`
    ///
    /// # Errors
    /// What the statistics of attention refuse.
    pub fn token_targets(&self, range: Range<usize>) -> Result<Tensor<4>> {
        let ([b, h, ..], kv) = (self.branch.q.dims(), self.branch.k.dims()[1]);
        let (len, n) = (range.len(), self.layout.blocks());
        let largest: Tensor<5> = self.largest(range.clone(), 1)?.reshape([b, kv, h / kv, len, n]);
        let largest: Tensor<4> = largest.max_dim(2).reshape([b, kv, len, n]);
        let hidden = before_own(self.layout, range, &largest.device()).expand(largest.dims());
        let largest = largest.mask_fill(hidden, 0.0);
        let sum = largest.clone().sum_dim(3).add_scalar(1e-9);
        Ok(largest / sum)
    }

    /// Loss of a gate for blocks of queries, without the configuration's factor.
    ///
    /// # Shapes
    /// gate queries and keys `[B, H, N, G]` -> `[1]`
    ///
    /// # Errors
    /// What the statistics of attention refuse.
    pub fn block_loss(&self, config: &SeerConfig, qk: (Tensor<4>, Tensor<4>)) -> Result<Tensor<1>> {
        let [b, heads, n, _] = qk.0.dims();
        let weights = block_weights(config, self.layout, heads);
        let piece = (PIECE / (b * heads * n)).max(1);
        in_pieces(qk, piece, |q, k, range| {
            let Some(weights) = weights.part(range.clone(), &q.device()) else { return Ok(None) };
            let targets = self.block_targets(range.clone())?;
            let hidden = self.layout.hidden(range, &q.device());
            Ok(Some(divergence(super::gate::scores(q, k), targets, hidden, weights)))
        })
    }

    /// The same for single queries.
    ///
    /// # Shapes
    /// gate queries `[B, K or H, T', G]` and keys `[B, K, N, G]` -> `[1]`
    ///
    /// # Errors
    /// What the statistics of attention refuse.
    pub fn token_loss(
        &self,
        config: &SeerConfig,
        gate: &DecodeGate,
        qk: (Tensor<4>, Tensor<4>),
    ) -> Result<Tensor<1>> {
        let ([b, heads, ..], n) = (self.branch.q.dims(), self.layout.blocks());
        let weights = token_weights(config, self.layout, qk.1.dims()[1]);
        let piece = (PIECE / (b * heads * n)).max(1);
        in_pieces(qk, piece, |q, k, range| {
            let Some(weights) = weights.part(range.clone(), &q.device()) else { return Ok(None) };
            let targets = self.token_targets(range.clone())?;
            let hidden = before_own(self.layout, range, &q.device());
            Ok(Some(divergence(gate.logits(q, k), targets, hidden, weights)))
        })
    }
}

/// Sum of what `loss` says of pieces of the rows of `q`, each with all of `k`.
fn in_pieces(
    (q, k): (Tensor<4>, Tensor<4>),
    piece: usize,
    loss: impl Fn(Tensor<4>, Tensor<4>, Range<usize>) -> Result<Option<Tensor<1>>>,
) -> Result<Tensor<1>> {
    let (rows, learns) = (q.dims()[2], q.is_tracked() || k.is_tracked());
    let leaf = |x: Tensor<4>| x.detach().set_require_grad(learns);
    let mut total = Tensor::<1>::zeros([1], &q.device());
    let mut dq = Vec::new();
    let mut dk = k.zeros_like().detach();
    for start in (0..rows).step_by(piece) {
        let len = piece.min(rows - start);
        let (part, keys) = (leaf(q.clone().narrow(2, start, len)), leaf(k.clone()));
        let none = || part.zeros_like().detach();
        let Some(value) = loss(part.clone(), keys.clone(), start..start + len)? else {
            dq.push(none());
            continue;
        };
        total = total + value.clone().detach();
        if learns {
            let grads = value.backward();
            dq.push(part.grad(&grads).map_or_else(none, Tensor::from_inner));
            dk = keys.grad(&grads).map_or(dk.clone(), |grad| dk + Tensor::from_inner(grad));
        }
    }
    if !learns {
        return Ok(total);
    }
    // Zero, with the gradients that were found.
    let linear = (q * Tensor::cat(dq, 2)).sum() + (k * dk).sum();
    Ok(total + (linear.clone() - linear.detach()))
}

/// Blocks that queries may not choose: their own (always computed), later ones, other documents'.
///
/// # Shapes
/// `[B or 1, 1, range, N]`, true where hidden
fn before_own(layout: &BlockLayout, range: Range<usize>, device: &Device) -> Tensor<4, Bool> {
    let (rows, n, block, len) = (layout.rows(), layout.blocks(), layout.block(), range.len());
    let mut data = Vec::with_capacity(rows * len * n);
    for b in 0..rows {
        for t in range.clone() {
            let own = t / block;
            let first = if own < n { layout.cell(b, own).document.0 } else { own };
            data.extend((0..n).map(|j| !(first..own).contains(&j)));
        }
    }
    Tensor::from_data(TensorData::new(data, [rows, 1, len, n]), device)
}

/// Kullback-Leibler divergence of the gate's rows from the targets, each row times its weight,
/// summed up; hidden blocks have neither score nor target. In f32.
///
/// # Shapes
/// logits, targets `[B, heads, R, N]`; hidden `[B or 1, 1, R, N]`; weights `[B or 1, 1, R, 1]` ->
/// `[1]`
fn divergence(
    logits: Tensor<4>,
    targets: Tensor<4>,
    hidden: Tensor<4, Bool>,
    weights: Tensor<4>,
) -> Tensor<1> {
    let hidden = hidden.expand(logits.dims());
    let scores = log_softmax(logits.cast(DType::F32).mask_fill(hidden, LOW), 3);
    // t·ln t is 0 where t is.
    let entropy = targets.clone() * targets.clone().clamp_min(f32::MIN_POSITIVE).log();
    ((entropy - targets * scores) * weights).sum()
}

/// Weights of rows: 0 for the first rows of every document, and what makes a sum a mean.
struct Weights {
    /// Rows of the batch; one where all are alike.
    batch: usize,
    /// `[batch, R]`
    data: Vec<f32>,
}

impl Weights {
    /// Those of some rows, `[batch, 1, range, 1]`; none where all are 0.
    fn part(&self, range: Range<usize>, device: &Device) -> Option<Tensor<4>> {
        let rows = self.data.chunks(self.data.len() / self.batch.max(1));
        let part: Vec<f32> = rows.flat_map(|row| &row[range.clone()]).copied().collect();
        let part = Some(part).filter(|part| part.iter().any(|weight| *weight != 0.0))?;
        Some(Tensor::from_data(TensorData::new(part, [self.batch, 1, range.len(), 1]), device))
    }
}

/// For blocks of queries, `heads` of them in each row.
fn block_weights(config: &SeerConfig, layout: &BlockLayout, heads: usize) -> Weights {
    let (n, batch) = (layout.blocks(), layout.rows());
    let kept = |place: usize| {
        let cell = layout.cells()[place];
        let dropped = (cell.of() as f64 * config.skipped()).floor() as usize;
        cell.tokens > 0 && place % n - cell.document.0 >= dropped
    };
    let all = layout.cells().iter().enumerate();
    let elements: usize =
        all.filter(|(place, _)| kept(*place)).map(|(_, cell)| heads * cell.of()).sum();
    let divisor = match config.reduction {
        Reduction::Mean => elements,
        Reduction::BatchMean => layout.documents(),
    };
    let weight = |place| if kept(place) { 1.0 / divisor.max(1) as f32 } else { 0.0 };
    Weights { batch, data: (0..batch * n).map(weight).collect() }
}

/// For single queries; every document counts alike.
fn token_weights(config: &SeerConfig, layout: &BlockLayout, heads: usize) -> Weights {
    let (n, batch, block) = (layout.blocks(), layout.rows(), layout.block());
    let queries = layout.tokens().len();
    let documents = layout.documents().max(1) as f64;
    let weight = |b: usize, t: usize| {
        let own = t / block;
        if own >= n || t % block >= layout.cell(b, own).tokens {
            return 0.0;
        }
        let cell = layout.cell(b, own);
        let (first, last) = cell.document;
        let len = (last - first) * block + layout.cell(b, last).tokens;
        let dropped = (len as f64 * config.skipped()) as usize;
        if t - first * block < dropped {
            return 0.0;
        }
        let elements = match config.reduction {
            Reduction::Mean => heads * (len - dropped) * cell.of(),
            Reduction::BatchMean => 1,
        };
        (1.0 / (documents * elements as f64)) as f32
    };
    Weights {
        batch,
        data: (0..batch * queries).map(|i| weight(i / queries, i % queries)).collect(),
    }
}
