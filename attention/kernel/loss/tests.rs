//! Every implementation against the reference, loss and both gradients.

use crate::Implementation::{Flex, Reference, Tiled};
use crate::loss::linear_cross_entropy_with;
use crate::{Implementation, linear_cross_entropy, linear_nll};
use burn::tensor::{DType, Device, Tensor, TensorData};

fn data(shape: [usize; 2], seed: u64, scale: f32) -> Tensor<2> {
    let value = |i: u64| {
        let x =
            (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 31)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    };
    let n = (shape[0] * shape[1]) as u64;
    let device = Device::default();
    Tensor::from_data(TensorData::new((0..n).map(value).collect::<Vec<_>>(), shape), &device)
}

fn run(
    (n, d, v): (usize, usize, usize),
    dtype: DType,
    implementation: Implementation,
) -> (f64, Vec<Vec<f64>>) {
    // Logits of wide heads are no larger than those of 16 channels.
    let scale = 2.0 * (16.0 / d as f32).min(1.0).powf(0.25);
    let leaf =
        |shape, seed| Tensor::<2>::from_inner(data(shape, seed, scale).cast(dtype)).require_grad();
    let (x, w) = (leaf([n, d], 1), leaf([v, d], 2));
    let labels: Vec<i64> =
        (0..n).map(|i| if i % 3 == 1 { -100 } else { ((i * 7) % v) as i64 }).collect();
    let loss = linear_cross_entropy_with(x.clone(), w.clone(), &labels, implementation).unwrap();
    // A factor shows whether the upstream gradient arrives.
    let grads = loss.clone().mul_scalar(0.25).backward();
    let host = |t: Tensor<2>| t.cast(DType::F64).into_data().iter::<f64>().collect::<Vec<_>>();
    let grads = [&x, &w].map(|t| host(t.grad(&grads).expect("a gradient")));
    (loss.into_data().iter::<f64>().next().unwrap(), grads.to_vec())
}

