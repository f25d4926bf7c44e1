//! The selective scan on the CPU: sixteen channels side by side, threads over rows and blocks of
//! channels.
//!
//! Forward, the states of a block of channels stay in the first-level cache, and what they were at
//! the beginnings of spans of tokens is kept for the backward pass. Backward, a span's states are
//! computed again and kept in the second-level cache while the span is gone through from its end.
//! Which channels make a block does not depend on the machine, and sums over blocks keep their
//! order: two runs give the same bits.
// Lanes of several arrays go side by side.
#![allow(clippy::needless_range_loop)]

mod backward;
mod forward;

pub(super) use backward::gradients;
pub(super) use forward::forward;

use super::Plan;
use super::autodiff::ScanTensors;
use crate::scan::jobs::Job;
use crate::scan::rows::{Columns, Rows};
use crate::simd::{exp2_any, softplus};
use burn::backend::Flex;
use burn_flex::FlexTensor;

/// Channels that are computed side by side.
const LANES: usize = 16;
/// Channels of a job.
const BLOCK: usize = 64;
/// Tokens from one kept state to the next.
const SPAN: usize = 32;
/// Fewer state updates than this run on one thread.
const PARALLEL_FROM: usize = 1 << 15;

type Lanes = [f32; LANES];

/// See [`selective_memory`](crate::scan::selective_memory).
pub(in crate::scan) fn memory([b, t, e]: [usize; 3], n: usize, threads: usize) -> (usize, usize) {
    let jobs = b * e.div_ceil(BLOCK);
    // A as rows, gradients of B and C of every job, of A and D, and of the first state.
    let shared = n * e + jobs * 2 * t * n + b * e * (n + 1) + b * n * e;
    // What a job keeps of a span, and of its runs of channels.
    let own = ((SPAN + 1) * n + 3 * SPAN * n) * LANES + 4 * n * BLOCK;
    (b * t.div_ceil(SPAN) * n * e, shared + threads.min(jobs) * own)
}

/// A call: sizes, and the tensors as rows of numbers.
struct Call<'a> {
    plan: &'a Plan,
    batch: usize,
    len: usize,
    channels: usize,
    n: usize,
    u: Rows,
    delta: Rows,
    /// `[N, E]`
    a: FlexTensor,
    b: Rows,
    c: Rows,
    d: FlexTensor,
    z: Rows,
    h0: FlexTensor,
}

impl<'a> Call<'a> {
    fn new(x: ScanTensors<Flex>, plan: &'a Plan) -> Self {
        let (u, a) = (Rows::new(x.u), x.a.to_contiguous());
        Self {
            plan,
            batch: u.batch,
            len: u.tokens,
            channels: u.width,
            n: a.layout().shape()[0],
            u,
            delta: Rows::new(x.delta),
            a,
            b: Rows::new(x.b),
            c: Rows::new(x.c),
            d: x.d.to_contiguous(),
            z: Rows::new(x.z),
            h0: x.h0.to_contiguous(),
        }
    }

    fn jobs(&self) -> Vec<Job> {
        Job::all(self.batch, self.plan.groups, self.channels / self.plan.groups, BLOCK)
    }

    /// Results of all jobs, in their order.
    fn run<R: Send>(&self, work: impl Fn(&Job) -> R + Sync) -> Vec<R> {
        let worth = self.batch * self.len * self.channels * self.n >= PARALLEL_FROM;
        Job::run(&self.jobs(), worth, work)
    }

    /// `[N, E]` of `x` from channel `first` on, `width` of them, times `factor`; zeros beyond.
    #[inline(always)]
    fn states_of(&self, x: &[f32], first: usize, width: usize, factor: f32, out: &mut [Lanes]) {
        for (n, out) in out.iter_mut().enumerate() {
            *out = lanes(&x[n * self.channels + first..][..width]);
            out.iter_mut().for_each(|x| *x *= factor);
        }
    }

    /// Δ of `width` channels at a token, after softplus.
    #[inline(always)]
    fn step(&self, raw: &Lanes) -> Lanes {
        let mut delta = *raw;
        if self.plan.softplus {
            delta.iter_mut().for_each(|x| *x = softplus(*x));
        }
        delta
    }

    /// B and C of a group at a token.
    #[inline(always)]
    fn group<'b>(&'b self, x: &'b Rows, job: &Job, t: usize) -> &'b [f32] {
        &x.at(job.row, t)[job.group * self.n..][..self.n]
    }
}

/// Up to sixteen numbers; zeros beyond.
#[inline(always)]
fn lanes(x: &[f32]) -> Lanes {
    match x.try_into() {
        Ok(all) => all,
        Err(_) => {
            let mut out = [0.0; LANES];
            out[..x.len()].copy_from_slice(x);
            out
        }
    }
}

/// Writes the lanes of `x` that belong to channels.
#[inline(always)]
fn put(out: &Columns, token: usize, first: usize, width: usize, x: &Lanes) {
    // Safe: jobs have channels of their own.
    unsafe { out.slice(token, first, width) }.copy_from_slice(&x[..width]);
}

/// h = exp2(Δ·A) h + (Δ u) B for all N; `a` in units of log 2. Leaves the decays in `decay`.
#[inline(always)]
fn advance(
    h: &mut [Lanes],
    decay: &mut [Lanes],
    a: &[Lanes],
    b: &[f32],
    (delta, input): (&Lanes, &Lanes),
) {
    for (((h, decay), a), b) in h.iter_mut().zip(decay).zip(a).zip(b) {
        for l in 0..LANES {
            decay[l] = exp2_any(delta[l] * a[l]);
            h[l] = decay[l] * h[l] + input[l] * b;
        }
    }
}
