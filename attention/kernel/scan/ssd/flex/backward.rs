//! Gradients: states once more from the first chunk on, then chunks from the last to the first.

use super::{
    Call, Chunk, Job, PARALLEL_FROM, dots, lower, of_head, packed, put, rows, scaled, times,
};
use crate::panels::{At, Limits, Panels};
use crate::room::{filled, zeroed};
use crate::scan::rows::{Columns, Rows};
use crate::scan::ssd::{Plan, autodiff::SsdTensors};
use crate::simd::vectorized;
use burn::backend::Flex;
use burn::tensor::TensorData;
use burn_flex::FlexTensor;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Where a job writes alone: rows `[B, T]`, `[B, N]` for the first state, and `[B]` for D.
struct Own<'a> {
    x: Columns<'a>,
    weight: Columns<'a>,
    log_decay: Columns<'a>,
    d: Columns<'a>,
    h0: Columns<'a>,
}

/// Gradients of all inputs; see [`SsdTensors`].
pub(in crate::scan::ssd) fn gradients(
    x: SsdTensors<Flex>,
    dout: FlexTensor,
    plan: &Plan,
) -> SsdTensors<Flex> {
    let call = Call::new(x, plan);
    let Call { batch, len, channels, n, .. } = call;
    let dout = Rows::new(dout);
    let zeros = |size: usize| vec![0.0f32; size];
    let (mut dx, mut dh0) = (zeros(batch * len * channels), zeros(batch * n * channels));
    let (mut dweight, mut dlog) =
        (zeros(batch * len * plan.heads), zeros(batch * len * plan.heads));
    let mut dd = zeros(batch * channels);
    let own = Own {
        x: Columns::new(&mut dx, channels),
        weight: Columns::new(&mut dweight, plan.heads),
        log_decay: Columns::new(&mut dlog, plan.heads),
        d: Columns::new(&mut dd, channels),
        h0: Columns::new(&mut dh0, channels),
    };
    let parts = call.run(|job| {
        vectorized(
            #[inline(always)]
            || block(&call, job, &dout, &own),
        )
    });
    let width = plan.groups * n;
    let (of_b, of_c): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let (db, dc) = (over_jobs(&call, &of_b), over_jobs(&call, &of_c));
    let dd: Vec<f32> = match plan.skip {
        true => (0..channels).map(|e| dd.iter().skip(e).step_by(channels).sum()).collect(),
        false => zeros(1),
    };
    let of_d = dd.len();
    let tensor =
        |data: Vec<f32>, shape: [usize; 3]| FlexTensor::from_data(TensorData::new(data, shape));
    SsdTensors {
        x: tensor(dx, [batch, len, channels]),
        weight: tensor(dweight, [batch, len, plan.heads]),
        log_decay: tensor(dlog, [batch, len, plan.heads]),
        b: tensor(db, [batch, len, width]),
        c: tensor(dc, [batch, len, width]),
        d: FlexTensor::from_data(TensorData::new(dd, [of_d])),
        h0: tensor(dh0, [batch, n, channels]),
    }
}

/// Sums over jobs, in their order, of what each has for its row and group: `[T, N]` -> `[B, T, G·N]`
fn over_jobs(call: &Call<'_>, of_jobs: &[Vec<f32>]) -> Vec<f32> {
    const TOKENS: usize = 128;
    let (jobs, n, width) = (call.jobs(), call.n, call.plan.groups * call.n);
    let write = |part: usize, out: &mut [MaybeUninit<f32>]| {
        for (i, out) in zeroed(out).chunks_mut(width).enumerate() {
            let (row, t) = ((part * TOKENS + i) / call.len, (part * TOKENS + i) % call.len);
            for (job, from) in jobs.iter().zip(of_jobs).filter(|(job, _)| job.row == row) {
                let out = &mut out[job.group * n..][..n];
                out.iter_mut().zip(&from[t * n..]).for_each(|(out, x)| *out += x);
            }
        }
    };
    let size = call.batch * call.len * width;
    // Safe: every part is cleared.
    unsafe { filled(size, TOKENS * width, size >= PARALLEL_FROM, write) }
}

/// What a head has on its way back.
struct Past {
    /// Before each chunk; none where a document begins.
    states: Vec<Option<Vec<f32>>>,
    /// Gradient of the state behind the chunks that are left.
    carry: Vec<f32>,
}

