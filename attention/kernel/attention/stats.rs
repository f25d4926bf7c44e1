//! Statistics of attention weights: sums, maxima and entropies that selectors of keys, evictors and
//! learned gates look at, in a pass of its own that never holds the weights.
//!
//! Every statistic but the diagonal sums is a fold of the weights by blocks: column sums are sums of
//! blocks as high as the queries and one key wide. Memory is that of the result and one tile per
//! thread (`tiled`: per call).

#[cfg(test)]
mod tests;

use super::{check, check_lse, reference, tiled};
use crate::{AttentionOptions, Branch, Error, Implementation};
use burn::tensor::{Tensor, TensorData};

const OP: &str = "attention_stats";

/// What [`attention_stats`] makes of the weights `p[B, H, T, S]`. A reduced dimension stays, so that
/// results stand beside the weights they were made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// What every key receives: the sum over the queries, `[B, H, 1, S]`.
    ColumnSums,
    /// What every distance receives: `[B, H, 1, S]`, where entry d is the sum over the pairs with
    /// `(S − T) + t − s = d`. Indices are aligned at the end, so d counts keys back from the query;
    /// pairs with d < 0 are left out.
    DiagonalSums,
    /// The largest weight of each block of queries and keys,
    /// `[B, H, ceil(T / queries), ceil(S / keys)]`.
    BlockMax {
        /// Queries per block, at least one; the last block holds the rest.
        queries: usize,
        /// Keys per block, as above.
        keys: usize,
    },
    /// The sum of each block of queries and keys, `[B, H, ceil(T / queries), ceil(S / keys)]`.
    BlockSum {
        /// Queries per block, at least one; the last block holds the rest.
        queries: usize,
        /// Keys per block, as above.
        keys: usize,
    },
    /// −Σ p·ln p of every query, `[B, H, T, 1]`.
    Entropy,
}

/// A statistic of the weights `p = exp(score − lse)` of one branch.
///
/// `lse` is that of [`masked_attention`](crate::masked_attention) over *all* branches: the weights
/// of one of them then add up to its share, and nothing is normalised again. Hidden pairs, and
/// queries whose lse is −∞, count as zeros.
///
/// # Shapes
/// lse `[B, H, T]` (f32); the result's are with [`Reduce`]: f32, or f64 where the branch is. It
/// carries no graph.
///
/// # Errors
/// [`Error::Shape`] when shapes, dtypes, devices or the mask do not fit or a block is empty;
/// [`Error::Unsupported`] when the implementation asked for is not there.
///
/// ```
/// # use burn::tensor::{Device, Distribution, Tensor};
/// # use longburn_kernels::{attention_stats, masked_attention};
/// # use longburn_kernels::{AttentionOptions, Branch, Mask, Reduce};
/// let device = Device::default();
/// let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Default, &device);
/// let (q, k, v) = (random([1, 4, 100, 16]), random([1, 2, 100, 16]), random([1, 2, 100, 16]));
/// let (branch, options) = (Branch { q, k, mask: Mask::causal(1, 100, 4) }, AttentionOptions::default());
/// let lse = masked_attention(std::slice::from_ref(&branch), v, &options)?.lse;
/// let received = attention_stats(&branch, lse, Reduce::ColumnSums, &options)?;
/// assert_eq!(received.dims(), [1, 4, 1, 100]);
/// # Ok::<(), longburn_kernels::Error>(())
/// ```
pub fn attention_stats(
    branch: &Branch,
    lse: Tensor<3>,
    reduce: Reduce,
    options: &AttentionOptions,
) -> Result<Tensor<4>, Error> {
    let Branch { q, k, .. } = branch;
    let plan = check(OP, std::slice::from_ref(branch), ("k", k), options)?;
    let ([b, h, t, _], s) = (q.dims(), k.dims()[2]);
    check_lse(OP, &lse, [b, h, t])?;
    if q.device() != k.device() || q.device() != lse.device() {
        return Err(Error::shape(
            OP,
            format!("q is on {:?}, k on {:?}, lse on {:?}", q.device(), k.device(), lse.device()),
        ));
    }
    let fold = Fold::new(reduce, (t, s))?;
    let float = crate::precision::wide(q.dtype());
    let [q, k] = [q, k].map(|x| x.clone().inner().cast(float));
    let lse = lse.inner();
    Ok(match plan.0.implementation {
        Implementation::Reference => {
            let branch = Branch { q, k, mask: branch.mask.clone() };
            dense(reference::weights(&branch, lse, plan.0.scale), reduce)
        }
        #[cfg(feature = "flex")]
        Implementation::Flex => {
            use burn::backend::Flex;
            const ON_CPU: &str = "`choose` picks `Flex` on the CPU only";
            let tokens = |x: Tensor<4>| x.try_into_primitive::<Flex>().expect(ON_CPU);
            let lse = lse.try_into_primitive::<Flex>().expect(ON_CPU);
            let out = super::flex::stats(tokens(q), tokens(k), lse, &plan, fold);
            Tensor::from_primitive::<Flex>(out)
        }
        _ => tiled::stats(q, k, lse, &plan, fold),
    })
}

