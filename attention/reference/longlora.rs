//! Shifted sparse attention as the paper writes it down (2309.12307, algorithm 1): roll half of
//! the heads by half a group, attend densely inside each group, roll back.

use burn::tensor::{Bool, Device, Tensor, TensorData, activation::softmax};

/// Queries, keys and values `[B, H, T, D]` (key heads repeated) -> `[B, H, T, D]`.
///
/// The last group of the rolled heads holds the tail of the sequence and then its first half
/// group. `leak` keeps the plain triangular mask there, through which the head of the sequence
/// sees its tail; without it that quadrant is masked out.
///
/// Panics where `group` is odd or does not divide T, or the number of heads is odd.
pub fn rolled(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, group: usize, leak: bool) -> Tensor<4> {
    let [_, h, t, d] = q.dims();
    assert!(group.is_multiple_of(2) && t.is_multiple_of(group) && h.is_multiple_of(2));
    let roll = |x: Tensor<4>, by: usize| {
        let (still, moved) = (x.clone().narrow(1, 0, h / 2), x.narrow(1, h / 2, h / 2));
        let moved =
            Tensor::cat(vec![moved.clone().narrow(2, by, t - by), moved.narrow(2, 0, by)], 2);
        Tensor::cat(vec![still, moved], 1)
    };
    let half = group / 2;
    let (q, k, v) = (roll(q, half), roll(k, half), roll(v, half));
    let groups = t / group;
    let device = q.device();
    let parts = (0..groups).map(|g| {
        let part = |x: &Tensor<4>| x.clone().narrow(2, g * group, group);
        let scores = part(&q).matmul(part(&k).transpose()).div_scalar((d as f64).sqrt());
        let wraps = !leak && g == groups - 1;
        let hidden = hidden(h, group, wraps, &device).expand(scores.dims());
        softmax(scores.mask_fill(hidden, -1e30), 3).matmul(part(&v))
    });
    roll(Tensor::cat(parts.collect(), 2), t - half)
}

/// `[1, H, group, group]`: later tokens are hidden; in the group that wraps, rows of the
/// sequence's head may not see columns of its tail either.
fn hidden(h: usize, group: usize, wraps: bool, device: &Device) -> Tensor<4, Bool> {
    let half = group / 2;
    let mut data = Vec::with_capacity(h * group * group);
    for head in 0..h {
        for i in 0..group {
            for j in 0..group {
                let quadrant = wraps && head >= h / 2 && i >= half && j < half;
                data.push(j > i || quadrant);
            }
        }
    }
    Tensor::from_data(TensorData::new(data, [1, h, group, group]), device)
}
