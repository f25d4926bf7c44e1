//! Sparse decoding: the cache of compressed keys, budgets, thresholds, padded rows.

use super::*;

fn config() -> SeerConfig {
    SeerConfig::decode().with_block(8)
}

/// Output and state of `x[.., range]` behind `state`.
fn piece(
    mixer: &Seer,
    x: &Tensor<3>,
    tokens: &TokenMeta,
    range: std::ops::Range<usize>,
    state: Option<State>,
) -> (Vec<f32>, State) {
    let part = tokens.slice(range.clone()).unwrap();
    let x = x.clone().narrow(1, range.start, range.len());
    let out = forward(mixer, x, &part, Phase::Infer, Some(state)).unwrap();
    (host(out.y), out.state.unwrap())
}

fn compressed(state: &State) -> (Vec<usize>, Vec<f32>) {
    match state {
        State::Seer(cache) => (cache.gate.blocks.dims().to_vec(), host(cache.gate.blocks.clone())),
        other => panic!("{other:?}"),
    }
}

/// Item 7: compressed keys that grew token by token, or by pieces, equal those of one pass at
/// every length, with rows of different lengths.
#[test]
fn compressed_keys_equal_those_of_one_pass() {
    let device = Device::flex().autodiff();
    for head_pool in [HeadPool::Qproj, HeadPool::Qavg, HeadPool::Qavgproj, HeadPool::Qorig] {
        let config = config().with_head_pool(head_pool).with_select(Some(Select::Budget(16)));
        let mixer = seer(&config, &device, 2).unwrap();
        let (t, x) = (37, normal([3, 37, HIDDEN], 1));
        let tokens = TokenMeta::left_padded(&[37, 30, 3], t).unwrap();
        for sizes in [&[1][..], &[5, 1, 9, 17], &[36, 1]] {
            let (mut state, mut at) = (None, 0);
            for size in sizes.iter().cycle() {
                let end = (at + size).min(t);
                let next = piece(&mixer, &x, &tokens, at..end, state).1;
                let (_, whole) = piece(&mixer, &x, &tokens, 0..end, None);
                let ((shape, got), (expected, want)) = (compressed(&next), compressed(&whole));
                assert_eq!(shape, expected, "{sizes:?}, {end}");
                let r = ratio(&got, &want);
                assert!(r <= 1e-5, "{head_pool:?}, {sizes:?}, {end}: {r:e}");
                (state, at) = (Some(next), end);
                if end == t {
                    break;
                }
            }
        }
    }
}

/// What decoding compares queries with is what the gate learned with: the same pooling, norm and
/// position, at the block's first token.
#[test]
fn compressed_keys_equal_those_of_training() {
    let device = Device::flex().autodiff();
    let config = config().with_select(Some(Select::Budget(16)));
    let mixer = seer(&config, &device, 2).unwrap();
    let AttnGate::Decode(gate) = mixer.attn_gate.clone().unwrap() else { panic!("no gate") };
    let (tokens, x) = (TokenMeta::contiguous(2, 32, 0), normal([2, 32, HIDDEN], 1));
    let layout = BlockLayout::of(&tokens, 8).unwrap();
    let (q, k) = unrotated(&mixer, x.clone(), &tokens);
    let learned = gate.tokens_and_blocks(q.clone(), k.clone(), &layout, Some(&rope())).unwrap();
    let (shape, got) = compressed(&piece(&mixer, &x, &tokens, 0..32, None).1);
    assert_eq!(shape, learned.1.dims());
    assert!(ratio(&got, &host(learned.1.clone())) <= 1e-6);

    // Where a block and a token are counts: what is rotated by hand is the same.
    let at = |places: Vec<i64>| {
        let places = [places.clone(), places].concat();
        let table = rope().table(&Positions::new(2, places.len() / 2, places, 1).unwrap(), &device);
        move |x| table.rotate(x)
    };
    let keys = at((0..4).map(|n| 8 * n).collect())(gate.keys(layout.pool(k, &Pool::ALL), None));
    assert!(ratio(&host(learned.1), &host(keys)) <= 1e-6);
    let queries = at((0..32).collect())(gate.queries(q, None));
    assert!(ratio(&host(learned.0), &host(queries)) <= 1e-6);
}

