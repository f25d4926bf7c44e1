//! What all heads of a group share: C Bᵀ, and the gradients of B and C, which come together here from
//! the jobs of a group.

use super::tile::{Tile, lower, times, turn_into};
use super::{Call, Job};
use crate::panels::{At, Limits};
use crate::product::Out;
use crate::room::{Room, zeroed};
use crate::scan::rows::Columns;
use crate::simd::vectorized;
use std::mem::MaybeUninit;
use std::ops::Range;

/// C Bᵀ of every chunk, `[B, G, T, Q]`, up to the diagonal and some beyond it.
pub(super) struct Scores {
    data: Vec<f32>,
    len: usize,
    wide: usize,
    groups: usize,
}

impl Scores {
    pub fn new(call: &Call<'_>) -> Self {
        let groups = call.plan.groups;
        let mut data = vec![0.0f32; call.batch * groups * call.len * call.wide];
        let to = Columns::new(&mut data, call.wide);
        let pieces = call.pieces();
        let turned = || Tile::new(call.n, call.chunk);
        call.each(pieces.len(), turned, |b_turned, piece| {
            let (job, tokens) = &pieces[piece];
            vectorized(
                #[inline(always)]
                || {
                    let (q, n) = (tokens.len(), call.n);
                    let row = (job.row * groups + job.group) * call.len + tokens.start;
                    // Safe: every chunk has tokens of its own.
                    let scores = unsafe { to.slice(row, 0, q * call.wide) };
                    let (b, c) =
                        (call.group(&call.b, job, tokens), call.group(&call.c, job, tokens));
                    b.turn_into(b_turned.out());
                    let limits = Limits::Columns(&lower(q), 0);
                    let out = (scores, call.wide);
                    // Safe: C is readable at this size.
                    unsafe { times((q, q, n), c.at(), b_turned.right(), out, false, limits) };
                },
            );
        });
        Self { data, len: call.len, wide: call.wide, groups }
    }

    /// Those of a chunk, `[Q, Q]` with the stride of its matrices.
    pub fn of(&self, job: &Job, tokens: &Range<usize>) -> &[f32] {
        let first = (job.row * self.groups + job.group) * self.len + tokens.start;
        &self.data[first * self.wide..][..tokens.len() * self.wide]
    }
}

/// What the heads of each job add to gradients of their group.
pub(super) struct Parts {
    room: Room,
    len: usize,
    /// Numbers per token.
    each: usize,
    n: usize,
}

/// The sums of a job's heads in a chunk.
pub(super) struct Part<'a> {
    /// Gradients of B and C but for what comes through their product, turned, `[N, Q]`; rows follow each
    /// other.
    pub db: &'a mut [f32],
    pub dc: &'a mut [f32],
    /// Gradient of C Bᵀ, `[Q, Q]` with the stride of the chunk's matrices.
    pub dscores: &'a mut [f32],
}

impl Parts {
    pub fn new(call: &Call<'_>) -> Self {
        let each = 2 * call.n + call.wide;
        let room = Room::new(call.jobs().len() * call.len * each);
        Self { room, len: call.len, each, n: call.n }
    }

    /// See [`Places`].
    pub fn places(&mut self) -> Places {
        let (len, each, n) = (self.len, self.each, self.n);
        Places { first: Out(self.room.as_mut_ptr()), len, each, n }
    }
}

/// Where the parts lie.
#[derive(Clone, Copy)]
pub(super) struct Places {
    first: Out,
    len: usize,
    each: usize,
    n: usize,
}

impl Places {
    /// That of a chunk of a job, cleared.
    ///
    /// # Safety
    /// The job must be one of those that the parts are for, and its chunk in one hand alone.
    #[inline(always)]
    pub unsafe fn cleared<'a>(self, job: usize, tokens: &Range<usize>) -> Part<'a> {
        // Safe: within the parts, as the caller vouches.
        let data = unsafe {
            let first = self.first.block((job * self.len + tokens.start) * self.each);
            std::slice::from_raw_parts_mut(
                first.cast::<MaybeUninit<f32>>(),
                tokens.len() * self.each,
            )
        };
        self.cut(zeroed(data), tokens)
    }

