//! Matrices of one chunk: small enough to stay in a core's caches, with rows so far apart that any of
//! them is a right-hand side where it lies.

use crate::panels::{At, BAND, Limits, PanelsAt, product, widest, width};
use crate::scan::rows::Rows;
use crate::simd::{BLOCK, LINE, prefetch_early, turn};
use pulp::{Simd, WithSimd};
use std::marker::PhantomData;
use std::ops::Range;

/// Columns of whole panels on any machine.
const PANELS: usize = 32;

/// Numbers from one row to the next of a matrix that has so many columns.
pub(super) fn stride(columns: usize) -> usize {
    debug_assert!(PANELS.is_multiple_of(width()) && PANELS.is_multiple_of(BAND));
    columns.next_multiple_of(PANELS)
}

/// A matrix, zeros at first, in memory that a thread keeps for all of its chunks.
pub(super) struct Tile {
    data: Vec<f32>,
    pub stride: usize,
}

impl Tile {
    pub fn new(rows: usize, columns: usize) -> Self {
        let stride = stride(columns);
        Self { data: vec![0.0; rows * stride], stride }
    }

    /// Numbers of one.
    pub fn len(rows: usize, columns: usize) -> usize {
        rows * stride(columns)
    }

    pub fn at(&self) -> At {
        At { first: self.data.as_ptr(), rows: self.stride, columns: 1 }
    }

    pub fn right(&self) -> Right<'_> {
        (&self.data, self.stride)
    }

    pub fn out(&mut self) -> Out<'_> {
        (&mut self.data, self.stride)
    }

    #[inline(always)]
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.stride..][..self.stride]
    }

    #[inline(always)]
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.data[i * self.stride..][..self.stride]
    }

    /// Two rows that follow each other.
    #[inline(always)]
    pub fn pair_mut(&mut self, first: usize) -> (&[f32], &mut [f32]) {
        let (a, b) = self.data[first * self.stride..][..2 * self.stride].split_at_mut(self.stride);
        (a, b)
    }

    /// The first rows, in this many columns.
    #[inline(always)]
    pub fn rows_mut(
        &mut self,
        (rows, columns): (usize, usize),
    ) -> impl Iterator<Item = &mut [f32]> {
        self.data.chunks_exact_mut(self.stride).take(rows).map(move |row| &mut row[..columns])
    }
}

/// A right-hand side, and the distance of its rows.
pub(super) type Right<'a> = (&'a [f32], usize);
/// Where a product is written, and the distance of rows there.
pub(super) type Out<'a> = (&'a mut [f32], usize);

/// C `[m, n]` = A `[m, k]`·B `[k, n]` (+ C).
///
/// # Safety
/// `a` must be readable at its whole size.
pub(super) unsafe fn times(
    size: (usize, usize, usize),
    a: At,
    b: Right<'_>,
    c: Out<'_>,
    accumulate: bool,
    limits: Limits<'_>,
) {
    let (m, n, k) = size;
    assert!(b.0.len() >= (k - 1) * b.1 + stride(n), "{k} rows of whole panels");
    assert!(c.1 >= n && c.0.len() >= (m - 1) * c.1 + n, "the product is {m} by {n}");
    let (b, c) = (At { first: b.0.as_ptr(), rows: b.1, columns: 1 }, (c.0.as_mut_ptr(), c.1));
    widest(Times { size, a, b, c, accumulate, limits });
}

struct Times<'a> {
    size: (usize, usize, usize),
    a: At,
    b: At,
    c: (*mut f32, usize),
    accumulate: bool,
    limits: Limits<'a>,
}

impl WithSimd for Times<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let b = PanelsAt::lying(self.b);
        // Safe: `times` has measured B and C, its caller vouches for A.
        unsafe { product(simd, self.size, self.a, b, self.c, self.accumulate, self.limits) }
    }
}

/// What each band of rows of a lower triangle holds, up to the diagonal.
pub(super) fn lower(q: usize) -> Vec<(usize, usize)> {
    (0..q.div_ceil(BAND)).map(|band| (0, ((band + 1) * BAND).min(q))).collect()
}

/// The same of an upper triangle, from the diagonal on.
pub(super) fn upper(q: usize) -> Vec<(usize, usize)> {
    (0..q.div_ceil(BAND)).map(|band| (band * BAND, q)).collect()
}

