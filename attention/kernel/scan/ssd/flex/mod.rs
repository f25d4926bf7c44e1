//! Mamba-2's scan on the CPU: matrix products out of packed panels, threads over rows and blocks of
//! heads of a group, which share the products of B and C.
//!
//! Which heads make a block does not depend on the machine, and sums over blocks keep their order:
//! two runs give the same bits.

mod backward;
mod forward;

pub(super) use backward::gradients;
pub(super) use forward::forward;

use super::Plan;
use super::autodiff::SsdTensors;
use crate::panels::{At, BAND, Limits, Panels, product, widest};
use crate::scan::Step;
use crate::scan::jobs::Job;
use crate::scan::rows::{Columns, Rows};
use burn::backend::Flex;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Most tokens of a chunk: its products stay in the second-level cache.
const CHUNK: usize = 64;
/// Most heads of a job.
const HEADS: usize = 4;
/// Jobs that there should be of a row.
const JOBS: usize = 6;
/// Calls of fewer multiplications run on one thread.
const PARALLEL_FROM: usize = 1 << 18;
/// Decays below this are nothing: as they shrink further they would be slow to compute with.
const NOTHING: f32 = 1e-30;

/// See [`ssd_memory`](crate::scan::ssd_memory).
pub(in crate::scan) fn memory(
    [b, t, h, p]: [usize; 4],
    [groups, n]: [usize; 2],
    chunk: usize,
    threads: usize,
) -> usize {
    let each = each(h / groups);
    let jobs = b * groups * (h / groups).div_ceil(each);
    let q = chunk.min(CHUNK).min(t).max(1);
    // Gradients of B and C of every job, and of the first state.
    let shared = jobs * 2 * t * n + b * n * h * p;
    // States before the chunks, and matrices of a chunk.
    let own = each * (t.div_ceil(q) + 1) * n * p + 5 * q * q + 6 * q * p + 2 * q * n;
    shared + threads.min(jobs) * own
}

/// Heads of a job.
fn each(of_group: usize) -> usize {
    (of_group / JOBS).clamp(1, HEADS)
}

/// A call: sizes, and the tensors as rows of numbers.
struct Call<'a> {
    plan: &'a Plan,
    batch: usize,
    len: usize,
    /// E
    channels: usize,
    p: usize,
    n: usize,
    chunk: usize,
    x: Rows,
    weight: Rows,
    log_decay: Rows,
    b: Rows,
    c: Rows,
    /// `[E]`, where the plan has it.
    d: FlexTensor,
    /// `[B, N, E]`
    h0: FlexTensor,
}

impl<'a> Call<'a> {
    fn new(x: SsdTensors<Flex>, plan: &'a Plan) -> Self {
        let (b, of_x) = (Rows::new(x.b), Rows::new(x.x));
        Self {
            plan,
            batch: of_x.batch,
            len: of_x.tokens,
            channels: of_x.width,
            p: of_x.width / plan.heads,
            n: b.width / plan.groups,
            chunk: plan.chunk.min(CHUNK),
            x: of_x,
            weight: Rows::new(x.weight),
            log_decay: Rows::new(x.log_decay),
            b,
            c: Rows::new(x.c),
            d: x.d.to_contiguous(),
            h0: x.h0.to_contiguous(),
        }
    }

    fn jobs(&self) -> Vec<Job> {
        let of_group = self.plan.heads / self.plan.groups;
        Job::all(self.batch, self.plan.groups, of_group, each(of_group))
    }

    /// Results of all jobs, in their order; everything inside `work` should inline.
    fn run<R: Send>(&self, work: impl Fn(&Job) -> R + Sync) -> Vec<R> {
        let worth = self.batch * self.len * self.channels * self.n >= PARALLEL_FROM;
        Job::run(&self.jobs(), worth, work)
    }

    /// The chunks of a row, in order: no padding, and tokens of one document.
    ///
    /// A product of matrices takes all of its tokens, and zero times what is no number is no number:
    /// documents that shared a chunk would reach each other.
    fn chunks(&self, row: usize) -> Vec<Chunk> {
        let mut chunks: Vec<Chunk> = Vec::new();
        for (t, step) in self.plan.steps.row(row).iter().enumerate() {
            let open = |c: &&mut Chunk| c.tokens.end == t && c.tokens.len() < self.chunk;
            match (step, chunks.last_mut().filter(open)) {
                (Step::Skip, _) => {}
                (Step::Next, Some(chunk)) => chunk.tokens.end += 1,
                _ => chunks.push(Chunk { tokens: t..t + 1, fresh: *step == Step::First }),
            }
        }
        chunks
    }

    /// B or C of a group, `[Q, N]`.
    fn group(&self, x: &Rows, job: &Job, tokens: &Range<usize>) -> At {
        let first = x.at(job.row, tokens.start)[job.group * self.n..].as_ptr();
        At { first, rows: x.stride(), columns: 1 }
    }

    /// D of a head's channels.
    fn skip(&self, head: usize) -> Option<&[f32]> {
        self.plan.skip.then(|| &self.d.storage::<f32>()[head * self.p..][..self.p])
    }

    /// The state that a head begins with, `[N, P]`.
    fn first_state(&self, job: &Job, head: usize) -> Vec<f32> {
        let h0 = self.h0.storage::<f32>();
        let at = |n: usize| (job.row * self.n + n) * self.channels + head * self.p;
        (0..self.n).flat_map(|n| h0[at(n)..][..self.p].iter().copied()).collect()
    }

