//! Whole matrix products on all threads, out of the same panels as attention.

use crate::deep::multiply_deep;
use crate::panels::{At, Limits, Panels, PanelsAt, product, widest, width};
use crate::room::Room;
use crate::simd::{LINE, prefetch};
use crate::threads;
use pulp::{Simd, WithSimd};

/// Rows of A that a job takes; with [`DEPTH`] they fill a part of a core's second-level cache. Both
/// are whole groups, as is [`FEWER`], which small products take to have a job for every thread.
const ROWS: usize = 96;
const FEWER: usize = 48;
/// Columns of B that a job takes at most: with [`DEPTH`] half of a core's second-level cache.
const COLUMNS: usize = 256;
/// How much of the inner dimension is summed up in registers at a time: a panel of this many rows
/// fits the first-level cache.
pub(crate) const DEPTH: usize = 256;
/// Distance between rows of A up to which A is read where it lies: rows farther apart share few
/// places in a cache.
pub(crate) const NEAR: usize = 4 * DEPTH - 1;
/// Elements of B that are packed at a time.
const PACKED: usize = 1 << 19;
/// Rows of B that are asked for beforehand: more than the machine foresees by itself.
pub(crate) const AHEAD: usize = 4;
/// Rows of A up to which B is read once, where it lies: packing would cost more than the product.
const FEW: usize = 4;
/// Products of fewer multiplications run on one thread.
pub(crate) const PARALLEL_FROM: usize = 1 << 20;

/// A right-hand side `[K, N]` for [`multiply`].
pub(crate) struct Right {
    panels: Panels,
    n: usize,
    k: usize,
}

impl Right {
    /// # Safety
    /// `b` must be readable at its whole size.
    pub unsafe fn pack(b: At, (k, n): (usize, usize)) -> Self {
        // Safe: as the caller vouches.
        Self { panels: unsafe { Panels::pack(&[b], (k, n), 1.0) }, n, k }
    }
}

/// Whether A is read where it lies: columns that are apart are fetched again for every panel.
fn is_near(a: At) -> bool {
    a.columns == 1 && a.rows <= NEAR
}

/// C `[m, n]` = A `[m, k]`·B `[k, n]` (+ C), rows of C adjacent: out of panels for the narrow A of
/// layers, where they are ahead of the library.
///
/// # Safety
/// `a` and `b` must be readable at their whole sizes, and C be valid for m·n elements, which hold
/// numbers where they are added to.
pub(crate) unsafe fn multiply(
    (m, n, k): (usize, usize, usize),
    a: At,
    b: At,
    c: *mut f32,
    accumulate: bool,
) {
    // Safe: as the caller vouches.
    unsafe {
        if is_near(a) && k > 0 {
            let some = (PACKED / k / COLUMNS).max(1) * COLUMNS;
            for first in (0..n).step_by(some) {
                let part = Right::pack(b.at(0, first), (k, (n - first).min(some)));
                multiply_part((m, n, first), a, &part, c, accumulate);
            }
            return;
        }
        multiply_deep((m, n, k), a, b, c, accumulate)
    }
}

/// [`multiply`] with a right-hand side that is packed already.
///
/// # Safety
/// As [`multiply`].
pub(crate) unsafe fn multiply_right(m: usize, a: At, b: &Right, c: *mut f32, accumulate: bool) {
    // Safe: as the caller vouches.
    unsafe { multiply_part((m, b.n, 0), a, b, c, accumulate) }
}

/// Some columns of C `[m, n]`, those of `b` from `first` on.
///
/// # Safety
/// As [`multiply`].
unsafe fn multiply_part(
    (m, n, first): (usize, usize, usize),
    a: At,
    b: &Right,
    c: *mut f32,
    accumulate: bool,
) {
    let (some, k) = (b.n, b.k);
    debug_assert!(first + some <= n);
    // A few jobs per thread, so that none waits long for the last one.
    let wanted = 8 * rayon::current_num_threads();
    let high = if m.div_ceil(ROWS) < wanted { FEWER } else { ROWS };
    let rows = m.div_ceil(high);
    let columns = some.div_ceil(wanted.div_ceil(rows)).clamp(64, COLUMNS).next_multiple_of(width());
    let blocks = some.div_ceil(columns);
    let c = Out(c);
    let job = |index: usize| {
        let (row, column) = (index / blocks * high, index % blocks * columns);
        let size = ((m - row).min(high), (some - column).min(columns), k);
        let a = a.at(row, 0);
        // Safe: blocks of C lie apart, and within it.
        let c = unsafe { c.block(row * n + first + column) };
        let right = |depth: usize| b.panels.block(depth, column);
        widest(Job { size, a, right, c, c_rows: n, accumulate });
    };
    if m * some * k < PARALLEL_FROM {
        (0..rows * blocks).for_each(job);
    } else {
        threads::each(rows * blocks, job);
    }
}

