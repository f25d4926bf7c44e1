//! Memory that is read next, asked for line by line while something else is computed: tiles that lie
//! here and there come without it only when they are waited for.

use crate::panels::{At, Beside, PanelsAt, width};
use crate::simd::{LINE, prefetch_early};

/// Pieces of memory of one length, equally far apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pieces {
    first: *const f32,
    step: usize,
    count: usize,
    len: usize,
}

impl Pieces {
    pub const NONE: Self = Self { first: std::ptr::null(), step: 0, count: 0, len: 0 };

    /// `[rows, width]`
    pub fn rows(at: At, rows: usize, width: usize) -> Self {
        Self { first: at.first, step: at.rows, count: rows, len: width }
    }

    /// `[rows, columns]`, of which either are adjacent.
    pub fn of(at: At, (rows, columns): (usize, usize)) -> Self {
        match at.columns {
            1 => Self::rows(at, rows, columns),
            _ => Self::rows(at.turned(), columns, rows),
        }
    }

    /// `rows` rows of as many panels as hold `columns`.
    pub fn panels(at: PanelsAt, rows: usize, columns: usize) -> Self {
        let (first, step, apart) = at.parts();
        let width = width();
        match apart == width {
            true => Self { first, step, count: columns.div_ceil(width), len: rows * width },
            // Not packed: rows are whole.
            false => Self { first, step: apart, count: rows, len: columns },
        }
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
    /// Asks for all of `pieces` in `times` calls of [`some`](Beside::some).
    pub fn new(pieces: [Pieces; N], times: usize) -> Self {
        let lines: usize = pieces.iter().map(|p| p.count * p.len.div_ceil(LINE)).sum();
        Self { pieces, each: lines.div_ceil(times), of: 0, piece: 0, at: 0 }
    }

    #[inline(always)]
    fn next(&mut self) -> Option<*const f32> {
        while self.of < N && self.piece == self.pieces[self.of].count {
            (self.of, self.piece) = (self.of + 1, 0);
        }
        let Pieces { first, step, len, .. } = *self.pieces.get(self.of)?;
        let line = first.wrapping_add(self.piece * step + self.at);
        self.at += LINE;
        if self.at >= len {
            (self.piece, self.at) = (self.piece + 1, 0);
        }
        Some(line)
    }
}

impl<const N: usize> Beside for Ahead<N> {
    /// Asks for the next lines.
    #[inline(always)]
    fn some(&mut self) {
        for _ in 0..self.each {
            let Some(line) = self.next() else { return };
            prefetch_early(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::panels::Panels;

    /// Every line once, in order, in as many calls as were promised.
    #[test]
    fn all_lines_are_asked_for() {
        let numbers = vec![0.0f32; 40 * 300];
        let at = At { first: numbers.as_ptr(), rows: 300, columns: 1 };
        let panels = unsafe { Panels::pack(&[at], (40, 300), 1.0) };
        let (width, panel) = (crate::panels::width(), panels.rows(0, &(3..8)));
        let first = panel.parts().0;
        let line = |p: *const f32, i: usize| p.wrapping_add(i * LINE);
        let rows = (0..4).flat_map(|r| (0..3).map(move |i| line(at.at(r, 0).first, i)));
        let columns = (0..70usize.div_ceil(width)).flat_map(|j| {
            let lines = (5 * width).div_ceil(LINE);
            (0..lines).map(move |i| line(first.wrapping_add(j * 40 * width), i))
        });
        let want: Vec<_> = rows.chain(columns).collect();
        for times in [1, 7, 64] {
            let pieces = [Pieces::rows(at, 4, 35), Pieces::panels(panel, 5, 70)];
            let mut ahead = Ahead::new(pieces, times);
            let found: Vec<_> = std::iter::from_fn(|| ahead.next()).collect();
            assert_eq!(found, want);
            assert!(ahead.each * times >= want.len() && ahead.next().is_none());
        }
        assert_eq!(Pieces::of(at, (4, 35)), Pieces::rows(at, 4, 35));
        assert_eq!(Pieces::of(at.turned(), (35, 4)), Pieces::rows(at, 4, 35));
        assert_eq!(Pieces::panels(PanelsAt::lying(at), 4, 64), Pieces::rows(at, 4, 64));
        let mut nothing = Ahead::new([Pieces::NONE; 2], 5);
        nothing.some();
        assert_eq!((nothing.each, nothing.next()), (0, None));
    }
}
