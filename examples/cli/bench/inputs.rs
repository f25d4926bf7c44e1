//! Inputs that every side of a comparison makes for itself, to the last bit: a hash of the
//! element's number. `benches/peers/torch_peer/inputs.py` holds the same formula.

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

/// 32 well-mixed bits.
pub fn hash(index: u64, salt: u64) -> u32 {
    let mut h = (index * 2_654_435_761 + salt * 2_246_822_519) as u32;
    for _ in 0..2 {
        h ^= h >> 16;
        h = (u64::from(h) * 0x045d_9f3b) as u32;
    }
    h ^ (h >> 16)
}

/// Element `index` of the tensor named by `salt`: uniform, mean 0, variance 1.
fn value(index: u64, salt: u64) -> f32 {
    let unit = (hash(index, salt) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    unit * 1.732_050_8
}

/// A tensor of [`value`]s times `scale`.
pub fn tensor<const D: usize>(
    shape: [usize; D],
    salt: u64,
    scale: f32,
    device: &Device,
) -> Tensor<D> {
    let numel = shape.iter().product::<usize>() as u64;
    let values: Vec<f32> = (0..numel).into_par_iter().map(|i| value(i, salt) * scale).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Numbers below `limit`: ids, labels.
pub fn ids(count: usize, limit: usize, salt: u64) -> Vec<u32> {
    (0..count as u64).map(|i| hash(i, salt) % limit as u32).collect()
}

/// The blocks of keys that query block `of` = (head, block) of `blocks` sees: itself and others
/// before it, at random, together `density` of all up to it, rounded up.
pub fn blocks(of: (usize, usize), blocks: usize, density: f64) -> Vec<usize> {
    let (head, q) = of;
    let count = (((q + 1) as f64 * density).ceil() as usize).clamp(1, q + 1);
    let line = head.wrapping_mul(blocks).wrapping_add(q).wrapping_mul(blocks) as u32;
    let mut chosen: Vec<usize> = (0..q).collect();
    chosen.sort_by_key(|&k| hash(u64::from(line.wrapping_add(k as u32)), 6));
    chosen.truncate(count - 1);
    chosen.push(q);
    chosen
}
