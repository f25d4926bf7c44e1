use super::{LEN, Pass, Poison, broken, compare, host, leaf};
use super::{packed_steps, poisoned, stays_in_its_document};
use crate::Implementation::{self, Flex, Reference, Tiled};
use crate::{Error, SelectiveScan, Steps, TokenMeta, selective_scan};
use burn::tensor::{DType, Tensor, TensorData};

/// Sizes, and which of the options are on.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    len: usize,
    channels: usize,
    n: usize,
    groups: usize,
    /// D, z, bias and softplus.
    full: bool,
    h0: bool,
    documents: bool,
}

const CASE: Case = Case {
    batch: 2,
    len: 65,
    channels: 6,
    n: 4,
    groups: 1,
    full: true,
    h0: true,
    documents: false,
};

fn run(case: Case, dtype: DType, implementation: Implementation) -> Pass {
    let Case { batch, len, channels, n, groups, .. } = case;
    let rows = [batch, len, channels];
    let u = leaf(rows, 1, 1.0, dtype);
    let delta = leaf(rows, 2, if case.full { 2.0 } else { 0.5 }, dtype);
    // Between −0.2 and −4, as a layer has it.
    let a = leaf([channels, n], 3, 1.5, dtype);
    let b = leaf([batch, len, groups, n], 4, 1.0, dtype);
    let c = leaf([batch, len, groups, n], 5, 1.0, dtype);
    let d = leaf([channels], 6, 1.0, dtype);
    let z = leaf(rows, 7, 3.0, dtype);
    let bias = leaf([channels], 8, 1.0, dtype);
    let h0 = leaf([batch, channels, n], 9, 1.0, dtype);
    let (y, h) = selective_scan(SelectiveScan {
        d: case.full.then(|| d.clone()),
        z: case.full.then(|| z.clone()),
        delta_bias: case.full.then(|| bias.clone()),
        softplus: case.full,
        h0: case.h0.then(|| h0.clone()),
        steps: case.documents.then(|| broken(len)),
        keep_state: true,
        implementation,
        ..SelectiveScan::new(u.clone(), delta.clone(), a.clone().exp().neg(), b.clone(), c.clone())
    })
    .unwrap();
    let h = h.unwrap();
    let loss = (y.clone() * leaf(rows, 10, 1.0, dtype).detach()).sum()
        + (h.clone() * leaf([batch, channels, n], 11, 1.0, dtype).detach()).sum();
    let grads = loss.backward();
    let of = |x: &Tensor<3>| x.grad(&grads).map(host).unwrap_or_default();
    let of_group = |x: &Tensor<4>| x.grad(&grads).map(host).unwrap_or_default();
    let of_channel = |x: &Tensor<1>| x.grad(&grads).map(host).unwrap_or_default();
    vec![
        ("y", host(y)),
        ("h", host(h)),
        ("du", of(&u)),
        ("ddelta", of(&delta)),
        ("da", a.grad(&grads).map(host).unwrap()),
        ("db", of_group(&b)),
        ("dc", of_group(&c)),
        ("dd", of_channel(&d)),
        ("dz", of(&z)),
        ("dbias", of_channel(&bias)),
        ("dh0", of(&h0)),
    ]
}

fn check(case: Case) {
    let want = run(case, DType::F64, Reference);
    let some: &[Implementation] = if cfg!(feature = "flex") { &[Tiled, Flex] } else { &[Tiled] };
    for implementation in some {
        let got = run(case, DType::F32, *implementation);
        compare(&format!("{case:?} {implementation:?}"), &got, &want);
    }
}

#[test]
fn every_length_equals_the_reference() {
    for len in [1, 3, 16, 32, 33, 63, 64, 65, 100, 257] {
        for h0 in [false, true] {
            check(Case { len, h0, ..CASE });
        }
    }
    check(Case { len: 2048 + 5, batch: 1, channels: 2, n: 2, ..CASE });
}

#[test]
fn every_option_equals_the_reference() {
    for full in [false, true] {
        for documents in [false, true] {
            check(Case { full, documents, len: 100, ..CASE });
            check(Case { full, documents, len: 7, h0: false, ..CASE });
        }
    }
}