/// Where jobs write, each in a block of its own.
#[derive(Clone, Copy)]
pub(crate) struct Out(pub *mut f32);

// Safe: no two jobs write to the same place.
unsafe impl Send for Out {}
unsafe impl Sync for Out {}

impl Out {
    /// # Safety
    /// `first` must lie within C.
    pub unsafe fn block(&self, first: usize) -> *mut f32 {
        unsafe { self.0.add(first) }
    }
}

/// A block of C.
struct Job<F> {
    size: (usize, usize, usize),
    a: At,
    /// Panels of the block's columns, from a row on.
    right: F,
    c: *mut f32,
    c_rows: usize,
    accumulate: bool,
}

impl<F: Fn(usize) -> PanelsAt> WithSimd for Job<F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (m, n, k) = self.size;
        for depth in (0..k).step_by(DEPTH) {
            let deep = (k - depth).min(DEPTH);
            let a = self.a.at(0, depth);
            let accumulate = self.accumulate || depth > 0;
            // Safe: a block within A, B and C, which no other job writes.
            unsafe {
                let (c, b, size) = ((self.c, self.c_rows), (self.right)(depth), (m, n, deep));
                product(simd, size, a, b, c, accumulate, Limits::None);
            }
        }
    }
}

/// C `[m, n]` = A `[m, k]`·B `[k, n]`, however many rows A has.
///
/// # Safety
/// `a` and `b` must be readable at their whole sizes.
pub(crate) unsafe fn product_of(size: (usize, usize, usize), a: At, b: At) -> Vec<f32> {
    let (m, n, k) = size;
    if k == 0 {
        return vec![0.0; m * n];
    }
    // Safe: as the caller vouches; `multiply` writes all of C.
    unsafe {
        if are_few(m, a, b) {
            return multiply_few(size, a, b);
        }
        let mut c = Room::new(m * n);
        multiply(size, a, b, c.as_mut_ptr(), false);
        c.written()
    }
}

/// C `[m, n]` = A `[m, k]`·B `[k, n]` for few rows of A and a B that is a transposed view: what
/// decoding computes, as fast as B can be read.
///
/// # Safety
/// `a` and `b` must be readable at their whole sizes.
unsafe fn multiply_few((m, n, k): (usize, usize, usize), a: At, b: At) -> Vec<f32> {
    debug_assert!(are_few(m, a, b));
    let b = b.turned();
    const CHUNK: usize = 64;
    // By columns of C, which are rows of B.
    let mut turned = vec![0.0f32; m * n];
    let work = |(chunk, out): (usize, &mut [f32])| {
        widest(Dots { m, k, a, b: b.at(chunk * CHUNK, 0), out })
    };
    if n * k < PARALLEL_FROM {
        turned.chunks_mut(CHUNK * m).enumerate().for_each(work);
    } else {
        let parts = turned.chunks_mut(CHUNK * m).enumerate().collect();
        threads::each_of(parts, work);
    }
    if m == 1 {
        return turned;
    }
    (0..m * n).map(|i| turned[i % n * m + i / n]).collect()
}

/// Whether [`multiply_few`] takes these.
fn are_few(m: usize, a: At, b: At) -> bool {
    m <= FEW && a.columns == 1 && b.rows == 1
}

/// All rows of A with some rows of B.
struct Dots<'a> {
    m: usize,
    k: usize,
    a: At,
    b: At,
    /// `[rows of B, m]`
    out: &'a mut [f32],
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Safe: as the caller of `multiply_few` vouches.
        let row =
            |at: At, i: usize| unsafe { std::slice::from_raw_parts(at.at(i, 0).first, self.k) };
        for (j, out) in self.out.chunks_mut(self.m).enumerate() {
            let b = row(self.b, j);
            let later = self.b.at(j + AHEAD, 0).first;
            (0..self.k).step_by(LINE).for_each(|i| prefetch(later.wrapping_add(i)));
            for (i, out) in out.iter_mut().enumerate() {
                *out = dot(simd, row(self.a, i), b);
            }
        }
    }
}

