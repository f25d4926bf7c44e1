//! Every implementation against the reference: outputs, lse and all gradients, awkward shapes.

// One range slices the batch and leaves the rest whole.
#![allow(clippy::single_range_in_vec_init)]

mod narrow;
mod sparse;

use crate::*;
use burn::tensor::{DType, Device, Distribution, Tensor};

pub(super) const FORWARD: f64 = 2e-6;
const GRADIENTS: f64 = 1e-5;

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) kv: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) dim: usize,
    pub(crate) value_dim: usize,
    pub(crate) masks: Vec<Mask>,
}

pub(crate) fn device() -> Device {
    #[cfg(feature = "flex")]
    return Device::flex();
    #[cfg(not(feature = "flex"))]
    return Device::default();
}

/// RMS(a − b) / RMS(b), with NaN counted as a failure.
pub(crate) fn ratio<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f64 {
    let (a, b) = (values(a), values(b));
    let square = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>();
    let finite = |x: f64| if x == f64::NEG_INFINITY { -1e4 } else { x };
    let diff = square(&mut a.iter().zip(&b).map(|(a, b)| finite(*a) - finite(*b)));
    let size = square(&mut b.iter().map(|b| finite(*b)));
    if diff.is_nan() {
        return f64::INFINITY;
    }
    if size == 0.0 { diff.sqrt() } else { (diff / size).sqrt() }
}

pub(crate) fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.inner().cast(DType::F64).into_data().try_to_vec::<f64>().expect("float data")
}