/// Every entry of every input, in f64.
#[test]
fn gradients_equal_finite_differences() {
    let (batch, len, e, n) = (2, 3, 4, 2);
    let sizes =
        [batch * len * e, batch * len * e, e * n, 12, 12, e, batch * len * e, batch * e * n];
    let loss = |x: &[Tensor<1>]| {
        let rows = |i: usize| x[i].clone().reshape([batch, len, e]);
        let of_group = |i: usize| x[i].clone().reshape([batch, len, 1, n]);
        let (y, h) = selective_scan(SelectiveScan {
            d: Some(x[5].clone()),
            z: Some(rows(6)),
            softplus: true,
            h0: Some(x[7].clone().reshape([batch, e, n])),
            keep_state: true,
            ..SelectiveScan::new(
                rows(0),
                rows(1),
                x[2].clone().reshape([e, n]),
                of_group(3),
                of_group(4),
            )
        })
        .unwrap();
        (y * leaf([batch, len, e], 20, 1.0, DType::F64).detach()).sum()
            + (h.unwrap() * leaf([batch, e, n], 21, 1.0, DType::F64).detach()).sum()
    };
    let leaves: Vec<Tensor<1>> =
        sizes.iter().enumerate().map(|(i, n)| leaf([*n], i as u64, 1.0, DType::F64)).collect();
    let grads = loss(&leaves).backward();
    for (i, x) in leaves.iter().enumerate() {
        let grad = host(x.grad(&grads).unwrap());
        for (k, want) in grad.iter().enumerate() {
            let moved = |by: f64| {
                let mut all: Vec<Tensor<1>> = leaves.iter().map(|x| x.clone().inner()).collect();
                let mut data = host(x.clone());
                data[k] += by;
                all[i] = Tensor::from_data(
                    TensorData::new(data, [sizes[i]]),
                    (&x.device().inner(), DType::F64),
                );
                host(loss(&all.into_iter().map(|x| x.autodiff()).collect::<Vec<_>>()))[0]
            };
            let got = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((got - want).abs() <= 1e-8 + 1e-6 * want.abs(), "{i}, {k}: {got} {want}");
        }
    }
}

/// Several blocks of channels, blocks that are cut off, groups of one channel.
#[test]
fn every_width_equals_the_reference() {
    for (channels, n, groups) in
        [(1, 1, 1), (16, 16, 1), (17, 3, 1), (64, 5, 2), (130, 16, 1), (80, 2, 4), (5, 3, 5)]
    {
        check(Case { channels, n, groups, len: 40, documents: true, ..CASE });
    }
}

/// A document alone gives the same bits as among others; so do two runs.
#[test]
fn documents_do_not_see_each_other() {
    let (channels, n) = (70, 16);
    let go = |range: std::ops::Range<usize>, implementation| {
        let tokens = TokenMeta::packed(&[vec![21, 1, 40]], 64).unwrap();
        let steps = Steps::of(&tokens.slice(range.clone()).unwrap(), None).unwrap().0;
        let rows = |seed, width| {
            leaf([1, 64, width], seed, 1.0, DType::F32).narrow(1, range.start, range.len())
        };
        let narrow = |seed| rows(seed, n).reshape([1, range.len(), 1, n]);
        let a = leaf([channels, n], 3, 1.0, DType::F32).exp().neg();
        let (y, h) = selective_scan(SelectiveScan {
            softplus: true,
            steps: Some(steps),
            keep_state: true,
            implementation,
            ..SelectiveScan::new(rows(1, channels), rows(2, channels), a, narrow(4), narrow(5))
        })
        .unwrap();
        (host(y), host(h.unwrap()))
    };
    let some: &[Implementation] = if cfg!(feature = "flex") { &[Flex] } else { &[Tiled] };
    for implementation in some {
        let (all, _) = go(0..64, *implementation);
        for range in [0..21, 21..22, 22..62] {
            let (alone, _) = go(range.clone(), *implementation);
            assert_eq!(all[range.start * channels..range.end * channels], alone, "{range:?}");
        }
        assert!(all[62 * channels..].iter().all(|y| *y == 0.0));
        // Padding behind leaves the last document's state as it is.
        assert_eq!(go(0..64, *implementation).1, go(22..62, *implementation).1);
    }
}