/// Gradients of B and C, `[T, N]` each, over the job's heads.
#[inline(always)]
fn block(call: &Call<'_>, job: &Job, dout: &Rows, own: &Own<'_>) -> (Vec<f32>, Vec<f32>) {
    let (n, p, len) = (call.n, call.p, call.len);
    let chunks = call.chunks(job.row);
    let mut heads = Vec::new();
    for head in job.members.clone() {
        let mut states = Vec::with_capacity(chunks.len());
        let mut h = call.first_state(job, head);
        for (i, Chunk { tokens, fresh }) in chunks.iter().enumerate() {
            states.push((!fresh).then(|| h.clone()));
            if *fresh {
                h.fill(0.0);
            }
            if chunks.get(i + 1).is_some_and(|next| !next.fresh) {
                let b = call.group(&call.b, job, tokens);
                call.head(job, head, tokens).advance(&mut h, b, n);
            }
        }
        let last = |n: usize| dout.at(job.row, len + n)[head * p..][..p].iter().copied();
        let carry = match call.plan.keep_state {
            true => (0..n).flat_map(last).collect(),
            false => vec![0.0; n * p],
        };
        heads.push(Past { states, carry });
    }
    let (mut db, mut dc) = (vec![0.0f32; len * n], vec![0.0f32; len * n]);
    for (i, Chunk { tokens, .. }) in chunks.iter().enumerate().rev() {
        let place = tokens.start * n..tokens.end * n;
        let mut products = Products::new(call, job, tokens, &mut db[place.clone()], &mut dc[place]);
        for (head, past) in job.members.clone().zip(&mut heads) {
            products.head(head, past.states[i].as_deref(), &mut past.carry, dout, own);
        }
        products.finish();
    }
    for (head, past) in job.members.clone().zip(&heads) {
        put(&own.h0, job.row * n, head * p, p, &past.carry);
    }
    (db, dc)
}

/// What the heads of a job share in a chunk of Q tokens.
struct Products<'a> {
    call: &'a Call<'a>,
    job: &'a Job,
    tokens: &'a Range<usize>,
    /// `[Q, N]`
    b: At,
    c: At,
    bands: Vec<(usize, usize)>,
    /// C Bᵀ, and the sum of its gradients over heads, `[Q, Q]`
    scores: Vec<f32>,
    dscores: Vec<f32>,
    /// `[Q, N]`
    db: &'a mut [f32],
    dc: &'a mut [f32],
}

impl<'a> Products<'a> {
    fn new(
        call: &'a Call<'a>,
        job: &'a Job,
        tokens: &'a Range<usize>,
        db: &'a mut [f32],
        dc: &'a mut [f32],
    ) -> Self {
        let (q, n) = (tokens.len(), call.n);
        let (b, c) = (call.group(&call.b, job, tokens), call.group(&call.c, job, tokens));
        let (bands, mut scores) = (lower(q), vec![0.0f32; q * q]);
        let b_turned = packed(b.turned(), (n, q));
        times((q, q, n), c, &b_turned, &mut scores, false, Limits::Columns(&bands, 0));
        let dscores = vec![0.0f32; q * q];
        Self { call, job, tokens, b, c, bands, scores, dscores, db, dc }
    }

