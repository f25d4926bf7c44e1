use super::{LEN, Pass, Poison, broken, compare, crowded, crowded_steps, host, leaf, ratio};
use super::{packed_steps, stays_in_its_document};
use crate::Implementation::{self, Auto, Reference, Tiled};
use crate::{SelectiveScan, Ssd, SsdDiscrete, Steps, TokenMeta, selective_scan, ssd, ssd_discrete};
use burn::tensor::{Bool, DType, Tensor, TensorData};

#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    len: usize,
    heads: usize,
    p: usize,
    n: usize,
    groups: usize,
    chunk: usize,
    full: bool,
    h0: bool,
    documents: Option<fn(usize) -> Steps>,
}

const CASE: Case = Case {
    batch: 2,
    len: 53,
    heads: 4,
    p: 3,
    n: 5,
    groups: 2,
    chunk: 16,
    full: true,
    h0: true,
    documents: None,
};

fn run(case: Case, dtype: DType, implementation: Implementation) -> Pass {
    let Case { batch, len, heads, p, n, groups, .. } = case;
    let x = leaf([batch, len, heads, p], 1, 1.0, dtype);
    let dt = leaf([batch, len, heads], 2, if case.full { 2.0 } else { 0.5 }, dtype);
    let a = leaf([heads], 3, 1.5, dtype);
    let b = leaf([batch, len, groups, n], 4, 1.0, dtype);
    let c = leaf([batch, len, groups, n], 5, 1.0, dtype);
    let d = leaf([if case.h0 { heads } else { heads * p }], 6, 1.0, dtype);
    let z = leaf([batch, len, heads, p], 7, 3.0, dtype);
    let bias = leaf([heads], 8, 1.0, dtype);
    let h0 = leaf([batch, heads, p, n], 9, 1.0, dtype);
    // Without softplus Δ must be positive for A to make it a decay.
    let step = if case.full { dt.clone() } else { dt.clone() * dt.clone() };
    let (y, h) = ssd(Ssd {
        d: case.full.then(|| d.clone()),
        z: case.full.then(|| z.clone()),
        dt_bias: case.full.then(|| bias.clone()),
        softplus: case.full,
        dt_limit: case.full.then_some((0.3, 1.5)),
        h0: case.h0.then(|| h0.clone()),
        steps: case.documents.map(|of| of(len)),
        chunk: case.chunk,
        keep_state: true,
        implementation,
        ..Ssd::new(x.clone(), step, a.clone().exp().neg(), b.clone(), c.clone())
    })
    .unwrap();
    let h = h.unwrap();
    let loss = (y.clone() * leaf([batch, len, heads, p], 10, 1.0, dtype).detach()).sum()
        + (h.clone() * leaf([batch, heads, p, n], 11, 1.0, dtype).detach()).sum();
    let grads = loss.backward();
    let of = |x: &Tensor<4>| x.grad(&grads).map(host).unwrap_or_default();
    let of_head = |x: &Tensor<1>| x.grad(&grads).map(host).unwrap_or_default();
    vec![
        ("y", host(y)),
        ("h", host(h)),
        ("dx", of(&x)),
        ("ddt", dt.grad(&grads).map(host).unwrap()),
        ("da", of_head(&a)),
        ("db", of(&b)),
        ("dc", of(&c)),
        ("dd", of_head(&d)),
        ("dz", of(&z)),
        ("dbias", of_head(&bias)),
        ("dh0", of(&h0)),
    ]
}

fn check(case: Case) {
    let want = run(case, DType::F64, Reference);
    for implementation in [Tiled, Auto] {
        let got = run(case, DType::F32, implementation);
        compare(&format!("{case:?} {implementation:?}"), &got, &want);
    }
}

#[test]
fn every_chunk_equals_the_reference() {
    for chunk in [1, 16, 64, 256] {
        for len in [1, chunk - 1, chunk, chunk + 1, 3 * chunk + 5] {
            if len > 0 {
                check(Case { len, chunk, ..CASE });
            }
        }
    }
}

