//! Attention on the CPU: tiles through packed panels, threads over (batch, head, query tile)
//! forward and over (batch, key head, part of the keys) backward; statistics of the weights.
//!
//! Scores are kept in units of log 2, where powers are cheapest; `lse` leaves in natural units.

mod backward;
mod band;
mod decode;
mod edge;
mod forward;
mod stats;
mod steps;

pub(super) use backward::backward;
pub(super) use forward::forward;
pub(super) use stats::stats;

use super::{Plan, TILE};
use crate::ahead::Pieces;
use crate::panels::{At, Panels, PanelsAt, width};
use crate::simd::vectorized;
use crate::threads;
use crate::{BlockKind, BlockMap, Mask};
use burn::backend::Flex;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, FloatDType, TensorData};
use burn_flex::FlexTensor;
use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;

/// See the function of this name above.
pub(super) fn scratch([b, h, t, d]: [usize; 4], kv: usize, s: usize) -> usize {
    // Panels are wider than narrow heads.
    let wide = d.next_multiple_of(width());
    let parts = backward::parts_of(b * kv, s);
    b * (kv * s * wide + h * t * (2 * wide + 2 + (parts - 1) * d))
}

/// Distance between two rows of scores of so many key tiles; not a power of two, which would put
/// rows on the same lines of a cache.
const fn wide(run: usize) -> usize {
    run * TILE.1 + 32
}

/// Distance between rows of a head up to which they are read where they lie: farther apart they share few
/// places in a cache.
const NEAR: usize = 128;

/// Folds `others` into `first`, in their order.
fn fold_parts(first: &mut [f32], others: &[&[f32]], op: impl Fn(f32, f32) -> f32 + Sync) {
    const CHUNK: usize = 1 << 14;
    let chunks = first.chunks_mut(CHUNK).enumerate().collect();
    threads::each_of(chunks, |(n, first): (usize, &mut [f32])| {
        for other in others {
            let other = &other[n * CHUNK..];
            first.iter_mut().zip(other).for_each(|(a, b)| *a = op(*a, *b));
        }
    });
}

/// A `[N, H, T, D]` f32 tensor read through its strides; channels are adjacent.
struct View {
    tensor: FlexTensor,
    shape: [usize; 4],
    strides: [usize; 3],
    offset: usize,
}

impl View {
    fn new(tensor: FlexTensor) -> Self {
        let tensor = match tensor.dtype() {
            DType::F32 => tensor,
            _ => Flex::float_cast(tensor, FloatDType::F32),
        };
        let plain = |t: &FlexTensor| {
            let s = t.layout().strides();
            s[3] == 1 && s.iter().all(|s| *s >= 0)
        };
        let tensor = if plain(&tensor) { tensor } else { tensor.to_contiguous() };
        let layout = tensor.layout();
        let (dims, s) = (layout.shape().clone(), layout.strides().to_vec());
        Self {
            shape: [dims[0], dims[1], dims[2], dims[3]],
            strides: [s[0] as usize, s[1] as usize, s[2] as usize],
            offset: layout.start_offset(),
            tensor,
        }
    }

    /// `[T, D]` of head `h` in row `b`, from token `t` on.
    fn at(&self, b: usize, h: usize, t: usize) -> At {
        let [sb, sh, st] = self.strides;
        let start = self.offset + b * sb + h * sh + t * st;
        At { first: self.tensor.storage::<f32>()[start..].as_ptr(), rows: st, columns: 1 }
    }

    /// All heads, each a right-hand side `[T, D]`: where they lie, if their rows are near and make whole
    /// panels.
    fn rows(&self) -> Rows<'_> {
        let [n, heads, t, d] = self.shape;
        if d.is_multiple_of(width()) && self.strides[2] <= NEAR {
            return Rows::Lying(self);
        }
        let all: Vec<At> = (0..n * heads).map(|i| self.at(i / heads, i % heads, 0)).collect();
        // Safe: `at` checks the start, and the tensor has all its tokens and channels.
        Rows::Packed(unsafe { Panels::pack(&all, (t, d), 1.0) })
    }

    /// All heads, each a right-hand side `[D, T]`, times `factor`.
    fn turned(&self, factor: f32) -> Panels {
        let [n, heads, t, d] = self.shape;
        let head = |i: usize| self.at(i / heads, i % heads, 0).turned();
        let all: Vec<At> = (0..n * heads).map(head).collect();
        // Safe: as above.
        unsafe { Panels::pack(&all, (d, t), factor) }
    }

    /// Channels of one token.
    fn row(&self, b: usize, h: usize, t: usize) -> &[f32] {
        let [sb, sh, st] = self.strides;
        let start = self.offset + b * sb + h * sh + t * st;
        &self.tensor.storage::<f32>()[start..start + self.shape[3]]
    }
}

/// Heads as right-hand sides `[T, D]`.
enum Rows<'a> {
    Packed(Panels),
    Lying(&'a View),
}

impl Rows<'_> {
    /// What `at` reads, unless the tensor itself is read.
    fn pieces(&self, n: usize, rows: &Range<usize>, columns: usize) -> Pieces {
        match self {
            Self::Packed(panels) => Pieces::panels(panels.rows(n, rows), rows.len(), columns),
            Self::Lying(_) => Pieces::NONE,
        }
    }

    /// Tokens `rows` of head `n` of all rows.
    fn at(&self, n: usize, rows: &Range<usize>) -> PanelsAt {
        match self {
            Self::Packed(panels) => panels.rows(n, rows),
            Self::Lying(view) => {
                let heads = view.shape[1];
                PanelsAt::lying(view.at(n / heads, n % heads, rows.start))
            }
        }
    }
}

/// A mask with its tiles and the class of every head.
struct Side<'a> {
    mask: &'a Mask,
    /// Tiles of some queries by `TILE.1` keys.
    blocks: BlockMap,
    class_of: Vec<usize>,
}

impl<'a> Side<'a> {
    fn all(plan: &'a Plan, queries: usize) -> Vec<Self> {
        let side = |mask: &'a Mask| Side {
            mask,
            blocks: mask.blocks(queries, TILE.1),
            class_of: (0..mask.heads()).map(|head| mask.class_of(head)).collect(),
        };
        plan.0.masks.iter().map(side).collect()
    }

    fn kind(&self, b: usize, head: usize, q: usize, k: usize) -> BlockKind {
        self.blocks.kind(b, self.class_of[head], q, k)
    }

    /// Key tiles that are computed for a tile of queries.
    fn keys_of(&self, b: usize, head: usize, q: usize) -> &[u32] {
        self.blocks.keys_of(b, self.class_of[head], q)
    }

    /// Query tiles for which a tile of keys is computed.
    fn queries_of(&self, b: usize, head: usize, k: usize) -> &[u32] {
        self.blocks.queries_of(b, self.class_of[head], k)
    }
}

/// Whether neighbouring tiles of queries see other blocks of keys, so that they share few.
fn is_of_blocks(mask: &Mask) -> bool {
    mask.list().is_some() || mask.strided().is_some()
}

fn part(tile: usize, size: usize, len: usize) -> Range<usize> {
    tile * size..((tile + 1) * size).min(len)
}

fn tensor(data: Vec<f32>, shape: &[usize], dtype: DType) -> FlexTensor {
    let out = FlexTensor::from_data(TensorData::new(data, shape.to_vec()));
    match dtype {
        DType::F32 => out,
        DType::BF16 => Flex::float_cast(out, FloatDType::BF16),
        DType::F16 => Flex::float_cast(out, FloatDType::F16),
        other => unreachable!("`choose` keeps {other:?} off this path"),
    }
}
