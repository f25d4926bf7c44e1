//! What a head needs of a chunk: decays within it, into it and out of it.

use super::tile::Tile;
use super::{CHUNK, Call, Job};
use crate::panels::BAND;
use pulp::Simd;
use std::ops::Range;

/// Decays below this are nothing: as they shrink further they would be slow to compute with.
const NOTHING: f32 = 1e-30;

/// Decays of Q tokens, in memory that is used for one head after another. Zeros follow the tokens of a
/// chunk that is not full.
pub(super) struct Head {
    each: Vec<f32>,
    pub weight: Vec<f32>,
    /// From before the chunk to each token.
    pub entered: Vec<f32>,
    /// From each token to the chunk's end.
    pub left: Vec<f32>,
    /// The same times the token's weight.
    pub leaving: Vec<f32>,
    /// Over the whole chunk.
    pub all: f32,
    /// From token j to i, zero where j is later, `[Q, Q]`, behind a row of zeros.
    decay: Tile,
    /// The same times C Bᵀ.
    pub mixed: Tile,
}

impl Head {
    pub fn new(call: &Call<'_>) -> Self {
        let pairs = || Tile::new(call.chunk, call.chunk);
        let tokens = || vec![0.0; call.wide];
        Self {
            each: tokens(),
            weight: tokens(),
            entered: tokens(),
            left: tokens(),
            leaving: tokens(),
            all: 1.0,
            decay: Tile::new(call.chunk + 1, call.chunk),
            mixed: pairs(),
        }
    }

    /// All but pairs of tokens.
    #[inline(always)]
    pub fn read(&mut self, call: &Call<'_>, job: &Job, head: usize, tokens: &Range<usize>) {
        let q = tokens.len();
        let decays = call.lines(&call.log_decay, job, tokens, head, 1);
        let weights = call.lines(&call.weight, job, tokens, head, 1);
        let mut all = 1.0f32;
        for t in 0..q {
            self.each[t] = decays.row(t)[0].exp();
            self.weight[t] = weights.row(t)[0];
            all = kept(all * self.each[t]);
            self.entered[t] = all;
        }
        self.all = all;
        let mut left = 1.0f32;
        for t in (0..q).rev() {
            self.left[t] = left;
            self.leaving[t] = left * self.weight[t];
            left = kept(left * self.each[t]);
        }
        for of_token in [&mut self.weight, &mut self.entered, &mut self.left, &mut self.leaving] {
            of_token[q..].fill(0.0);
        }
    }

    /// From each token to token `i`.
    #[inline(always)]
    pub fn decay(&self, i: usize) -> &[f32] {
        self.decay.row(i + 1)
    }

    /// Pairs of tokens; `scores` are C Bᵀ.
    #[inline(always)]
    pub fn pair<S: Simd>(&mut self, simd: S, scores: &[f32], q: usize) {
        let wide = self.decay.stride;
        let [zero, one, nothing] = [0.0, 1.0, NOTHING].map(|x| simd.splat_f32s(x));
        let numbers = S::as_simd_u32s(&NUMBERS).0;
        for i in 0..q {
            // What is later than the token of this row stays zero behind the vector of its diagonal.
            let vectors = vectors::<S>(i);
            let (each, diagonal) = (simd.splat_f32s(self.each[i]), simd.splat_u32s(i as u32));
            let (past, row) = self.decay.pair_mut(i);
            let past = S::as_simd_f32s(past).0;
            let row = &mut S::as_mut_simd_f32s(row).0[..vectors];
            let mixed = &mut S::as_mut_simd_f32s(self.mixed.row_mut(i)).0[..vectors];
            let scores = S::as_simd_f32s(&scores[i * wide..][..wide]).0;
            let to = row.iter_mut().zip(mixed);
            for (((to, mixed), (past, score)), j) in to.zip(past.iter().zip(scores)).zip(numbers) {
                let passed = simd.mul_f32s(*past, each);
                let passed = simd.select_f32s(simd.less_than_f32s(passed, nothing), zero, passed);
                let own = simd.select_f32s(simd.equal_u32s(*j, diagonal), one, zero);
                *to = simd.select_f32s(simd.less_than_u32s(*j, diagonal), passed, own);
                *mixed = simd.mul_f32s(*to, *score);
            }
        }
    }
}

/// 0, 1, 2 ...
pub(super) const NUMBERS: [u32; CHUNK] = {
    let mut numbers = [0; CHUNK];
    let mut i = 0;
    while i < CHUNK {
        numbers[i] = i as u32;
        i += 1;
    }
    numbers
};

/// Vectors of the columns that are computed of a row of pairs.
#[inline(always)]
pub(super) fn vectors<S: Simd>(i: usize) -> usize {
    (i / BAND + 1) * BAND / S::F32_LANES
}

/// A decay that is not too small.
#[inline(always)]
fn kept(decay: f32) -> f32 {
    if decay < NOTHING { 0.0 } else { decay }
}
