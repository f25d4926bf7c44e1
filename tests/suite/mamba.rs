//! What is tested of both state-space layers, beside the conformance suite: decoding, documents,
//! gradients through states. Scans by themselves are tested beside the kernels.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use longburn::attention::*;
use longburn::kernel::TokenMeta;
use longburn::models::keymap::read_params;
use longburn::streams::{Draw, Purpose, Streams};
use longburn::testing::{Check, CheckOptions, Outcome, check_mixer, ratio};

pub const HIDDEN: usize = 16;
/// Values and gradients against the reference, in f32.
pub const EXACT: (f64, f64) = (1e-5, 1e-4);
/// Pieces against one pass, in f32.
const PIECES: f64 = 1e-5;

fn options() -> CheckOptions {
    CheckOptions::new(HIDDEN).with_peak_bytes(|work| crate::alloc::measure(work).peak)
}

pub fn all_checks_pass<M: SequenceMixer>(build: impl Fn(&Device) -> longburn::Result<M>) {
    let report = check_mixer(&options(), build).unwrap();
    assert!(report.passed(), "{report}");
    for check in [Check::Segments, Check::Padding, Check::Cache, Check::Chunks, Check::Memory] {
        assert!(matches!(report.of(check), Some(Outcome::Passed(_))), "{check:?}: {report}");
    }
}

pub fn normal(n: usize, stream: u64) -> Vec<f32> {
    let mut rng = Streams::new(9).rng(Purpose::Synthetic, stream, 0, 0);
    (0..n).map(|_| rng.normal() as f32).collect()
}

pub fn input(batch: usize, len: usize, stream: u64) -> Tensor<3> {
    let data = normal(batch * len * HIDDEN, stream);
    Tensor::from_data(TensorData::new(data, [batch, len, HIDDEN]), &Device::flex())
}

pub fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

pub fn call<M: SequenceMixer>(
    mixer: &M,
    x: Tensor<3>,
    tokens: &TokenMeta,
    state: Option<State>,
) -> longburn::Result<MixOutput> {
    let ctx = MixContext { keep_state: true, taps: &[Tap::Mixed], ..MixContext::infer(tokens) };
    mixer.forward(x, &ctx, state)
}

/// Runs of one, of fewer tokens than the convolution has taps, and of more than a chunk.
pub fn pieces_equal_the_whole<M: SequenceMixer>(mixer: &M) {
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

/// The state behind a packed row is that of its last document alone, and padding leaves it alone.
pub fn states_are_of_the_last_document<M: SequenceMixer>(mixer: &M) {
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

/// A loss on what comes later reaches the earlier tokens through the state, as in one pass.
pub fn the_state_carries_gradients<M: SequenceMixer>(mixer: &M) {
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

pub fn values<M: Module>(module: &M, path: &str) -> Vec<f32> {
    let found = read_params(module, |p| p == path);
    found.into_iter().next().unwrap_or_else(|| panic!("no {path}")).2
}

/// Δ of a bias.
pub fn step_size(bias: &f32) -> f64 {
    (*bias as f64).exp().ln_1p()
}

/// That numbers are drawn up to this bound, above 0 and below.
pub fn are_within(x: &[f32], bound: f64) {
    for sign in [1.0, -1.0] {
        let most = f64::from(x.iter().fold(0f32, |m, x| m.max(sign * x)));
        assert!(most <= bound && most > 0.9 * bound, "{most}, expected up to {bound}");
    }
}