#[test]
fn every_option_equals_the_reference() {
    for full in [false, true] {
        for documents in [None, Some(broken as fn(usize) -> Steps)] {
            for h0 in [false, true] {
                check(Case { full, documents, h0, ..CASE });
            }
        }
    }
}

#[test]
fn every_width_equals_the_reference() {
    for (heads, p, n, groups) in [
        (1, 1, 1, 1),
        (3, 8, 16, 1),
        (6, 4, 3, 6),
        (6, 5, 3, 3),
        (10, 33, 17, 1),
        (2, 64, 40, 1),
        // Several heads for each thread, and fewer for the last one.
        (26, 2, 3, 1),
    ] {
        check(Case { heads, p, n, groups, documents: Some(broken), ..CASE });
    }
}

/// Heads as layers have them, whole panels and whole chunks, on all threads: several jobs of a group,
/// the last of fewer heads.
#[test]
fn whole_panels_equal_the_reference() {
    let case = Case { batch: 1, len: 200, heads: 7, p: 64, n: 128, groups: 1, chunk: 64, ..CASE };
    check(case);
    let documents = Some(crowded_steps as fn(usize) -> Steps);
    check(Case { batch: 4, len: 70, heads: 2, n: 32, documents, ..case });
}

/// Heads follow each other in the same memory: what is no number in one reaches no other head, and of
/// what all share only the gradients.
#[test]
fn what_is_no_number_stays_in_its_head() {
    for (heads, p, n, chunk) in [(3, 3, 5, 16), (8, 33, 7, 64), (2, 64, 32, 64)] {
        let len = 90;
        let go = |bad: Option<(usize, f32)>| {
            let value = |shape: [usize; 4], seed| leaf(shape, seed, 1.0, DType::F32);
            let x = value([1, len, heads, p], 1).inner();
            let x = match bad {
                Some((head, value)) => x.slice_fill([0..1, 20..40, head..head + 1, 0..p], value),
                None => x,
            };
            let x = Tensor::<4>::from_inner(x).require_grad();
            let dt = leaf([1, len, heads], 2, 1.0, DType::F32);
            let a = leaf([heads], 3, 1.0, DType::F32).inner().exp().neg();
            let (b, c) = (value([1, len, 1, n], 4), value([1, len, 1, n], 5));
            let input = Ssd::new(x.clone(), dt.clone(), a, b, c);
            let (y, h) = ssd(Ssd { softplus: true, keep_state: true, chunk, ..input }).unwrap();
            let grads = (y.clone() * value([1, len, heads, p], 6).detach()).sum().backward();
            let (dx, ddt) = (x.grad(&grads).unwrap(), dt.grad(&grads).unwrap());
            let ddt = Tensor::<4>::from_inner(ddt.reshape([1, len, heads, 1]));
            [y, Tensor::from_inner(dx), ddt, h.unwrap().swap_dims(1, 2)]
        };
        let want = go(None);
        for (head, value) in [(0, f32::NAN), (1, f32::INFINITY), (heads - 1, f32::NAN)] {
            for (i, (got, want)) in go(Some((head, value))).iter().zip(&want).enumerate() {
                for other in (0..heads).filter(|other| *other != head) {
                    let of = |x: &Tensor<4>| host(x.clone().narrow(2, other, 1));
                    let case = format!("{heads} heads of {p}: {value} in {head}, {i} of {other}");
                    assert!(of(got) == of(want), "{case}");
                }
            }
        }
    }
}

/// Which thread takes a job does not show in any bit.
#[test]
fn runs_on_all_threads_give_the_same_bits() {
    let case = Case { batch: 2, len: 130, heads: 9, p: 32, n: 32, groups: 1, chunk: 64, ..CASE };
    let want = run(case, DType::F32, Auto);
    for _ in 0..5 {
        assert!(run(case, DType::F32, Auto) == want);
    }
}

