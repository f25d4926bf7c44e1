//! Mamba-2's scan on the CPU: matrix products of panels, threads over rows and blocks of heads of a
//! group. The product of B and C is computed once for all heads of a group, chunk by chunk, and so are
//! the gradients that come through it.
//!
//! A thread has one set of matrices for all chunks and heads. Their rows are whole panels, so that one
//! is the left or the right side of a product where it lies; what must be turned for that, tokens of a
//! head and never its state, is turned once per pass.
//!
//! Which heads make a block does not depend on the machine, and sums over blocks keep their order:
//! two runs give the same bits.

mod backward;
mod forward;
mod head;
mod shared;
mod tile;

pub(super) use backward::gradients;
pub(super) use forward::forward;

use super::Plan;
use super::autodiff::SsdTensors;
use crate::room::{Room, zeroed};
use crate::scan::Step;
use crate::scan::jobs::Job;
use crate::scan::rows::Rows;
use crate::threads;
use burn::backend::Flex;
use burn_flex::FlexTensor;
use std::ops::Range;
use tile::{Lines, Tile};

/// Most tokens of a chunk: its products stay in the second-level cache.
const CHUNK: usize = 64;
/// Most heads of a job.
const HEADS: usize = 4;
/// Jobs that there should be of a row.
const JOBS: usize = 6;
/// Calls of fewer multiplications run on one thread.
const PARALLEL_FROM: usize = 1 << 18;

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
    let wide = tile::stride(q);
    // C Bᵀ, what every job adds to the gradients of B, C and their product, and that of the first state.
    let shared = b * groups * t * wide + jobs * t * (2 * n + wide) + b * n * h * p;
    // States before the chunks, and matrices of a chunk.
    let own = each * (t.div_ceil(q) + 1) * Tile::len(n, p) + backward::tiles([q, p, n]);
    shared + threads.min(jobs) * own
}

/// Heads of a job.
fn each(of_group: usize) -> usize {
    of_group.div_ceil(JOBS).clamp(1, HEADS)
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
    /// Most tokens of a chunk.
    chunk: usize,
    /// Numbers from row to row of a matrix of pairs of tokens.
    wide: usize,
    /// The chunks of each row.
    chunks: Vec<Vec<Chunk>>,
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
        let chunk = plan.chunk.min(CHUNK).min(of_x.tokens);
        Self {
            plan,
            batch: of_x.batch,
            len: of_x.tokens,
            channels: of_x.width,
            p: of_x.width / plan.heads,
            n: b.width / plan.groups,
            chunk,
            wide: tile::stride(chunk),
            chunks: (0..of_x.batch).map(|row| chunks(plan.steps.row(row), chunk)).collect(),
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

    /// Every chunk of every group, with all heads.
    fn pieces(&self) -> Vec<(Job, Range<usize>)> {
        let of_group = self.plan.heads / self.plan.groups;
        let groups = Job::all(self.batch, self.plan.groups, of_group, of_group);
        let chunks = |job: Job| {
            let of_row = &self.chunks[job.row];
            of_row.iter().map(move |chunk| (job.clone(), chunk.tokens.clone()))
        };
        groups.into_iter().flat_map(chunks).collect()
    }

    /// Runs `work` for each number below `count` with what its thread has.
    fn each<T>(
        &self,
        count: usize,
        own: impl Fn() -> T + Sync,
        work: impl Fn(&mut T, usize) + Sync,
    ) {
        if self.batch * self.len * self.channels * self.n >= PARALLEL_FROM {
            threads::each_with(count, own, work);
        } else {
            let mut own = own();
            (0..count).for_each(|i| work(&mut own, i));
        }
    }

    /// Columns of a chunk's tokens.
    #[inline(always)]
    fn lines<'b>(
        &self,
        x: &'b Rows,
        job: &Job,
        tokens: &Range<usize>,
        first: usize,
        width: usize,
    ) -> Lines<'b> {
        Lines::new(x, job.row, tokens, first, width)
    }

    /// B or C of a group, `[Q, N]`.
    #[inline(always)]
    fn group<'b>(&self, x: &'b Rows, job: &Job, tokens: &Range<usize>) -> Lines<'b> {
        self.lines(x, job, tokens, job.group * self.n, self.n)
    }

    /// x, or the gradient of y, of a head, `[Q, P]`.
    #[inline(always)]
    fn head<'b>(&self, x: &'b Rows, job: &Job, head: usize, tokens: &Range<usize>) -> Lines<'b> {
        self.lines(x, job, tokens, head * self.p, self.p)
    }

    /// The head and tokens that a job comes to behind `head` in a chunk, `then` being its next chunk.
    fn next<'b>(
        &self,
        job: &Job,
        head: usize,
        tokens: &'b Range<usize>,
        then: Option<&'b Chunk>,
    ) -> Option<(usize, &'b Range<usize>)> {
        match head + 1 < job.members.end {
            true => Some((head + 1, tokens)),
            false => then.map(|chunk| (job.members.start, &chunk.tokens)),
        }
    }

    /// Room for rows of channels, cleared where there is padding, which no job writes.
    fn room(&self, rows: usize) -> Room {
        let mut room = Room::new(rows * self.channels);
        if self.plan.steps.has_padding() {
            room.parts(usize::MAX).for_each(|all| _ = zeroed(all));
        }
        room
    }

    /// D of a head's channels.
    fn skip(&self, head: usize) -> Option<&[f32]> {
        self.plan.skip.then(|| &self.d.storage::<f32>()[head * self.p..][..self.p])
    }

    /// The state that a head begins with, `[N, P]`, in rows of whole panels.
    fn first_state(&self, job: &Job, head: usize, to: &mut [f32]) {
        let h0 = self.h0.storage::<f32>();
        for (n, to) in to.chunks_mut(tile::stride(self.p)).enumerate() {
            let at = (job.row * self.n + n) * self.channels + head * self.p;
            to[..self.p].copy_from_slice(&h0[at..][..self.p]);
        }
    }
}

/// Tokens whose products are computed at once.
#[derive(Clone)]
struct Chunk {
    tokens: Range<usize>,
    /// Whether a document begins here: what the state held is forgotten.
    fresh: bool,
    /// Whether the state behind it is needed by the next one.
    goes_on: bool,
}

/// The chunks of a row, in order: no padding, and tokens of one document.
///
/// A product of matrices takes all of its tokens, and zero times what is no number is no number:
/// documents that shared a chunk would reach each other.
fn chunks(steps: &[Step], most: usize) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    for (t, step) in steps.iter().enumerate() {
        let open = |c: &&mut Chunk| c.tokens.end == t && c.tokens.len() < most;
        match (step, chunks.last_mut().filter(open)) {
            (Step::Skip, _) => {}
            (Step::Next, Some(chunk)) => chunk.tokens.end += 1,
            _ => {
                let fresh = *step == Step::First;
                if let Some(last) = chunks.last_mut() {
                    last.goes_on = !fresh;
                }
                chunks.push(Chunk { tokens: t..t + 1, fresh, goes_on: false });
            }
        }
    }
    chunks
}