/// A reduction as the tiles compute it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fold {
    pub kind: Kind,
    /// Queries and keys that share a number of the result. Diagonals have one row of results, as
    /// columns do.
    pub block: (usize, usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Sum,
    Max,
    /// Sum of −p·ln p.
    Entropy,
    /// Sum by distance instead of by key.
    Diagonals,
}

impl Fold {
    fn new(reduce: Reduce, (t, s): (usize, usize)) -> Result<Self, Error> {
        let (kind, (queries, keys)) = match reduce {
            Reduce::ColumnSums => (Kind::Sum, (t, 1)),
            Reduce::DiagonalSums => (Kind::Diagonals, (t, 1)),
            Reduce::BlockMax { queries, keys } => (Kind::Max, (queries, keys)),
            Reduce::BlockSum { queries, keys } => (Kind::Sum, (queries, keys)),
            Reduce::Entropy => (Kind::Entropy, (1, s)),
        };
        if queries == 0 || keys == 0 {
            let reason =
                format!("blocks of {queries} queries and {keys} keys; both are at least 1");
            return Err(Error::shape(OP, reason));
        }
        Ok(Self { kind, block: (queries.min(t), keys.min(s)) })
    }

    /// Rows and columns of the result for `t` queries and `s` keys.
    pub fn results(&self, (t, s): (usize, usize)) -> (usize, usize) {
        (t.div_ceil(self.block.0), s.div_ceil(self.block.1))
    }
}

/// The definition, from all weights: for tests.
fn dense(weights: Tensor<4>, reduce: Reduce) -> Tensor<4> {
    let ([b, h, t, s], device, dtype) = (weights.dims(), weights.device(), weights.dtype());
    let (rows, columns) = match reduce {
        Reduce::ColumnSums | Reduce::DiagonalSums => (1, s),
        Reduce::BlockMax { queries, keys } | Reduce::BlockSum { queries, keys } => {
            (t.div_ceil(queries), s.div_ceil(keys))
        }
        Reduce::Entropy => (t, 1),
    };
    let mut out = vec![0.0f64; b * h * rows * columns];
    for (n, p) in weights.into_data().iter::<f64>().enumerate() {
        let (head, i, j) = (n / (t * s), n / s % t, n % s);
        let at = |row: usize, column: usize| (head * rows + row) * columns + column;
        match reduce {
            Reduce::ColumnSums => out[at(0, j)] += p,
            Reduce::DiagonalSums if s + i >= t + j => out[at(0, s + i - t - j)] += p,
            Reduce::DiagonalSums => {}
            Reduce::BlockMax { queries, keys } => {
                let largest = &mut out[at(i / queries, j / keys)];
                if p > *largest || p.is_nan() {
                    *largest = p;
                }
            }
            Reduce::BlockSum { queries, keys } => out[at(i / queries, j / keys)] += p,
            Reduce::Entropy if p == 0.0 => {}
            Reduce::Entropy => out[at(i, 0)] -= p * p.ln(),
        }
    }
    let data = TensorData::new(out, [b, h, rows, columns]).convert_dtype(dtype);
    Tensor::from_data(data, (&device, dtype))
}
