//! State-space layers: the conformance suite, decoding, documents, initial values, memory, errors.
//! Scans by themselves are tested beside the kernels.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use longburn::attention::*;
use longburn::kernel::{Implementation, SelectiveScan, TokenMeta, selective_scan};
use longburn::models::keymap::{params, read_params};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::testing::{Check, CheckOptions, Outcome, check_mixer, ratio};

const HIDDEN: usize = 16;
/// Pieces against one pass, in f32.
const PIECES: f64 = 1e-5;

fn options() -> CheckOptions {
    CheckOptions::new(HIDDEN).with_peak_bytes(|work| crate::alloc::measure(work).peak)
}

fn mamba1(config: Mamba1Config, device: &Device) -> longburn::Result<Mamba1> {
    config.init(HIDDEN, 2, &Streams::new(3), 0, device)
}

fn mamba2(config: Mamba2Config, device: &Device) -> longburn::Result<Mamba2> {
    config.init(HIDDEN, 2, &Streams::new(4), 0, device)
}

fn small1() -> Mamba1Config {
    Mamba1Config::new().with_d_state(4)
}

fn small2() -> Mamba2Config {
    Mamba2Config::new().with_d_state(8).with_head_dim(8).with_chunk(16)
}

fn all_checks_pass<M: SequenceMixer>(build: impl Fn(&Device) -> longburn::Result<M>) {
    let report = check_mixer(&options(), build).unwrap();
    assert!(report.passed(), "{report}");
    for check in [Check::Segments, Check::Padding, Check::Cache, Check::Chunks, Check::Memory] {
        assert!(matches!(report.of(check), Some(Outcome::Passed(_))), "{check:?}: {report}");
    }
}

#[test]
fn mamba1_conforms() {
    all_checks_pass(|d| mamba1(small1(), d));
    all_checks_pass(|d| {
        mamba1(small1().with_d_conv(3).with_dt_rank(5).with_biases(false, true), d)
    });
}

#[test]
fn mamba2_conforms() {
    all_checks_pass(|d| mamba2(small2(), d));
    all_checks_pass(|d| {
        let config = small2().with_n_groups(2).with_biases(false, true).with_norm(Some(1), true);
        mamba2(config, d)
    });
    all_checks_pass(|d| {
        let config = Mamba2Config { rms_norm: false, d_has_head_dim: true, ..small2() };
        mamba2(config.with_dt_limit(Some((1e-2, 0.05))).with_d_conv(2), d)
    });
}

fn normal(n: usize, stream: u64) -> Vec<f32> {
    let mut rng = Streams::new(9).rng(Purpose::Synthetic, stream, 0, 0);
    (0..n).map(|_| rng.normal() as f32).collect()
}