/// With A and Δ repeated over the channels of a head it is the scan of Mamba-1.
#[test]
fn it_equals_the_selective_scan() {
    let (batch, len, heads, p, n) = (2, 70, 3, 4, 5);
    let value = |shape, seed| leaf::<4>(shape, seed, 1.0, DType::F32).inner();
    let x = value([batch, len, heads, p], 1);
    let dt = value([batch, len, heads, 1], 2).exp();
    let a = leaf([heads], 3, 1.0, DType::F32).inner().exp().neg();
    let (b, c) = (value([batch, len, 1, n], 4), value([batch, len, 1, n], 5));
    let flat = |x: Tensor<4>| x.reshape([batch, len, heads * p]);
    let (want, _) = selective_scan(SelectiveScan {
        keep_state: true,
        ..SelectiveScan::new(
            flat(x.clone()),
            flat(dt.clone().repeat_dim(3, p)),
            a.clone()
                .reshape([heads, 1, 1])
                .repeat_dim(1, p)
                .repeat_dim(2, n)
                .reshape([heads * p, n]),
            b.clone(),
            c.clone(),
        )
    })
    .unwrap();
    let (got, _) = ssd(Ssd::new(x, dt.squeeze_dim(3), a, b, c)).unwrap();
    assert!(ratio(&host(flat(got)), &host(want)) < 1e-6);
}

/// Without decay it is causal linear attention.
#[test]
fn without_decay_it_is_linear_attention() {
    let (batch, len, heads, p, n) = (1, 40, 2, 3, 4);
    let value = |shape, seed| leaf::<4>(shape, seed, 1.0, DType::F32).inner();
    let (x, b, c) = (
        value([batch, len, heads, p], 1),
        value([batch, len, 1, n], 2),
        value([batch, len, 1, n], 3),
    );
    let one = Tensor::<3>::ones([batch, len, heads], &x.device());
    let (got, _) = ssd_discrete(SsdDiscrete {
        x: x.clone(),
        weight: one.clone(),
        log_decay: one.mul_scalar(0.0),
        b: b.clone(),
        c: c.clone(),
        d: None,
        h0: None,
        steps: None,
        chunk: 16,
        keep_state: false,
        implementation: Auto,
    })
    .unwrap();
    let heads_first = |x: Tensor<4>| x.swap_dims(1, 2);
    let scores = heads_first(c).matmul(heads_first(b).transpose()).tril(0).repeat_dim(1, heads);
    let want = heads_first(scores.matmul(heads_first(x)));
    assert!(ratio(&host(got), &host(want)) < 1e-6);
}

/// A boundary within a chunk, two in one chunk, and a document that crosses into the next: each
/// document's outputs have the bits that they have without the others before it.
#[test]
fn documents_do_not_see_each_other() {
    let (heads, p, n) = (2, 3, 4);
    let lengths = vec![10, 3, 25, 20];
    let go = |change: f32| {
        let tokens = TokenMeta::packed(std::slice::from_ref(&lengths), 60).unwrap();
        let mask: Vec<f32> = (0..60).map(|t| if t < 10 { change } else { 1.0 }).collect();
        let mask = Tensor::<1>::from_floats(&mask[..], &Default::default()).reshape([1, 60, 1, 1]);
        let x = leaf([1, 60, heads, p], 1, 1.0, DType::F32).inner() * mask.clone();
        let dt = leaf([1, 60, heads], 2, 1.0, DType::F32).inner() * mask.squeeze_dim(3);
        let a = leaf([heads], 3, 1.0, DType::F32).inner().exp().neg();
        let value = |seed| leaf([1, 60, 1, n], seed, 1.0, DType::F32).inner();
        let (y, h) = ssd(Ssd {
            softplus: true,
            chunk: 16,
            steps: Some(Steps::of(&tokens, None).unwrap().0),
            keep_state: true,
            d: Some(leaf([heads], 6, 1.0, DType::F32).inner()),
            ..Ssd::new(x, dt, a, value(4), value(5))
        })
        .unwrap();
        (host(y), host(h.unwrap()))
    };
    let ((y, h), (other, other_h)) = (go(1.0), go(-2.0));
    assert_ne!(y[..10 * heads * p], other[..10 * heads * p]);
    assert_eq!(y[10 * heads * p..], other[10 * heads * p..]);
    assert_eq!(h, other_h);
    assert!(y[58 * heads * p..].iter().all(|y| *y == 0.0));
}

