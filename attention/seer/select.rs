//! Which blocks are computed: from the gate's scores to lists of blocks.

use super::{BlockLayout, SeerConfig};
use crate::{Error, Result};
use burn::tensor::{DType, Tensor};
use longburn_kernels::BlockList;
use serde::{Deserialize, Serialize};

/// How many blocks are kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Select {
    /// Those with a score, after the softmax over the row, above this.
    Threshold(f64),
    /// The best of each row of blocks, as many as make this share of the causal triangle.
    NzRatio(f64),
    /// The best of each row, as many as hold this number of tokens.
    Budget(usize),
}

impl Select {
    pub(super) fn validate(self) -> Result<()> {
        let bad =
            |value: String, expected: &str| Err(Error::config("mixer", "select", value, expected));
        match self {
            Self::Threshold(t) if !(0.0..1.0).contains(&t) => {
                bad(format!("threshold {t}"), "a threshold of at least 0 and below 1")
            }
            Self::NzRatio(r) if !(r > 0.0 && r <= 1.0) => {
                bad(format!("nz_ratio {r}"), "a ratio above 0, at most 1")
            }
            Self::Budget(0) => bad("budget 0".into(), "a budget of at least 1 token"),
            _ => Ok(()),
        }
    }

    /// Blocks of a row that are kept, of a document of `blocks`; none for a threshold.
    pub fn kept(self, blocks: usize, block: usize) -> Option<usize> {
        match self {
            Self::Threshold(_) => None,
            // The square root makes the share one of the triangle: rows near its tip have fewer
            // blocks than they may keep.
            Self::NzRatio(r) => {
                Some((((1.0 - (1.0 - r).sqrt()) * blocks as f64).floor() as usize).max(1))
            }
            Self::Budget(tokens) => Some((tokens / block).max(1)),
        }
    }

    /// Which of the blocks with these logits are kept; `blocks` are those of the whole document.
    /// With a threshold it may be none.
    ///
    /// # Errors
    /// [`Error::Evaluation`] where a logit is NaN.
    pub fn choose(self, logits: &[f32], blocks: usize, block: usize) -> Result<Vec<bool>> {
        if let Some(at) = logits.iter().position(|x| x.is_nan()) {
            return Err(Error::Evaluation {
                what: format!("the gate's score of block {at}"),
                value: f64::NAN,
                remedy: "check the weights of model and gate for NaN and infinite values".into(),
            });
        }
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let kept = match (self, self.kept(blocks, block)) {
            (Self::Threshold(t), _) => {
                let scores = softmax(logits);
                scores.iter().filter(|score| **score > t).count()
            }
            (_, kept) => kept.unwrap_or(blocks),
        };
        let mut chosen = vec![false; logits.len()];
        order.iter().take(kept).for_each(|n| chosen[*n] = true);
        Ok(chosen)
    }
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let all: Vec<f64> = logits.iter().map(|x| f64::from(x - top).exp()).collect();
    let sum: f64 = all.iter().sum();
    all.into_iter().map(|x| x / sum).collect()
}

/// Blocks that blocks of queries compute, from the gate's logits.
///
/// # Shapes
/// logits `[B, H, N, N]`; the list is for the tokens as `layout` lays them out
///
/// # Errors
/// As [`Select::choose`].
pub fn block_list(
    config: &SeerConfig,
    select: Select,
    logits: Tensor<4>,
    layout: &BlockLayout,
) -> Result<BlockList> {
    let [batch, heads, n, _] = logits.dims();
    let logits: Vec<f32> = logits.cast(DType::F32).into_data().iter::<f32>().collect();
    let len = layout.tokens().len();
    choose_blocks(layout, [batch, heads, len, len], |b, h, i| {
        let cell = layout.cell(b, i);
        let row = (b * heads + h) * n + i;
        let seen = &logits[row * n + cell.document.0..=row * n + i];
        if config.last_block_dense && i + 1 >= cell.document.1 {
            return Ok(vec![true; seen.len()]);
        }
        let mut chosen = select.choose(seen, cell.of(), layout.block())?;
        if config.keep_best && !chosen.contains(&true) {
            let best = (0..seen.len()).max_by(|a, b| seen[*a].total_cmp(&seen[*b]));
            best.into_iter().for_each(|best| chosen[best] = true);
        }
        Ok(chosen)
    })
}

/// A list from what `choose` says of every row, query head and block: for each block of its
/// document up to itself, whether it is kept.
///
/// # Errors
/// What `choose` returns.
pub fn choose_blocks(
    layout: &BlockLayout,
    tokens: [usize; 4],
    mut choose: impl FnMut(usize, usize, usize) -> Result<Vec<bool>>,
) -> Result<BlockList> {
    let [batch, heads, len, _] = tokens;
    let rows = len.div_ceil(layout.block());
    let mut lists = Vec::with_capacity(batch * heads * rows);
    for (b, h) in (0..batch * heads).map(|n| (n / heads, n % heads)) {
        for i in 0..rows {
            if i >= layout.blocks() || layout.cell(b, i).tokens == 0 {
                lists.push(Vec::new());
                continue;
            }
            let first = layout.cell(b, i).document.0;
            let chosen = choose(b, h, i)?;
            let kept = chosen.iter().enumerate().filter(|(_, kept)| **kept);
            lists.push(kept.map(|(j, _)| first + j).collect());
        }
    }
    Ok(BlockList::from_lists(tokens, [layout.block(); 2], &lists)?)
}