fn ratio(a: &[f64], b: &[f64]) -> f64 {
    let square = |x: f64| x * x;
    let diff: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (diff / b.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

#[test]
fn every_implementation_equals_the_reference() {
    // The last is wider than heads that are packed.
    for size in [(1, 3, 2), (63, 8, 100), (257, 16, 33), (100, 5, 70_000), (40, 1100, 300)] {
        let want = run(size, DType::F64, Reference);
        let implementations = if cfg!(feature = "flex") { vec![Tiled, Flex] } else { vec![Tiled] };
        for implementation in implementations {
            let got = run(size, DType::F32, implementation);
            let name = format!("{size:?} {implementation:?}");
            assert!((got.0 - want.0).abs() <= 2e-6 * want.0.abs(), "{name}: {} {}", got.0, want.0);
            for (i, (got, want)) in got.1.iter().zip(&want.1).enumerate() {
                let r = ratio(got, want);
                assert!(r <= 1e-5, "{name}: gradient {i} differs by {r:e}");
            }
        }
    }
}

/// Hidden states in bf16 with weights in f32: softmax, loss and the weights' gradient, over several
/// chunks, are those of the rounded numbers in f64 but for roundings of logits and their gradients.
#[test]
fn narrow_states_take_weights_in_f32() {
    const OFF: f64 = 5e-3;
    let (n, d, v) = (300, 16, 5000);
    let labels: Vec<i64> =
        (0..n).map(|i| if i % 3 == 1 { -100 } else { ((i * 7) % v) as i64 }).collect();
    let leaf = |shape, seed, dtype| Tensor::<2>::from_inner(data(shape, seed, 1.0).cast(dtype));
    let run = |x: Tensor<2>, w: Tensor<2>, implementation| {
        let (x, w) = (x.require_grad(), w.require_grad());
        let loss = linear_cross_entropy_with(x.clone(), w.clone(), &labels, implementation);
        let loss = loss.unwrap();
        let grads = loss.clone().mul_scalar(0.25).backward();
        (loss, x.grad(&grads).unwrap(), w.grad(&grads).unwrap())
    };
    let narrow = leaf([n, d], 1, DType::BF16);
    let exact = run(
        narrow.clone().cast(DType::F64).detach(),
        leaf([v, d], 2, DType::BF16).cast(DType::F64).detach(),
        Reference,
    );
    for implementation in [Implementation::Auto, Tiled, Reference] {
        let got = run(narrow.clone(), leaf([v, d], 2, DType::F32), implementation);
        assert_eq!((got.0.dtype(), got.1.dtype()), (DType::F32, DType::BF16));
        assert_eq!(got.2.dtype(), DType::F32, "{implementation:?}");
        // A sum that was never rounded has numbers that bf16 has not.
        let narrow = got.2.clone().inner().cast(DType::BF16).cast(DType::F32).into_data();
        let same = narrow == got.2.clone().inner().into_data();
        assert_eq!(same, implementation == Reference, "{implementation:?}");
        let host =
            |t: Tensor<2>| t.inner().cast(DType::F64).into_data().iter::<f64>().collect::<Vec<_>>();
        for (what, got, want) in [
            ("loss", got.0.reshape([1, 1]), exact.0.clone().reshape([1, 1])),
            ("dx", got.1, exact.1.clone()),
            ("dw", got.2, exact.2.clone()),
        ] {
            let r = ratio(&host(got), &host(want));
            assert!(r <= OFF, "{implementation:?}: {what} differs by {r:e}");
        }
    }
    let each = linear_nll(narrow, leaf([v, d], 2, DType::F32), &labels).unwrap();
    let (each, sum) = (f64::from(each.iter().sum::<f32>()), exact.0.into_scalar::<f64>());
    assert!((each - sum).abs() <= OFF * sum, "{each} {sum}");
    // The other way round, and other mixtures, are no case.
    let refused =
        linear_cross_entropy(leaf([2, 3], 1, DType::F32), leaf([5, 3], 2, DType::BF16), &[0, 1]);
    assert!(refused.is_err());
}

#[test]
fn a_frozen_head_gets_no_gradient_and_ignored_tokens_give_none() {
    let x = Tensor::<2>::from_inner(data([4, 3], 1, 1.0)).require_grad();
    let w = Tensor::<2>::from_inner(data([5, 3], 2, 1.0));
    let grads = linear_cross_entropy(x.clone(), w.clone(), &[1, -100, 2, -100]).unwrap().backward();
    assert!(w.grad(&grads).is_none());
    let dx: Vec<f32> = x.grad(&grads).unwrap().into_data().iter::<f32>().collect();
    assert!(dx[3..6].iter().chain(&dx[9..12]).all(|g| *g == 0.0));
    assert!(dx[..3].iter().any(|g| *g != 0.0));
}

#[test]
fn single_losses_add_up_to_the_sum() {
    let (x, w) = (data([70, 8], 1, 1.0), data([50, 8], 2, 1.0));
    let labels: Vec<i64> = (0..70).map(|i| if i == 5 { -100 } else { i % 50 }).collect();
    let each = linear_nll(x.clone(), w.clone(), &labels).unwrap();
    let sum =
        linear_cross_entropy(x, w, &labels).unwrap().into_data().iter::<f32>().next().unwrap();
    assert_eq!((each.len(), each[5]), (70, 0.0));
    assert!((each.iter().sum::<f32>() - sum).abs() < 1e-3 * sum);
}

#[test]
fn what_does_not_fit_is_refused() {
    let go = |n: usize, d: usize, labels: &[i64]| {
        linear_cross_entropy(data([n, d], 1, 1.0), data([5, 3], 2, 1.0), labels)
    };
    assert!(go(2, 3, &[0, 4]).is_ok());
    let text = go(2, 3, &[0, 5]).unwrap_err().to_string();
    assert!(text.contains("label 5 of token 1 with a vocabulary of 5"), "{text}");
    assert!(go(2, 4, &[0, 1]).is_err());
    assert!(go(2, 3, &[0]).is_err());
}