/// Columns of neighbouring tokens of a row, as they lie in a tensor.
#[derive(Clone, Copy)]
pub(super) struct Lines<'a> {
    at: At,
    tokens: usize,
    width: usize,
    of: PhantomData<&'a [f32]>,
}

impl<'a> Lines<'a> {
    pub fn new(x: &'a Rows, row: usize, tokens: &Range<usize>, first: usize, width: usize) -> Self {
        let last = &x.at(row, tokens.end - 1)[first..first + width];
        let begin = x.at(row, tokens.start)[first..].as_ptr();
        debug_assert_eq!(begin.wrapping_add((tokens.len() - 1) * x.stride()), last.as_ptr());
        let at = At { first: begin, rows: x.stride(), columns: 1 };
        Self { at, tokens: tokens.len(), width, of: PhantomData }
    }

    /// Readable at `[tokens, width]`.
    pub fn at(self) -> At {
        self.at
    }

    pub fn tokens(self) -> usize {
        self.tokens
    }

    #[inline(always)]
    pub fn row(self, t: usize) -> &'a [f32] {
        assert!(t < self.tokens, "a token of the chunk");
        // Safe: the first and the last one lie within the tensor.
        unsafe { std::slice::from_raw_parts(self.at.at(t, 0).first, self.width) }
    }

    /// Copies rows, each times a factor.
    #[inline(always)]
    pub fn scaled_into<S: Simd>(self, simd: S, factors: &[f32], to: &mut Tile) {
        for (t, factor) in factors.iter().enumerate() {
            scaled(simd, &mut to.row_mut(t)[..self.width], self.row(t), *factor);
        }
    }

    /// Asks for them.
    #[inline(always)]
    pub fn ahead(self) {
        for t in 0..self.tokens {
            let row = self.at.at(t, 0).first;
            (0..self.width).step_by(LINE).for_each(|i| prefetch_early(row.wrapping_add(i)));
        }
    }

    #[inline(always)]
    pub fn copy_into(self, to: &mut Tile) {
        for t in 0..self.tokens {
            to.row_mut(t)[..self.width].copy_from_slice(self.row(t));
        }
    }

    /// Rows become columns.
    #[inline(always)]
    pub fn turn_into(self, to: Out<'_>) {
        // Safe: readable at this size.
        unsafe { turn_into(self.at, (self.tokens, self.width), to) }
    }
}

/// Writes the rows of a matrix of this size as columns.
///
/// # Safety
/// `from` must be readable at this size.
#[inline(always)]
pub(super) unsafe fn turn_into(from: At, (rows, columns): (usize, usize), (to, to_rows): Out<'_>) {
    assert!(to_rows >= rows && to.len() >= (columns - 1) * to_rows + rows, "{columns} by {rows}");
    // Blocks of eight are turned by vectors of eight, where there are those.
    let whole = |x: usize| if width() >= 2 * BLOCK { x / BLOCK * BLOCK } else { 0 };
    let (of_rows, of_columns) = (whole(rows), whole(columns));
    for r in (0..of_rows).step_by(BLOCK) {
        for c in (0..of_columns).step_by(BLOCK) {
            // Safe: a block of both.
            unsafe {
                let place = to.as_mut_ptr().add(c * to_rows + r);
                turn((from.at(r, c).first, from.rows), (place, to_rows), 1.0);
            }
        }
    }
    for r in 0..rows {
        for c in if r < of_rows { of_columns } else { 0 }..columns {
            // Safe: as the caller vouches.
            to[c * to_rows + r] = unsafe { *from.at(r, c).first };
        }
    }
}

/// Rows of two matrices side by side, in vectors and what is left of a row.
macro_rules! elements {
    ($simd:ident: $S:ident, $to:expr, $from:expr, $vector:expr, $one:expr) => {{
        let ((to, to_rest), (from, from_rest)) =
            ($S::as_mut_simd_f32s($to), $S::as_simd_f32s($from));
        to.iter_mut().zip(from).for_each(|(to, from)| *to = $vector(*to, *from));
        to_rest.iter_mut().zip(from_rest).for_each(|(to, from)| *to = $one(*to, *from));
    }};
}

/// x = x·factor
#[inline(always)]
pub(super) fn scale<S: Simd>(simd: S, x: &mut [f32], factor: f32) {
    let by = simd.splat_f32s(factor);
    let (body, rest) = S::as_mut_simd_f32s(x);
    body.iter_mut().for_each(|x| *x = simd.mul_f32s(*x, by));
    rest.iter_mut().for_each(|x| *x *= factor);
}

