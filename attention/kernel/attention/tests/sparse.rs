//! Masks of blocks: strided ones, and lists chosen at run time.

use super::*;

pub(super) fn cases() -> Vec<Case> {
    let plain = TokenMeta::contiguous;
    let strided = |stride| MaskSpec::causal().with_stride(stride);
    let padded = TokenMeta::left_padded(&[200, 1, 133], 200).unwrap();
    let packed = TokenMeta::packed(&[vec![29, 200], vec![7, 5, 210]], 240).unwrap();
    let usual = BlockStride::new;
    let mut cases = vec![
        square("stride", (2, 4, 2), 257, 8, strided(usual(16, 2, 3, 2)), plain(2, 257, 0)),
        square("stride of 48", (1, 4, 4), 300, 8, strided(usual(48, 1, 2, 4)), plain(1, 300, 0)),
        square("stride of 64", (1, 4, 2), 450, 4, strided(usual(64, 1, 3, 2)), plain(1, 450, 0)),
        square("stride of 128", (1, 2, 1), 600, 4, strided(usual(128, 1, 2, 1)), plain(1, 600, 0)),
        square("stride, one token", (1, 2, 1), 1, 4, strided(usual(16, 1, 4, 1)), plain(1, 1, 0)),
        square("stride, padding", (3, 4, 2), 200, 8, strided(usual(16, 1, 4, 2)), padded),
        square(
            "stride, documents, a dense head",
            (2, 6, 3),
            240,
            8,
            strided(usual(24, 1, 3, 3).with_step(2).with_offset(1).with_dense_heads(1)),
            packed,
        ),
    ];
    let near =
        |block, blocks, sinks| strided(BlockStride::near(block, blocks, 2)).with_sinks(sinks);
    let padded = TokenMeta::left_padded(&[257, 90], 257).unwrap();
    cases.push(square("near blocks, sinks", (2, 4, 2), 257, 8, near(16, 2, 16), padded.clone()));
    cases.push(square("near blocks of 64", (1, 2, 2), 450, 4, near(64, 1, 10), plain(1, 450, 0)));
    let sinks = strided(usual(16, 1, 4, 2)).with_sinks(20);
    cases.push(square("stride, sinks", (2, 4, 2), 257, 8, sinks, padded));
    let keys = TokenMeta::left_padded(&[190, 140], 190).unwrap();
    cases.push(cached("stride in a cache", strided(usual(16, 2, 4, 2)), keys.clone()));
    cases.push(cached("near blocks in a cache", near(16, 2, 16), keys));
    cases.extend(anchored());
    cases.extend(listed());
    cases
}

/// The last five of `keys` as queries.
fn cached(name: &'static str, spec: MaskSpec, keys: TokenMeta) -> Case {
    let (batch, len) = (keys.batch(), keys.len());
    let queries = keys.slice(len - 5..len).unwrap();
    let masks = vec![Mask::new(spec, queries, keys, 4).unwrap()];
    Case { name, batch, heads: 4, kv: 2, queries: 5, keys: len, dim: 8, value_dim: 11, masks }
}

fn anchored() -> Vec<Case> {
    let spec = || MaskSpec::causal().with_anchor(true);
    let rows = TokenMeta::anchored(&[vec![1, 70, 64, 1], vec![149, 40], vec![3]], 200).unwrap();
    let cut = rows.slice(0..190).unwrap();
    let few = rows.slice(197..200).unwrap();
    let mask = Mask::new(spec(), few, rows.clone(), 4).unwrap();
    vec![
        square("anchor", (3, 4, 2), 200, 8, spec(), rows.clone()),
        cached("anchor in a cache", spec(), cut),
        Case {
            name: "anchor, three queries",
            batch: 3,
            heads: 4,
            kv: 2,
            queries: 3,
            keys: 200,
            dim: 8,
            value_dim: 8,
            masks: vec![mask],
        },
        square("anchor, both ways", (3, 2, 1), 200, 4, MaskSpec { causal: false, ..spec() }, rows),
    ]
}

