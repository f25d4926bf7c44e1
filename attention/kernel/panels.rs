//! Small matrix products on one core out of packed panels, for loops that keep their tiles in the
//! first-level cache.
//!
//! A right-hand side is packed once into *panels*: two vectors' worth of neighbouring columns,
//! row after row. The innermost loop then loads two vectors of B, broadcasts an element of A and
//! multiplies, with all sums of a few rows of C in registers; A is read where it lies.

use crate::room::filled;
use crate::simd::{BLOCK, turn, vectorized};
use pulp::{Simd, WithSimd};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Runs `op` with the widest vectors that this machine has.
#[inline]
pub(crate) fn widest<Op: WithSimd>(op: Op) -> Op::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = pulp::x86::V4::try_new() {
            return Simd::vectorize(simd, op);
        }
        if let Some(simd) = pulp::x86::V3::try_new() {
            return Simd::vectorize(simd, op);
        }
    }
    pulp::Arch::new().dispatch(op)
}

/// Columns of a panel on this machine.
pub(crate) fn width() -> usize {
    widest(WidthOf)
}

struct WidthOf;

impl WithSimd for WidthOf {
    type Output = usize;
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        2 * S::F32_LANES
    }
}

/// Matrices `[K, N]` in panels `[K, width]`, zeros beyond N.
pub(crate) struct Panels {
    data: Vec<f32>,
    width: usize,
    rows: usize,
    of_matrix: usize,
}

/// Where [`product`] finds its right-hand side.
#[derive(Clone, Copy)]
pub(crate) struct PanelsAt {
    first: *const f32,
    /// Elements from one panel to the next.
    step: usize,
    /// Elements from one row of a panel to the next: its columns, where it is packed.
    rows: usize,
}

impl PanelsAt {
    /// A matrix that is not packed. Only whole panels can be read of it, and its columns must be
    /// adjacent.
    pub fn lying(at: At) -> Self {
        debug_assert_eq!(at.columns, 1);
        Self { first: at.first, step: width(), rows: at.rows }
    }

    /// Columns from `first` on, which begins a panel, of a matrix that is packed.
    #[inline(always)]
    pub fn columns(self, first: usize) -> Self {
        debug_assert!(first.is_multiple_of(self.rows));
        Self { first: self.first.wrapping_add(first / self.rows * self.step), ..self }
    }

    /// Where it begins, how far its panels are apart, and how far rows are within one.
    pub fn parts(self) -> (*const f32, usize, usize) {
        (self.first, self.step, self.rows)
    }
}

/// Elements in memory: the first, and the distances between rows and between columns.
#[derive(Clone, Copy)]
pub(crate) struct At {
    pub first: *const f32,
    pub rows: usize,
    pub columns: usize,
}

// Safe: the pointers are only read, by functions whose callers vouch for them.
unsafe impl Send for At {}
unsafe impl Sync for At {}

impl At {
    /// The same matrix from another element on.
    #[inline(always)]
    pub fn at(self, row: usize, column: usize) -> Self {
        Self { first: self.first.wrapping_add(row * self.rows + column * self.columns), ..self }
    }

    /// Rows for columns.
    pub fn turned(self) -> Self {
        Self { rows: self.columns, columns: self.rows, ..self }
    }
}

impl Panels {
    /// Packs matrices of `rows` × `columns`, times `factor`, on all threads.
    ///
    /// # Safety
    /// Every matrix must be readable at its whole size.
    pub unsafe fn pack(matrices: &[At], (rows, columns): (usize, usize), factor: f32) -> Self {
        let width = width();
        let panels = columns.div_ceil(width);
        let of_matrix = panels * rows * width;
        let len = matrices.len() * of_matrix;
        let write = |n: usize, panel: &mut [MaybeUninit<f32>]| {
            let (at, from) = (matrices[n / panels], n % panels * width);
            let wide = (columns - from).min(width);
            vectorized(
                #[inline(always)]
                || {
                    // Safe: these rows and columns lie within the matrix.
                    unsafe { pack_panel(at.at(0, from), (rows, wide), factor, panel, width) };
                },
            );
        };
        // Safe: `write` leaves nothing out. Less is not worth waking a thread.
        let data = unsafe { filled(len, rows * width, len >= 1 << 15, write) };
        Self { data, width, rows, of_matrix }
    }

    /// All columns, rows `rows` of matrix `n`.
    pub fn rows(&self, n: usize, rows: &Range<usize>) -> PanelsAt {
        debug_assert!(rows.end <= self.rows);
        self.at(n * self.of_matrix + rows.start * self.width)
    }