/// to = x·factor
#[inline(always)]
pub(super) fn scaled<S: Simd>(simd: S, to: &mut [f32], x: &[f32], factor: f32) {
    let by = simd.splat_f32s(factor);
    elements!(simd: S, to, x, |_, x| simd.mul_f32s(x, by), |_, x| x * factor);
}

/// to = to·x
#[inline(always)]
pub(super) fn multiply<S: Simd>(simd: S, to: &mut [f32], x: &[f32]) {
    elements!(simd: S, to, x, |to, x| simd.mul_f32s(to, x), |to: f32, x: f32| to * x);
}

/// to = to + x
#[inline(always)]
pub(super) fn add<S: Simd>(simd: S, to: &mut [f32], x: &[f32]) {
    elements!(simd: S, to, x, |to, x| simd.add_f32s(to, x), |to: f32, x: f32| to + x);
}

/// to = to + a·b
#[inline(always)]
pub(super) fn add_products<S: Simd>(simd: S, to: &mut [f32], a: &[f32], b: &[f32]) {
    let (to, to_rest) = S::as_mut_simd_f32s(to);
    let ((a, a_rest), (b, b_rest)) = (S::as_simd_f32s(a), S::as_simd_f32s(b));
    for (to, (a, b)) in to.iter_mut().zip(a.iter().zip(b)) {
        *to = simd.mul_add_f32s(*a, *b, *to);
    }
    for (to, (a, b)) in to_rest.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *to += a * b;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks, and what is left of them at both ends.
    #[test]
    fn rows_become_columns() {
        let numbers: Vec<f32> = (0..80 * 90).map(|i| i as f32).collect();
        for (rows, columns) in [(1, 1), (8, 8), (64, 64), (13, 70), (70, 5), (9, 33)] {
            let at = At { first: numbers[3..].as_ptr(), rows: 90, columns: 1 };
            let mut tile = Tile::new(columns, rows);
            // Safe: so many numbers are there.
            unsafe { turn_into(at, (rows, columns), tile.out()) };
            for c in 0..columns {
                for (r, x) in tile.row(c).iter().enumerate() {
                    let want = if r < rows { numbers[3 + r * 90 + c] } else { 0.0 };
                    assert_eq!(*x, want, "{rows} {columns}: {r} {c}");
                }
            }
        }
    }

    /// Triangles hold all pairs that count, and leave out most of the others.
    #[test]
    fn bands_hold_their_triangle() {
        for q in [1, 15, 16, 17, 40, 64] {
            let (lower, upper) = (lower(q), upper(q));
            for i in 0..q {
                let ((first, end), (from, to)) = (lower[i / BAND], upper[i / BAND]);
                assert!(first == 0 && end > i && end <= q && end <= i / BAND * BAND + BAND);
                assert!(from == i / BAND * BAND && to == q, "{i} of {q}");
            }
        }
    }

    struct Elements;

    impl WithSimd for Elements {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for len in [1, 15, 16, 33, 64] {
                let x: Vec<f32> = (0..len).map(|i| i as f32 - 3.0).collect();
                let y: Vec<f32> = (0..len).map(|i| 0.5 * i as f32).collect();
                let of = |f: &dyn Fn(f32, f32) -> f32| {
                    x.iter().zip(&y).map(|(x, y)| f(*x, *y)).collect::<Vec<f32>>()
                };
                let on = |f: &dyn Fn(&mut [f32])| {
                    let mut x = x.clone();
                    f(&mut x);
                    x
                };
                assert_eq!(on(&|x| scale(simd, x, 2.0)), of(&|x, _| 2.0 * x));
                assert_eq!(on(&|x| scaled(simd, x, &y, 4.0)), of(&|_, y| 4.0 * y));
                assert_eq!(on(&|x| multiply(simd, x, &y)), of(&|x, y| x * y));
                assert_eq!(on(&|x| add(simd, x, &y)), of(&|x, y| x + y));
                assert_eq!(on(&|x| add_products(simd, x, &y, &y)), of(&|x, y| x + y * y));
            }
        }
    }

    #[test]
    fn vectors_and_their_rest_are_computed_alike() {
        widest(Elements);
    }
}