/// About 3 in 8 blocks, at random; some query blocks have none.
fn some(b: usize, h: usize, q: usize, k: usize) -> bool {
    let n = ((b * 31 + h) * 1009 + q) * 2003 + k;
    (n as u32).wrapping_mul(0x9E37_79B9) >> 29 < 3
}

/// The same for both query heads of a key head.
fn some_of_pairs(b: usize, h: usize, q: usize, k: usize) -> bool {
    some(b, h / 2, q, k)
}

/// With `chosen` blocks alone.
fn chosen(
    mut case: Case,
    block: [usize; 2],
    chosen: fn(usize, usize, usize, usize) -> bool,
) -> Case {
    let tokens = [case.batch, case.heads, case.queries, case.keys];
    let list = BlockList::from_fn(tokens, block, chosen).unwrap();
    case.masks = case.masks.into_iter().map(|m| m.with_blocks(list.clone()).unwrap()).collect();
    case
}

fn listed() -> Vec<Case> {
    let (causal, plain) = (MaskSpec::causal, TokenMeta::contiguous);
    let of = |name: &'static str, sizes: (usize, usize, usize), t: usize, spec: MaskSpec| {
        let (batch, ..) = sizes;
        square(name, sizes, t, 8, spec, plain(batch, t, 0))
    };
    let window = causal().with_window(Some(150)).with_sinks(5);
    let stride = causal().with_stride(BlockStride::new(32, 1, 2, 2));
    let padded = TokenMeta::left_padded(&[200, 1, 133], 200).unwrap();
    let packed = TokenMeta::packed(&[vec![29, 200], vec![7, 5, 210]], 240).unwrap();
    let padded = square("blocks, padding", (3, 4, 2), 200, 8, causal(), padded);
    let packed = square("blocks, documents", (2, 6, 3), 240, 8, causal(), packed);
    let both = MaskSpec::bidirectional();
    let mut cases = vec![
        chosen(of("blocks of 16", (2, 4, 2), 257, causal()), [16, 16], some),
        chosen(of("blocks of 48", (1, 4, 4), 300, causal()), [48, 48], some),
        chosen(of("blocks of 64", (1, 4, 2), 450, causal()), [64, 64], some),
        chosen(of("blocks of 128", (1, 2, 1), 700, causal()), [128, 128], some),
        chosen(of("blocks of 20 x 90", (2, 2, 2), 200, causal()), [20, 90], some),
        chosen(of("a block of everything", (1, 2, 1), 70, causal()), [99, 99], |_, _, _, _| true),
        chosen(of("no block", (1, 2, 1), 70, causal()), [16, 16], |_, _, _, _| false),
        chosen(of("blocks, pairs of heads", (2, 4, 2), 200, causal()), [32, 32], some_of_pairs),
        chosen(of("blocks, bidirectional", (1, 2, 2), 200, both), [32, 32], some),
        chosen(of("blocks in a window", (1, 4, 2), 300, window), [32, 32], some),
        chosen(of("blocks of a stride", (1, 4, 2), 300, stride), [24, 24], some),
        chosen(padded, [16, 16], some),
        chosen(packed, [32, 32], some),
    ];
    // What one branch leaves to the other.
    let mut parts = chosen(of("two lists", (1, 4, 2), 200, causal()), [48, 16], some);
    let rest = of("", (1, 4, 2), 200, causal());
    let rest = chosen(rest, [48, 16], |b, h, q, k| !some(b, h, q, k));
    parts.masks.extend(rest.masks);
    cases.push(parts);
    cases
}

#[test]
fn a_stride_for_other_key_heads_is_refused() {
    let x = |h| random([1, h, 8, 4], 1);
    let tokens = TokenMeta::contiguous(1, 8, 0);
    let spec = MaskSpec::causal().with_stride(BlockStride::new(2, 1, 2, 4));
    let mask = Mask::new(spec, tokens.clone(), tokens, 4).unwrap();
    let branch = Branch { q: x(4), k: x(2), mask };
    let error = masked_attention(&[branch], x(2), &AttentionOptions::default()).unwrap_err();
    assert!(error.to_string().contains("for 4 key heads, k has 2"), "{error}");
}

