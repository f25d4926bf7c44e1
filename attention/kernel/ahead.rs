//! Memory that is read next, asked for line by line while something else is computed: tiles that lie
//! here and there come without it only when they are waited for.

use crate::panels::{At, PanelsAt};
use crate::simd::{LINE, prefetch};

/// Pieces of memory of one length, equally far apart.
#[derive(Clone, Copy)]
pub(crate) struct Pieces {
    first: *const f32,
    step: usize,
    count: usize,
    len: usize,
}

impl Pieces {
    const NONE: Self = Self { first: std::ptr::null(), step: 0, count: 0, len: 0 };

    /// `[rows, width]`
    pub fn rows(at: At, rows: usize, width: usize) -> Self {
        Self { first: at.first, step: at.rows, count: rows, len: width }
    }

    /// `rows` rows of as many panels as hold `columns`.
    pub fn panels(at: PanelsAt, rows: usize, columns: usize) -> Self {
        let (first, step, width) = at.parts();
        Self { first, step, count: columns.div_ceil(width), len: rows * width }
    }
}

/// Some pieces of memory, and how far they have been asked for.
pub(crate) struct Ahead<const N: usize> {
    pieces: [Pieces; N],
    /// Lines to ask for at a time.
    each: usize,
    of: usize,
    piece: usize,
    at: usize,
}

impl<const N: usize> Ahead<N> {
    /// Asks for all of `pieces` in `times` calls of [`some`](Self::some).
    pub fn new(pieces: Option<[Pieces; N]>, times: usize) -> Self {
        let pieces = pieces.unwrap_or([Pieces::NONE; N]);
        let lines: usize = pieces.iter().map(|p| p.count * p.len.div_ceil(LINE)).sum();
        Self { pieces, each: lines.div_ceil(times), of: 0, piece: 0, at: 0 }
    }

    /// The next lines.
    #[inline(always)]
    pub fn some(&mut self) {
        for _ in 0..self.each {
            while self.of < N && self.piece == self.pieces[self.of].count {
                (self.of, self.piece) = (self.of + 1, 0);
            }
            let Some(Pieces { first, step, len, .. }) = self.pieces.get(self.of) else { return };
            prefetch(first.wrapping_add(self.piece * step + self.at));
            self.at += LINE;
            if self.at >= *len {
                (self.piece, self.at) = (self.piece + 1, 0);
            }
        }
    }
}
