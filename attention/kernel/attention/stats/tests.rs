//! Every reduction of every implementation against the definition, and what the definition says.

use super::*;
use crate::attention::tests::{Case, FORWARD, cases, implementations, random, ratio, values};
use crate::{Mask, MaskSpec, TokenMeta, masked_attention};
use burn::tensor::DType;

fn options(implementation: Implementation) -> AttentionOptions {
    AttentionOptions::default().with_implementation(implementation)
}

/// Branches of a case in `dtype` and the global lse.
fn inputs(case: &Case, dtype: DType) -> (Vec<Branch>, Tensor<3>) {
    let branch = |(i, mask): (usize, &Mask)| {
        let q = random([case.batch, case.heads, case.queries, case.dim], 2 + 2 * i as u64);
        let k = random([case.batch, case.kv, case.keys, case.dim], 3 + 2 * i as u64);
        Branch { q: q.cast(dtype), k: k.cast(dtype), mask: mask.clone() }
    };
    let branches: Vec<Branch> = case.masks.iter().enumerate().map(branch).collect();
    let v = random([case.batch, case.kv, case.keys, 1], 1).cast(dtype);
    let lse = masked_attention(&branches, v, &AttentionOptions::default()).expect(case.name).lse;
    (branches, lse)
}

/// One branch, `t` queries in front of `s` keys.
fn oblong(name: &'static str, (t, s): (usize, usize), spec: MaskSpec) -> Case {
    let queries = TokenMeta::contiguous(2, t, s.saturating_sub(t));
    let mask = Mask::new(spec, queries, TokenMeta::contiguous(2, s, 0), 4).expect(name);
    let (batch, heads, kv, dim) = (2, 4, 2, 6);
    Case { name, batch, heads, kv, queries: t, keys: s, dim, value_dim: 1, masks: vec![mask] }
}

fn all_cases() -> Vec<Case> {
    let mut all = cases();
    let both = MaskSpec::bidirectional;
    all.extend([
        oblong("more queries than keys", (150, 70), both()),
        oblong("more keys than queries", (70, 350), both()),
        oblong("causal, more queries than keys", (150, 70), MaskSpec::causal()),
    ]);
    all
}

fn reductions(t: usize, s: usize) -> Vec<Reduce> {
    let largest = [(1, 1), (7, 13), (64, 64), (100, 30), (t, s)];
    let sums = [(7, 13), (40, 300), (usize::MAX, 1 << 40)];
    let mut all = vec![Reduce::ColumnSums, Reduce::DiagonalSums, Reduce::Entropy];
    all.extend(largest.map(|(queries, keys)| Reduce::BlockMax { queries, keys }));
    all.extend(sums.map(|(queries, keys)| Reduce::BlockSum { queries, keys }));
    all
}

fn stats(branch: &Branch, lse: &Tensor<3>, reduce: Reduce, by: Implementation) -> Tensor<4> {
    attention_stats(branch, lse.clone(), reduce, &options(by)).unwrap()
}

/// The ratio of the tests of attention. That of entropies is taken of their exponentials, the numbers
/// of keys that queries look at: an entropy may be 0.
fn distance(got: Tensor<4>, want: Tensor<4>, reduce: Reduce) -> f64 {
    match reduce {
        Reduce::Entropy => ratio(got.exp(), want.exp()),
        _ => ratio(got, want),
    }
}

#[test]
fn every_statistic_equals_the_definition() {
    let mut worst = 0.0f64;
    for case in all_cases() {
        let (narrow, lse) = inputs(&case, DType::F32);
        let (wide, _) = inputs(&case, DType::F64);
        for (narrow, wide) in narrow.iter().zip(&wide) {
            for reduce in reductions(case.queries, case.keys) {
                let want = stats(wide, &lse, reduce, Implementation::Reference);
                let name = format!("{}: {reduce:?}", case.name);
                for implementation in implementations() {
                    let got = stats(narrow, &lse, reduce, implementation);
                    let kept = (got.dims(), got.dtype());
                    assert_eq!(kept, (want.dims(), DType::F32), "{name}");
                    let r = distance(got, want.clone(), reduce);
                    worst = worst.max(r);
                    assert!(r <= FORWARD, "{name}, {implementation:?} differs by {r:e}");
                }
                let got = stats(wide, &lse, reduce, Implementation::Tiled);
                assert_eq!(got.dtype(), DType::F64);
                let r = distance(got, want, reduce);
                assert!(r <= 1e-13, "{name} in f64 differs by {r:e}");
            }
        }
    }
    println!("greatest ratio: {worst:e}");
}

