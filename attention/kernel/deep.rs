//! Matrix products of which every job packs both sides: for a left side that lies across the grain,
//! and for inner dimensions that are long beside the result, as in the gradients of weights.

use crate::ahead::{Ahead, Pieces};
use crate::panels::{At, Beside, group, groups, pack_row, rows_of, widest};
use crate::product::{AHEAD, DEPTH, Out, PARALLEL_FROM};
use crate::room::Room;
use crate::simd::{LINE, prefetch};
use crate::threads;
use pulp::{Simd, WithSimd};
use std::cell::RefCell;
use std::mem::MaybeUninit;

/// Rows of A that are packed at a time, a multiple of every group of rows that registers hold.
const ROWS: usize = 96;
/// Rows and columns of C that a job computes at most.
const HIGH: usize = 3 * ROWS;
const WIDE: usize = 256;
/// Jobs that a product is divided into, where it is deep enough. It does not depend on the number of
/// threads, as the order of sums would.
const JOBS: usize = 16;
/// How much of the inner dimension a job sums up at least, if there is so much: adding up results of less
/// would show.
const DEEP: usize = 2 * DEPTH;

thread_local! {
    /// Packed parts of A and B of the thread's current job.
    static PACKED: RefCell<Vec<MaybeUninit<f32>>> = const { RefCell::new(Vec::new()) };
}

/// C `[m, n]` = A `[m, k]`·B `[k, n]` (+ C), rows of C adjacent.
///
/// # Safety
/// `a` and `b` must be readable at their whole sizes, and C be valid for m·n elements, which hold
/// numbers where they are added to.
pub(crate) unsafe fn multiply_deep(
    (m, n, k): (usize, usize, usize),
    a: At,
    b: At,
    c: *mut f32,
    accumulate: bool,
) {
    // Blocks of about the same height, which keep groups of rows whole.
    let high = m.div_ceil(m.div_ceil(HIGH)).next_multiple_of(12);
    let (rows, columns) = (m.div_ceil(high), n.div_ceil(WIDE));
    let blocks = rows * columns;
    // Small products are not worth waking threads.
    let small = m * n * k < PARALLEL_FROM;
    let parts = if small { 1 } else { (JOBS / blocks).clamp(1, k.div_ceil(DEEP)) };
    let part = k.div_ceil(parts).next_multiple_of(DEPTH);
    let parts = k.div_ceil(part);
    let size = m * n;
    let c = Out(c);
    let job = |to: Out, add: bool, index: usize| {
        let (from, block) = (index / blocks * part, index % blocks);
        let (row, column) = (block / columns * high, block % columns * WIDE);
        widest(Job {
            size: ((m - row).min(high), (n - column).min(WIDE), (k - from).min(part)),
            a: a.at(row, from),
            b: b.at(from, column),
            // Safe: blocks lie apart, and within C.
            c: unsafe { to.block(row * n + column) },
            c_rows: n,
            accumulate: add,
        });
    };
    if parts == 1 {
        let block = |i| job(c, accumulate, i);
        return match small {
            true => (0..blocks).for_each(block),
            false => threads::each_in_pool(blocks, block),
        };
    }
    let mut sums = Room::new(parts * size);
    let of = Out(sums.as_mut_ptr());
    threads::each_in_pool(parts * blocks, |i| {
        // Safe: every part has a result of its own.
        job(Out(unsafe { of.block(i / blocks * size) }), false, i)
    });
    // Safe: the blocks of all parts are all of it.
    let sums = unsafe { sums.written() };
    const CHUNK: usize = 1 << 13;
    threads::each(size.div_ceil(CHUNK), |chunk| {
        let here = chunk * CHUNK..size.min((chunk + 1) * CHUNK);
        // Safe: chunks of C lie apart, and hold numbers where they are added to.
        let out = unsafe {
            let first = c.block(here.start);
            if !accumulate {
                first.write_bytes(0, here.len());
            }
            std::slice::from_raw_parts_mut(first, here.len())
        };
        for sums in sums.chunks(size) {
            out.iter_mut().zip(&sums[here.clone()]).for_each(|(out, sum)| *out += sum);
        }
    });
}

/// A block of C and all that is summed up for it.
struct Job {
    size: (usize, usize, usize),
    a: At,
    b: At,
    c: *mut f32,
    c_rows: usize,
    accumulate: bool,
}

