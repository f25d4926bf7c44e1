//! Tokens as rows of a matrix, counted over all rows of a batch, so that any of them can be brought
//! to any place by one selection.

use burn::tensor::{Device, Int, Tensor, TensorData};

/// `[B, H, T, D] -> [B·T, H·D]`
pub(crate) fn by_token(x: Tensor<4>) -> Tensor<2> {
    let [b, h, t, d] = x.dims();
    x.swap_dims(1, 2).reshape([b * t, h * d])
}

/// `[B·T, H·D] -> [B, H, T, D]`
pub(crate) fn by_head(x: Tensor<2>, batch: usize, heads: usize) -> Tensor<4> {
    let [rows, width] = x.dims();
    x.reshape([batch, rows / batch, heads, width / heads]).swap_dims(1, 2)
}

/// Rows `places` of x; nothing is copied where these are all of them, in order.
pub(crate) fn gather<const D: usize>(x: Tensor<D>, places: &[usize]) -> Tensor<D> {
    if in_order(places, x.dims()[0]) {
        return x;
    }
    let places = indices(places.iter().copied(), &x.device());
    x.select(0, places)
}

/// Tokens `places`, counted over all rows of the batch, equally many for each row.
///
/// # Shapes
/// `[B, H, T, D]` -> `[B, H, places / B, D]`
pub(crate) fn gather_tokens(x_BHTD: Tensor<4>, places: &[usize]) -> Tensor<4> {
    let [b, h, t, _] = x_BHTD.dims();
    match same_run(places, b, t) {
        Some((start, len)) => x_BHTD.narrow(2, start, len),
        None => by_head(gather(by_token(x_BHTD), places), b, h),
    }
}

/// Where every row of the batch keeps the same run of its T tokens: the first one, and how many.
fn same_run(places: &[usize], batch: usize, t: usize) -> Option<(usize, usize)> {
    let (&start, len) = (places.first()?, places.len() / batch);
    let run = |(i, place): (usize, &usize)| *place == (i / len) * t + start + i % len;
    (start + len <= t && places.iter().enumerate().all(run)).then_some((start, len))
}

fn in_order(places: &[usize], len: usize) -> bool {
    places.len() == len && places.iter().enumerate().all(|(i, p)| i == *p)
}

/// Indices on a device.
pub(crate) fn indices(at: impl Iterator<Item = usize>, device: &Device) -> Tensor<1, Int> {
    let at: Vec<i32> = at.map(|i| i as i32).collect();
    let shape = [at.len()];
    Tensor::from_data(TensorData::new(at, shape), device)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    /// Values that tell row, head, token and channel.
    fn told([b, h, t, d]: [usize; 4]) -> Tensor<4> {
        let data: Vec<f32> = (0..b * h * t * d).map(|i| i as f32).collect();
        Tensor::from_data(TensorData::new(data, [b, h, t, d]), &Device::flex())
    }

    fn at(x: &Tensor<4>, [b, h, t, d]: [usize; 4]) -> f32 {
        let [_, heads, tokens, channels] = x.dims();
        let i = ((b * heads + h) * tokens + t) * channels + d;
        x.to_data().iter::<f32>().nth(i).unwrap()
    }

    #[test]
    fn tokens_come_from_the_places_that_were_named() {
        let x = told([2, 3, 5, 2]);
        for places in [
            vec![4, 0, 3, 9, 2, 2],
            vec![1, 2, 6, 7],
            vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
            vec![3, 4, 5, 6],
            vec![4, 9],
            // As many for each row, of the first row alone.
            vec![0, 1, 2, 3],
        ] {
            let n = places.len() / 2;
            let found = gather_tokens(x.clone(), &places);
            assert_eq!(found.dims(), [2, 3, n, 2]);
            for (i, place) in places.iter().enumerate() {
                for (h, d) in [(0, 0), (1, 1), (2, 0)] {
                    let want = at(&x, [place / 5, h, place % 5, d]);
                    assert_eq!(at(&found, [i / n, h, i % n, d]), want, "{places:?}: {i}");
                }
            }
        }
    }

    #[test]
    fn the_two_forms_undo_each_other() {
        let x = told([2, 3, 5, 2]);
        let rows = by_token(x.clone());
        assert_eq!(rows.dims(), [10, 6]);
        assert_eq!(rows.clone().narrow(0, 7, 1).to_data().iter::<f32>().next(), Some(34.0));
        assert_eq!(by_head(rows, 2, 3).into_data(), x.into_data());
    }
}