/// Short documents share products, long ones have several chunks, rows end at different ones.
#[test]
fn rows_of_many_documents_equal_the_reference() {
    for (len, chunk) in [(3, 2), (20, 64), (61, 1), (61, 4), (61, 8), (61, 64), (150, 16)] {
        for h0 in [false, true] {
            let documents = Some(crowded_steps as fn(usize) -> Steps);
            check(Case { batch: 4, len, chunk, h0, documents, ..CASE });
        }
    }
    // Nothing but padding.
    let nothing = |len| {
        let tokens = TokenMeta::packed(&[vec![], vec![]], len).unwrap();
        Steps::of(&tokens, None).unwrap().0
    };
    check(Case { documents: Some(nothing), ..CASE });
}

/// So many chunks that not all are computed at once.
#[test]
fn rows_of_several_runs_equal_the_reference() {
    for (len, chunk) in [(128, 1), (129, 1), (300, 1), (515, 2)] {
        for h0 in [false, true] {
            check(Case { len, chunk, h0, ..CASE });
        }
    }
}

/// Tokens of a crowded row.
const CROWD: usize = 61;
/// Chunks, and code.
const RUNS: [(usize, Implementation); 3] = [(8, Auto), (8, Tiled), (64, Tiled)];

/// What holds no numbers but `value`.
struct Bad<'a> {
    tokens: &'a [bool],
    /// The row whose state is given.
    h0: Option<usize>,
    /// The row of whose last state the gradient is.
    dh: Option<usize>,
    value: f32,
}

/// A scan with everything but a gate.
fn poisoned_run(
    steps: &Steps,
    bad: Bad<'_>,
    (chunk, implementation): (usize, Implementation),
) -> Pass {
    let (heads, p, n) = (2, 3, 4);
    let (batch, len) = (steps.batch(), steps.len());
    let filled = |shape: [usize; 4], seed, at: &[bool]| {
        let data = TensorData::new(at.to_vec(), [shape[0], at.len() / shape[0], 1, 1]);
        let mask = Tensor::<4, Bool>::from_data(data, &Default::default());
        let x = leaf(shape, seed, 1.0, DType::F32).inner().mask_fill(mask, bad.value);
        Tensor::<4>::from_inner(x).require_grad()
    };
    let tokens = |shape, seed| filled(shape, seed, bad.tokens);
    let state = |seed, bad: Option<usize>| {
        let rows: Vec<bool> = (0..batch).map(|row| bad == Some(row)).collect();
        filled([batch, heads, p, n], seed, &rows)
    };
    let x = tokens([batch, len, heads, p], 1);
    let dt = tokens([batch, len, heads, 1], 2);
    let [b, c] = [4, 5].map(|seed| tokens([batch, len, 1, n], seed));
    let a = leaf([heads], 3, 1.5, DType::F32);
    let d = leaf([heads], 6, 1.0, DType::F32);
    let bias = leaf([heads], 8, 1.0, DType::F32);
    let h0 = state(9, bad.h0);
    let dt_of_heads = dt.clone().squeeze_dim(3);
    let (y, h) = ssd(Ssd {
        d: Some(d.clone()),
        dt_bias: Some(bias.clone()),
        softplus: true,
        h0: Some(h0.clone()),
        steps: Some(steps.clone()),
        chunk,
        keep_state: true,
        implementation,
        ..Ssd::new(x.clone(), dt_of_heads, a.clone().exp().neg(), b.clone(), c.clone())
    })
    .unwrap();
    let h = h.unwrap();
    let of_y = tokens([batch, len, heads, p], 10).detach();
    let of_h = state(11, bad.dh).detach();
    let loss = (y.clone() * of_y).sum() + (h.clone() * of_h).sum();
    let grads = loss.backward();
    vec![
        ("y", host(y)),
        ("h", host(h)),
        ("dx", host(x.grad(&grads).unwrap())),
        ("ddt", host(dt.grad(&grads).unwrap())),
        ("da", host(a.grad(&grads).unwrap())),
        ("db", host(b.grad(&grads).unwrap())),
        ("dc", host(c.grad(&grads).unwrap())),
        ("dd", host(d.grad(&grads).unwrap())),
        ("dbias", host(bias.grad(&grads).unwrap())),
        ("dh0", host(h0.grad(&grads).unwrap())),
    ]
}