impl WithSimd for Job {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (m, n, k) = self.size;
        let (width, group) = (2 * S::F32_LANES, group::<S>());
        // Not lent by a closure, which would be compiled without the vectors of `simd`.
        let mut packed = PACKED.take();
        packed.resize(DEPTH * (WIDE + ROWS + APART), MaybeUninit::new(0.0));
        let (right, left) = packed.split_at_mut(DEPTH * WIDE);
        for from in (0..k).step_by(DEPTH) {
            let deep = (k - from).min(DEPTH);
            // What is packed next is asked for meanwhile, group by group.
            let next = (k - from - deep).min(DEPTH);
            let of_a = Pieces::of(self.a.at(0, from + deep), (m, next));
            let of_b = Pieces::of(self.b.at(from + deep, 0), (next, n));
            let mut ahead = Ahead::new([of_a, of_b], groups::<S>(m, n));
            // Safe: rows of B.
            unsafe { pack_columns(self.b.at(from, 0), (deep, n), width, right) };
            for row in (0..m).step_by(ROWS) {
                let high = (m - row).min(ROWS);
                // Safe: rows of A.
                let (a, step) =
                    unsafe { pack_rows(self.a.at(row, from), (high, deep), group, left) };
                for (j, panel) in right.chunks(DEPTH * width).take(n.div_ceil(width)).enumerate() {
                    let size = ((n - j * width).min(width), deep);
                    let mut i = 0;
                    while i < high {
                        ahead.some();
                        let a = a.at(i % group, 0);
                        let a = At { first: a.first.wrapping_add(i / group * step), ..a };
                        // Safe: rows and columns of this block.
                        unsafe {
                            let c = self.c.add((row + i) * self.c_rows + j * width);
                            let (b, c) = ((panel.as_ptr().cast(), width), (c, self.c_rows));
                            let some = (high - i).min(group - i % group);
                            let accumulate = self.accumulate || from > 0;
                            i += rows_of(simd, some, size, a, b, c, accumulate);
                        }
                    }
                }
            }
        }
        PACKED.set(packed);
    }
}

/// Packs `[deep, n]` into panels that are [`DEPTH`] rows apart, row by row as they lie in memory.
///
/// # Safety
/// `b` must be readable at this size.
#[inline(always)]
unsafe fn pack_columns(
    b: At,
    (deep, n): (usize, usize),
    width: usize,
    out: &mut [MaybeUninit<f32>],
) {
    for l in 0..deep {
        ask_for(b.at(l + AHEAD, 0), n);
        for j in (0..n).step_by(width) {
            let out = &mut out[j * DEPTH + l * width..][..width];
            // Safe: as the caller vouches.
            unsafe { pack_row(b.at(l, j), (n - j).min(width), 1.0, out) };
        }
    }
}

/// Fetches what is read soon, where it is adjacent: the next row lies on another page, which the
/// machine does not foresee.
#[inline(always)]
fn ask_for(row: At, len: usize) {
    (0..len).step_by(LINE).for_each(|i| prefetch(row.first.wrapping_add(i)));
}

/// # Safety
/// `from` must be readable for `N` elements.
#[inline(always)]
unsafe fn copy<const N: usize>(from: *const MaybeUninit<f32>, out: &mut [MaybeUninit<f32>]) {
    let out: &mut [_; N] = out.try_into().expect("a whole group");
    // Safe: as the caller vouches; such elements need no more than their own alignment.
    *out = unsafe { from.cast::<[MaybeUninit<f32>; N]>().read() };
}

/// Distance that rows keep in a copy, so that they do not share places in the first-level cache.
const APART: usize = 16;

/// Copies `[rows, deep]`, and says where it lies now and how far groups of rows are apart there.
///
/// # Safety
/// `a` must be readable at this size.
#[inline(always)]
unsafe fn pack_rows(
    a: At,
    (rows, deep): (usize, usize),
    group: usize,
    out: &mut [MaybeUninit<f32>],
) -> (At, usize) {
    let first = out.as_ptr().cast();
    if a.rows == 1 {
        // Group by group, the rows of a group together.
        for l in 0..deep {
            ask_for(a.at(0, l + AHEAD), rows);
            for i in (0..rows).step_by(group) {
                let from = a.at(i, l).first.cast();
                let out = &mut out[i * DEPTH + l * group..][..group];
                // Safe: as the caller vouches. Whole groups are of sizes known when compiling, which
                // spares a call for each.
                unsafe {
                    match ((rows - i).min(group), group) {
                        (12, 12) => copy::<12>(from, out),
                        (6, 6) => copy::<6>(from, out),
                        (some, _) => {
                            out[..some].copy_from_slice(std::slice::from_raw_parts(from, some));
                        }
                    }
                }
            }
        }
        return (At { first, rows: 1, columns: group }, group * DEPTH);
    }
    let long = DEPTH + APART;
    for (i, out) in out.chunks_mut(long).take(rows).enumerate() {
        for (l, out) in out[..deep].iter_mut().enumerate() {
            // Safe: as the caller vouches.
            out.write(unsafe { *a.at(i, l).first });
        }
    }
    (At { first, rows: long, columns: 1 }, group * long)
}