pub(crate) fn random(shape: [usize; 4], seed: u64) -> Tensor<4> {
    // A fixed, cheap sequence: the process-wide random state of a device is not ours to rely on.
    let n = shape.iter().product::<usize>();
    let data: Vec<f32> = (0..n as u64)
        .map(|i| {
            let x = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
                ^ seed.wrapping_mul(0xD1B5_4A32_D192_ED03);
            let x = (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            ((x >> 40) as f32 / (1u64 << 24) as f32) * 4.0 - 2.0
        })
        .collect();
    Tensor::from_data(burn::tensor::TensorData::new(data, shape), &device())
}

struct Outcome {
    out: Tensor<4>,
    lse: Tensor<3>,
    /// v, then q and k of every branch
    grads: Vec<Tensor<4>>,
}

fn run(case: &Case, implementation: Implementation, dtype: DType) -> Outcome {
    let leaf =
        |shape, seed| Tensor::<4>::from_inner(random(shape, seed).cast(dtype)).require_grad();
    let v = leaf([case.batch, case.kv, case.keys, case.value_dim], 1);
    let mut leaves = vec![v.clone()];
    let mut branches = Vec::new();
    for (i, mask) in case.masks.iter().enumerate() {
        let q = leaf([case.batch, case.heads, case.queries, case.dim], 2 + 2 * i as u64);
        let k = leaf([case.batch, case.kv, case.keys, case.dim], 3 + 2 * i as u64);
        leaves.extend([q.clone(), k.clone()]);
        branches.push(Branch { q, k, mask: mask.clone() });
    }
    let options = AttentionOptions::default().with_implementation(implementation);
    let output = masked_attention(&branches, v, &options).expect(case.name);
    let weight = random([case.batch, case.heads, case.queries, case.value_dim], 99);
    let loss = (output.out.clone() * Tensor::from_inner(weight.cast(dtype))).sum();
    let grads = loss.backward();
    let grads = leaves.iter().map(|x| x.grad(&grads).expect("a gradient for every input"));
    Outcome { out: output.out.inner(), lse: output.lse.inner(), grads: grads.collect() }
}

#[test]
fn scales_that_f32_does_not_hold_are_refused_and_plans_of_nothing_are_possible() {
    let tokens = TokenMeta::contiguous(1, 3, 0);
    let mask = Mask::new(MaskSpec::causal(), tokens.clone(), tokens, 1).unwrap();
    let x = || random([1, 1, 3, 4], 1);
    for scale in [1e39, f64::NAN, f64::INFINITY] {
        let branch = Branch { q: x(), k: x(), mask: mask.clone() };
        let options = AttentionOptions::default().with_scale(scale);
        let error = masked_attention(&[branch], x(), &options).err().unwrap().to_string();
        assert!(error.contains("scale is"), "{error}");
    }
    for (kv, s) in [(0, 8), (2, 0), (0, 0)] {
        crate::attention::scratch([1, 2, 8, 16], kv, s);
    }
}

/// Whatever width values have.
#[test]
fn scores_are_divided_by_the_root_of_the_width_of_queries() {
    let tokens = TokenMeta::contiguous(1, 70, 0);
    let mask = Mask::new(MaskSpec::causal(), tokens.clone(), tokens, 2).unwrap();
    let attend = |implementation, dtype, scale| {
        let tensor = |width, seed| random([1, 2, 70, width], seed).cast(dtype);
        let branch = Branch { q: tensor(16, 2), k: tensor(16, 3), mask: mask.clone() };
        let options = AttentionOptions { scale, ..AttentionOptions::default() };
        let options = options.with_implementation(implementation);
        masked_attention(&[branch], tensor(9, 1), &options).unwrap().out
    };
    let want = attend(Implementation::Reference, DType::F64, Some(0.25));
    for implementation in implementations() {
        let r = ratio(attend(implementation, DType::F32, None), want.clone());
        assert!(r <= FORWARD, "{implementation:?}: {r:e}");
    }
    let r = ratio(attend(Implementation::Reference, DType::F64, None), want);
    assert!(r <= FORWARD, "reference: {r:e}");
}

fn compare(case: &Case, implementation: Implementation) {
    let want = run(case, Implementation::Reference, DType::F64);
    let got = run(case, implementation, DType::F32);
    let name = format!("{} {implementation:?}", case.name);
    let r = ratio(got.out, want.out);
    assert!(r <= FORWARD, "{name}: out differs by {r:e}");
    let r = ratio(got.lse, want.lse);
    assert!(r <= FORWARD, "{name}: lse differs by {r:e}");
    for (i, (got, want)) in got.grads.into_iter().zip(want.grads).enumerate() {
        let r = ratio(got, want);
        assert!(r <= GRADIENTS, "{name}: gradient {i} differs by {r:e}");
    }
}

pub(super) fn implementations() -> Vec<Implementation> {
    let mut all = vec![Implementation::Tiled];
    if cfg!(feature = "flex") {
        all.push(Implementation::Flex);
    }
    all
}

fn square(
    name: &'static str,
    (b, h, kv): (usize, usize, usize),
    t: usize,
    dim: usize,
    spec: MaskSpec,
    tokens: TokenMeta,
) -> Case {
    let mask = Mask::new(spec, tokens.clone(), tokens, h).expect(name);
    Case {
        name,
        batch: b,
        heads: h,
        kv,
        queries: t,
        keys: t,
        dim,
        value_dim: dim,
        masks: vec![mask],
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let causal = MaskSpec::causal;
    let plain = TokenMeta::contiguous;
    let groups = |size, ragged| Groups { size, shift: true, ragged };
    let mut cases = vec![
        square("one token", (1, 2, 1), 1, 4, causal(), plain(1, 1, 0)),
        square("63", (2, 4, 2), 63, 8, causal(), plain(2, 63, 0)),
        square("100", (1, 4, 4), 100, 12, causal(), plain(1, 100, 0)),
        square("257 mqa", (2, 4, 1), 257, 5, causal(), plain(2, 257, 0)),
        // Keys in several parts backward.
        square("900 mqa", (1, 2, 1), 900, 4, causal(), plain(1, 900, 0)),
        // Values are read where they lie: several tiles of keys, whole panels of two widths.
        Case {
            value_dim: 32,
            ..square("600, values of 32", (2, 4, 2), 600, 64, causal(), plain(2, 600, 0))
        },
        Case {
            value_dim: 96,
            ..square("300, values of 96", (1, 2, 2), 300, 32, causal(), plain(1, 300, 0))
        },
        square("bidirectional", (1, 2, 2), 130, 8, MaskSpec::bidirectional(), plain(1, 130, 0)),
        square("window", (1, 4, 2), 150, 8, causal().with_window(Some(17)), plain(1, 150, 0)),
        square("window 1", (1, 2, 2), 70, 8, causal().with_window(Some(1)), plain(1, 70, 0)),
        square(
            "sinks",
            (1, 4, 2),
            200,
            8,
            causal().with_window(Some(9)).with_sinks(3),
            plain(1, 200, 0),
        ),
        square(
            "left padding",
            (3, 4, 2),
            80,
            8,
            causal(),
            TokenMeta::left_padded(&[80, 1, 33], 80).unwrap(),
        ),
        square(
            "right padding",
            (2, 4, 2),
            80,
            8,
            causal(),
            TokenMeta::right_padded(&[0, 70], 80).unwrap(),
        ),
        square(
            "packed",
            (2, 4, 2),
            150,
            8,
            causal().with_window(Some(40)).with_sinks(2),
            TokenMeta::packed(&[vec![1, 70, 64], vec![150]], 150).unwrap(),
        ),
        square(
            "groups",
            (2, 4, 2),
            128,
            8,
            causal().with_groups(groups(GroupSize::Ratio(4), false)),
            plain(2, 128, 0),
        ),
        square(
            "groups mqa",
            (1, 2, 1),
            96,
            8,
            causal().with_groups(groups(GroupSize::Fixed(32), false)),
            plain(1, 96, 0),
        ),
        square(
            "groups ragged packed",
            (2, 6, 3),
            140,
            8,
            causal().with_groups(groups(GroupSize::Fixed(16), true)),
            TokenMeta::packed(&[vec![29, 100], vec![7, 5, 120]], 140).unwrap(),
        ),
    ];
    // Queries behind a cache, with another width of values.
    let keys = TokenMeta::left_padded(&[90, 40], 90).unwrap();
    let queries = keys.slice(85..90).unwrap();
    let mask = Mask::new(causal().with_window(Some(60)), queries, keys, 4).unwrap();
    cases.push(Case {
        name: "cache",
        batch: 2,
        heads: 4,
        kv: 2,
        queries: 5,
        keys: 90,
        dim: 8,
        value_dim: 11,
        masks: vec![mask],
    });
    // A few queries, rows of different lengths, and one that sees nothing; more keys than a part.
    for (name, queries, keys, window) in [
        ("one query", 1, 300, None),
        ("three queries, window", 3, 130, Some(70)),
        ("four queries, many keys", 4, 2100, None),
    ] {
        let of_keys = TokenMeta::left_padded(&[keys, keys / 3, 0], keys).unwrap();
        let of_queries = of_keys.slice(keys - queries..keys).unwrap();
        let mask = Mask::new(causal().with_window(window), of_queries, of_keys, 6).unwrap();
        let (batch, heads, kv, dim, value_dim) = (3, 6, 2, 20, 11);
        let masks = vec![mask];
        cases.push(Case { name, batch, heads, kv, queries, keys, dim, value_dim, masks });
    }
    // Near pairs with one rotation, far pairs with another: every pair in one branch only.
    let t = 140;
    let near =
        Mask::new(causal().with_window(Some(20)), plain(2, t, 0), plain(2, t, 0), 4).unwrap();
    let shifted =
        TokenMeta::new(2, t, (0..2 * t).map(|i| ((i % t) as i32 - 20).max(0)).collect(), {
            // The first 20 queries have no far keys at all.
            (0..2 * t).map(|i| if i % t < 20 { -1 } else { 0 }).collect()
        });
    let far = Mask::new(causal(), shifted.unwrap(), plain(2, t, 0), 4).unwrap();
    cases.push(Case {
        name: "two branches",
        batch: 2,
        heads: 4,
        kv: 2,
        queries: t,
        keys: t,
        dim: 8,
        value_dim: 8,
        masks: vec![near, far],
    });
    // Within documents in groups, where heads are of two classes; from the second document to the
    // first without, where they are of one.
    let tokens = TokenMeta::packed(&[vec![70, 60]], 130).unwrap();
    let grouped = causal().with_groups(groups(GroupSize::Fixed(16), true));
    let within = Mask::new(grouped, tokens.clone(), tokens, 6).unwrap();
    let of = |pos, document: [i32; 2]| {
        let segment = (0..130).map(|i| document[i / 70]).collect();
        TokenMeta::new(1, 130, vec![pos; 130], segment).unwrap()
    };
    let across = Mask::new(causal(), of(1, [-1, 0]), of(0, [0, -1]), 6).unwrap();
    for (name, masks) in [
        ("two classes of heads, then one", vec![within.clone(), across.clone()]),
        ("one class of heads, then two", vec![across, within]),
    ] {
        let (queries, keys, dim, value_dim) = (130, 130, 8, 8);
        cases.push(Case { name, batch: 1, heads: 6, kv: 3, queries, keys, dim, value_dim, masks });
    }
    cases.extend(sparse::cases());
    cases
}

#[test]
fn every_implementation_equals_the_reference() {
    // Several query tiles to a job, the last one cut off.
    let window = MaskSpec::causal().with_window(Some(700));
    let long = square("2100", (1, 1, 1), 2100, 4, window, TokenMeta::contiguous(1, 2100, 0));
    // Channels of whole panels, whose heads are read where they lie.
    let packed = TokenMeta::packed(&[vec![20, 70], vec![90]], 90).unwrap();
    let wide = square("64 wide", (2, 4, 2), 90, 64, MaskSpec::causal(), packed);
    for case in cases().into_iter().chain([long, wide]) {
        for implementation in implementations() {
            compare(&case, implementation);
        }
    }
}

/// N2: a query that sees nothing gives zeros and takes no gradient.
#[test]
fn n2_a_blind_query_gives_zeros() {
    for implementation in implementations() {
        let tokens = TokenMeta::left_padded(&[70, 5, 0], 70).unwrap();
        let case = square("blind", (3, 2, 1), 70, 4, MaskSpec::causal(), tokens);
        let got = run(&case, implementation, DType::F32);
        let out = values(got.out.clone().slice([1..2, 0..2, 0..65, 0..4]));
        assert!(out.iter().all(|x| *x == 0.0), "{implementation:?}: out under padding");
        assert!(
            values(got.out.slice([2..3])).iter().all(|x| *x == 0.0),
            "{implementation:?}: empty row"
        );
        assert!(got.lse.slice([2..3]).into_data().iter::<f32>().all(|x| x == f32::NEG_INFINITY));
        for grad in got.grads {
            assert!(values(grad.clone()).iter().all(|x| x.is_finite()), "{implementation:?}");
            assert!(values(grad.slice([2..3])).iter().all(|x| *x == 0.0), "{implementation:?}");
        }
    }
}

#[test]
fn block_kinds_are_true_to_the_definition() {
    for case in cases() {
        for mask in &case.masks {
            let map = mask.blocks(16, 24);
            let (q_tiles, k_tiles) = map.tiles();
            for b in 0..case.batch {
                let classes = map.classes().iter().enumerate();
                for (c, head) in classes.flat_map(|(c, heads)| heads.clone().map(move |h| (c, h))) {
                    for (qi, ki) in (0..q_tiles).flat_map(|q| (0..k_tiles).map(move |k| (q, k))) {
                        let (mut seen, mut all) = (0, 0);
                        for t in qi * 16..((qi + 1) * 16).min(case.queries) {
                            for s in ki * 24..((ki + 1) * 24).min(case.keys) {
                                seen += mask.visible(b, head, t, s) as usize;
                                all += 1;
                            }
                        }
                        match map.kind(b, c, qi, ki) {
                            BlockKind::Skip => assert_eq!(seen, 0, "{}: {qi},{ki}", case.name),
                            BlockKind::Full => assert_eq!(seen, all, "{}: {qi},{ki}", case.name),
                            BlockKind::Partial => {}
                        }
                    }
                }
            }
        }
    }
}

/// Tiles that hold nothing are not computed: counted for a causal, a windowed and a grouped mask.
#[test]
fn masked_blocks_are_skipped() {
    let tokens = TokenMeta::contiguous(1, 1024, 0);
    let visited = |spec: MaskSpec| {
        Mask::new(spec, tokens.clone(), tokens.clone(), 4).unwrap().blocks(64, 64).visited()
    };
    assert_eq!(visited(MaskSpec::causal()), 4 * (16 * 17 / 2));
    assert_eq!(visited(MaskSpec::causal().with_window(Some(64))), 4 * (16 + 15));
    let groups = Groups { size: GroupSize::Ratio(4), shift: true, ragged: false };
    // Groups of 256 are 4 tiles: 4 triangles unshifted; shifted 2 halves and 3 wholes.
    let (whole, half) = (4 * 5 / 2, 2 * 3 / 2);
    assert_eq!(
        visited(MaskSpec::causal().with_groups(groups)),
        2 * 4 * whole + 2 * (3 * whole + 2 * half)
    );
}

#[test]
fn gradients_by_parts_add_up() {
    // Keys cut in two, each part with the global out and lse, as a ring would do.
    let (b, h, kv, t, d) = (1, 4, 2, 96, 8);
    let q = random([b, h, t, d], 1);
    let (k, v) = (random([b, kv, t, d], 2), random([b, kv, t, d], 3));
    let dout = random([b, h, t, d], 4);
    let tokens = TokenMeta::contiguous(b, t, 0);
    for implementation in implementations() {
        let options = AttentionOptions::default().with_implementation(implementation);
        let branch = |keys: std::ops::Range<usize>| {
            let of = tokens.slice(keys.clone()).unwrap();
            let mask = Mask::new(MaskSpec::causal(), tokens.clone(), of, h).unwrap();
            let k = k.clone().slice([0..b, 0..kv, keys]);
            [Branch { q: q.clone(), k, mask }]
        };
        let whole = branch(0..t);
        let output = masked_attention(&whole, v.clone(), &options).unwrap();
        let backward = |branch: &[Branch], v: Tensor<4>| {
            attention_backward(branch, v, &output, dout.clone(), &options).unwrap()
        };
        let want = backward(&whole, v.clone());
        let parts =
            [0..40, 40..t].map(|r| backward(&branch(r.clone()), v.clone().slice([0..b, 0..kv, r])));
        let [first, second] = parts;
        let dq = first.dq[0].clone() + second.dq[0].clone();
        assert!(ratio(dq, want.dq[0].clone()) < GRADIENTS);
        let dk = Tensor::cat(vec![first.dk[0].clone(), second.dk[0].clone()], 2);
        assert!(ratio(dk, want.dk[0].clone()) < GRADIENTS);
        let dv = Tensor::cat(vec![first.dv, second.dv], 2);
        assert!(ratio(dv, want.dv) < GRADIENTS);
    }
}

#[test]
fn nan_in_an_input_is_not_hidden() {
    for implementation in implementations() {
        let q = random([1, 1, 70, 4], 1).slice_fill([0..1, 0..1, 69..70, 0..1], f32::NAN);
        let kv = random([1, 1, 70, 4], 2);
        let branch = Branch { q, k: kv.clone(), mask: Mask::causal(1, 70, 1) };
        let options = AttentionOptions::default().with_implementation(implementation);
        let out = values(masked_attention(&[branch], kv, &options).unwrap().out);
        assert!(out[..69 * 4].iter().all(|x| x.is_finite()), "{implementation:?}");
        assert!(out[69 * 4..].iter().all(|x| x.is_nan()), "{implementation:?}");
    }
}

/// Whatever padded keys hold, of many queries and of few: nobody sees it.
#[test]
fn nan_in_a_hidden_key_is_seen_by_nobody() {
    for implementation in implementations() {
        for queries in [130, 2] {
            let all = TokenMeta::right_padded(&[130], 150).unwrap();
            let of_queries = all.slice(130 - queries..130).unwrap();
            let mask = Mask::new(MaskSpec::causal(), of_queries, all, 2).unwrap();
            let q = random([1, 2, queries, 4], 1);
            let (k, v) = (random([1, 1, 150, 4], 2), random([1, 1, 150, 4], 3));
            let options = AttentionOptions::default().with_implementation(implementation);
            let run = |k: Tensor<4>| {
                let branches = [Branch { q: q.clone(), k, mask: mask.clone() }];
                let output = masked_attention(&branches, v.clone(), &options).unwrap();
                let dout = q.clone();
                let grads =
                    attention_backward(&branches, v.clone(), &output, dout, &options).unwrap();
                [values(output.out), values(grads.dv)]
            };
            let poisoned = k.clone().slice_fill([0..1, 0..1, 130..150, 0..4], f32::NAN);
            assert_eq!(run(poisoned), run(k), "{implementation:?}, {queries} queries");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = |shape| Tensor::<4>::random(shape, Distribution::Default, &device());
    let go = |q: [usize; 4], k: [usize; 4], v: [usize; 4], mask: Mask| {
        let branch = Branch { q: x(q), k: x(k), mask };
        masked_attention(&[branch], x(v), &AttentionOptions::default()).unwrap_err().to_string()
    };
    let causal = || Mask::causal(1, 8, 4);
    assert!(masked_attention(&[], x([1, 1, 1, 1]), &AttentionOptions::default()).is_err());
    let text = go([1, 4, 8, 4], [1, 3, 8, 4], [1, 3, 8, 4], causal());
    assert!(text.contains("3 key heads do not divide 4"), "{text}");
    let text = go([1, 4, 8, 4], [1, 2, 7, 4], [1, 2, 8, 4], causal());
    assert!(text.contains("branch 0"), "{text}");
    let text = go([1, 4, 9, 4], [1, 2, 9, 4], [1, 2, 9, 4], causal());
    assert!(text.contains("the mask is for"), "{text}");
    let text = go([2, 4, 8, 4], [2, 2, 8, 4], [2, 2, 8, 4], causal());
    assert!(text.contains("the mask is for"), "{text}");
    assert!(
        Mask::new(
            MaskSpec::causal().with_window(Some(0)),
            TokenMeta::contiguous(1, 4, 0),
            TokenMeta::contiguous(1, 4, 0),
            1
        )
        .is_err()
    );
    let groups = |size, ragged| {
        let spec = MaskSpec::causal().with_groups(Groups { size, shift: true, ragged });
        let tokens = TokenMeta::contiguous(1, 30, 0);
        Mask::new(spec, tokens.clone(), tokens, 4)
    };
    assert!(groups(GroupSize::Fixed(0), true).is_err());
    assert!(groups(GroupSize::Fixed(5), true).is_err(), "odd group");
    assert!(groups(GroupSize::Fixed(8), false).is_err(), "30 is no multiple of 8");
    assert!(groups(GroupSize::Fixed(32), false).is_err(), "group longer than the sequence");
    assert!(groups(GroupSize::Ratio(4), false).is_err());
    assert!(groups(GroupSize::Ratio(4), true).is_ok());
    let odd = MaskSpec::causal().with_groups(Groups {
        size: GroupSize::Fixed(2),
        shift: true,
        ragged: true,
    });
    let tokens = TokenMeta::contiguous(1, 4, 0);
    assert!(Mask::new(odd, tokens.clone(), tokens, 3).is_err(), "odd number of heads");
    assert!(TokenMeta::packed(&[vec![usize::MAX, 5]], 64).is_err());
    assert!(TokenMeta::new(1 << 63, 2, vec![], vec![]).is_err());
}

#[test]
fn a_backward_pass_needs_what_the_forward_pass_gave() {
    let x = |shape| Tensor::<4>::zeros(shape, &device());
    let kv = || x([1, 2, 8, 4]);
    let branch = [Branch { q: x([1, 4, 8, 4]), k: kv(), mask: Mask::causal(1, 8, 4) }];
    let options = AttentionOptions::default();
    let good = masked_attention(&branch, kv(), &options).unwrap();
    let go = |output: &AttentionOutput, dout| {
        attention_backward(&branch, kv(), output, dout, &options).map(drop)
    };
    assert!(go(&good, good.out.clone()).is_ok());
    let short = good.out.clone().narrow(2, 0, 7);
    assert!(go(&good, short.clone()).unwrap_err().to_string().contains("dout is [1, 4, 7, 4]"));
    let output = AttentionOutput { out: short.clone(), ..good.clone() };
    assert!(go(&output, short).unwrap_err().to_string().contains("out is [1, 4, 7, 4]"));
    let output = AttentionOutput { lse: good.lse.clone().narrow(1, 0, 2), ..good.clone() };
    assert!(go(&output, good.out.clone()).unwrap_err().to_string().contains("lse is [1, 2, 8]"));
    let output = AttentionOutput { lse: good.lse.clone().cast(DType::F64), ..good.clone() };
    assert!(go(&output, good.out.clone()).is_err());
}

/// What exceeds the sequence, by however much, is the same as what reaches just as far.
#[test]
fn settings_beyond_the_sequence_change_nothing() {
    let tokens = TokenMeta::contiguous(1, 20, 0);
    let pairs = |spec| Mask::new(spec, tokens.clone(), tokens.clone(), 2).unwrap().pairs();
    let whole = pairs(MaskSpec::causal());
    for far in [20, 1 << 40, 1 << 63, usize::MAX] {
        assert_eq!(pairs(MaskSpec::causal().with_window(Some(far))), whole, "window {far}");
        assert_eq!(pairs(MaskSpec::causal().with_window(Some(3)).with_sinks(far)), whole);
    }
    let groups = |size| Groups { size, shift: false, ragged: true };
    for far in [20, 1 << 63, usize::MAX] {
        let spec = MaskSpec::causal().with_groups(groups(GroupSize::Ratio(far)));
        assert_eq!(pairs(spec), 2 * 10 * 3, "groups of two");
        let spec = MaskSpec::causal().with_groups(groups(GroupSize::Fixed(far)));
        assert_eq!(pairs(spec), whole);
    }
}