/// Item 7: a budget of everything is dense decoding; a smaller one is not.
#[test]
fn a_budget_of_everything_equals_dense() {
    let device = Device::flex().autodiff();
    let dense = DenseConfig::new().init(projections(&device, 2));
    let (t, x) = (40, normal([2, 40, HIDDEN], 1));
    let tokens = TokenMeta::left_padded(&[40, 29], t).unwrap();
    let whole = host(forward(&dense, x.clone(), &tokens, Phase::Infer, None).unwrap().y);
    let last = |y: &[f32]| [&y[39 * HIDDEN..40 * HIDDEN], &y[79 * HIDDEN..]].concat();
    for (budget, same) in [(1000, true), (40, true), (16, false)] {
        let config = config().with_select(Some(Select::Budget(budget)));
        let mixer = seer(&config, &device, 2).unwrap();
        let (_, state) = piece(&mixer, &x, &tokens, 0..39, None);
        let (y, _) = piece(&mixer, &x, &tokens, 39..40, Some(state));
        let r = ratio(&y, &last(&whole));
        assert_eq!(r <= 1e-5, same, "budget {budget}: {r:e}");
    }
}

/// A padded row decodes as it does alone, with few blocks.
#[test]
fn padded_rows_equal_themselves_alone() {
    let device = Device::flex().autodiff();
    for select in [Select::Budget(16), Select::Threshold(0.2)] {
        let mixer = seer(&config().with_select(Some(select)), &device, 2).unwrap();
        let (t, x) = (37, normal([2, 37, HIDDEN], 1));
        let tokens = TokenMeta::left_padded(&[37, 26], t).unwrap();
        let run = |x: &Tensor<3>, tokens: &TokenMeta| {
            let (len, mut outs) = (tokens.len(), Vec::new());
            let (_, mut state) = piece(&mixer, x, tokens, 0..len - 12, None);
            for at in len - 12..len {
                let (y, next) = piece(&mixer, x, tokens, at..at + 1, Some(state));
                (state, outs) = (next, [outs, vec![y]].concat());
            }
            outs
        };
        let both = run(&x, &tokens);
        let alone = x.clone().narrow(0, 1, 1).narrow(1, 11, 26);
        let alone = run(&alone, &TokenMeta::contiguous(1, 26, 0));
        for (step, (both, alone)) in both.iter().zip(&alone).enumerate() {
            let r = ratio(&both[HIDDEN..], alone);
            assert!(r <= 1e-5, "{select:?}, step {step}: {r:e}");
        }
    }
}

/// Item 8: the unfinished block has a logit of 0, which counts in the softmax, and is computed
/// whatever its score.
#[test]
fn the_unfinished_block_counts_and_is_computed() {
    let device = Device::flex();
    let gate = seer(&config(), &device, 2).unwrap().attn_gate.unwrap();
    let AttnGate::Decode(gate) = gate else { panic!("no decode gate") };
    let k = normal([1, 2, 21, WIDTH], 1).inner();
    let tokens = TokenMeta::contiguous(1, 21, 0);
    let sizes = (8, RopeAt::BlockStart);
    let cache = GateCache::append(None, &gate, sizes, k, &tokens, Some(&rope())).unwrap();
    let table = rope().table(&Positions::range(1, 1, 20), &device);
    let queries = gate.queries(normal([1, 4, 1, WIDTH], 2).inner(), Some(&table));
    let logits = gate.logits(queries, cache.blocks.clone());
    let scores = host(logits.clone());
    assert_eq!((scores.len(), scores[2], scores[5]), (6, 0.0, 0.0));
    // Nothing is above this threshold: what is left is the newest block.
    let chosen = cache.choose(logits.clone(), Select::Threshold(0.9999), 8).unwrap();
    assert_eq!(chosen, vec![vec![false, false, true]; 2]);
    for (of_head, row) in
        cache.choose(logits, Select::Threshold(0.3), 8).unwrap().iter().zip(scores.chunks(3))
    {
        let sum: f32 = row.iter().map(|x| x.exp()).sum();
        let above: Vec<bool> = row.iter().map(|x| x.exp() / sum > 0.3).collect();
        assert_eq!(of_head[..2], above[..2], "{row:?}");
    }
}