#[test]
fn what_is_no_number_stays_in_its_document() {
    for implementation in [Auto, Tiled] {
        for chunk in [16, 64] {
            let case = format!("{implementation:?}, chunks of {chunk}");
            stays_in_its_document(&case, |(tokens, value): &Poison| {
                let at: Vec<bool> = (0..LEN).map(|t| tokens.contains(&t)).collect();
                let bad = Bad { tokens: &at, h0: None, dh: None, value: *value };
                poisoned_run(&packed_steps(), bad, (chunk, implementation))
            });
        }
    }
}

/// The same where documents of several rows are side by side. Of parameters nothing is asked but where
/// padding is bad; of states, those of other rows.
#[test]
fn what_is_no_number_stays_in_its_document_beside_others() {
    let (tokens, steps) = (crowded(CROWD), crowded_steps(CROWD));
    let all: Vec<(usize, i32)> = (0..4 * CROWD).map(|i| (i / CROWD, tokens.segment()[i])).collect();
    let mut documents = all.clone();
    documents.sort_unstable();
    documents.dedup();
    let none = vec![false; 4 * CROWD];
    for run in RUNS {
        let go = |tokens: &[bool], value| {
            poisoned_run(&steps, Bad { tokens, h0: None, dh: None, value }, run)
        };
        let want = go(&none, 0.0);
        for (i, document) in documents.iter().enumerate() {
            let at: Vec<bool> = all.iter().map(|of| of == document).collect();
            let value = if i % 2 == 0 { f32::NAN } else { f32::INFINITY };
            let case = format!("{run:?}: {value} in {document:?}");
            let is_text = document.1 >= 0;
            let row = |row: usize| is_text && row == document.0;
            same_but(&case, &go(&at, value), &want, (is_text, row), &at);
        }
    }
}

/// The state that a row is given reaches the document that finds it, the gradient of its last state the
/// document that leaves that.
#[test]
fn states_that_are_no_numbers_reach_one_document() {
    let (tokens, steps) = (crowded(CROWD), crowded_steps(CROWD));
    let none = vec![false; 4 * CROWD];
    for run in RUNS {
        let go = |h0, dh, value| poisoned_run(&steps, Bad { tokens: &none, h0, dh, value }, run);
        let want = go(None, None, 0.0);
        // The last row's first document is another one than its state is of.
        let got = go(Some(3), None, f32::NAN);
        same_but(&format!("{run:?}, state"), &got, &want, (false, |_| false), &none);

        let last = tokens.segment()[..CROWD].iter().max();
        let at: Vec<bool> =
            (0..4 * CROWD).map(|i| i < CROWD && Some(&tokens.segment()[i]) == last).collect();
        let mut got = go(None, Some(0), f32::NAN);
        assert_eq!(got[0].1, want[0].1, "the outputs need no gradient");
        got.remove(0);
        same_but(&format!("{run:?}, gradient"), &got, &want[1..], (true, |_| false), &at);
    }
}

