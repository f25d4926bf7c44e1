//! Gradients: spans from the last to the first, tokens of a span from its end.

use super::{Call, Job, LANES, Lanes, SPAN, advance, lanes, put};
use crate::scan::Step;
use crate::scan::rows::{Columns, Rows};
use crate::scan::selective::{Plan, autodiff::ScanTensors};
use crate::simd::{sigmoid, vectorized};
use burn::backend::Flex;
use burn::tensor::TensorData;
use burn_flex::FlexTensor;
use std::f32::consts::{LN_2, LOG2_E};

/// What a job adds to gradients that others add to, too.
struct Shared {
    /// `[T, N]` each
    b: Vec<f32>,
    c: Vec<f32>,
    /// `[N, channels of the job]`
    a: Vec<f32>,
    /// Of the job's channels.
    d: Vec<f32>,
}

/// Where a job writes alone: rows `[B, T]`, and `[B, N]` for the first state.
struct Own<'a> {
    u: Columns<'a>,
    delta: Columns<'a>,
    z: Columns<'a>,
    h0: Columns<'a>,
}

/// Gradients of all inputs; see [`ScanTensors`].
pub(in crate::scan::selective) fn gradients(
    x: ScanTensors<Flex>,
    states: FlexTensor,
    dout: FlexTensor,
    plan: &Plan,
) -> ScanTensors<Flex> {
    let call = Call::new(x, plan);
    let Call { batch, len, channels, n, .. } = call;
    let (states, dout) = (states.to_contiguous(), Rows::new(dout));
    let size = batch * len * channels;
    let (mut du, mut ddelta) = (vec![0.0f32; size], vec![0.0f32; size]);
    let mut dz = vec![0.0f32; if plan.gate { size } else { 1 }];
    let mut dh0 = vec![0.0f32; batch * n * channels];
    let own = Own {
        u: Columns::new(&mut du, channels),
        delta: Columns::new(&mut ddelta, channels),
        z: Columns::new(&mut dz, channels),
        h0: Columns::new(&mut dh0, channels),
    };
    let parts = call.run(|job| {
        vectorized(
            #[inline(always)]
            || block(&call, job, states.storage(), &dout, &own),
        )
    });
    let width = plan.groups * n;
    let (mut db, mut dc) = (vec![0.0f32; batch * len * width], vec![0.0f32; batch * len * width]);
    let (mut da, mut dd) = (vec![0.0f32; n * channels], vec![0.0f32; channels]);
    for (job, part) in call.jobs().into_iter().zip(parts) {
        for (to, from) in [(&mut db, &part.b), (&mut dc, &part.c)] {
            for (t, from) in from.chunks(n).enumerate() {
                let to = &mut to[(job.row * len + t) * width + job.group * n..][..n];
                to.iter_mut().zip(from).for_each(|(to, x)| *to += x);
            }
        }
        let of_job = job.members.len();
        for (to, from) in da.chunks_mut(channels).zip(part.a.chunks(of_job)) {
            to[job.members.clone()].iter_mut().zip(from).for_each(|(to, x)| *to += x);
        }
        dd[job.members].iter_mut().zip(&part.d).for_each(|(to, x)| *to += x);
    }
    let tensor = |data: Vec<f32>, shape: &[usize]| {
        FlexTensor::from_data(TensorData::new(data, shape.to_vec()))
    };
    let rows = [batch, len, channels];
    ScanTensors {
        u: tensor(du, &rows),
        delta: tensor(ddelta, &rows),
        a: tensor(da, &[n, channels]),
        b: tensor(db, &[batch, len, width]),
        c: tensor(dc, &[batch, len, width]),
        d: if plan.skip { tensor(dd, &[channels]) } else { tensor(vec![0.0], &[1]) },
        z: if plan.gate { tensor(dz, &rows) } else { tensor(vec![0.0], &[1, 1, 1]) },
        h0: tensor(dh0, &[batch, n, channels]),
    }
}

