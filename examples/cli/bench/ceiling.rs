//! What the machine could do: a large square product and a sweep through memory.

use super::inputs;
use super::job::{Job, Layout, MatmulJob};
use super::row::Ceiling;
use super::torch::Torch;
use burn::tensor::Device;
use longburn::Result;
use rayon::prelude::*;
use std::time::Instant;

/// Runs, of which the fastest counts: a ceiling is what can be reached.
const RUNS: usize = 5;

/// Measure on this machine, with products of `side` rows and columns.
///
/// # Errors
/// What a peer says.
pub fn measure(device: &Device, side: usize, torch: Option<&Torch>) -> Result<Ceiling> {
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
        let job = MatmulJob { batch: 1, m: side, k: side, n: side, layout: Layout::Nn };
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
        bytes_per_second: triad(4 * side * side),
    })
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
