//! What the machine could do: a large square product and a sweep through memory.

use super::inputs;
use super::job::{Job, Layout, MatmulJob, Numbers};
use super::row::Ceiling;
use super::torch::{Torch, TorchPeer};
use crate::device::DeviceName;
use burn::tensor::{Device, Tensor};
use longburn::Result;
use longburn::kernel::fused::matmul_detached;
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
    torch: Option<(&Torch, &mut TorchPeer)>,
) -> Result<Ceiling> {
    let a = inputs::tensor::<2>([side, side], 1, 1.0, device);
    let b = inputs::tensor::<2>([side, side], 2, 1.0, device);
    let burn = fastest(device, || a.clone().matmul(b.clone()));
    let longburn = fastest(device, || matmul_detached(a.clone(), b.clone()));
    let mut tried = vec![("burn", burn), ("longburn", longburn)];
    if let Some((torch, peer)) = torch {
        let (layout, dtype) = (Layout::Nn, Numbers::F32);
        let job = MatmulJob { batch: 1, m: side, k: side, n: side, layout, dtype };
        torch.again(peer, &Job::Matmul(job), "sdpa", None)?;
        let runs: Result<Vec<f64>> = (0..=RUNS).map(|_| peer.run(1)).collect();
        tried.push(("torch", runs?.into_iter().fold(f64::INFINITY, f64::min)));
    }
    let bytes_per_second = match name {
        DeviceName::Flex => triad(4 * side * side),
        _ => copy(device, 16 * side * side),
    };
    Ok(ceiling(&tried, side, bytes_per_second))
}

/// The fastest of some products of `side` rows and columns, seconds each.
fn ceiling(tried: &[(&str, f64)], side: usize, bytes_per_second: f64) -> Ceiling {
    let (by, seconds) =
        tried.iter().fold(
            ("", f64::INFINITY),
            |best, product| {
                if product.1 < best.1 { *product } else { best }
            },
        );
    Ceiling {
        gemm_flops_per_second: 2.0 * (side as f64).powi(3) / seconds,
        gemm_by: by.into(),
        gemm_tried: tried.iter().map(|(name, _)| name.to_string()).collect(),
        bytes_per_second,
    }
}

/// Seconds of the fastest run.
fn fastest<const D: usize>(device: &Device, work: impl Fn() -> Tensor<D>) -> f64 {
    let run = || {
        let start = Instant::now();
        drop(work());
        // A device that cannot say whether it is done has failed elsewhere, too.
        let _ = device.sync();
        start.elapsed().as_secs_f64()
    };
    (0..=RUNS).map(|_| run()).fold(f64::INFINITY, f64::min)
}

/// `a = s·b` on a card, of more than its cache holds: one array read and one written.
fn copy(device: &Device, len: usize) -> f64 {
    let b = Tensor::<1>::ones([len], device);
    bandwidth(2, len, fastest(device, || b.clone().mul_scalar(3.0)))
}

/// Bytes per second of a sweep through so many arrays of f32.
fn bandwidth(arrays: usize, len: usize, seconds: f64) -> f64 {
    (arrays * len * size_of::<f32>()) as f64 / seconds
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
    bandwidth(3, len, seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_product_is_the_ceiling_with_two_operations_per_term() {
        let found = ceiling(&[("burn", 0.5), ("longburn", 0.25), ("torch", 1.0)], 100, 7.0);
        assert_eq!((found.gemm_flops_per_second, &*found.gemm_by), (8e6, "longburn"));
        assert_eq!(found.gemm_tried, ["burn", "longburn", "torch"]);
        assert_eq!(found.bytes_per_second, 7.0);
    }

    #[test]
    fn sweeps_count_all_arrays_read_and_written() {
        assert_eq!(bandwidth(3, 1000, 0.5), 24_000.0);
        assert_eq!(bandwidth(2, 1000, 0.5), 16_000.0);
    }

    #[test]
    fn longburn_takes_part() {
        let device = Device::flex();
        let found = measure((DeviceName::Flex, &device), 32, None).unwrap();
        assert_eq!(found.gemm_tried, ["burn", "longburn"]);
        assert!(found.gemm_flops_per_second > 0.0 && found.bytes_per_second > 0.0);
    }
}