/// All bits are the same but those of parameters where they are `apart`, of the states of the rows that
/// are, and of the tokens `at`.
fn same_but(
    case: &str,
    got: &[(&'static str, Vec<f64>)],
    want: &[(&'static str, Vec<f64>)],
    (parameters, row): (bool, impl Fn(usize) -> bool),
    at: &[bool],
) {
    for ((name, got), (_, want)) in got.iter().zip(want) {
        let apart: Vec<bool> = match *name {
            "da" | "dd" | "dbias" => vec![parameters; got.len()],
            "h" | "dh0" => (0..4).map(&row).collect(),
            _ => at.to_vec(),
        };
        let width = got.len() / apart.len();
        let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let (got, want) = (bits(got), bits(want));
        let each = got.chunks(width).zip(want.chunks(width)).enumerate();
        for (i, (got, want)) in each.filter(|(i, _)| !apart[*i]) {
            assert!(got == want, "{case}: {name} {i} changes");
        }
    }
}

/// Decays to nothing within a token, and none at all: no NaN, and still the reference.
#[test]
fn extreme_decays_stay_finite() {
    for (dt, a) in [(10.0, -16.0), (0.0, -16.0), (1e-3, -1.0)] {
        let go = |dtype, implementation| {
            let x = leaf([1, 70, 2, 3], 1, 1.0, dtype);
            let of = |x: f64, n: usize| Tensor::<1>::full([n], x, (&Default::default(), dtype));
            let step = of(dt, 140).reshape([1, 70, 2]).autodiff().require_grad();
            let a = of(a, 2).autodiff().require_grad();
            let (b, c) = (leaf([1, 70, 1, 4], 4, 1.0, dtype), leaf([1, 70, 1, 4], 5, 1.0, dtype));
            let input =
                Ssd { implementation, ..Ssd::new(x.clone(), step.clone(), a.clone(), b, c) };
            let y = ssd(input).unwrap().0;
            let grads = (y.clone() * leaf([1, 70, 2, 3], 6, 1.0, dtype).detach()).sum().backward();
            vec![
                ("y", host(y)),
                ("dx", host(x.grad(&grads).unwrap())),
                ("ddt", host(step.grad(&grads).unwrap())),
            ]
        };
        let want = go(DType::F64, Reference);
        assert!(want.iter().all(|(_, x)| x.iter().all(|x| x.is_finite())));
        for implementation in [Tiled, Auto] {
            compare(&format!("{dt} {a}"), &go(DType::F32, implementation), &want);
        }
    }
}

/// Inputs of 16 bits over a long row: decays stay in 32.
#[test]
fn half_precision_stays_near() {
    let go = |dtype| {
        // The same numbers for both: rounded to 16 bits.
        let narrow = |x: Tensor<4>| x.cast(DType::BF16).cast(dtype);
        let value = |shape: [usize; 4], seed| narrow(leaf(shape, seed, 1.0, DType::F32).inner());
        let dt = leaf([1, 4096, 2, 1], 2, 1.0, DType::F32).inner().sub_scalar(3.0);
        let dt = narrow(dt).squeeze_dim::<3>(3);
        let a = leaf([2], 3, 1.0, DType::F32).inner().exp().neg();
        let (b, c) = (value([1, 4096, 1, 4], 4), value([1, 4096, 1, 4], 5));
        let input = Ssd::new(value([1, 4096, 2, 3], 1), dt, a, b, c);
        host(ssd(Ssd { softplus: true, ..input }).unwrap().0)
    };
    let r = ratio(&go(DType::BF16), &go(DType::F32));
    assert!(r < 3e-3, "{r:e}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = |shape: [usize; 4]| leaf(shape, 1, 1.0, DType::F32);
    let good = || {
        let dt = leaf([1, 3, 4], 1, 1.0, DType::F32);
        let a = leaf([4], 1, 1.0, DType::F32);
        Ssd::new(x([1, 3, 4, 2]), dt, a, x([1, 3, 2, 5]), x([1, 3, 2, 5]))
    };
    assert!(ssd(good()).is_ok());
    let cases: [(&str, Ssd); 7] = [
        ("dt is [1, 3, 5]", Ssd { dt: leaf([1, 3, 5], 1, 1.0, DType::F32), ..good() }),
        ("A is [3]", Ssd { a: leaf([3], 1, 1.0, DType::F32), ..good() }),
        ("3 groups do not divide 4 heads", Ssd { b: x([1, 3, 3, 5]), ..good() }),
        ("chunk is 0", Ssd { chunk: 0, ..good() }),
        ("D is [3]", Ssd { d: Some(leaf([3], 1, 1.0, DType::F32)), ..good() }),
        ("dt_limit is (2, 1)", Ssd { dt_limit: Some((2.0, 1.0)), ..good() }),
        ("steps of 2 rows of 3", Ssd { steps: Some(Steps::plain(2, 3)), ..good() }),
    ];
    for (text, input) in cases {
        let error = ssd(input).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
}