fn input(batch: usize, len: usize, stream: u64) -> Tensor<3> {
    let data = normal(batch * len * HIDDEN, stream);
    Tensor::from_data(TensorData::new(data, [batch, len, HIDDEN]), &Device::flex())
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

fn call<M: SequenceMixer>(
    mixer: &M,
    x: Tensor<3>,
    tokens: &TokenMeta,
    state: Option<State>,
) -> longburn::Result<MixOutput> {
    let ctx = MixContext {
        tokens,
        rope: None,
        unrotated_cache: None,
        layer: 0,
        phase: Phase::Infer,
        keep_state: true,
        implementation: Implementation::Auto,
        taps: &[Tap::Mixed],
    };
    mixer.forward(x, &ctx, state)
}

/// Runs of one, of fewer tokens than the convolution has taps, and of more than a chunk.
fn pieces_equal_the_whole<M: SequenceMixer>(mixer: &M) {
    let (len, tokens) = (40, TokenMeta::contiguous(2, 40, 0));
    let x = input(2, len, 1);
    let whole = call(mixer, x.clone(), &tokens, None).unwrap();
    for first in [1, 2, 3, 5, 17, 33] {
        let (mut state, mut start, mut parts) = (None, 0, Vec::new());
        // A prefill, single tokens, then several at once.
        for size in [first, 1, 1, 3] {
            let piece = tokens.slice(start..start + size).unwrap();
            let out = call(mixer, x.clone().narrow(1, start, size), &piece, state).unwrap();
            (state, start) = (out.state, start + size);
            parts.push(out.y);
        }
        let want = whole.y.clone().narrow(1, 0, start);
        let r = ratio(&host(Tensor::cat(parts, 1)), &host(want));
        assert!(r < PIECES, "{first} tokens first: {r:e}");
        let state = state.unwrap();
        assert_eq!((state.len(), state.tensors().len()), (start, 2));
        let again =
            call(mixer, x.clone().narrow(1, 0, start), &tokens.slice(0..start).unwrap(), None);
        let again = again.unwrap().state.unwrap();
        for (a, b) in state.tensors().into_iter().zip(again.tensors()) {
            assert!(ratio(&host(a), &host(b)) < PIECES);
        }
        // Its size does not depend on the length.
        assert_eq!(state.bytes(), whole.state.as_ref().unwrap().bytes());
    }
}

#[test]
fn steps_after_any_prefill_equal_one_pass() {
    let device = Device::flex();
    pieces_equal_the_whole(&mamba1(small1(), &device).unwrap());
    pieces_equal_the_whole(&mamba2(small2().with_n_groups(2), &device).unwrap());
    let limited = small2().with_dt_limit(Some((1e-2, 0.05)));
    pieces_equal_the_whole(&mamba2(limited, &device).unwrap());
}

/// The state behind a packed row is that of its last document alone, and padding leaves it alone.
fn states_are_of_the_last_document<M: SequenceMixer>(mixer: &M) {
    let x = input(1, 30, 2);
    let tokens = TokenMeta::packed(&[vec![7, 2, 14]], 30).unwrap();
    let packed = call(mixer, x.clone(), &tokens, None).unwrap().state.unwrap();
    let alone = TokenMeta::contiguous(1, 14, 0);
    let alone = call(mixer, x.clone().narrow(1, 9, 14), &alone, None).unwrap().state.unwrap();
    for (a, b) in packed.tensors().into_iter().zip(alone.tensors()) {
        assert!(ratio(&host(a), &host(b)) < 1e-6);
    }
    // A next call with another document begins anew; one of the same goes on.
    let next = |segment| TokenMeta::new(1, 4, vec![0; 4], vec![segment; 4]).unwrap();
    let y = |state, segment| host(call(mixer, input(1, 4, 3), &next(segment), state).unwrap().y);
    let fresh = y(None, 0);
    assert!(ratio(&y(Some(packed.clone()), 3), &fresh) < 1e-6);
    assert!(ratio(&y(Some(packed.clone()), 2), &fresh) > 1e-3);
    // A token that is padding changes nothing, whatever it holds.
    let padding = next(-1);
    let after = call(mixer, input(1, 4, 4), &padding, Some(packed.clone())).unwrap();
    for (a, b) in packed.tensors().into_iter().zip(after.state.unwrap().tensors()) {
        assert_eq!(host(a), host(b));
    }
    assert!(host(after.taps.mixed.unwrap()).iter().all(|y| *y == 0.0));
}

#[test]
fn states_follow_documents() {
    let device = Device::flex();
    states_are_of_the_last_document(&mamba1(small1(), &device).unwrap());
    states_are_of_the_last_document(&mamba2(small2(), &device).unwrap());
}

/// A loss on what comes later reaches the earlier tokens through the state, as in one pass.
fn the_state_carries_gradients<M: SequenceMixer>(mixer: &M) {
    let tokens = TokenMeta::contiguous(1, 30, 0);
    let weight = input(1, 30, 6).autodiff();
    let leaf = || input(1, 30, 5).autodiff().require_grad();
    let whole = leaf();
    let y = call(mixer, whole.clone(), &tokens, None).unwrap().y;
    let want = whole.grad(&(y * weight.clone()).sum().backward()).unwrap();
    let split = leaf();
    let part = |range: std::ops::Range<usize>, state| {
        let x = split.clone().narrow(1, range.start, range.len());
        call(mixer, x, &tokens.slice(range).unwrap(), state).unwrap()
    };
    let first = part(0..13, None);
    // As a strategy does it that relays a state tensor by tensor.
    let state = first.state.unwrap();
    let state = state.from_tensors(state.tensors()).unwrap();
    let second = part(13..30, Some(state));
    let y = Tensor::cat(vec![first.y, second.y], 1);
    let got = split.grad(&(y * weight).sum().backward()).unwrap();
    assert!(ratio(&host(got), &host(want)) < PIECES);
}

#[test]
fn states_carry_gradients() {
    let device = Device::flex().autodiff();
    the_state_carries_gradients(&mamba1(small1(), &device).unwrap());
    the_state_carries_gradients(&mamba2(small2(), &device).unwrap());
}

fn values<M: Module>(module: &M, path: &str) -> Vec<f32> {
    let found = read_params(module, |p| p == path);
    found.into_iter().next().unwrap_or_else(|| panic!("no {path}")).2
}

#[test]
fn initial_values_are_those_of_the_papers() {
    let device = Device::flex();
    let config = Mamba1Config::new().with_d_state(16);
    let layer = config.init(64, 9, &Streams::new(0), 0, &device).unwrap();
    let within = |x: &[f32], bound: f64| {
        let most = x.iter().fold(0f32, |m, x| m.max(x.abs())) as f64;
        assert!(most <= bound && most > 0.9 * bound, "{most}, expected up to {bound}");
    };
    let step = |bias: &f32| (*bias as f64).exp().ln_1p();
    let bias = values(&layer, "dt_proj.bias");
    assert!(bias.iter().map(step).all(|dt| (0.999e-3..=0.1001).contains(&dt)));
    // On a logarithmic scale half of them lie below 1e-2.
    let low = bias.iter().map(step).filter(|dt| *dt < 1e-2).count();
    assert!((48..80).contains(&low), "{low} of {}", bias.len());
    let want: Vec<f32> = (0..128 * 16).map(|i| ((i % 16 + 1) as f32).ln()).collect();
    assert_eq!(values(&layer, "A_log"), want);
    assert!(values(&layer, "D").iter().all(|d| *d == 1.0));
    within(&values(&layer, "in_proj.weight"), 1.0 / 8.0);
    within(&values(&layer, "dt_proj.weight"), 0.5);
    within(&values(&layer, "conv1d.weight"), 0.5);
    within(&values(&layer, "out_proj.weight"), 1.0 / 128f64.sqrt() / 3.0);
    let shapes: Vec<_> = params(&layer).into_iter().map(|p| (p.path, p.shape)).collect();
    let shape = |path: &str| shapes.iter().find(|(p, _)| p == path).unwrap().1.clone();
    assert_eq!(shape("conv1d.weight"), [128, 1, 4]);
    assert_eq!(shape("x_proj.weight"), [4 + 32, 128]);

    let config = Mamba2Config::new().with_head_dim(2);
    let layer = config.init(64, 1, &Streams::new(0), 0, &device).unwrap();
    let a = values(&layer, "A_log");
    assert!(a.len() == 64 && a.iter().all(|a| (1.0..16.001).contains(&a.exp())));
    assert!(values(&layer, "dt_bias").iter().map(step).all(|dt| (0.999e-3..=0.1001).contains(&dt)));
    assert!(values(&layer, "norm.weight").iter().all(|w| *w == 1.0));
}

/// Forward and backward of a scan hold nothing of a state per token, and decoding nothing that grows.
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
    for (config, wanted) in [
        (small1().with_d_state(0), "field `d_state` is 0"),
        (small1().with_d_conv(0), "field `d_conv` is 0"),
        (small1().with_dt_rank(0), "field `dt_rank` is 0"),
        (
            Mamba1Config {
                step_sizes: StepSizes { max: 1e-4, ..StepSizes::default() },
                ..small1()
            },
            "field `step_sizes.max` is 0.0001",
        ),
    ] {
        let error = text(mamba1(config, &device).unwrap_err());
        assert!(error.contains(wanted), "{error}");
    }
    for (config, wanted) in [
        (small2().with_head_dim(5), "field `head_dim` is 5; expected a divisor of the 32 inner"),
        (small2().with_n_groups(3), "field `n_groups` is 3; expected a divisor of the 4 heads"),
        (small2().with_chunk(0), "field `chunk` is 0"),
        (small2().with_norm(Some(7), false), "field `norm_groups` is 7"),
        (small2().with_dt_limit(Some((1.0, 0.5))), "field `dt_limit` is (1, 0.5)"),
        (Mamba2Config { a_init: (0.0, 1.0), ..small2() }, "field `a_init` is (0, 1)"),
    ] {
        let error = text(mamba2(config, &device).unwrap_err());
        assert!(error.contains(wanted), "{error}");
    }
    let layer = mamba1(small1(), &device).unwrap();
    let tokens = TokenMeta::contiguous(1, 3, 0);
    let state = call(&layer, input(1, 3, 1), &tokens, None).unwrap().state;
    let go =
        |x: Tensor<3>, tokens: &TokenMeta, state| text(call(&layer, x, tokens, state).unwrap_err());
    let two = TokenMeta::contiguous(2, 3, 0);
    assert!(go(input(2, 3, 1), &two, state.clone()).contains("a state of"));
    assert!(go(input(1, 3, 1), &two, None).contains("1 rows of 3 tokens"));
    let back = TokenMeta::new(1, 3, vec![0; 3], vec![0, 1, 0]).unwrap();
    assert!(go(input(1, 3, 1), &back, None).contains("document 0 comes after document 1"));
    let other = mamba2(small2(), &device).unwrap();
    assert!(
        text(call(&other, input(1, 3, 1), &tokens, state.clone()).unwrap_err()).contains("mamba2")
    );
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
    let error = text(call(&dense, input(1, 3, 1), &tokens, state).unwrap_err());
    assert!(error.contains("another kind of layer, a recurrent state"), "{error}");
}

/// `init` draws the same numbers whoever else draws.
#[test]
fn a_seed_gives_one_layer() {
    let device = Device::flex();
    let all = |seed| {
        let layer = small2().init(HIDDEN, 2, &Streams::new(seed), 8, &device).unwrap();
        read_params(&layer, |_| true).into_iter().flat_map(|p| p.2).collect::<Vec<_>>()
    };
    assert_eq!(all(1), all(1));
    assert_ne!(all(1), all(2));
}
