//! What a layer keeps between calls, what it shows, and which settings can change.

use super::*;

/// A strategy that relays a state tensor by tensor changes nothing, whatever the state is made of.
#[test]
fn a_state_put_together_again_equals_the_state() {
    let t = 4 * CHUNK + 3;
    let tokens = TokenMeta::contiguous(2, t, 0);
    let x = normal([2, t, HIDDEN], 18);
    let all = kinds().into_iter().chain([("pre-norm", config().with_norm(WeightNorm::Pre))]);
    for (name, config) in all {
        let layer = layer(&config);
        let part = |range: std::ops::Range<usize>, state| {
            let tokens = tokens.slice(range.clone()).unwrap();
            let x = x.clone().narrow(1, range.start, range.len());
            with_context(&tokens, true, |ctx| layer.forward(x, ctx, state)).unwrap()
        };
        let state = part(0..2 * CHUNK + 2, None).state.unwrap();
        let again = state.from_tensors(state.tensors()).unwrap();
        let [want, got] = [state, again].map(|state| host(part(2 * CHUNK + 2..t, Some(state)).y));
        assert_eq!(got, want, "{name}");
    }
}

/// A row that gets nothing but padding for a while goes on where it was.
#[test]
fn a_row_that_waits_goes_on_as_if_it_had_not() {
    for (name, config) in kinds() {
        let layer = layer(&config);
        // Enough that what waits in the buffers is learned from behind the pause.
        let (first, more) = (CHUNK + 2, CHUNK - 1);
        let x = normal([2, first + 2 * more, HIDDEN], 20);
        let part = |start: usize, len: usize| x.clone().narrow(1, start, len);
        let call = |x, tokens: &TokenMeta, state| {
            with_context(tokens, true, |ctx| layer.forward(x, ctx, state)).unwrap()
        };
        let state = call(part(0, first), &TokenMeta::contiguous(2, first, 0), None).state;
        let places = |at: [usize; 2]| -> Vec<i32> {
            at.into_iter().flat_map(|at| at..at + more).map(|at| at as i32).collect()
        };
        let of_rows = |a: i32, b: i32| [vec![a; more], vec![b; more]].concat();
        let waits = TokenMeta::new(2, more, places([first, 0]), of_rows(0, -1)).unwrap();
        let state = call(part(first, more), &waits, state).state;
        let goes_on =
            TokenMeta::new(2, more, places([first + more, first]), of_rows(0, 0)).unwrap();
        let [ahead, behind] =
            [(0, first + more), (1, first)].map(|(row, start)| part(start, more).narrow(0, row, 1));
        let got = call(Tensor::cat(vec![ahead, behind], 0), &goes_on, state).y;
        let whole = answer(&layer, x.clone(), &TokenMeta::contiguous(2, first + 2 * more, 0));
        for (row, start) in [(0, first + more), (1, first)] {
            let want = whole.clone().narrow(0, row, 1).narrow(1, start, more);
            let r = ratio(&host(got.clone().narrow(0, row, 1)), &host(want));
            assert!(r <= 1e-5, "{name}, row {row}: {r:.1e}");
        }
    }
}

/// A state after nothing but padding is that of no call.
#[test]
fn a_row_that_begins_with_padding_alone_equals_the_row() {
    let layer = layer(&config());
    let t = 2 * CHUNK + 3;
    let x = normal([1, 3 + t, HIDDEN], 21);
    let call = |range: std::ops::Range<usize>, tokens: &TokenMeta, state| {
        let x = x.clone().narrow(1, range.start, range.len());
        with_context(tokens, true, |ctx| layer.forward(x, ctx, state)).unwrap()
    };
    let padding = TokenMeta::new(1, 3, vec![0; 3], vec![-1; 3]).unwrap();
    let state = call(0..3, &padding, None).state;
    let tokens = TokenMeta::contiguous(1, t, 0);
    let got = call(3..3 + t, &tokens, state).y;
    let want = answer(&layer, x.clone().narrow(1, 3, t), &tokens);
    assert!(ratio(&host(got), &host(want)) <= 1e-6);
}

/// No more than the window reaches.
#[test]
fn the_window_keeps_what_it_reaches() {
    let window = 5;
    let layer = layer(&config().with_window(window));
    let x = normal([1, 40, HIDDEN], 22);
    let call = |start: usize, tokens: &TokenMeta, state| {
        let x = x.clone().narrow(1, start, tokens.len());
        with_context(tokens, true, |ctx| layer.forward(x, ctx, state)).unwrap().state.unwrap()
    };
    let mut state = call(0, &TokenMeta::contiguous(1, 30, 0), None);
    // The next token is one of those that it sees.
    assert_eq!(state.len(), window - 1);
    for t in 30..33 {
        state = call(t, &TokenMeta::contiguous(1, 1, t), Some(state));
        assert_eq!(state.len(), window - 1);
    }
}

/// Settings can change where the weights stay what they are.
#[test]
fn only_settings_that_have_the_same_weights_can_change() {
    let layer = layer(&config());
    for other in [
        config().with_chunk(3),
        config().with_window(7),
        config().with_optimizer(FastOptimizer::Sgd),
        config().with_norm(WeightNorm::Pre),
        config().with_base_lr(0.5),
        config().with_silu_v(false),
        config().with_rotate(false),
    ] {
        assert_eq!(*layer.clone().with_config(&other).unwrap().config(), other);
    }
    for other in [
        config().with_fast_heads(3),
        config().with_inter_multi(1.5),
        config().with_momentum(false),
        config().with_low_rank(3),
        config().with_low_rank(0),
        config().with_qk_norm(true),
        config().with_qkv_bias(false),
        config().with_learnable_scale(false),
    ] {
        let refused = layer.clone().with_config(&other).map(drop);
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{other:?}: {refused:?}");
    }
}

/// What is tapped is what the last projection gets: both branches.
#[test]
fn the_tap_holds_both_branches() {
    let layer = layer(&config());
    let (t, x) = (2 * CHUNK + 3, normal([2, 2 * CHUNK + 3, HIDDEN], 19));
    let tokens = TokenMeta::contiguous(2, t, 0);
    let out = with_context(&tokens, false, |ctx| {
        layer.forward(x, &MixContext { taps: &[Tap::Mixed], ..ctx.clone() }, None)
    });
    let MixOutput { y, taps, .. } = out.unwrap();
    let mixed = taps.mixed.unwrap().swap_dims(1, 2).reshape([2, t, HIDDEN]);
    assert!(ratio(&host(layer.out_proj.forward(mixed)), &host(y)) <= 1e-6);
}