    /// The same once more.
    ///
    /// # Safety
    /// As [`cleared`](Self::cleared), which must have been called for it.
    #[inline(always)]
    unsafe fn found<'a>(self, job: usize, tokens: &Range<usize>) -> Part<'a> {
        // Safe: as the caller vouches.
        let data = unsafe {
            let first = self.first.block((job * self.len + tokens.start) * self.each);
            std::slice::from_raw_parts_mut(first, tokens.len() * self.each)
        };
        self.cut(data, tokens)
    }

    fn cut<'a>(self, data: &'a mut [f32], tokens: &Range<usize>) -> Part<'a> {
        let (db, rest) = data.split_at_mut(self.n * tokens.len());
        let (dc, dscores) = rest.split_at_mut(self.n * tokens.len());
        Part { db, dc, dscores }
    }
}

/// Gradients of B and C, `[B, T, G·N]` each: sums over the jobs of a group, in their order, and what
/// comes through the product of both.
pub(super) fn finish(call: &Call<'_>, parts: Places) -> (Vec<f32>, Vec<f32>) {
    let width = call.plan.groups * call.n;
    let zeros = || vec![0.0f32; call.batch * call.len * width];
    let (mut db, mut dc) = (zeros(), zeros());
    let to = [Columns::new(&mut db, width), Columns::new(&mut dc, width)];
    let (pieces, jobs) = (call.pieces(), call.jobs());
    let own = || [Tile::new(call.chunk, call.n), Tile::new(call.chunk, call.chunk)];
    call.each(pieces.len(), own, |own, piece| {
        let (group, tokens) = &pieces[piece];
        let of_group = |(_, job): &(usize, &Job)| (job.row, job.group) == (group.row, group.group);
        let mut all = jobs.iter().enumerate().filter(of_group).map(|(job, _)| job);
        let first = all.next().expect("every group has heads");
        vectorized(
            #[inline(always)]
            || {
                // Safe: all jobs have ended, and this chunk of the group is looked at once.
                let sum = unsafe { parts.found(first, tokens) };
                for job in all {
                    // Safe: as before; another job's part.
                    let part = unsafe { parts.found(job, tokens) };
                    add(sum.db, part.db);
                    add(sum.dc, part.dc);
                    add(sum.dscores, part.dscores);
                }
                through_scores(call, group, tokens, sum, own, &to);
            },
        );
    });
    (db, dc)
}

#[inline(always)]
fn through_scores(
    call: &Call<'_>,
    group: &Job,
    tokens: &Range<usize>,
    sum: Part<'_>,
    [of_tokens, dturned]: &mut [Tile; 2],
    [to_b, to_c]: &[Columns<'_>; 2],
) {
    let (q, n, wide) = (tokens.len(), call.n, call.wide);
    let rows = |x: &[f32], rows: usize| At { first: x.as_ptr(), rows, columns: 1 };
    // Safe: the gradient of C Bᵀ has this size.
    unsafe { turn_into(rows(sum.dscores, wide), (q, q), dturned.out()) };
    let (b, c) = (call.group(&call.b, group, tokens), call.group(&call.c, group, tokens));
    let first = group.row * call.len + tokens.start;
    let sums = [(c, (&*sum.dscores, wide), sum.db, to_b), (b, dturned.right(), sum.dc, to_c)];
    // Not a closure, which would be compiled without the features of the caller.
    for (x, right, sum, to) in sums {
        // Safe: B, C and the sums are readable at this size.
        unsafe {
            times((n, q, q), x.at().turned(), right, (&mut *sum, q), true, Limits::None);
            turn_into(rows(sum, q), (n, q), of_tokens.out());
        }
        for (t, x) in of_tokens.rows_mut((q, n)).enumerate() {
            // Safe: every chunk of a group has tokens and columns of its own.
            unsafe { to.slice(first + t, group.group * n, n) }.copy_from_slice(x);
        }
    }
}

#[inline(always)]
fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}