/// What a job keeps of a span, and from span to span for each of its runs of lanes.
struct Work {
    /// States before the first token and behind every one, `[SPAN + 1, N]`.
    h: Vec<Lanes>,
    /// `[SPAN, N]`
    decay: Vec<Lanes>,
    /// Sums over the job's channels that are not added up over lanes yet, `[SPAN, N]`.
    db: Vec<Lanes>,
    dc: Vec<Lanes>,
    /// Of each run of lanes, `[N]`: A in units of log 2, gradient of the state behind the tokens that
    /// were seen, gradient of A over all spans and over this one.
    runs: Vec<[Vec<Lanes>; 4]>,
    dd: Vec<Lanes>,
    /// The state before a document, `[N]`.
    nothing: Vec<Lanes>,
}

#[inline(always)]
fn block(call: &Call<'_>, job: &Job, states: &[f32], dout: &Rows, own: &Own<'_>) -> Shared {
    let (n, len, channels) = (call.n, call.len, call.channels);
    let zero = |count: usize| vec![[0.0f32; LANES]; count];
    let starts: Vec<usize> = job.members.clone().step_by(LANES).collect();
    let mut work = Work {
        h: zero((SPAN + 1) * n),
        decay: zero(SPAN * n),
        db: zero(SPAN * n),
        dc: zero(SPAN * n),
        runs: starts.iter().map(|_| [zero(n), zero(n), zero(n), zero(n)]).collect(),
        dd: zero(starts.len()),
        nothing: zero(n),
    };
    let width = |first: usize| (job.members.end - first).min(LANES);
    for (run, &first) in work.runs.iter_mut().zip(&starts) {
        call.states_of(call.a.storage(), first, width(first), LOG2_E, &mut run[0]);
        if call.plan.keep_state {
            for (n, carry) in run[1].iter_mut().enumerate() {
                *carry = lanes(&dout.at(job.row, len + n)[first..][..width(first)]);
            }
        }
    }
    let (mut db, mut dc) = (vec![0.0f32; len * n], vec![0.0f32; len * n]);
    let spans = len.div_ceil(SPAN);
    for span in (0..spans).rev() {
        let tokens = span * SPAN..((span + 1) * SPAN).min(len);
        work.db[..tokens.len() * n].fill([0.0; LANES]);
        work.dc[..tokens.len() * n].fill([0.0; LANES]);
        let before = &states[(job.row * spans + span) * n * channels..];
        for (run, &first) in starts.iter().enumerate() {
            let place = Place { call, job, run, first, width: width(first), start: tokens.start };
            call.states_of(before, first, place.width, 1.0, &mut work.h[..n]);
            place.again(&mut work, tokens.len());
            place.backward(&mut work, tokens.len(), dout, own);
        }
        for (sums, lanes) in [(&mut db, &work.db), (&mut dc, &work.dc)] {
            let sums = &mut sums[tokens.start * n..tokens.end * n];
            sums.iter_mut().zip(lanes).for_each(|(sum, lanes)| *sum = total(lanes));
        }
    }
    let of_job = job.members.len();
    let (mut da, mut dd) = (vec![0.0f32; n * of_job], vec![0.0f32; of_job]);
    for ((run, d), &first) in work.runs.iter().zip(&work.dd).zip(&starts) {
        let (from, width) = (first - job.members.start, width(first));
        for (n, (carry, a)) in run[1].iter().zip(&run[2]).enumerate() {
            put(&own.h0, job.row * call.n + n, first, width, carry);
            da[n * of_job + from..][..width].copy_from_slice(&a[..width]);
        }
        dd[from..][..width].copy_from_slice(&d[..width]);
    }
    Shared { b: db, c: dc, a: da, d: dd }
}

/// One run of lanes in one span.
struct Place<'a> {
    call: &'a Call<'a>,
    job: &'a Job,
    run: usize,
    first: usize,
    width: usize,
    start: usize,
}