    /// All rows, columns from `first` of matrix `n`; `first` begins a panel.
    pub fn columns(&self, n: usize, first: usize) -> PanelsAt {
        debug_assert!(first.is_multiple_of(self.width));
        self.at(n * self.of_matrix + first * self.rows)
    }

    /// Rows from `row` and columns from `column` of the only matrix; `column` begins a panel.
    pub fn block(&self, row: usize, column: usize) -> PanelsAt {
        debug_assert!(column.is_multiple_of(self.width));
        self.at(column * self.rows + row * self.width)
    }

    fn at(&self, start: usize) -> PanelsAt {
        let (step, width) = (self.rows * self.width, self.width);
        PanelsAt { first: self.data[start..].as_ptr(), step, rows: width }
    }
}

/// Packs one matrix of `rows` × `columns`, times `factor`, into memory of a job's own.
///
/// # Safety
/// `at` must be readable at this size, and `out` hold it with whole panels.
#[inline(always)]
pub(crate) unsafe fn pack_into<S: Simd>(
    at: At,
    (rows, columns): (usize, usize),
    factor: f32,
    out: &mut [MaybeUninit<f32>],
) -> PanelsAt {
    let width = 2 * S::F32_LANES;
    let first = out.as_ptr().cast();
    for (from, panel) in (0..columns).step_by(width).zip(out.chunks_mut(rows * width)) {
        let wide = (columns - from).min(width);
        // Safe: these rows and columns lie within the matrix.
        unsafe { pack_panel(at.at(0, from), (rows, wide), factor, panel, width) };
    }
    PanelsAt { first, step: rows * width, rows: width }
}

/// Writes a panel of `[rows, wide]` elements, times `factor`, and zeros beyond them.
///
/// # Safety
/// `at` must be readable at this size, and `panel` hold `rows` times `width`, which is at least `wide`.
#[inline(always)]
unsafe fn pack_panel(
    at: At,
    (rows, wide): (usize, usize),
    factor: f32,
    panel: &mut [MaybeUninit<f32>],
    width: usize,
) {
    if at.columns == 1 || at.rows != 1 {
        for (r, out) in panel.chunks_exact_mut(width).enumerate() {
            // Safe: as the caller vouches.
            unsafe { pack_row(at.at(r, 0), wide, factor, out) };
        }
        return;
    }
    // Columns as they lie in memory, eight at a time; the panel stays in the first-level cache.
    if wide < width {
        panel.fill(MaybeUninit::new(0.0));
    }
    // Panels are as wide where there are the vectors of eight that blocks are turned with.
    let whole =
        if width >= 2 * BLOCK { (rows / BLOCK * BLOCK, wide / BLOCK * BLOCK) } else { (0, 0) };
    for c in (0..whole.1).step_by(BLOCK) {
        for r in (0..whole.0).step_by(BLOCK) {
            // Safe: a block of both.
            unsafe {
                let from = (at.at(r, c).first, at.columns);
                turn(from, (panel.as_mut_ptr().add(r * width + c).cast(), width), factor);
            }
        }
    }
    for c in 0..wide {
        for r in if c < whole.1 { whole.0 } else { 0 }..rows {
            // Safe: as the caller vouches.
            panel[r * width + c].write(factor * unsafe { *at.at(r, c).first });
        }
    }
}

/// Writes `wide` elements of a row, times `factor`, and zeros beyond them.
///
/// # Safety
/// `at` must be readable at these columns.
#[inline(always)]
pub(crate) unsafe fn pack_row(at: At, wide: usize, factor: f32, out: &mut [MaybeUninit<f32>]) {
    // Safe: as the caller vouches.
    unsafe {
        if at.columns == 1 {
            let row = std::slice::from_raw_parts(at.first, wide);
            out.iter_mut().zip(row).for_each(|(out, x)| _ = out.write(factor * x));
        } else {
            let column = |c: usize| *at.at(0, c).first;
            (0..wide).for_each(|c| _ = out[c].write(factor * column(c)));
        }
    }
    out[wide..].fill(MaybeUninit::new(0.0));
}

/// What every [`BAND`] rows of C are computed of.
#[derive(Clone, Copy)]
pub(crate) enum Limits<'a> {
    /// Everything.
    None,
    /// These columns of C, which begins with the one named; others may be left as they are.
    Columns(&'a [(usize, usize)], usize),
    /// This part of the inner dimension, which begins with the one named; the rest of A is zero.
    Depth(&'a [(usize, usize)], usize),
}

/// Rows of C whose sums registers hold beside two vectors of B and one of A.
#[inline(always)]
pub(crate) fn group<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 12 } else { 6 }
}

