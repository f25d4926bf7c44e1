//! What is compared of the results of two sides: elements at scattered places, and sums over all.

use super::inputs::hash;
use burn::tensor::{DType, Int, Tensor};
use longburn::{Error, Result};
use serde::{Deserialize, Serialize};

/// At most this many elements of a result are compared one by one.
const PROBED: usize = 512;
/// Names the places among the hashes of [`inputs`](super::inputs).
const PLACES: u64 = 9;

/// With what names of gradients begin that came through the layers of a model.
pub const OF_LAYER: &str = "dv of layer";

/// What is known of every result.
pub type Probe = Vec<Found>;

/// A result. The JSON form is also what the scripts of peers write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    pub name: String,
    /// Elements at [`places`].
    pub values: Vec<f32>,
    /// Of all elements.
    pub sum: f64,
    /// Of the absolute values of all elements.
    pub size: f64,
}

/// Places in a flat tensor of `len` elements: all of a small one, else as a hash has it, so that no
/// axis of the tensor is in step with them. `benches/peers/torch_peer/inputs.py` holds the same formula.
pub fn places(len: usize) -> Vec<usize> {
    if len <= PROBED {
        return (0..len).collect();
    }
    let place = |i| ((u128::from(hash(i, PLACES)) * len as u128) >> 32) as usize;
    (0..PROBED as u64).map(place).collect()
}

impl Found {
    pub fn of(name: &str, all: &[f32]) -> Self {
        let wide = |x: &f32| f64::from(*x);
        Self {
            name: name.into(),
            values: places(all.len()).into_iter().map(|i| all[i]).collect(),
            sum: all.iter().map(wide).sum(),
            size: all.iter().map(|x| wide(x).abs()).sum(),
        }
    }

    /// Of a large result on a card, no more than what is looked at is copied.
    pub fn of_tensor<const D: usize>(name: &str, x: Tensor<D>) -> Self {
        let (len, last) = (x.shape().num_elements(), x.dims()[D - 1]);
        let at: Vec<i64> = places(len).into_iter().map(|i| i as i64).collect();
        let at = Tensor::<1, Int>::from_data(at.as_slice(), &x.device());
        // Sums of f32 along the last axis alone lose little.
        let rows = x.clone().reshape([len / last.max(1), last]).cast(DType::F32);
        let all = |rows: Tensor<2>| -> f64 {
            rows.sum_dim(1).into_data().iter::<f32>().map(f64::from).sum()
        };
        let values = x.reshape([len]).select(0, at).cast(DType::F32).into_data();
        Self {
            name: name.into(),
            values: values.iter::<f32>().collect(),
            sum: all(rows.clone()),
            size: all(rows.abs()),
        }
    }
}

/// Largest difference of elements over all results, which may be `allowed`, as those of sums may.
///
/// # Errors
/// [`Error::Evaluation`] where two sides do not compute the same.
pub fn same(peer: &str, ours: &Probe, theirs: &Probe, allowed: f64) -> Result<f64> {
    let mut most = 0f64;
    for result in ours {
        let name = &result.name;
        let check = |what: &str, value: f64| {
            if value <= allowed {
                return Ok(value);
            }
            Err(Error::Evaluation {
                what: format!("the difference of {what}`{name}` between Longburn and peer {peer}"),
                value,
                remedy: format!(
                    "one of the two is wrong: at most {allowed} is a matter of rounding; please report it"
                ),
            })
        };
        let other = theirs.iter().find(|other| other.name == *name);
        let other = other.filter(|other| other.values.len() == result.values.len());
        let Some(other) = other else { return check("", f64::NAN) };
        most = most.max(check("", difference(&result.values, &other.values))?);
        let apart =
            |a: f64, b: f64| (a - b).abs() / if other.size > 0.0 { other.size } else { 1.0 };
        check("the sum of ", apart(result.sum, other.sum))?;
        check("the absolute sum of ", apart(result.size, other.size))?;
    }
    Ok(most)
}

