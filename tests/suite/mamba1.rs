//! Mamba-1: the conformance suite, decoding, documents, initial values, memory, errors.

use super::mamba::*;
use crate::twins::{assert_equal_twins, moved};
use burn::tensor::{Device, Tensor, TensorData};
use longburn::attention::*;
use longburn::kernel::{SelectiveScan, TokenMeta, selective_scan};
use longburn::models::keymap::params;
use longburn::streams::Streams;

fn layer(config: Mamba1Config, device: &Device) -> longburn::Result<Mamba1> {
    config.init(HIDDEN, 2, &Streams::new(3), 0, device)
}

fn small() -> Mamba1Config {
    Mamba1Config::new().with_d_state(4)
}

#[test]
fn mamba1_conforms() {
    all_checks_pass(|d| layer(small(), d));
    all_checks_pass(|d| layer(small().with_d_conv(3).with_dt_rank(5).with_biases(false, true), d));
}

#[test]
fn layers_equal_the_reference_in_values_and_all_gradients() {
    for config in [
        small(),
        small().with_d_conv(3).with_dt_rank(5).with_biases(false, true),
        small().with_d_conv(1),
    ] {
        let layer = moved(layer(config.clone(), &Device::flex().autodiff()).unwrap());
        let twin = |x: Tensor<3>, tokens: &TokenMeta| reference::mamba::mamba1(&layer, x, tokens);
        let own = |x: Tensor<3>, tokens: &TokenMeta| call(&layer, x, tokens, None).unwrap().y;
        assert_equal_twins(&format!("{config:?}"), &layer, HIDDEN, EXACT, own, twin);
    }
}

#[test]
fn steps_after_any_prefill_equal_one_pass() {
    pieces_equal_the_whole(&layer(small(), &Device::flex()).unwrap());
    pieces_equal_the_whole(&layer(small().with_d_conv(1), &Device::flex()).unwrap());
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
    let config = Mamba1Config::new().with_d_state(16);
    let layer = config.init(64, 9, &Streams::new(0), 0, &device).unwrap();
    let bias = values(&layer, "dt_proj.bias");
    assert!(bias.iter().map(step_size).all(|dt| (0.999e-3..=0.1001).contains(&dt)));
    // On a logarithmic scale half of them lie below 1e-2.
    let low = bias.iter().map(step_size).filter(|dt| *dt < 1e-2).count();
    assert!((48..80).contains(&low), "{low} of {}", bias.len());
    // None below the floor, at which those that were drawn below it are.
    let steps = StepSizes { floor: 1e-2, ..StepSizes::default() };
    let floored =
        Mamba1Config { step_sizes: steps, ..config }.init(64, 9, &Streams::new(0), 0, &device);
    let bias = values(&floored.unwrap(), "dt_proj.bias");
    let at_floor = bias.iter().map(step_size).filter(|dt| (dt / 1e-2 - 1.0).abs() < 1e-4).count();
    assert!(bias.iter().map(step_size).all(|dt| dt > 0.999e-2) && at_floor == low, "{at_floor}");
    let want: Vec<f32> = (0..128 * 16).map(|i| ((i % 16 + 1) as f32).ln()).collect();
    assert_eq!(values(&layer, "A_log"), want);
    assert!(values(&layer, "D").iter().all(|d| *d == 1.0));
    are_within(&values(&layer, "in_proj.weight"), 1.0 / 8.0);
    are_within(&values(&layer, "dt_proj.weight"), 0.5);
    are_within(&values(&layer, "conv1d.weight"), 0.5);
    are_within(&values(&layer, "out_proj.weight"), 1.0 / 128f64.sqrt() / 3.0);
    let shapes: Vec<_> = params(&layer).into_iter().map(|p| (p.path, p.shape)).collect();
    let shape = |path: &str| shapes.iter().find(|(p, _)| p == path).unwrap().1.clone();
    assert_eq!(shape("conv1d.weight"), [128, 1, 4]);
    assert_eq!(shape("x_proj.weight"), [4 + 32, 128]);
}