/// Rows of results that several jobs share on the CPU.
#[test]
fn sums_over_many_queries_equal_the_definition() {
    let (t, s) = (1700, 90);
    let case = oblong("long", (t, s), MaskSpec::bidirectional());
    let (narrow, lse) = inputs(&case, DType::F32);
    let (wide, _) = inputs(&case, DType::F64);
    let block = |queries| Reduce::BlockMax { queries, keys: 20 };
    for reduce in [Reduce::ColumnSums, Reduce::DiagonalSums, block(t), block(1100)] {
        let want = stats(&wide[0], &lse, reduce, Implementation::Reference);
        for implementation in implementations() {
            let r = ratio(stats(&narrow[0], &lse, reduce, implementation), want.clone());
            assert!(r <= FORWARD, "{reduce:?}, {implementation:?} differs by {r:e}");
        }
    }
}

fn with_reference() -> Vec<Implementation> {
    [vec![Implementation::Reference], implementations()].concat()
}

/// Queries of zeros give equal weights: everything by hand.
#[test]
fn equal_weights_give_the_numbers_of_the_definition() {
    let tokens = |n| TokenMeta::contiguous(1, n, 0);
    let mask = Mask::new(MaskSpec::bidirectional(), tokens(2), tokens(4), 1).unwrap();
    let q = random([1, 1, 2, 3], 1) * 0.0;
    let branch = Branch { q, k: random([1, 1, 4, 3], 2), mask };
    let lse = Tensor::<3>::zeros([1, 1, 2], &branch.q.device()) + 4.0f64.ln();
    let entropy = 4.0f64.ln();
    let block = |queries, keys| Reduce::BlockSum { queries, keys };
    let cases = [
        (Reduce::ColumnSums, [1, 4], vec![0.5; 4]),
        // Query 0 sees the last key ahead of itself, at no distance.
        (Reduce::DiagonalSums, [1, 4], vec![0.5, 0.5, 0.5, 0.25]),
        (Reduce::Entropy, [2, 1], vec![entropy; 2]),
        (Reduce::BlockMax { queries: 2, keys: 3 }, [1, 2], vec![0.25; 2]),
        (block(2, 3), [1, 2], vec![1.5, 0.5]),
        (block(1, 3), [2, 2], vec![0.75, 0.25, 0.75, 0.25]),
        (block(9, 9), [1, 1], vec![2.0]),
    ];
    for (reduce, [rows, columns], want) in cases {
        for implementation in with_reference() {
            let got = stats(&branch, &lse, reduce, implementation);
            assert_eq!(got.dims(), [1, 1, rows, columns], "{reduce:?}");
            for (got, want) in values(got).into_iter().zip(&want) {
                assert!((got - want).abs() < 1e-6, "{reduce:?} {implementation:?}: {got} {want}");
            }
        }
    }
}

/// Every query that sees something gives away 1 in all; a branch gives away its share.
#[test]
fn what_keys_receive_adds_up_to_the_queries_that_see() {
    for case in all_cases() {
        let (branches, lse) = inputs(&case, DType::F32);
        let seeing = lse.clone().is_inf().bool_not().float().sum();
        let seeing = values(seeing)[0];
        let whole = Reduce::BlockSum { queries: case.queries, keys: case.keys };
        let mut sums = vec![(Reduce::ColumnSums, 0.0), (whole, 0.0)];
        // With every key at a distance of 0 or more.
        if case.masks.iter().all(|m| m.spec().causal) && case.queries <= case.keys {
            sums.push((Reduce::DiagonalSums, 0.0));
        }
        for implementation in with_reference() {
            for (reduce, total) in &mut sums {
                *total = 0.0;
                for branch in &branches {
                    *total += values(stats(branch, &lse, *reduce, implementation).sum())[0];
                }
                let off = (*total - seeing).abs();
                assert!(off <= 1e-5 * seeing, "{} {reduce:?}: {total} {seeing}", case.name);
            }
        }
    }
}