#[test]
fn what_is_no_number_stays_in_its_document() {
    let (channels, n) = (20, 3);
    let go = |poison: &Poison, implementation| {
        let rows = |seed| poisoned([1, LEN, channels], seed, poison);
        let of_group = |seed| poisoned([1, LEN, 1, n], seed, poison);
        let (u, delta, b, c, z) = (rows(1), rows(2), of_group(4), of_group(5), rows(7));
        let a = leaf([channels, n], 3, 1.5, DType::F32);
        let d = leaf([channels], 6, 1.0, DType::F32);
        let h0 = leaf([1, channels, n], 9, 1.0, DType::F32);
        let (y, h) = selective_scan(SelectiveScan {
            d: Some(d.clone()),
            z: Some(z.clone()),
            softplus: true,
            h0: Some(h0.clone()),
            steps: Some(packed_steps()),
            keep_state: true,
            implementation,
            ..SelectiveScan::new(
                u.clone(),
                delta.clone(),
                a.clone().exp().neg(),
                b.clone(),
                c.clone(),
            )
        })
        .unwrap();
        let h = h.unwrap();
        let loss = (y.clone() * rows(10).detach()).sum()
            + (h.clone() * leaf([1, channels, n], 11, 1.0, DType::F32).detach()).sum();
        let grads = loss.backward();
        vec![
            ("y", host(y)),
            ("h", host(h)),
            ("du", host(u.grad(&grads).unwrap())),
            ("ddelta", host(delta.grad(&grads).unwrap())),
            ("da", host(a.grad(&grads).unwrap())),
            ("db", host(b.grad(&grads).unwrap())),
            ("dc", host(c.grad(&grads).unwrap())),
            ("dd", host(d.grad(&grads).unwrap())),
            ("dz", host(z.grad(&grads).unwrap())),
            ("dh0", host(h0.grad(&grads).unwrap())),
        ]
    };
    let some: &[Implementation] = if cfg!(feature = "flex") { &[Tiled, Flex] } else { &[Tiled] };
    for implementation in some {
        stays_in_its_document(&format!("{implementation:?}"), |poison| go(poison, *implementation));
    }
}

/// Two halves with the state between them are the whole.
#[test]
fn a_state_carries_on() {
    let (len, channels, n) = (70, 20, 8);
    let go = |range: std::ops::Range<usize>, h0: Option<Tensor<3>>| {
        let rows = |seed, width| {
            leaf([2, len, width], seed, 1.0, DType::F32).inner().narrow(1, range.start, range.len())
        };
        let narrow = |seed| rows(seed, n).reshape([2, range.len(), 1, n]);
        let a = leaf([channels, n], 3, 1.0, DType::F32).inner().exp().neg();
        selective_scan(SelectiveScan {
            softplus: true,
            h0,
            keep_state: true,
            ..SelectiveScan::new(rows(1, channels), rows(2, channels), a, narrow(4), narrow(5))
        })
        .unwrap()
    };
    let (whole, last) = go(0..len, None);
    let (first, state) = go(0..33, None);
    let (second, end) = go(33..len, state);
    let bits = |x: Tensor<3>| x.into_data().iter::<f32>().map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(bits(whole), bits(Tensor::cat(vec![first, second], 1)));
    assert_eq!(bits(last.unwrap()), bits(end.unwrap()));
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = |shape| leaf(shape, 1, 1.0, DType::F32);
    let good = || {
        let (b, c) =
            (leaf([1, 3, 2, 2], 1, 1.0, DType::F32), leaf([1, 3, 2, 2], 1, 1.0, DType::F32));
        SelectiveScan::new(x([1, 3, 4]), x([1, 3, 4]), leaf([4, 2], 1, 1.0, DType::F32), b, c)
    };
    assert!(selective_scan(good()).is_ok());
    let cases: [(&str, SelectiveScan); 5] = [
        ("delta is [1, 3, 5]", SelectiveScan { delta: x([1, 3, 5]), ..good() }),
        ("A is [3, 2]", SelectiveScan { a: leaf([3, 2], 1, 1.0, DType::F32), ..good() }),
        (
            "C is [1, 3, 1, 2]",
            SelectiveScan { c: leaf([1, 3, 1, 2], 1, 1.0, DType::F32), ..good() },
        ),
        ("h0 is [2, 4, 2]", SelectiveScan { h0: Some(x([2, 4, 2])), ..good() }),
        ("steps of 1 rows of 4", SelectiveScan { steps: Some(Steps::plain(1, 4)), ..good() }),
    ];
    for (text, input) in cases {
        let error = selective_scan(input).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
    let double = SelectiveScan { u: x([1, 3, 4]).cast(DType::F64), implementation: Flex, ..good() };
    assert!(matches!(selective_scan(double), Err(Error::Unsupported { .. })));
}