    /// `h` is the state before the chunk, if the document has one; `carry` the gradient of the one
    /// behind it, and then of the one before.
    #[inline(always)]
    fn head(
        &mut self,
        head: usize,
        h: Option<&[f32]>,
        carry: &mut [f32],
        dout: &Rows,
        own: &Own<'_>,
    ) {
        let Self { call, job, tokens, b, c, .. } = *self;
        let (q, n, p) = (tokens.len(), call.n, call.p);
        let of = call.head(job, head, tokens);
        let mut mixed = of.decay.clone();
        mixed.iter_mut().zip(&self.scores).for_each(|(m, s)| *m *= s);
        let dy = of_head(dout, job, head, tokens, p);
        let straight =
            |x: &[f32], rows_of: usize, width: usize| packed(rows(x, width), (rows_of, width));
        let turned = |x: &[f32], rows_of: usize, width: usize| -> Panels {
            packed(rows(x, width).turned(), (width, rows_of))
        };

        // The input's gradient through the state behind the chunk, and through the chunk's outputs.
        let mut dinput = vec![0.0f32; q * p];
        times((q, p, n), b, &straight(carry, n, p), &mut dinput, false, Limits::None);
        for (x, left) in dinput.chunks_mut(p).zip(&of.left) {
            x.iter_mut().for_each(|x| *x *= left);
        }
        let passed = dots(&dinput, &of.input, p);
        times(
            (q, p, q),
            rows(&mixed, q).turned(),
            &straight(&dy, q, p),
            &mut dinput,
            true,
            Limits::None,
        );

        // Pairs of tokens: (C Bᵀ) ∘ L, and its gradient.
        let mut dmixed = vec![0.0f32; q * q];
        let of_input = turned(&of.input, q, p);
        times(
            (q, q, p),
            rows(&dy, p),
            &of_input,
            &mut dmixed,
            false,
            Limits::Columns(&self.bands, 0),
        );
        let mut dlog = vec![0.0f32; q];
        for i in 0..q {
            let row = i * q..i * q + i + 1;
            let d = &dmixed[row.clone()];
            // A pair (i, j) passes the decays of j + 1 ..= i. Sums of pairs, never differences of
            // sums, which would lose what is small.
            let mut crossing = 0.0;
            for ((dlog, d), m) in dlog.iter_mut().zip(d).zip(&mixed[row.clone()]) {
                *dlog += crossing;
                crossing += d * m;
            }
            let pairs = d.iter().zip(&of.decay[row.clone()]);
            for (ds, (d, l)) in self.dscores[row].iter_mut().zip(pairs) {
                *ds += d * l;
            }
        }

        // Through the state before the chunk, and into the one behind it.
        let late = scaled(&of.input, &of.left);
        times((q, n, p), rows(&late, p), &turned(carry, n, p), self.db, true, Limits::None);
        let (mut whole, mut ends) = (0.0, vec![0.0f32; q]);
        if let Some(h) = h {
            let early = scaled(&dy, &of.entered);
            let mut read = vec![0.0f32; q * n];
            times((q, n, p), rows(&early, p), &turned(h, n, p), &mut read, false, Limits::None);
            for (t, ((read, dc), end)) in
                read.chunks(n).zip(self.dc.chunks_mut(n)).zip(&mut ends).enumerate()
            {
                let c = &call.c.at(job.row, tokens.start + t)[job.group * n..][..n];
                for ((read, dc), c) in read.iter().zip(dc).zip(c) {
                    *dc += read;
                    *end += read * c;
                }
            }
            whole = carry.iter().zip(h).map(|(a, b)| a * b).sum::<f32>() * of.all;
            carry.iter_mut().for_each(|x| *x *= of.all);
            times((n, p, q), c.turned(), &straight(&early, q, p), carry, true, Limits::None);
        } else {
            carry.fill(0.0);
        }

        let (mut before, mut behind) = (whole, 0.0);
        for (dlog, passed) in dlog.iter_mut().zip(&passed) {
            *dlog += before;
            before += passed;
        }
        for (dlog, end) in dlog.iter_mut().zip(&ends).rev() {
            behind += end;
            *dlog += behind;
        }
        let row = job.row * call.len + tokens.start;
        put(&own.log_decay, row, head, 1, &dlog);
        let x = of_head(&call.x, job, head, tokens, p);
        put(&own.weight, row, head, 1, &dots(&dinput, &x, p));
        let mut dx = scaled(&dinput, &of.weight);
        if let Some(d) = call.skip(head) {
            // Safe: jobs have rows and heads of their own.
            let dd = unsafe { own.d.slice(job.row, head * p, p) };
            for ((dx, dy), x) in dx.chunks_mut(p).zip(dy.chunks(p)).zip(x.chunks(p)) {
                for ((((dx, dy), x), d), dd) in dx.iter_mut().zip(dy).zip(x).zip(d).zip(&mut *dd) {
                    *dx += dy * d;
                    *dd += dy * x;
                }
            }
        }
        put(&own.x, row, head * p, p, &dx);
    }

    /// Gradients of B and C through their product.
    fn finish(self) {
        let (q, n) = (self.tokens.len(), self.call.n);
        let (b, c) = (packed(self.b, (q, n)), packed(self.c, (q, n)));
        let depth = Limits::Depth(&self.bands, 0);
        times((q, n, q), rows(&self.dscores, q), &b, self.dc, true, depth);
        times((q, n, q), rows(&self.dscores, q).turned(), &c, self.db, true, Limits::None);
    }
}