/// N2: a query without a lse counts as zeros, also where the mask shows it keys.
#[test]
fn n2_a_blind_query_counts_as_zeros() {
    let tokens = TokenMeta::left_padded(&[70, 5, 0], 70).unwrap();
    let mask = Mask::new(MaskSpec::causal(), tokens.clone(), tokens, 2).unwrap();
    let case = Case {
        name: "blind",
        batch: 3,
        heads: 2,
        kv: 1,
        queries: 70,
        keys: 70,
        dim: 4,
        value_dim: 1,
        masks: vec![mask],
    };
    let (branches, lse) = inputs(&case, DType::F32);
    let none = lse.clone().slice_fill(0..1, f32::NEG_INFINITY);
    for implementation in with_reference() {
        for reduce in reductions(70, 70) {
            let rows = |lse: &Tensor<3>, rows: std::ops::Range<usize>| {
                let x = stats(&branches[0], lse, reduce, implementation);
                values(x.narrow(0, rows.start, rows.len()))
            };
            let zeros = |x: Vec<f64>| x.iter().all(|x| *x == 0.0);
            assert!(zeros(rows(&lse, 2..3)), "{reduce:?} {implementation:?}: an empty row");
            assert!(zeros(rows(&none, 0..1)), "{reduce:?} {implementation:?}: no lse");
            assert_eq!(rows(&none, 1..2), rows(&lse, 1..2));
            assert!(!zeros(rows(&lse, 1..2)), "{reduce:?} {implementation:?}");
        }
    }
}

/// NaN reaches what sees it and nothing else.
#[test]
fn nan_is_neither_hidden_nor_spread() {
    let (t, at) = (300, 70);
    let k = random([1, 1, t, 4], 2);
    let tokens = TokenMeta::right_padded(&[290], t).unwrap();
    let mask = Mask::new(MaskSpec::causal(), tokens.clone(), tokens, 1).unwrap();
    let mut branch = Branch { q: random([1, 1, t, 4], 1), k: k.clone(), mask };
    let options = AttentionOptions::default();
    let lse = masked_attention(std::slice::from_ref(&branch), k.clone(), &options).unwrap().lse;
    let lse = lse.slice_fill([0..1, 0..1, at..at + 1], f32::NAN);
    // Keys under padding.
    branch.k = k.slice_fill([0..1, 0..1, 290..t], f32::NAN);
    let blocks = |queries, keys| (Reduce::BlockMax { queries, keys }, keys);
    for implementation in with_reference() {
        let nan = |reduce| -> Vec<bool> {
            let x = values(stats(&branch, &lse, reduce, implementation));
            x.into_iter().map(f64::is_nan).collect()
        };
        let up_to = |n: usize, len: usize| (0..len).map(|i| i < n).collect::<Vec<_>>();
        assert_eq!(nan(Reduce::ColumnSums), up_to(at + 1, t), "{implementation:?}");
        assert_eq!(nan(Reduce::DiagonalSums), up_to(at + 1, t), "{implementation:?}");
        let of_one: Vec<bool> = (0..t).map(|i| i == at).collect();
        assert_eq!(nan(Reduce::Entropy), of_one, "{implementation:?}");
        for (reduce, keys) in [blocks(t, 1), blocks(t, 8), blocks(t, 64)] {
            let want = up_to(at / keys + 1, t.div_ceil(keys));
            assert_eq!(nan(reduce), want, "{reduce:?} {implementation:?}");
        }
    }
}

