//! How much attention changes when all positions move by the same number: not at all, but for
//! rounding (AnchorAttention, 2411.13476, §3).

use crate::attention::{SequenceMixer, Tap};
use crate::models::{Blocks, Decoder, ForwardOptions, ids_tensor};
use crate::positional::{Positions, RopeTable};
use crate::{Error, Result};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Tensor, TensorData};
use longburn_kernels::TokenMeta;
use longburn_kernels::fused::rotate_half;

/// Queries whose weights are held at one time.
const ROWS: usize = 64;

/// Where queries and keys are rounded to bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePrecision {
    /// Nowhere: f32 throughout.
    F32,
    /// After the rotation, which is of f32, as the paper describes training.
    Bf16Dot,
    /// Before it, and its tables with them, as a model in bf16 does.
    Bf16Rotation,
}

/// Difference of attention weights between two placements of the same tokens.
#[derive(Clone, Debug)]
pub struct RopeShift {
    /// Σ over layers, heads and queries of |A₁ − A₂|, per key `[T]`.
    pub per_key: Vec<f64>,
    /// The same with logits (before the softmax) in place of weights, causal pairs only.
    pub logits_per_key: Vec<f64>,
    /// Layers × heads.
    pub heads: usize,
}

impl RopeShift {
    /// Over all keys: the paper's D.
    pub fn total(&self) -> f64 {
        self.per_key.iter().sum()
    }

    /// Mean over layers, heads and the queries that see a key, `[T]`.
    pub fn mean_per_key(&self) -> Vec<f64> {
        let seen = |key: usize| (self.heads * (self.per_key.len() - key)) as f64;
        self.per_key.iter().enumerate().map(|(key, sum)| sum / seen(key)).collect()
    }
}

/// Compare the attention weights of a document at positions from `shifts.0` on with those from
/// `shifts.1` on.
///
/// Each layer is looked at by itself, with the inputs that it has at position 0 in f32: what is
/// measured is the rotation, not what earlier layers made of it. The mixers must give their queries
/// and keys ([`Tap::QueriesAndKeys`]); attention is taken to be causal and dense. Memory is linear in
/// the length.
///
/// # Errors
/// For fewer than 2 ids or one outside the vocabulary, and mixers that give no queries and keys.
pub fn rope_shift_probe<M: SequenceMixer>(
    model: &Decoder<M>,
    ids: &[u32],
    shifts: (usize, usize),
    precision: RopePrecision,
) -> Result<RopeShift> {
    let (t, vocab) = (ids.len(), model.config().vocab_size);
    if t < 2 {
        return Err(Error::Data(format!("{t} ids, too few to attend to each other (at least 2)")));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
        return Err(Error::Data(format!("id {id} is outside the model's vocabulary of {vocab}")));
    }
    let device = model.head().device();
    let tokens = TokenMeta::contiguous(1, t, 0);
    let options = ForwardOptions::infer().with_taps(vec![Tap::QueriesAndKeys]);
    let taps = model.forward_ids(ids_tensor(ids, 1, &device), &tokens, &options, vec![])?.taps;
    let table = |shift: usize| {
        // Frequencies that follow the length are those of the document, wherever it lies.
        model.rope().table_at(&Positions::range(1, t, shift), t, &device.clone().inner())
    };
    let tables = (table(shifts.0), table(shifts.1));
    let (mut per_key, mut logits_per_key, mut heads) = (vec![0.0; t], vec![0.0; t], 0);
    for tap in taps {
        let (Some(q), Some(k)) = (tap.q, tap.k) else {
            return Err(Error::Unsupported {
                what: "a mixer that gives no queries and keys".into(),
                remedy: "measure a model with attention in every layer".into(),
            });
        };
        let (q, k) = (q.inner(), k.inner());
        heads += q.dims()[1];
        let placed = |table: &RopeTable| Placed::new(&q, &k, table, precision);
        let (one, other) = (placed(&tables.0), placed(&tables.1));
        for first in (0..t).step_by(ROWS) {
            let rows = first..(first + ROWS).min(t);
            let ((a, x), (b, y)) = (one.weights(rows.clone()), other.weights(rows));
            for (sum, difference) in [(&mut per_key, a - b), (&mut logits_per_key, x - y)] {
                let columns = difference.abs().sum_dim(1).sum_dim(2).into_data();
                sum.iter_mut().zip(columns.iter::<f32>()).for_each(|(sum, x)| *sum += f64::from(x));
            }
        }
    }
    Ok(RopeShift { per_key, logits_per_key, heads })
}

/// Queries and keys at their places, as attention reads them.
struct Placed {
    /// `[1, H, T, D]`
    q: Tensor<4>,
    /// `[1, H, T, D]`
    k: Tensor<4>,
}

impl Placed {
    fn new(q: &Tensor<4>, k: &Tensor<4>, table: &RopeTable, precision: RopePrecision) -> Self {
        let bf16 = |x: &Tensor<4>| x.clone().cast(DType::BF16);
        let rotate = |x: &Tensor<4>| match precision {
            RopePrecision::F32 => table.rotate(x.clone()),
            RopePrecision::Bf16Dot => bf16(&table.rotate(x.clone())).cast(DType::F32),
            RopePrecision::Bf16Rotation => {
                rotate_half(bf16(x), bf16(&table.cos), bf16(&table.sin)).cast(DType::F32)
            }
        };
        let ([_, h, ..], [b, kv, t, d]) = (q.dims(), k.dims());
        let k = rotate(k).reshape([b, kv, 1, t, d]).repeat_dim(2, h / kv).reshape([b, h, t, d]);
        Self { q: rotate(q), k }
    }

    /// Weights and logits of some queries, `[1, H, rows, T]`, 0 where a key is later.
    fn weights(&self, rows: std::ops::Range<usize>) -> (Tensor<4>, Tensor<4>) {
        let [_, h, t, d] = self.k.dims();
        let q = self.q.clone().narrow(2, rows.start, rows.len());
        let scores = q.matmul(self.k.clone().transpose()).div_scalar((d as f64).sqrt());
        let later: Vec<bool> = rows.clone().flat_map(|i| (0..t).map(move |j| j > i)).collect();
        let later: Tensor<4, Bool> =
            Tensor::from_data(TensorData::new(later, [1, 1, rows.len(), t]), &scores.device());
        let later = later.expand([1, h, rows.len(), t]);
        let weights = softmax(scores.clone().mask_fill(later.clone(), -1e30), 3);
        (weights, scores.mask_fill(later, 0.0))
    }
}