/// Σ a·b. Four sums at once hide the time that an addition takes.
#[inline(always)]
pub(crate) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = S::as_simd_f32s(a);
    let (b, b_rest) = S::as_simd_f32s(b);
    let mut sums = [simd.splat_f32s(0.0); 4];
    let (a_four, a_few) = a.as_chunks::<4>();
    let (b_four, b_few) = b.as_chunks::<4>();
    for (a, b) in a_four.iter().zip(b_four) {
        for ((a, b), sum) in a.iter().zip(b).zip(&mut sums) {
            *sum = simd.mul_add_f32s(*a, *b, *sum);
        }
    }
    for (a, b) in a_few.iter().zip(b_few) {
        sums[0] = simd.mul_add_f32s(*a, *b, sums[0]);
    }
    let sum = simd.add_f32s(simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3]));
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    simd.reduce_sum_f32s(sum) + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks that are cut off in all dimensions, and all orders of A and B.
    #[test]
    fn products_equal_sums_one_by_one() {
        let value = |i: usize| ((i * 7919) % 97) as f32 / 48.0 - 1.0;
        for (m, n, k) in [
            (1, 1, 1),
            (3, 70, 9),
            (97, 65, 257),
            (200, 130, 300),
            (5, 600, 64),
            // A deep inner dimension, several blocks, and more columns than are packed at a time.
            (3, 5, (1 << 17) + 1),
            (400, 300, 600),
            (7, PACKED / NEAR + 44, NEAR),
        ] {
            let of_a: Vec<f32> = (0..m * k).map(value).collect();
            let of_b: Vec<f32> = (0..k * n).map(|i| value(i + 5)).collect();
            for turned in [false, true] {
                let order = |x: &[f32], a: usize, b: usize| At {
                    first: x.as_ptr(),
                    rows: if turned { 1 } else { b },
                    columns: if turned { a } else { 1 },
                };
                let (a, b) = (order(&of_a, m, k), order(&of_b, k, n));
                let element = |at: At, i, j| unsafe { *at.at(i, j).first as f64 };
                let old: Vec<f32> = (0..m * n).map(|i| value(i + 11)).collect();
                let want: Vec<f64> = (0..m * n)
                    .map(|i| (0..k).map(|l| element(a, i / n, l) * element(b, l, i % n)).sum())
                    .collect();
                for accumulate in [false, true] {
                    let mut c = old.clone();
                    unsafe { multiply((m, n, k), a, b, c.as_mut_ptr(), accumulate) };
                    for ((c, want), old) in c.iter().zip(&want).zip(&old) {
                        let want = want + if accumulate { *old as f64 } else { 0.0 };
                        let off = (*c as f64 - want).abs();
                        assert!(off < 1e-4 + 1e-6 * want.abs(), "{m} {n} {k}: {c} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn few_rows_take_a_transposed_view_where_it_lies() {
        let value = |i: usize| ((i * 7919) % 97) as f32 / 48.0 - 1.0;
        for (m, n, k) in [(1, 1, 1), (3, 70, 9), (FEW, 65, 100), (2, 1000, 300)] {
            let of_a: Vec<f32> = (0..m * k).map(value).collect();
            let of_b: Vec<f32> = (0..n * k).map(|i| value(i + 5)).collect();
            let at = |x: &[f32]| At { first: x.as_ptr(), rows: k, columns: 1 };
            let c = unsafe { multiply_few((m, n, k), at(&of_a), at(&of_b).turned()) };
            for (i, c) in c.iter().enumerate() {
                let (a, b) = (&of_a[i / n * k..][..k], &of_b[i % n * k..][..k]);
                let want: f64 = a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum();
                assert!((*c as f64 - want).abs() < 1e-4, "{m} {n} {k}: {c} {want}");
            }
        }
        let a = At { first: [0.0f32; 1].as_ptr(), rows: 9, columns: 1 };
        assert!(are_few(FEW, a, a.turned()) && !are_few(FEW + 1, a, a.turned()));
        assert!(!are_few(1, a, a));
    }
}
