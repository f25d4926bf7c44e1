//! The same on the CPU: one pass over the logits of a chunk turns them into their own gradient.

use super::{LossPlan, chunk_len, packs_head};
use crate::panels::At;
use crate::product::{Right, multiply, multiply_right};
use crate::room::Room;
use crate::simd::{exp, vectorized};
use crate::threads;
use burn::tensor::TensorData;
use burn_flex::FlexTensor;

/// (loss `[1]`, dx, dw); gradients that are not wanted are one zero.
pub(super) fn forward(
    x: FlexTensor,
    w: FlexTensor,
    plan: &LossPlan,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let (x, w) = (x.to_contiguous(), w.to_contiguous());
    let (n, d) = (x.layout().shape()[0], x.layout().shape()[1]);
    let v = w.layout().shape()[0];
    let (x, w) = (x.storage::<f32>(), w.storage::<f32>());
    let mut dx = Room::new(if plan.x_grad { n * d } else { 0 });
    let mut dw = vec![0.0f32; if plan.w_grad { v * d } else { 0 }];
    let chunk = chunk_len(v);
    let mut logits = Room::new(chunk.min(n) * v);
    let mut loss = 0.0f64;
    let rows_of = |x: &[f32], width: usize| At { first: x.as_ptr(), rows: width, columns: 1 };
    let w = rows_of(w, d);
    // Safe here and below: all slices have exactly the sizes named.
    let packed = packs_head(d).then(|| unsafe { Right::pack(w.turned(), (d, v)) });
    for start in (0..n).step_by(chunk) {
        let len = chunk.min(n - start);
        let part = &x[start * d..(start + len) * d];
        let part = rows_of(part, d);
        let logits = logits.as_mut_ptr();
        let logits = unsafe {
            match &packed {
                Some(w) => multiply_right(len, part, w, logits, false),
                None => multiply((len, v, d), part, w.turned(), logits, false),
            }
            std::slice::from_raw_parts_mut(logits, len * v)
        };
        let mut losses = vec![0.0f64; len];
        let tokens = logits.chunks_mut(v).zip(&plan.labels[start..]).zip(&mut losses).collect();
        threads::each_of(tokens, |((row, label), loss): ((&mut [f32], &i32), &mut f64)| {
            *loss = gradient_of(row, *label);
        });
        loss += losses.iter().sum::<f64>();
        let logits = rows_of(logits, v);
        unsafe {
            if plan.x_grad {
                multiply((len, d, v), logits, w, dx.as_mut_ptr().add(start * d), false);
            }
            if plan.w_grad {
                multiply((v, d, len), logits.turned(), part, dw.as_mut_ptr(), true);
            }
        }
    }
    // Safe: the chunks are all of it.
    let dx = unsafe { dx.written() };
    let tensor = |data: Vec<f32>, rows: usize| match data.is_empty() {
        true => FlexTensor::from_data(TensorData::new(vec![0.0f32], [1, 1])),
        false => FlexTensor::from_data(TensorData::new(data, [rows, d])),
    };
    let loss = FlexTensor::from_data(TensorData::new(vec![loss as f32], [1]));
    (loss, tensor(dx, n), tensor(dw, v))
}

/// Logits of one token -> d(loss)/d(logits) in place; returns the token's loss.
fn gradient_of(row: &mut [f32], label: i32) -> f64 {
    if label < 0 {
        row.fill(0.0);
        return 0.0;
    }
    let of_label = row[label as usize];
    let (top, sum) = vectorized(
        #[inline(always)]
        || {
            let mut top = [f32::NEG_INFINITY; 16];
            let (chunks, rest) = row.as_chunks::<16>();
            for chunk in chunks {
                for (x, lane) in chunk.iter().zip(&mut top) {
                    *lane = if *x > *lane { *x } else { *lane };
                }
            }
            let lanes = top.iter().chain(rest);
            let top = lanes.fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m });
            let mut sums = [0.0f32; 16];
            let (chunks, rest) = row.as_chunks_mut::<16>();
            for chunk in chunks {
                for (x, sum) in chunk.iter_mut().zip(&mut sums) {
                    *x = exp(*x - top);
                    *sum += *x;
                }
            }
            let mut sum: f64 = sums.iter().map(|s| *s as f64).sum();
            for x in rest {
                *x = exp(*x - top);
                sum += *x as f64;
            }
            let inverse = (1.0 / sum) as f32;
            row.iter_mut().for_each(|x| *x *= inverse);
            (top, sum)
        },
    );
    row[label as usize] -= 1.0;
    sum.ln() + top as f64 - of_label as f64
}
