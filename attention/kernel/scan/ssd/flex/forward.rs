//! Outputs and the last state.

use super::{Call, Chunk, Job, lower, packed, put, rows, times};
use crate::panels::Limits;
use crate::scan::rows::Columns;
use crate::scan::ssd::{Plan, autodiff::SsdTensors};
use crate::simd::vectorized;
use burn::backend::Flex;
use burn::tensor::TensorData;
use burn_flex::FlexTensor;

/// y and the state behind it, `[B, T (+ N), E]`.
pub(in crate::scan::ssd) fn forward(x: SsdTensors<Flex>, plan: &Plan) -> FlexTensor {
    let call = Call::new(x, plan);
    let Call { batch, len, channels, n, .. } = call;
    let of_row = len + if plan.keep_state { n } else { 0 };
    let mut out = vec![0.0f32; batch * of_row * channels];
    let to = Columns::new(&mut out, channels);
    call.run(|job| {
        vectorized(
            #[inline(always)]
            || block(&call, job, &to, of_row),
        )
    });
    FlexTensor::from_data(TensorData::new(out, [batch, of_row, channels]))
}

#[inline(always)]
fn block(call: &Call<'_>, job: &Job, out: &Columns<'_>, of_row: usize) {
    let (n, p) = (call.n, call.p);
    let mut states: Vec<Vec<f32>> =
        job.members.clone().map(|head| call.first_state(job, head)).collect();
    for Chunk { tokens, fresh } in call.chunks(job.row) {
        let q = tokens.len();
        let (b, c) = (call.group(&call.b, job, &tokens), call.group(&call.c, job, &tokens));
        let bands = lower(q);
        let mut scores = vec![0.0f32; q * q];
        let b_turned = packed(b.turned(), (n, q));
        times((q, q, n), c, &b_turned, &mut scores, false, Limits::Columns(&bands, 0));
        for (head, h) in job.members.clone().zip(&mut states) {
            let of = call.head(job, head, &tokens);
            let mut mixed = of.decay.clone();
            mixed.iter_mut().zip(&scores).for_each(|(m, s)| *m *= s);
            let mut y = vec![0.0f32; q * p];
            if fresh {
                h.fill(0.0);
            } else {
                times((q, p, n), c, &packed(rows(h, p), (n, p)), &mut y, false, Limits::None);
                for (y, entered) in y.chunks_mut(p).zip(&of.entered) {
                    y.iter_mut().for_each(|y| *y *= entered);
                }
            }
            let input = packed(rows(&of.input, p), (q, p));
            times((q, p, q), rows(&mixed, q), &input, &mut y, true, Limits::Depth(&bands, 0));
            if let Some(d) = call.skip(head) {
                for (y, t) in y.chunks_mut(p).zip(tokens.clone()) {
                    let x = &call.x.at(job.row, t)[head * p..][..p];
                    y.iter_mut().zip(x).zip(d).for_each(|((y, x), d)| *y += x * d);
                }
            }
            put(out, job.row * of_row + tokens.start, head * p, p, &y);
            of.advance(h, b, n);
        }
    }
    if call.plan.keep_state {
        for (head, h) in job.members.clone().zip(&states) {
            put(out, job.row * of_row + call.len, head * p, p, h);
        }
    }
}
