//! Outputs and the last state.

use super::head::Head;
use super::shared::Scores;
use super::tile::{Tile, add_products, lower, scale, stride, times};
use super::{Call, Job};
use crate::panels::{Limits, widest};
use crate::scan::rows::Columns;
use crate::scan::ssd::{Plan, autodiff::SsdTensors};
use burn::backend::Flex;
use burn::tensor::TensorData;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};

/// y and the state behind it, `[B, T (+ N), E]`.
pub(in crate::scan::ssd) fn forward(x: SsdTensors<Flex>, plan: &Plan) -> FlexTensor {
    let call = Call::new(x, plan);
    let Call { batch, len, channels, n, .. } = call;
    let of_row = len + if plan.keep_state { n } else { 0 };
    let mut room = call.room(batch * of_row);
    let to = Columns::room(&mut room, channels);
    let (scores, jobs) = (Scores::new(&call), call.jobs());
    let own = || Own::new(&call);
    call.each(jobs.len(), own, |own, job| {
        let (call, job, scores, out) = (&call, &jobs[job], &scores, &to);
        widest(Block { own, call, job, scores, out, of_row });
    });
    // Safe: jobs have written all rows but those of padding, where there is any.
    let out = unsafe { room.written() };
    FlexTensor::from_data(TensorData::new(out, [batch, of_row, channels]))
}

/// What a thread computes in.
struct Own {
    head: Head,
    /// x times weight, `[Q, P]`
    input: Tile,
    /// `[Q, P]`
    y: Tile,
    /// Of each head of a job, `[N, P]`
    states: Vec<f32>,
}

/// What a job does.
struct Block<'a> {
    own: &'a mut Own,
    call: &'a Call<'a>,
    job: &'a Job,
    scores: &'a Scores,
    out: &'a Columns<'a>,
    /// Tokens of a row of the result, with the state behind them.
    of_row: usize,
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.own.block(simd, self.call, self.job, self.scores, self.out, self.of_row);
    }
}

impl Own {
    fn new(call: &Call<'_>) -> Self {
        let of_tokens = || Tile::new(call.chunk, call.p);
        let heads = super::each(call.plan.heads / call.plan.groups);
        let states = vec![0.0; heads * Tile::len(call.n, call.p)];
        Self { head: Head::new(call), input: of_tokens(), y: of_tokens(), states }
    }

    #[inline(always)]
    fn block<S: Simd>(
        &mut self,
        simd: S,
        call: &Call<'_>,
        job: &Job,
        scores: &Scores,
        out: &Columns<'_>,
        of_row: usize,
    ) {
        let (n, p) = (call.n, call.p);
        let of_state = Tile::len(n, p);
        for (head, h) in job.members.clone().zip(self.states.chunks_mut(of_state)) {
            call.first_state(job, head, h);
        }
        let chunks = &call.chunks[job.row];
        for (i, chunk) in chunks.iter().enumerate() {
            let tokens = &chunk.tokens;
            let q = tokens.len();
            let (b, c) = (call.group(&call.b, job, tokens), call.group(&call.c, job, tokens));
            let (scores, bands) = (scores.of(job, tokens), lower(q));
            let is_wanted = chunk.goes_on || (call.plan.keep_state && i + 1 == chunks.len());
            for (head, h) in job.members.clone().zip(self.states.chunks_mut(of_state)) {
                let next = call.next(job, head, tokens, chunks.get(i + 1));
                let of = &mut self.head;
                of.read(call, job, head, tokens);
                of.pair(simd, scores, q);
                if let Some((head, tokens)) = next {
                    call.head(&call.x, job, head, tokens).ahead();
                }
                let x = call.head(&call.x, job, head, tokens);
                x.scaled_into(simd, &of.weight[..q], &mut self.input);
                if !chunk.fresh {
                    // Safe: C is readable at this size.
                    let (c, h) = (c.at(), (&*h, stride(p)));
                    unsafe { times((q, p, n), c, h, self.y.out(), false, Limits::None) };
                    for (y, entered) in self.y.rows_mut((q, p)).zip(&of.entered) {
                        scale(simd, y, *entered);
                    }
                }
                let (input, depth) = (self.input.right(), Limits::Depth(&bands, 0));
                // Safe: pairs of the chunk's tokens.
                unsafe {
                    times((q, p, q), of.mixed.at(), input, self.y.out(), !chunk.fresh, depth)
                };
                for (t, y) in self.y.rows_mut((q, p)).enumerate() {
                    if let Some(d) = call.skip(head) {
                        add_products(simd, y, x.row(t), d);
                    }
                    // Safe: jobs have rows and heads of their own.
                    unsafe { out.write(job.row * of_row + tokens.start + t, head * p, y) };
                }
                if is_wanted {
                    for (x, left) in self.input.rows_mut((q, p)).zip(&of.left) {
                        scale(simd, x, *left);
                    }
                    if !chunk.fresh {
                        for h in h.chunks_exact_mut(stride(p)) {
                            scale(simd, &mut h[..p], of.all);
                        }
                    }
                    let (b, late) = (b.at().turned(), self.input.right());
                    // Safe: B is readable at this size.
                    unsafe {
                        times((n, p, q), b, late, (h, stride(p)), !chunk.fresh, Limits::None)
                    };
                }
            }
        }
        if call.plan.keep_state {
            for (head, h) in job.members.clone().zip(self.states.chunks(of_state)) {
                for (i, h) in h.chunks(stride(p)).enumerate() {
                    // Safe: jobs have rows and heads of their own.
                    unsafe { out.write(job.row * of_row + call.len + i, head * p, &h[..p]) };
                }
            }
        }
    }
}