#[test]
fn halves_are_computed_in_single_precision() {
    let case = oblong("halves", (70, 90), MaskSpec::causal());
    for dtype in [DType::BF16, DType::F16] {
        let (branches, lse) = inputs(&case, dtype);
        let Branch { q, k, mask } = branches[0].clone();
        let single = Branch { q: q.cast(DType::F32), k: k.cast(DType::F32), mask };
        for implementation in with_reference() {
            let got = stats(&branches[0], &lse, Reduce::Entropy, implementation);
            assert_eq!(got.dtype(), DType::F32);
            assert_eq!(values(got), values(stats(&single, &lse, Reduce::Entropy, implementation)));
        }
    }
}

/// No graph leads out of the result, and it goes into one as a constant.
#[test]
fn a_statistic_is_detached() {
    let leaf = |shape, seed| Tensor::<4>::from_inner(random(shape, seed)).require_grad();
    let (q, k, v) = (leaf([1, 2, 70, 4], 1), leaf([1, 1, 70, 4], 2), leaf([1, 1, 70, 4], 3));
    let branch = Branch { q: q.clone(), k: k.clone(), mask: Mask::causal(1, 70, 2) };
    let all = std::slice::from_ref(&branch);
    let lse = masked_attention(all, v, &AttentionOptions::default()).unwrap().lse;
    for implementation in with_reference() {
        let gate = leaf([1, 2, 1, 70], 4);
        let target = stats(&branch, &lse, Reduce::ColumnSums, implementation);
        assert!(!target.is_tracked(), "{implementation:?}");
        let grads = (gate.clone() * target.clone()).sum().backward();
        assert_eq!(values(gate.grad(&grads).unwrap()), values(target));
        assert!(q.grad(&grads).is_none() && k.grad(&grads).is_none(), "{implementation:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = |shape| random(shape, 1);
    let branch = |q, k| Branch { q: x(q), k: x(k), mask: Mask::causal(1, 8, 4) };
    let lse = || Tensor::<3>::zeros([1, 4, 8], &x([1; 4]).device());
    let go = |branch: &Branch, lse, reduce| {
        let refused = attention_stats(branch, lse, reduce, &AttentionOptions::default());
        refused.unwrap_err().to_string()
    };
    let good = branch([1, 4, 8, 4], [1, 2, 8, 4]);
    let columns = Reduce::ColumnSums;
    for (queries, keys) in [(0, 4), (4, 0)] {
        let want = format!("attention_stats: blocks of {queries} queries and {keys} keys");
        for reduce in [Reduce::BlockMax { queries, keys }, Reduce::BlockSum { queries, keys }] {
            let text = go(&good, lse(), reduce);
            assert!(text.starts_with(&want), "{text}");
        }
    }
    let text = go(&good, lse().narrow(2, 0, 7), columns);
    assert!(text.contains("attention_stats: lse is [1, 4, 7] F32, expected [1, 4, 8]"), "{text}");
    let text = go(&good, lse().cast(DType::F64), columns);
    assert!(text.contains("F64, expected [1, 4, 8] F32"), "{text}");
    let text = go(&branch([1, 4, 8, 4], [1, 3, 8, 4]), lse(), columns);
    assert!(text.contains("attention_stats: 3 key heads do not divide 4"), "{text}");
    let text = go(&branch([1, 4, 8, 4], [2, 2, 8, 4]), lse(), columns);
    assert!(text.contains("q has 1 rows, k has 2"), "{text}");
    let text = go(&branch([1, 4, 9, 4], [1, 2, 9, 4]), lse(), columns);
    assert!(text.contains("the mask is for"), "{text}");
    let mut mixed = good.clone();
    mixed.k = mixed.k.cast(DType::F64);
    assert!(go(&mixed, lse(), columns).contains("q is F32, k F64"));
    let wrong = options(Implementation::Flex);
    let wide = Branch { q: good.q.cast(DType::F64), k: good.k.cast(DType::F64), mask: good.mask };
    let refused = attention_stats(&wide, lse(), columns, &wrong).unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
}
