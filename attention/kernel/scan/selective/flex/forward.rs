//! Outputs, the last state, and the states at the beginnings of spans.

use super::{Call, Job, LANES, Lanes, SPAN, lanes, put};
use crate::scan::Step;
use crate::scan::rows::Columns;
use crate::scan::selective::{Plan, autodiff::ScanTensors};
use crate::simd::{exp2_any, sigmoid, vectorized};
use burn::backend::Flex;
use burn::tensor::TensorData;
use burn_flex::FlexTensor;
use std::f32::consts::LOG2_E;

/// (y and the state behind it `[B, T (+ N), E]`, the state before each span `[B, spans, N, E]`).
pub(in crate::scan::selective) fn forward(
    x: ScanTensors<Flex>,
    plan: &Plan,
) -> (FlexTensor, FlexTensor) {
    let call = Call::new(x, plan);
    let Call { batch, len, channels, n, .. } = call;
    let rows = len + if plan.keep_state { n } else { 0 };
    // Without a backward pass nobody asks for the states.
    let spans = if plan.tracked { len.div_ceil(SPAN) } else { 0 };
    let mut out = vec![0.0f32; batch * rows * channels];
    let mut kept = vec![0.0f32; (batch * spans * n * channels).max(1)];
    let (to, keep) = (Columns::new(&mut out, channels), Columns::new(&mut kept, channels));
    call.run(|job| {
        vectorized(
            #[inline(always)]
            || block(&call, job, (&to, rows), (&keep, spans)),
        )
    });
    let states = match spans {
        0 => TensorData::new(kept, [1, 1, 1, 1]),
        _ => TensorData::new(kept, [batch, spans, n, channels]),
    };
    let out = TensorData::new(out, [batch, rows, channels]);
    (FlexTensor::from_data(out), FlexTensor::from_data(states))
}

#[inline(always)]
fn block(
    call: &Call<'_>,
    job: &Job,
    (out, rows): (&Columns, usize),
    (kept, spans): (&Columns, usize),
) {
    let (n, plan) = (call.n, call.plan);
    let (mut h, mut a) = (vec![[0.0; LANES]; n], vec![[0.0; LANES]; n]);
    let h0 = &call.h0.storage::<f32>()[job.row * n * call.channels..];
    let steps = plan.steps.row(job.row);
    for first in job.members.clone().step_by(LANES) {
        let width = (job.members.end - first).min(LANES);
        call.states_of(call.a.storage(), first, width, LOG2_E, &mut a);
        call.states_of(h0, first, width, 1.0, &mut h);
        let at = |x: &crate::scan::rows::Rows, t: usize| lanes(&x.at(job.row, t)[first..][..width]);
        let d = if plan.skip {
            lanes(&call.d.storage::<f32>()[first..][..width])
        } else {
            [0.0; LANES]
        };
        for (t, step) in steps.iter().enumerate() {
            if spans > 0 && t % SPAN == 0 {
                save(kept, (job.row * spans + t / SPAN) * n, first, width, &h);
            }
            match step {
                Step::Skip => continue,
                Step::First => h.fill([0.0; LANES]),
                Step::Next => {}
            }
            let (u, delta) = (at(&call.u, t), call.step(&at(&call.delta, t)));
            let (mut y, mut input) = ([0.0; LANES], [0.0; LANES]);
            for l in 0..LANES {
                y[l] = d[l] * u[l];
                input[l] = delta[l] * u[l];
            }
            let (b, c) = (call.group(&call.b, job, t), call.group(&call.c, job, t));
            for (((h, a), b), c) in h.iter_mut().zip(&a).zip(b).zip(c) {
                for l in 0..LANES {
                    h[l] = exp2_any(delta[l] * a[l]) * h[l] + input[l] * b;
                    y[l] += c * h[l];
                }
            }
            if plan.gate {
                let z = at(&call.z, t);
                for l in 0..LANES {
                    y[l] *= z[l] * sigmoid(z[l]);
                }
            }
            put(out, job.row * rows + t, first, width, &y);
        }
        if plan.keep_state {
            save(out, job.row * rows + call.len, first, width, &h);
        }
    }
}

/// The states as rows from `row` on.
#[inline(always)]
fn save(out: &Columns, row: usize, first: usize, width: usize, h: &[Lanes]) {
    for (n, h) in h.iter().enumerate() {
        put(out, row + n, first, width, h);
    }
}