/// Rows that share an entry of [`Limits`].
pub(crate) const BAND: usize = 16;

/// The least range that holds all entries of `rows`.
#[inline(always)]
fn hull(bands: &[(usize, usize)], rows: Range<usize>) -> (usize, usize) {
    let mut hull = bands[rows.start / BAND];
    for band in &bands[rows.start / BAND + 1..=(rows.end - 1) / BAND] {
        hull = (hull.0.min(band.0), hull.1.max(band.1));
    }
    hull
}

/// What is done beside a product, a little for every group of rows.
pub(crate) trait Beside {
    fn some(&mut self);
}

impl Beside for () {
    #[inline(always)]
    fn some(&mut self) {}
}

/// How often [`product_beside`] does something else.
#[inline(always)]
pub(crate) fn groups<S: Simd>(m: usize, n: usize) -> usize {
    n.div_ceil(2 * S::F32_LANES) * m.div_ceil(group::<S>())
}

/// C `[m, n]` = A `[m, k]`·B `[k, n]` (+ C); rows of C are `c_rows` apart, its columns adjacent.
///
/// # Safety
/// All three must be valid for the sizes given; C must not overlap A or B.
#[inline(always)]
pub(crate) unsafe fn product<S: Simd>(
    simd: S,
    size: (usize, usize, usize),
    a: At,
    b: PanelsAt,
    c: (*mut f32, usize),
    accumulate: bool,
    limits: Limits<'_>,
) {
    // Safe: as the caller vouches.
    unsafe { product_beside(simd, size, (a, b), c, accumulate, limits, &mut ()) }
}

/// The same, and something else meanwhile.
///
/// # Safety
/// As [`product`].
#[inline(always)]
pub(crate) unsafe fn product_beside<S: Simd>(
    simd: S,
    (m, n, k): (usize, usize, usize),
    (a, b): (At, PanelsAt),
    (c, c_rows): (*mut f32, usize),
    accumulate: bool,
    limits: Limits<'_>,
    beside: &mut impl Beside,
) {
    let width = 2 * S::F32_LANES;
    for j in (0..n).step_by(width) {
        let columns = (n - j).min(width);
        // Safe: panels and rows that begin within the matrices.
        unsafe {
            let (b, b_rows) = (b.first.add(j / width * b.step), b.rows);
            let mut i = 0;
            while i < m {
                beside.some();
                let here = i..(i + group::<S>()).min(m);
                let (mut a, mut b, mut k) = (a.at(i, 0), b, k);
                match limits {
                    Limits::None => {}
                    Limits::Columns(bands, first) => {
                        let (from, to) = hull(bands, here.clone());
                        if to <= first + j || first + j + columns <= from {
                            i = here.end;
                            continue;
                        }
                    }
                    Limits::Depth(bands, first) => {
                        let (from, to) = hull(bands, here.clone());
                        let (from, to) =
                            (from.max(first) - first, to.min(first + k).max(first) - first);
                        if to <= from {
                            i = here.end;
                            continue;
                        }
                        (a, b, k) = (a.at(0, from), b.add(from * b_rows), to - from);
                    }
                }
                let c = (c.add(i * c_rows + j), c_rows);
                let size = (columns, k);
                i += rows_of(simd, here.len(), size, a, (b, b_rows), c, accumulate);
            }
        }
    }
}

/// At most `some` rows of C in one panel's columns, the panel with the distance of its rows; returns how
/// many.
///
/// # Safety
/// As [`product`].
#[inline(always)]
pub(crate) unsafe fn rows_of<S: Simd>(
    simd: S,
    some: usize,
    size: (usize, usize),
    a: At,
    b: (*const f32, usize),
    c: (*mut f32, usize),
    accumulate: bool,
) -> usize {
    // As many sums as registers can hold beside two vectors of B and one of A.
    // Safe: as the caller vouches.
    unsafe {
        match some {
            12.. if S::REGISTER_COUNT >= 32 => rows::<S, 12>(simd, size, a, b, c, accumulate),
            8 if S::REGISTER_COUNT >= 32 => rows::<S, 8>(simd, size, a, b, c, accumulate),
            6 | 11.. => rows::<S, 6>(simd, size, a, b, c, accumulate),
            5 | 9 | 10 => rows::<S, 5>(simd, size, a, b, c, accumulate),
            4 | 7 | 8 => rows::<S, 4>(simd, size, a, b, c, accumulate),
            3 => rows::<S, 3>(simd, size, a, b, c, accumulate),
            2 => rows::<S, 2>(simd, size, a, b, c, accumulate),
            _ => rows::<S, 1>(simd, size, a, b, c, accumulate),
        }
    }
}