    /// Decays and inputs of a head in a chunk.
    #[inline(always)]
    fn head(&self, job: &Job, head: usize, tokens: &Range<usize>) -> Head {
        let (p, q) = (self.p, tokens.len());
        let of_token = |x: &Rows, t: usize| x.at(job.row, t)[head];
        let each: Vec<f32> = tokens.clone().map(|t| of_token(&self.log_decay, t).exp()).collect();
        let mut decay = vec![0.0f32; q * q];
        let mut entered = Vec::with_capacity(q);
        let mut all = 1.0f32;
        for (i, each) in each.iter().enumerate() {
            let (past, row) = decay.split_at_mut(i * q);
            if i > 0 {
                let past = &past[(i - 1) * q..][..i];
                for (to, from) in row.iter_mut().zip(past) {
                    let x = from * each;
                    *to = if x < NOTHING { 0.0 } else { x };
                }
            }
            row[i] = 1.0;
            all *= each;
            all = if all < NOTHING { 0.0 } else { all };
            entered.push(all);
        }
        let left = decay[(q - 1) * q..].to_vec();
        let weight: Vec<f32> = tokens.clone().map(|t| of_token(&self.weight, t)).collect();
        let input = scaled(&of_head(&self.x, job, head, tokens, p), &weight);
        Head { decay, entered, left, all, weight, input }
    }
}

/// Tokens whose products are computed at once.
struct Chunk {
    tokens: Range<usize>,
    /// Whether a document begins here: what the state held is forgotten.
    fresh: bool,
}

/// What a head needs of a chunk of Q tokens.
struct Head {
    /// From token j to i, zero where j is later, `[Q, Q]`
    decay: Vec<f32>,
    /// From before the chunk to each token.
    entered: Vec<f32>,
    /// From each token to the chunk's end.
    left: Vec<f32>,
    /// Over the whole chunk.
    all: f32,
    weight: Vec<f32>,
    /// x times weight, `[Q, P]`
    input: Vec<f32>,
}

impl Head {
    /// The state behind the chunk, from the one before it: `[N, P]`.
    #[inline(always)]
    fn advance(&self, h: &mut [f32], b: At, n: usize) {
        let q = self.left.len();
        let p = self.input.len() / q;
        h.iter_mut().for_each(|h| *h *= self.all);
        let late = scaled(&self.input, &self.left);
        times((n, p, q), b.turned(), &packed(rows(&late, p), (q, p)), h, true, Limits::None);
    }
}

/// Rows of `x`, each times a factor.
#[inline(always)]
fn scaled(x: &[f32], factors: &[f32]) -> Vec<f32> {
    let mut out = x.to_vec();
    for (row, factor) in out.chunks_mut(x.len() / factors.len()).zip(factors) {
        row.iter_mut().for_each(|x| *x *= factor);
    }
    out
}

/// Sums of products of rows of this width.
#[inline(always)]
fn dots(a: &[f32], b: &[f32], width: usize) -> Vec<f32> {
    let dot = |(a, b): (&[f32], &[f32])| {
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
        let mut sums = [0.0f32; 8];
        for (a, b) in a.iter().zip(b) {
            for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                *sum += a * b;
            }
        }
        let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
        sums.iter().sum::<f32>() + rest
    };
    a.chunks(width).zip(b.chunks(width)).map(dot).collect()
}

/// Channels of a head, `[Q, P]`.
#[inline(always)]
fn of_head(x: &Rows, job: &Job, head: usize, tokens: &Range<usize>, p: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(tokens.len() * p);
    for t in tokens.clone() {
        out.extend_from_slice(&x.at(job.row, t)[head * p..][..p]);
    }
    out
}

fn rows(x: &[f32], width: usize) -> At {
    At { first: x.as_ptr(), rows: width, columns: 1 }
}

/// A right-hand side.
fn packed(x: At, size: (usize, usize)) -> Panels {
    // Safe: all callers name matrices of exactly this size.
    unsafe { Panels::pack(&[x], size, 1.0) }
}

/// The part of each band of rows up to the diagonal.
fn lower(q: usize) -> Vec<(usize, usize)> {
    (0..q.div_ceil(BAND)).map(|band| (0, ((band + 1) * BAND).min(q))).collect()
}

/// C `[m, n]` = A·B (+ C).
fn times(
    size: (usize, usize, usize),
    a: At,
    b: &Panels,
    c: &mut [f32],
    accumulate: bool,
    limits: Limits<'_>,
) {
    assert_eq!(c.len(), size.0 * size.1, "the product is {} by {}", size.0, size.1);
    widest(Times { size, a, b, c, accumulate, limits });
}

struct Times<'a> {
    size: (usize, usize, usize),
    a: At,
    b: &'a Panels,
    c: &'a mut [f32],
    accumulate: bool,
    limits: Limits<'a>,
}

impl WithSimd for Times<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (_, n, k) = self.size;
        let (b, c) = (self.b.rows(0, &(0..k)), (self.c.as_mut_ptr(), n));
        // Safe: A and B are matrices of this size, and C has just been measured.
        unsafe { product(simd, self.size, self.a, b, c, self.accumulate, self.limits) }
    }
}

/// Writes `x` `[rows, width]` to columns from `first` on, in rows from `row` on.
fn put(out: &Columns<'_>, row: usize, first: usize, width: usize, x: &[f32]) {
    for (i, x) in x.chunks(width).enumerate() {
        // Safe: jobs have rows and heads of their own.
        unsafe { out.slice(row + i, first, width) }.copy_from_slice(x);
    }
}