impl Place<'_> {
    #[inline(always)]
    fn at(&self, x: &Rows, t: usize) -> Lanes {
        lanes(&x.at(self.job.row, self.start + t)[self.first..][..self.width])
    }

    /// The span's states and decays once more.
    #[inline(always)]
    fn again(&self, work: &mut Work, tokens: usize) {
        let (call, n) = (self.call, self.call.n);
        let steps = &call.plan.steps.row(self.job.row)[self.start..];
        for t in 0..tokens {
            let (past, h) = work.h[t * n..][..2 * n].split_at_mut(n);
            h.copy_from_slice(past);
            if steps[t] == Step::Skip {
                continue;
            }
            let (u, delta) = (self.at(&call.u, t), call.step(&self.at(&call.delta, t)));
            let mut input = [0.0; LANES];
            for l in 0..LANES {
                input[l] = delta[l] * u[l];
            }
            if steps[t] == Step::First {
                h.fill([0.0; LANES]);
            }
            let decay = &mut work.decay[t * n..][..n];
            let b = call.group(&call.b, self.job, self.start + t);
            advance(h, decay, &work.runs[self.run][0], b, (&delta, &input));
        }
    }

    #[inline(always)]
    fn backward(&self, work: &mut Work, tokens: usize, dout: &Rows, own: &Own<'_>) {
        let (call, job, n) = (self.call, self.job, self.call.n);
        let plan = call.plan;
        let steps = &plan.steps.row(job.row)[self.start..];
        let d = if plan.skip {
            lanes(&call.d.storage::<f32>()[self.first..][..self.width])
        } else {
            [0.0; LANES]
        };
        let [a, carry, da, da_span] = &mut work.runs[self.run];
        let mut dd = [0.0; LANES];
        da_span.fill([0.0; LANES]);
        for t in (0..tokens).rev() {
            if steps[t] == Step::Skip {
                continue;
            }
            let (u, raw) = (self.at(&call.u, t), self.at(&call.delta, t));
            let delta = call.step(&raw);
            let (b, c) = (
                call.group(&call.b, job, self.start + t),
                call.group(&call.c, job, self.start + t),
            );
            let (past, h) = work.h[t * n..][..2 * n].split_at(n);
            // What another document left may be no number, of which a decay of zero leaves something.
            let past = if steps[t] == Step::First { &work.nothing } else { past };
            let row = job.row * call.len + self.start + t;
            let mut dy = self.at(dout, t);
            if plan.gate {
                let mut y = [0.0; LANES];
                for l in 0..LANES {
                    y[l] = d[l] * u[l];
                }
                for (h, c) in h.iter().zip(c) {
                    for l in 0..LANES {
                        y[l] += c * h[l];
                    }
                }
                let z = self.at(&call.z, t);
                for l in 0..LANES {
                    let s = sigmoid(z[l]);
                    y[l] *= dy[l] * s * (1.0 + z[l] * (1.0 - s));
                    dy[l] *= z[l] * s;
                }
                put(&own.z, row, self.first, self.width, &y);
            }
            let mut input = [0.0; LANES];
            for l in 0..LANES {
                input[l] = delta[l] * u[l];
                dd[l] += dy[l] * u[l];
            }
            // Through the input of the state, and through its decay in units of log 2.
            let (mut into, mut through) = ([0.0; LANES], [0.0; LANES]);
            let (decay, db, dc) =
                (&work.decay[t * n..][..n], &mut work.db[t * n..][..n], &mut work.dc[t * n..][..n]);
            for i in 0..n {
                for l in 0..LANES {
                    dc[i][l] += dy[l] * h[i][l];
                    let dh = carry[i][l] + c[i] * dy[l];
                    db[i][l] += dh * input[l];
                    into[l] += dh * b[i];
                    let passed = dh * decay[i][l];
                    let of_decay = passed * past[i][l];
                    through[l] += of_decay * a[i][l];
                    da_span[i][l] += of_decay * delta[l];
                    carry[i][l] = passed;
                }
            }
            if steps[t] == Step::First {
                carry.fill([0.0; LANES]);
            }
            let (mut du, mut ddelta) = ([0.0; LANES], [0.0; LANES]);
            for l in 0..LANES {
                du[l] = d[l] * dy[l] + delta[l] * into[l];
                ddelta[l] = u[l] * into[l] + through[l] * LN_2;
                if plan.softplus {
                    ddelta[l] *= sigmoid(raw[l]);
                }
            }
            put(&own.u, row, self.first, self.width, &du);
            put(&own.delta, row, self.first, self.width, &ddelta);
        }
        // Spans are added up each by itself, which loses less of the smaller terms.
        for (sum, span) in da.iter_mut().zip(da_span) {
            for l in 0..LANES {
                sum[l] += span[l];
            }
        }
        for l in 0..LANES {
            work.dd[self.run][l] += dd[l];
        }
    }
}

/// Sum of all lanes, by halves.
#[inline(always)]
fn total(x: &Lanes) -> f32 {
    let mut x = *x;
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            x[l] += x[l + half];
        }
        half /= 2;
    }
    x[0]
}