/// RMS of the difference over RMS of the second.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let apart: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let size: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    if size == 0.0 { apart.sqrt() } else { (apart / size).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::inputs;
    use burn::tensor::Device;
    use std::collections::HashSet;

    /// As attention has them: heads, tokens, channels.
    const SHAPE: [usize; 4] = [1, 8, 4096, 64];

    fn values(shape: [usize; 4], salt: u64) -> Vec<f32> {
        let x = inputs::tensor::<4>(shape, salt, 1.0, &Device::flex());
        x.into_data().iter::<f32>().collect()
    }

    #[test]
    fn places_are_in_step_with_no_axis() {
        let len: usize = SHAPE.iter().product();
        let places = places(len);
        assert!(places.iter().all(|i| *i < len));
        let seen = |of: fn(usize) -> usize| -> usize {
            places.iter().map(|i| of(*i)).collect::<HashSet<_>>().len()
        };
        assert_eq!(seen(|i| i % 64), 64, "channels");
        assert_eq!(seen(|i| i / 64 % 64), 64, "tokens within blocks of 64");
        assert_eq!(seen(|i| i / (64 * 4096)), 8, "heads");
        assert!(seen(|i| i / 64 % 4096 / 64) >= 62, "blocks of tokens");
        assert!(seen(|i| i) > 500);
        // The products of the suite, columns in groups of 16.
        assert!(seen(|i| i % 2048 / 16) > 120, "columns");
        assert_eq!(super::places(5), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn the_places_are_those_of_the_script() {
        // From `places(1000)[:6]` of benches/peers/torch_peer/inputs.py.
        assert_eq!(places(1000)[..6], SCRIPTS);
    }

    const SCRIPTS: [usize; 6] = [50, 771, 275, 182, 844, 395];

    #[test]
    fn a_side_that_is_right_in_the_first_channel_alone_is_refused() {
        let shape = [1, 2, 128, 64];
        let right = values(shape, 1);
        let ours = vec![Found::of("out", &right)];
        let with = |wrong: &dyn Fn(usize) -> bool| {
            let other = values(shape, 2);
            let mixed: Vec<f32> =
                (0..right.len()).map(|i| if wrong(i) { other[i] } else { right[i] }).collect();
            same("torch", &ours, &vec![Found::of("out", &mixed)], 1e-3)
        };
        assert_eq!(with(&|_| false).unwrap(), 0.0);
        assert!(with(&|i| i % 64 != 0).is_err());
        for channel in 0..64 {
            assert!(with(&|i| i % 64 == channel).is_err(), "channel {channel}");
        }
        // All but the tokens that are multiples of 64.
        assert!(with(&|i| i / 64 % 64 != 0).is_err());
    }

    #[test]
    fn every_element_that_is_looked_at_counts() {
        let right: Vec<f32> = (0..512).map(|i| 1.0 + i as f32).collect();
        for i in [0, 1, 255, 511] {
            let mut wrong = right.clone();
            wrong[i] += 100.0;
            let two = [&right, &wrong].map(|x| vec![Found::of("y", x)]);
            assert!(same("torch", &two[0], &two[1], 1e-3).is_err(), "element {i}");
        }
    }

    /// What no place looks at is in the sums.
    #[test]
    fn sums_see_what_lies_between_the_places() {
        let right = vec![1f32; 100_000];
        let looked_at: HashSet<usize> = places(right.len()).into_iter().collect();
        let wrong = |value: f32| {
            let of = |i| if looked_at.contains(&i) { 1.0 } else { value };
            vec![Found::of("y", &(0..right.len()).map(of).collect::<Vec<_>>())]
        };
        let ours = vec![Found::of("y", &right)];
        same("torch", &ours, &wrong(1.0), 1e-3).unwrap();
        let refused = |value| same("torch", &ours, &wrong(value), 1e-3).unwrap_err().to_string();
        assert!(refused(1.1).contains("the sum of `y`"));
        // A sum alone would not see a sign where both are about zero.
        let signs: Vec<f32> = (0..1000).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let found = Found::of("y", &signs);
        assert_eq!((found.sum, found.size), (0.0, 1000.0));
        let half = Found { size: 500.0, ..found.clone() };
        let said = same("torch", &vec![found], &vec![half], 1e-3).unwrap_err().to_string();
        assert!(said.contains("the absolute sum of `y`"), "{said}");
    }

    #[test]
    fn tensors_are_looked_at_as_their_values_are() {
        let x = inputs::tensor::<4>([2, 3, 50, 7], 1, 1.0, &Device::flex());
        let all: Vec<f32> = x.clone().swap_dims(1, 2).into_data().iter::<f32>().collect();
        let (a, b) = (Found::of("x", &all), Found::of_tensor("x", x.swap_dims(1, 2)));
        assert_eq!(a.values, b.values);
        assert!((a.sum - b.sum).abs() < 1e-3 && (a.size - b.size).abs() < 1e-2, "{a:?}");
    }

    #[test]
    fn a_result_that_is_lacking_or_no_number_is_refused() {
        let ours = vec![Found::of("y", &[1.0, 2.0])];
        for theirs in [vec![], vec![Found::of("y", &[1.0])], vec![Found::of("y", &[f32::NAN; 2])]] {
            assert!(same("torch", &ours, &theirs, 1e-3).is_err());
        }
        let difference = same("x", &ours, &vec![Found::of("y", &[1.0, 2.0002])], 1e-3).unwrap();
        assert!((difference - 2e-4 / 5f64.sqrt()).abs() < 1e-7, "{difference}");
    }
}