/// `M` rows of C in one panel's columns; returns `M`.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn rows<S: Simd, const M: usize>(
    simd: S,
    (columns, k): (usize, usize),
    a: At,
    (b, b_rows): (*const f32, usize),
    (c, c_rows): (*mut f32, usize),
    accumulate: bool,
) -> usize {
    let zero = simd.splat_f32s(0.0);
    let mut sums = [[zero; 2]; M];
    let (mut a_at, mut b_at) = (a.first, b);
    // Safe: as the caller vouches; vectors are read and written without alignment.
    unsafe {
        for _ in 0..k {
            let b = b_at as *const S::f32s;
            let b = [b.read_unaligned(), b.add(1).read_unaligned()];
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = simd.splat_f32s(*a_at.add(i * a.rows));
                sums[0] = simd.mul_add_f32s(a, b[0], sums[0]);
                sums[1] = simd.mul_add_f32s(a, b[1], sums[1]);
            }
            a_at = a_at.add(a.columns);
            b_at = b_at.add(b_rows);
        }
        for (i, sums) in sums.into_iter().enumerate() {
            let c = c.add(i * c_rows);
            if columns == 2 * S::F32_LANES {
                for (j, sum) in sums.into_iter().enumerate() {
                    let c = (c as *mut S::f32s).add(j);
                    c.write_unaligned(match accumulate {
                        true => simd.add_f32s(c.read_unaligned(), sum),
                        false => sum,
                    });
                }
            } else {
                let sums: &[f32] = pulp::bytemuck::cast_slice(&sums);
                for (j, sum) in sums[..columns].iter().enumerate() {
                    let c = c.add(j);
                    *c = if accumulate { *c + sum } else { *sum };
                }
            }
        }
    }
    M
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Product<'a>(&'a [f32], At, PanelsAt, (usize, usize, usize), &'a mut [f32], Limits<'a>);

    impl WithSimd for Product<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (size, c) = (self.3, self.4);
            c.copy_from_slice(self.0);
            unsafe {
                product(simd, size, self.1, self.2, (c.as_mut_ptr(), size.1 + 3), true, self.5)
            }
        }
    }

    /// Every number of rows, ragged columns, and both orders of A and B.
    #[test]
    fn products_equal_sums_one_by_one() {
        let value = |i: usize| ((i * 7919) % 97) as f32 / 48.0 - 1.0;
        let numbers: Vec<f32> = (0..20_000).map(value).collect();
        for m in (1..=20).chain([64, 65]) {
            for (n, k) in [(1, 1), (8, 3), (16, 64), (33, 5), (64, 64), (70, 17)] {
                for turned in [false, true] {
                    let order = |a: usize, b: usize, first: usize| At {
                        first: numbers[first..].as_ptr(),
                        rows: if turned { 1 } else { b },
                        columns: if turned { a } else { 1 },
                    };
                    let (a, b) = (order(m, k, 0), order(k, n, 5000));
                    let panels = unsafe { Panels::pack(&[b], (k, n), 0.5) };
                    let old: Vec<f32> = (0..m * (n + 3)).map(|i| value(i + 11)).collect();
                    let mut c = vec![0.0; old.len()];
                    let (packed, none) = (panels.rows(0, &(0..k)), Limits::None);
                    widest(Product(&old, a, packed, (m, n, k), &mut c, none));
                    for i in 0..m {
                        for j in 0..n + 3 {
                            let at = |x: At, r: usize, c: usize| unsafe {
                                *x.first.add(r * x.rows + c * x.columns) as f64
                            };
                            let sum: f64 = match j < n {
                                true => (0..k).map(|l| at(a, i, l) * at(b, l, j) * 0.5).sum(),
                                false => 0.0,
                            };
                            let want = old[i * (n + 3) + j] as f64 + sum;
                            let got = c[i * (n + 3) + j] as f64;
                            assert!((got - want).abs() < 1e-4, "{m} {n} {k}: {got} {want}");
                        }
                    }
                }
            }
        }
    }

    /// Bands of rows have limits of their own, and groups of rows lie across them.
    #[test]
    fn limits_leave_out_what_is_not_needed() {
        let value = |i: usize| ((i * 7919) % 97) as f32 / 48.0 - 1.0;
        let (m, n, k) = (70, 90, 50);
        let bands = |most: usize| [(0, 7), (5, 33), (20, 20), (most - 1, most), (0, most)];
        let of_b: Vec<f32> = (0..k * n).map(|i| value(i + 5)).collect();
        let b = At { first: of_b.as_ptr(), rows: n, columns: 1 };
        let panels = unsafe { Panels::pack(&[b], (k, n), 1.0) };
        let depth = bands(k);
        let inside = |bands: &[(usize, usize)], i: usize, x: usize| {
            (bands[i / BAND].0..bands[i / BAND].1).contains(&x)
        };
        // What begins later, of limits that may reach beyond it at both ends.
        for (limit_depth, first) in [(false, 0), (true, 0), (false, 40), (true, 40)] {
            let later = |bands: [(usize, usize); 5], most: usize| {
                let start = |x| if x == 0 { 0 } else { x + first };
                let end = |x| if x == most { x + 2 * first } else { x + first };
                bands.map(|(from, to)| (start(from), end(to)))
            };
            let needed = |i: usize, l: usize| !limit_depth || inside(&depth, i, l);
            let of_a: Vec<f32> =
                (0..m * k).map(|i| if needed(i / k, i % k) { value(i) } else { 0.0 }).collect();
            let a = At { first: of_a.as_ptr(), rows: k, columns: 1 };
            let columns = bands(n);
            let (of_depth, of_columns) = (later(depth, k), later(columns, n));
            let limits = match limit_depth {
                true => Limits::Depth(&of_depth, first),
                false => Limits::Columns(&of_columns, first),
            };
            let old = vec![0.5; m * (n + 3)];
            let mut c = vec![0.0; old.len()];
            let at = panels.rows(0, &(0..k));
            widest(Product(&old, a, at, (m, n, k), &mut c, limits));
            let mut left = 0;
            for i in 0..m {
                for j in 0..n {
                    let sum: f32 = (0..k).map(|l| of_a[i * k + l] * of_b[l * n + j]).sum();
                    let got = c[i * (n + 3) + j];
                    let computed = (got - 0.5 - sum).abs() < 1e-4;
                    let must = limit_depth || inside(&columns, i, j);
                    assert!(computed || !must && got == 0.5, "{i} {j}: {got} {sum}");
                    left += (got == 0.5) as usize;
                }
            }
            assert!(limit_depth || left > m * n / 3, "{left} were left out");
        }
    }

    /// A right-hand side of whole panels gives the same bits where it lies.
    #[test]
    fn what_is_not_packed_gives_the_same() {
        let numbers: Vec<f32> =
            (0..20_000).map(|i| ((i * 7919) % 97) as f32 / 48.0 - 1.0).collect();
        let (m, n, k) = (29, 2 * width(), 70);
        let at = |first: usize, rows| At { first: numbers[first..].as_ptr(), rows, columns: 1 };
        let (a, b) = (at(0, k), at(5000, n + 5));
        let panels = unsafe { Panels::pack(&[b], (k, n), 1.0) };
        let old = &numbers[..m * (n + 3)];
        let [packed, lying] = [panels.rows(0, &(0..k)), PanelsAt::lying(b)].map(|b| {
            let mut c = vec![0.0; old.len()];
            widest(Product(old, a, b, (m, n, k), &mut c, Limits::Depth(&[(3, 60); 2], 0)));
            c
        });
        assert!(packed == lying && packed != old);
    }

    /// Turned by blocks and by single elements, with zeros beyond.
    #[test]
    fn columns_become_rows_of_panels() {
        let numbers: Vec<f32> = (0..90 * 70).map(|i| i as f32).collect();
        let width = width();
        for (rows, columns) in [(64, 64), (70, 61), (9, 90), (3, 5)] {
            let at = At { first: numbers.as_ptr(), rows: 1, columns: 70 };
            let panels = unsafe { Panels::pack(&[at], (rows, columns), 2.0) };
            for (i, x) in panels.data.iter().enumerate() {
                let (row, column) = (i / width % rows, i / width / rows * width + i % width);
                let want = if column < columns { 2.0 * (column * 70 + row) as f32 } else { 0.0 };
                assert_eq!(*x, want, "{rows} {columns}: {i}");
            }
        }
    }

    #[test]
    fn a_part_of_the_rows_or_columns_is_found() {
        let numbers: Vec<f32> = (0..300 * 40).map(|i| i as f32).collect();
        let at = At { first: numbers.as_ptr(), rows: 40, columns: 1 };
        let panels = unsafe { Panels::pack(&[at, at], (300, 40), 1.0) };
        let width = width();
        let first = |at: PanelsAt| unsafe { *at.first };
        assert_eq!(first(panels.rows(1, &(7..9))), 7.0 * 40.0);
        assert_eq!(first(panels.columns(1, width)), width as f32);
    }
}
