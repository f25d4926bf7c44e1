//! Mamba-2: the conformance suite, decoding, documents, initial values, errors.

use super::mamba::*;
use crate::twins::{assert_equal_twins, moved};
use burn::tensor::{Device, Tensor};
use longburn::attention::*;
use longburn::kernel::TokenMeta;
use longburn::models::keymap::{params, read_params};
use longburn::streams::Streams;

fn layer(config: Mamba2Config, device: &Device) -> longburn::Result<Mamba2> {
    config.init(HIDDEN, 2, &Streams::new(4), 0, device)
}

fn small() -> Mamba2Config {
    Mamba2Config::new().with_d_state(8).with_head_dim(8).with_chunk(16)
}

#[test]
fn mamba2_conforms() {
    all_checks_pass(|d| layer(small(), d));
    all_checks_pass(|d| {
        let config = small().with_n_groups(2).with_biases(false, true).with_norm(Some(1), true);
        layer(config, d)
    });
    all_checks_pass(|d| {
        let config = Mamba2Config { rms_norm: false, d_has_head_dim: true, ..small() };
        layer(config.with_dt_limit(Some((1e-2, 0.05))).with_d_conv(2), d)
    });
}

#[test]
fn layers_equal_the_reference_in_values_and_all_gradients() {
    for config in [
        small().with_n_groups(2),
        small().with_n_groups(2).with_biases(false, true).with_norm(Some(1), true),
        small().with_dt_limit(Some((1e-2, 0.05))).with_norm(Some(4), false),
        Mamba2Config { rms_norm: false, d_has_head_dim: true, ..small().with_d_conv(2) },
        Mamba2Config { norm_eps: 0.1, ..small() },
    ] {
        let layer = moved(layer(config.clone(), &Device::flex().autodiff()).unwrap());
        let twin =
            |x: Tensor<3>, tokens: &TokenMeta| reference::mamba::mamba2(&layer, &config, x, tokens);
        let own = |x: Tensor<3>, tokens: &TokenMeta| call(&layer, x, tokens, None).unwrap().y;
        assert_equal_twins(&format!("{config:?}"), &layer, HIDDEN, EXACT, own, twin);
    }
}

#[test]
fn steps_after_any_prefill_equal_one_pass() {
    let device = Device::flex();
    pieces_equal_the_whole(&layer(small().with_n_groups(2), &device).unwrap());
    // The bounds of Δ hold in decoding, too.
    let limited = small().with_dt_limit(Some((1e-2, 0.05)));
    pieces_equal_the_whole(&layer(limited, &device).unwrap());
}

/// The chunk decides the speed, not the result.
#[test]
fn chunks_of_any_length_are_equal() {
    let device = Device::flex();
    let y = |chunk| {
        let mixer = layer(small().with_chunk(chunk), &device).unwrap();
        host(call(&mixer, input(2, 70, 1), &TokenMeta::contiguous(2, 70, 0), None).unwrap().y)
    };
    let want = y(1);
    for chunk in [7, 16, 64, 256] {
        let r = longburn::testing::ratio(&y(chunk), &want);
        assert!(r < 1e-6, "chunks of {chunk}: {r:e}");
    }
}

#[test]
fn states_follow_documents() {
    states_are_of_the_last_document(&layer(small(), &Device::flex()).unwrap());
}

#[test]
fn states_carry_gradients() {
    the_state_carries_gradients(&layer(small(), &Device::flex().autodiff()).unwrap());
}

#[test]
fn initial_values_are_those_of_the_paper() {
    let device = Device::flex();
    let layer =
        Mamba2Config::new().with_head_dim(2).init(64, 9, &Streams::new(0), 0, &device).unwrap();
    let a: Vec<f32> = values(&layer, "A_log").iter().map(|a| a.exp()).collect();
    assert!(a.len() == 64 && a.iter().all(|a| (1.0..16.001).contains(a)));
    // Evenly, not by their logarithms, which would make the mean 5.4.
    let mean = a.iter().sum::<f32>() / 64.0;
    assert!((7.0..10.0).contains(&mean), "{mean}");
    are_within(&values(&layer, "in_proj.weight"), 1.0 / 8.0);
    are_within(&values(&layer, "out_proj.weight"), 1.0 / 128f64.sqrt() / 3.0);
    let bias = values(&layer, "dt_bias");
    assert!(bias.iter().map(step_size).all(|dt| (0.999e-3..=0.1001).contains(&dt)));
    for ones in ["norm.weight", "D"] {
        assert!(values(&layer, ones).iter().all(|w| *w == 1.0), "{ones}");
    }
}

/// Biases of convolution and projections, in this order; D per head or per channel.
#[test]
fn settings_decide_which_weights_there_are() {
    for (conv, projections) in [(true, false), (false, true)] {
        let layer = layer(small().with_biases(conv, projections), &Device::flex()).unwrap();
        let has = |path: &str| params(&layer).iter().any(|p| p.path == path);
        assert_eq!(has("conv1d.bias"), conv);
        assert_eq!((has("in_proj.bias"), has("out_proj.bias")), (projections, projections));
    }
    for (d_has_head_dim, skips) in [(false, 4), (true, 32)] {
        let config = Mamba2Config { d_has_head_dim, ..small() };
        assert_eq!(values(&layer(config, &Device::flex()).unwrap(), "D").len(), skips);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = Device::flex();
    let text = |error: longburn::Error| error.to_string();
    for (config, wanted) in [
        (small().with_head_dim(5), "field `head_dim` is 5; expected a divisor of the 32 inner"),
        (small().with_n_groups(3), "field `n_groups` is 3; expected a divisor of the 4 heads"),
        (small().with_chunk(0), "field `chunk` is 0"),
        (small().with_norm(Some(7), false), "field `norm_groups` is 7"),
        (small().with_dt_limit(Some((1.0, 0.5))), "field `dt_limit` is (1, 0.5)"),
        (Mamba2Config { a_init: (0.0, 1.0), ..small() }, "field `a_init` is (0, 1)"),
    ] {
        let error = text(layer(config, &device).unwrap_err());
        assert!(error.contains(wanted), "{error}");
    }
    // A state of other sizes.
    let tokens = TokenMeta::contiguous(1, 3, 0);
    let other = layer(small().with_d_state(4), &device).unwrap();
    let state = call(&other, input(1, 3, 1), &tokens, None).unwrap().state;
    let mixer = layer(small(), &device).unwrap();
    let error = text(call(&mixer, input(1, 3, 1), &tokens, state).unwrap_err());
    assert!(error.contains("mamba2: a state of"), "{error}");
}

/// `init` draws the same numbers whoever else draws.
#[test]
fn a_seed_gives_one_layer() {
    let all = |seed| {
        let layer = small().init(HIDDEN, 2, &Streams::new(seed), 8, &Device::flex()).unwrap();
        read_params(&layer, |_| true).into_iter().flat_map(|p| p.2).collect::<Vec<_>>()
    };
    assert_eq!(all(1), all(1));
    assert_ne!(all(1), all(2));
    // Every tensor from a stream of its own: one bound, other numbers.
    let layer = small().init(HIDDEN, 2, &Streams::new(1), 8, &Device::flex()).unwrap();
    let bias = values(&layer, "conv1d.bias");
    assert_ne!(bias, values(&layer, "conv1d.weight")[..bias.len()]);
}
