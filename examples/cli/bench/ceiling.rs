//! What the machine could do: a large square product and a sweep through memory.

use super::inputs;
use super::job::{Job, Layout, MatmulJob, Numbers};
use super::row::Ceiling;
use super::torch::Torch;
use crate::device::DeviceName;
use burn::tensor::{Device, Tensor};
use longburn::Result;
use rayon::prelude::*;
use std::time::Instant;

/// Runs, of which the fastest counts: a ceiling is what can be reached.
const RUNS: usize = 5;

/// Measure on this device, with products of `side` rows and columns.
///
/// # Errors
/// What a peer says.
pub fn measure(
    (name, device): (DeviceName, &Device),
    side: usize,
    torch: Option<&Torch>,
) -> Result<Ceiling> {
    let operations = 2.0 * (side as f64).powi(3);
    let a = inputs::tensor::<2>([side, side], 1, 1.0, device);
    let b = inputs::tensor::<2>([side, side], 2, 1.0, device);
    let product = || {
        let start = Instant::now();
        drop(a.clone().matmul(b.clone()));
        // A device that cannot say whether it is done has failed elsewhere, too.
        let _ = device.sync();
        start.elapsed().as_secs_f64()
    };
    let ours = (0..=RUNS).map(|_| product()).fold(f64::INFINITY, f64::min);
    let (mut seconds, mut by) = (ours, "burn".to_string());
    if let Some(torch) = torch {
        let (layout, dtype) = (Layout::Nn, Numbers::F32);
        let job = MatmulJob { batch: 1, m: side, k: side, n: side, layout, dtype };
        let mut peer = torch.start(&Job::Matmul(job), "sdpa", None)?;
        for _ in 0..=RUNS {
            let theirs = peer.run(1)?;
            if theirs < seconds {
                (seconds, by) = (theirs, "torch".into());
            }
        }
    }
    Ok(Ceiling {
        gemm_flops_per_second: operations / seconds,
        gemm_by: by,
        bytes_per_second: match name {
            DeviceName::Flex => triad(4 * side * side),
            _ => copy(device, 16 * side * side),
        },
    })
}

/// `a = s·b` on a card, of more than its cache holds: one array read and one written.
fn copy(device: &Device, len: usize) -> f64 {
    let b = Tensor::<1>::ones([len], device);
    let sweep = || {
        let start = Instant::now();
        drop(b.clone().mul_scalar(3.0));
        let _ = device.sync();
        start.elapsed().as_secs_f64()
    };
    let seconds = (0..=RUNS).map(|_| sweep()).fold(f64::INFINITY, f64::min);
    8.0 * len as f64 / seconds
}

/// `a = b + s·c`: two arrays read and one written.
fn triad(len: usize) -> f64 {
    const PART: usize = 1 << 16;
    let (mut a, b, c) = (vec![0f32; len], vec![1f32; len], vec![2f32; len]);
    let mut sweep = || {
        let start = Instant::now();
        let parts = a.par_chunks_mut(PART).zip(b.par_chunks(PART)).zip(c.par_chunks(PART));
        parts.for_each(|((a, b), c)| {
            for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                *a = b + 3.0 * c;
            }
        });
        start.elapsed().as_secs_f64()
    };
    let seconds = (0..=RUNS).map(|_| sweep()).fold(f64::INFINITY, f64::min);
    12.0 * len as f64 / seconds
}