/// Of convolution and projections, in this order; the rank of Δ is rounded up.
#[test]
fn settings_decide_which_weights_there_are() {
    for (conv, projections) in [(true, false), (false, true)] {
        let config = small().with_biases(conv, projections);
        let shapes = params(&layer(config, &Device::flex()).unwrap());
        let has = |path: &str| shapes.iter().any(|p| p.path == path);
        assert_eq!(has("conv1d.bias"), conv);
        assert_eq!((has("in_proj.bias"), has("out_proj.bias")), (projections, projections));
        assert!(has("dt_proj.bias") && !has("x_proj.bias"));
    }
    assert_eq!([8, 16, 24, 40].map(|hidden| small().rank(hidden)), [1, 1, 2, 3]);
}

/// Forward and backward hold nothing of a state per token.
#[test]
fn the_scan_keeps_no_state_per_token() {
    let (len, channels, n) = (1024, 64, 64);
    let value = |shape: [usize; 3], stream| {
        let data = normal(shape.iter().product(), stream);
        Tensor::<3>::from_data(TensorData::new(data, shape), &Device::flex())
    };
    let leaf = |shape, stream| value(shape, stream).autodiff().require_grad();
    let (u, delta) = (leaf([1, len, channels], 1), leaf([1, len, channels], 2));
    let (b, c) = (leaf([1, len, n], 3), leaf([1, len, n], 4));
    let a = value([1, channels, n], 5).squeeze_dim::<2>(0).abs().neg();
    let usage = crate::alloc::measure(|| {
        let group = |x: Tensor<3>| x.unsqueeze_dim::<4>(2);
        let scan = SelectiveScan {
            softplus: true,
            ..SelectiveScan::new(u, delta, a.autodiff(), group(b), group(c))
        };
        selective_scan(scan).unwrap().0.sum().backward()
    });
    let states = len * channels * n * size_of::<f32>();
    assert!(usage.peak < states / 4, "{} bytes, all states are {states}", usage.peak);
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = Device::flex();
    let text = |error: longburn::Error| error.to_string();
    let steps = |step_sizes| Mamba1Config { step_sizes, ..small() };
    for (config, wanted) in [
        (small().with_d_state(0), "field `d_state` is 0"),
        (small().with_d_conv(0), "field `d_conv` is 0"),
        (small().with_dt_rank(0), "field `dt_rank` is 0"),
        (
            steps(StepSizes { max: 1e-4, ..StepSizes::default() }),
            "field `step_sizes.max` is 0.0001",
        ),
        (steps(StepSizes { min: 0.0, ..StepSizes::default() }), "field `step_sizes.min` is 0"),
        (steps(StepSizes { floor: 0.0, ..StepSizes::default() }), "field `step_sizes.floor` is 0"),
    ] {
        let error = text(layer(config, &device).unwrap_err());
        assert!(error.contains(wanted), "{error}");
    }
    let mixer = layer(small(), &device).unwrap();
    let tokens = TokenMeta::contiguous(1, 3, 0);
    let state = call(&mixer, input(1, 3, 1), &tokens, None).unwrap().state;
    let go = |x, tokens: &TokenMeta, state| text(call(&mixer, x, tokens, state).unwrap_err());
    let two = TokenMeta::contiguous(2, 3, 0);
    assert!(go(input(2, 3, 1), &two, state.clone()).contains("a state of"));
    assert!(go(input(1, 3, 1), &two, None).contains("1 rows of 3 tokens"));
    let back = TokenMeta::new(1, 3, vec![0; 3], vec![0, 1, 0]).unwrap();
    assert!(go(input(1, 3, 1), &back, None).contains("document 0 comes after document 1"));
    let shape = AttnShape {
        hidden: HIDDEN,
        heads: 2,
        kv_heads: 2,
        head_dim: 8,
        qkv_bias: false,
        o_bias: false,
        qk_norm: None,
    };
    let dense = DenseConfig::new().init(shape.init((0.1, 0.1), &Streams::new(0), 0, &device));
    let kv = call(&dense, input(1, 3, 1), &tokens, None).unwrap().state;
    let error = text(call(&dense, input(1, 3, 1), &tokens, state).unwrap_err());
    assert!(error.contains("another kind of layer, a recurrent state"), "{error}");
    assert!(go(input(1, 3, 1), &tokens, kv).contains("another kind of layer, keys and values"));
}