/// Query blocks without a key block: zeros, and nothing for their queries in any gradient.
#[test]
fn n2_an_empty_list_gives_zeros() {
    let seen = |_, h: usize, q: usize, k| (h, q) != (1, 2) && (k < 2);
    for implementation in implementations() {
        let case =
            square("", (1, 2, 1), 200, 4, MaskSpec::causal(), TokenMeta::contiguous(1, 200, 0));
        let got = run(&chosen(case, [48, 48], seen), implementation, DType::F32);
        let blind = |x: Tensor<4>| values(x.slice([0..1, 1..2, 96..144]));
        assert!(blind(got.out.clone()).iter().all(|x| *x == 0.0), "{implementation:?}");
        assert!(blind(got.grads[1].clone()).iter().all(|x| *x == 0.0), "{implementation:?}");
        let lse = got.lse.slice([0..1, 1..2, 96..144]).into_data();
        assert!(lse.iter::<f32>().all(|x| x == f32::NEG_INFINITY), "{implementation:?}");
        assert!(values(got.out.slice([0..1, 1..2, 144..200])).iter().all(|x| *x != 0.0));
        // Keys that are in no list.
        for grad in [&got.grads[0], &got.grads[2]] {
            let unseen = values(grad.clone().slice([0..1, 0..1, 96..200]));
            assert!(unseen.iter().all(|x| *x == 0.0), "{implementation:?}");
        }
    }
}

#[test]
fn the_size_of_blocks_in_a_list_changes_nothing() {
    let of = |block: usize| {
        let spec = MaskSpec::causal();
        let mut case = square("", (2, 4, 2), 400, 8, spec, TokenMeta::contiguous(2, 400, 0));
        let seen = |b, h, q: usize, k: usize| some(b, h, q * block / 96, k * block / 96);
        let list = BlockList::from_fn([2, 4, 400, 400], [block; 2], seen).unwrap();
        case.masks[0] = case.masks[0].clone().with_blocks(list).unwrap();
        case
    };
    for implementation in implementations() {
        let want = run(&of(96), implementation, DType::F32);
        for block in [1, 16, 32, 48] {
            let got = run(&of(block), implementation, DType::F32);
            assert_eq!(values(got.out), values(want.out.clone()), "{implementation:?}, {block}");
            for (got, want) in got.grads.into_iter().zip(&want.grads) {
                assert_eq!(values(got), values(want.clone()), "{implementation:?}, {block}");
            }
        }
    }
}

/// What holds NaN and is in no list is never read.
#[test]
fn skipped_blocks_are_not_computed() {
    let seen = |_, h: usize, q: usize, k: usize| k != 1 && (k == q || (k + h).is_multiple_of(2));
    for implementation in implementations() {
        let (leaf, t) = (|seed| random([1, 2, 1024, 4], seed), 1024);
        let poisoned = |seed| leaf(seed).slice_fill([0..1, 0..2, 256..512, 0..4], f32::NAN);
        let list = BlockList::from_fn([1, 2, t, t], [256, 256], seen).unwrap();
        let mask = Mask::causal(1, t, 2).with_blocks(list).unwrap();
        let branch = [Branch { q: leaf(1), k: poisoned(2), mask }];
        let options = AttentionOptions::default().with_implementation(implementation);
        let output = masked_attention(&branch, poisoned(3), &options).unwrap();
        assert!(values(output.out.clone()).iter().all(|x| x.is_finite()), "{implementation:?}");
        let grads = attention_backward(&branch, poisoned(3), &output, leaf(4), &options).unwrap();
        for grad in [&grads.dq[0], &grads.dk[0], &grads.dv] {
            assert!(values(grad.clone()).iter().all(|x| x.is_finite()), "{implementation:?}");
        }
    }
}
