//! What SeerAttention and SeerAttention-R must show.

mod decoding;
mod errors;
mod learning;

use burn::tensor::{Device, Tensor, TensorData};
use longburn::Result;
use longburn::attention::seer::*;
use longburn::attention::*;
use longburn::kernel::*;
use longburn::models::keymap::{map_params, params};
use longburn::positional::{Positions, Rope, RopeConfig};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::testing::{Check, CheckOptions, Outcome, check_mixer, ratio};

const HIDDEN: usize = 16;
const WIDTH: usize = 6;

fn normal<const D: usize>(shape: [usize; D], stream: u32) -> Tensor<D> {
    let mut rng = Streams::new(9).rng(Purpose::Synthetic, 0, 0, stream);
    let data: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor::from_data(TensorData::new(data, shape), &Device::flex().autodiff())
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.inner().into_data().iter::<f32>().collect()
}

fn rope() -> Rope {
    RopeConfig::new(10_000.0, WIDTH).init().unwrap()
}

fn projections(device: &Device, kv_heads: usize) -> AttnProjections {
    let shape = AttnShape {
        hidden: HIDDEN,
        heads: 4,
        kv_heads,
        head_dim: WIDTH,
        qkv_bias: true,
        o_bias: true,
        qk_norm: Some(1e-5),
    };
    shape.init((0.3, 0.3), &Streams::new(7), 0, device)
}

/// A mixer whose gate has opinions: weights of about one, that nothing trains.
fn seer(config: &SeerConfig, device: &Device, kv_heads: usize) -> Result<Seer> {
    let mixer = config.init(projections(device, kv_heads), None)?;
    let mixer = mixer.with_gate(&Streams::new(5), 0)?;
    let mut rng = Streams::new(6).rng(Purpose::Init, 0, 0, 0);
    let mut drawn: Vec<(String, Vec<f32>)> = params(&mixer)
        .into_iter()
        .filter(|p| p.path.starts_with("attn_gate."))
        .map(|p| (p.path.clone(), (0..p.numel()).map(|_| rng.normal() as f32).collect()))
        .collect();
    let value = |path: &str| {
        let at = drawn.iter().position(|(known, _)| known == path)?;
        Some(drawn.swap_remove(at).1)
    };
    let trains = |path: &str| path.starts_with("attn_gate.").then_some(false);
    Ok(map_params(mixer, value, trains))
}

fn forward(
    mixer: &impl SequenceMixer,
    x: Tensor<3>,
    tokens: &TokenMeta,
    phase: Phase,
    state: Option<Option<State>>,
) -> Result<MixOutput> {
    forward_with(mixer, x, tokens, (phase, false), state)
}

/// The same; the flag says that the cache keeps keys as they are before rotation.
fn forward_with(
    mixer: &impl SequenceMixer,
    x: Tensor<3>,
    tokens: &TokenMeta,
    (phase, unrotated): (Phase, bool),
    state: Option<Option<State>>,
) -> Result<MixOutput> {
    let rope = rope();
    let table = rope.table(&Positions::of(tokens), &x.device());
    let ctx = MixContext {
        rope: Some(&table),
        unrotated_cache: unrotated.then_some(&rope),
        phase,
        keep_state: state.is_some(),
        ..MixContext::infer(tokens)
    };
    mixer.forward(x, &ctx, state.flatten())
}

/// Queries and keys as a gate sees them.
fn unrotated(mixer: &Seer, x: Tensor<3>, tokens: &TokenMeta) -> (Tensor<4>, Tensor<4>) {
    let ctx = MixContext { taps: &[Tap::QueriesAndKeys], ..MixContext::infer(tokens) };
    let dense = DenseConfig::new().init(mixer.proj.clone());
    let taps = dense.forward(x, &ctx, None).unwrap().taps;
    (taps.q.unwrap().detach(), taps.k.unwrap().detach())
}

/// Values, and gradients of input and parameters, of Σ y·w.
fn pass(mixer: &impl SequenceMixer, tokens: &TokenMeta, phase: Phase) -> Vec<Vec<f32>> {
    let shape = [tokens.batch(), tokens.len(), HIDDEN];
    let x = normal(shape, 1).require_grad();
    let y = forward(mixer, x.clone(), tokens, phase, None).unwrap().y;
    let mut grads = (y.clone() * normal(shape, 2)).sum().backward();
    let mut all = vec![host(y), host(x.grad_remove(&mut grads).unwrap())];
    let grads = burn::optim::GradientsParams::from_grads(grads, mixer);
    for param in params(mixer).iter().filter(|p| !p.path.starts_with("attn_gate.")) {
        all.push(match param.shape.len() {
            1 => host(grads.get::<1>(param.id).unwrap()),
            _ => host(grads.get::<2>(param.id).unwrap()),
        });
    }
    all
}

/// Item 3: the scores equal those of a gate written out head by head.
#[test]
fn scores_equal_the_reference() {
    let device = Device::flex();
    let weight = |gate: &AttnGate, name: &str| {
        longburn::models::keymap::read_params(gate, |path| path == name).pop().map(|(.., w)| w)
    };
    for (t, block, kv_heads) in [(63, 8, 4), (65, 8, 2), (100, 16, 1), (5, 8, 2)] {
        let layout = BlockLayout::of(&TokenMeta::contiguous(2, t, 0), block).unwrap();
        let (q, k) =
            (normal([2, 4, t, WIDTH], 1).inner(), normal([2, kv_heads, t, WIDTH], 2).inner());
        for (queries, force) in
            [(&[Pool::Avg][..], false), (&[Pool::Avg], true), (&[Pool::Max, Pool::Min], false)]
        {
            let config = SeerConfig { force_double: force, ..SeerConfig::new() };
            let config = config.with_block(block).with_pools(queries, &Pool::ALL);
            let gate = seer(&config, &device, kv_heads).unwrap().attn_gate.unwrap();
            let AttnGate::Prefill(scored) = &gate else { panic!("no prefill gate") };
            let got = scored.logits(q.clone(), k.clone(), &layout, Some(&rope())).unwrap();
            let pools = |pools: &[Pool]| Pool::ALL.map(|pool| pools.contains(&pool));
            let want = reference::seer::block_logits(
                (&host_of(&q), &host_of(&k)),
                [2, 4, kv_heads, t, WIDTH],
                (block, pools(queries), pools(&Pool::ALL)),
                (
                    weight(&gate, "mask_linear_q.weight"),
                    weight(&gate, "mask_linear_k.weight").unwrap(),
                ),
                1e4,
            );
            let r = ratio(&host(got), &want);
            assert!(r <= 1e-5, "{t}, {block}, {kv_heads}, {queries:?}, {force}: {r:e}");
        }
    }
}

fn host_of(x: &Tensor<4>) -> Vec<f32> {
    x.clone().into_data().iter::<f32>().collect()
}

fn everything() -> SeerConfig {
    SeerConfig::new().with_block(8).with_select(Some(Select::NzRatio(1.0)))
}

/// Item 1: with all blocks chosen it is dense attention, values and gradients, whatever the
/// length and wherever the documents lie.
#[test]
fn all_blocks_equal_dense() {
    let device = Device::flex().autodiff();
    let mut rows: Vec<TokenMeta> =
        [1, 5, 63, 65, 100, 257].map(|t| TokenMeta::contiguous(2, t, 0)).into();
    rows.push(TokenMeta::packed(&[vec![21, 1, 40], vec![33, 30]], 64).unwrap());
    rows.push(TokenMeta::left_padded(&[40, 1, 23], 40).unwrap());
    rows.push(TokenMeta::right_padded(&[40, 1, 23], 40).unwrap());
    for kv_heads in [4, 2, 1] {
        let dense = DenseConfig::new().init(projections(&device, kv_heads));
        for config in [everything(), everything().with_select(Some(Select::Threshold(0.0)))] {
            let sparse = seer(&config, &device, kv_heads).unwrap();
            for tokens in &rows {
                let (got, want) =
                    (pass(&sparse, tokens, Phase::Infer), pass(&dense, tokens, Phase::Infer));
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let r = ratio(got, want);
                    assert!(r <= 1e-5, "{kv_heads}, {} tokens, {i}: {r:e}", tokens.len());
                }
            }
        }
    }
}

/// Blocks longer than all documents take no more room than these, and leave nothing to choose.
#[test]
fn a_block_longer_than_all_documents_holds_each_whole() {
    let device = Device::flex().autodiff();
    let dense = DenseConfig::new().init(projections(&device, 2));
    let config = everything().with_block(1 << 40).with_select(Some(Select::NzRatio(0.1)));
    let sparse = seer(&config.with_last_block_dense(false), &device, 2).unwrap();
    for tokens in [
        TokenMeta::contiguous(2, 21, 0),
        TokenMeta::packed(&[vec![21, 1, 40], vec![33, 30]], 64).unwrap(),
        TokenMeta::left_padded(&[40, 1, 23], 40).unwrap(),
        TokenMeta::right_padded(&[40, 1, 23], 40).unwrap(),
    ] {
        for (i, (got, want)) in pass(&sparse, &tokens, Phase::Infer)
            .iter()
            .zip(&pass(&dense, &tokens, Phase::Infer))
            .enumerate()
        {
            let r = ratio(got, want);
            assert!(r <= 1e-5, "{} tokens, {i}: {r:e}", tokens.len());
        }
        // Its loss is there, too, and 0: every document has one block.
        let loss = forward(
            &sparse,
            normal([tokens.batch(), tokens.len(), HIDDEN], 1),
            &tokens,
            Phase::Train,
            None,
        );
        assert!(host(loss.unwrap().aux.unwrap())[0].abs() < 1e-6);
    }
}

/// A checkpoint's own window holds for the gate's choice, too, wherever keys are rotated.
#[test]
fn windows_and_unrotated_caches_equal_those_of_dense_attention() {
    let device = Device::flex().autodiff();
    let (len, window) = (37, Some(9));
    let (tokens, x) = (TokenMeta::contiguous(2, len, 0), normal([2, len, HIDDEN], 1));
    let dense = DenseConfig::new().with_window(window).init(projections(&device, 2));
    let want = host(forward(&dense, x.clone(), &tokens, Phase::Infer, None).unwrap().y);
    let all = Select::Budget(1000);
    for base in [SeerConfig::new(), SeerConfig::decode()] {
        let config = base.with_block(8).with_select(Some(all)).with_last_block_dense(false);
        let mixer = config.init(projections(&device, 2), window).unwrap();
        let mixer = mixer.with_gate(&Streams::new(5), 0).unwrap();
        let taught = forward(&mixer, x.clone(), &tokens, Phase::Train, None).unwrap().y;
        assert!(ratio(&host(taught), &want) <= 1e-5, "{:?}, training", config.gate);
        for unrotated in [false, true] {
            let (mut state, mut got) = (None, vec![Vec::new(); 2]);
            let pieces: Vec<usize> = std::iter::once(20).chain(vec![1; len - 20]).collect();
            let mut at = 0;
            for piece in pieces {
                let part = tokens.slice(at..at + piece).unwrap();
                let x = x.clone().narrow(1, at, piece);
                let out = forward_with(&mixer, x, &part, (Phase::Infer, unrotated), Some(state));
                let MixOutput { y, state: next, .. } = out.unwrap();
                let y = host(y);
                for (row, y) in got.iter_mut().zip(y.chunks(piece * HIDDEN)) {
                    row.extend_from_slice(y);
                }
                // A state without its graph is the same state.
                let next: State = next.unwrap();
                let tensors = next.tensors().into_iter().map(|x| x.detach()).collect();
                (state, at) = (Some(next.from_tensors(tensors).unwrap()), at + piece);
            }
            let r = ratio(&got.concat(), &want);
            assert!(r <= 1e-5, "{:?}, unrotated {unrotated}: {r:e}", config.gate);
        }
    }
}

fn options() -> CheckOptions {
    CheckOptions::new(HIDDEN)
        .with_rope(RopeConfig::new(10_000.0, WIDTH))
        .with_peak_bytes(|work| crate::alloc::measure(work).peak)
}

/// The gate learning beside dense attention, dense inference, and sparse inference of everything.
#[test]
fn conforms() {
    let all = usize::MAX / 2;
    for config in [
        SeerConfig::new().with_block(8),
        everything(),
        SeerConfig::decode().with_block(8),
        SeerConfig::decode().with_block(8).with_select(Some(Select::Budget(all))),
    ] {
        let report = check_mixer(&options(), |d| seer(&config, d, 2)).unwrap();
        assert!(report.passed(), "{config:?}\n{report}");
        for check in [Check::Segments, Check::Padding, Check::Cache, Check::Chunks] {
            let outcome = report.of(check);
            assert!(matches!(outcome, Some(Outcome::Passed(_))), "{config:?}\n{report}");
        }
    }
}

/// A document has the blocks that it has alone, packed or padded, also where few are chosen.
#[test]
fn sparse_documents_equal_themselves_alone() {
    let config = everything().with_last_block_dense(false);
    for select in [Select::NzRatio(0.5), Select::Threshold(0.2), Select::Budget(16)] {
        let config = config.clone().with_select(Some(select));
        let report = check_mixer(&options(), |d| seer(&config, d, 2)).unwrap();
        for check in [Check::Lengths, Check::Segments, Check::Padding] {
            assert!(matches!(report.of(check), Some(Outcome::Passed(_))), "{select:?}\n{report}");
        }
    }
}

/// Item 4: the ratio is one of the causal triangle, and the number of blocks per row is the
/// authors'.
#[test]
fn a_ratio_is_a_share_of_the_triangle() {
    let (n, block) = (64, 4);
    let layout = BlockLayout::of(&TokenMeta::contiguous(1, n * block, 0), block).unwrap();
    let logits = normal([1, 2, n, n], 3);
    let config = SeerConfig::new().with_block(block).with_last_block_dense(false);
    for tenth in 1..=10 {
        let r = f64::from(tenth) / 10.0;
        let list = block_list(&config, Select::NzRatio(r), logits.clone(), &layout).unwrap();
        let kept = ((1.0 - (1.0 - r).sqrt()) * n as f64) as usize;
        let mut all = 0;
        for i in 0..n {
            let row = (0..n).filter(|j| list.sees(0, 0, i, *j)).count();
            assert_eq!(row, kept.max(1).min(i + 1), "{r}, row {i}");
            all += row;
        }
        let density = all as f64 / (n * (n + 1) / 2) as f64;
        assert!((density - r).abs() <= 2.0 / n as f64, "{r}: {density}");
        // Item 9: what is computed is what was chosen.
        let chosen = (0..2 * n * n).filter(|i| list.sees(0, i / (n * n), i / n % n, i % n)).count();
        let mask = Mask::causal(1, n * block, 2).with_blocks(list).unwrap();
        assert_eq!(mask.blocks(block, block).visited(), chosen);
        if tenth == 10 {
            assert_eq!(mask.pairs(), Mask::causal(1, n * block, 2).pairs());
        }
    }
}

/// The last two blocks of queries of every document see all of it.
#[test]
fn the_last_two_blocks_are_dense() {
    let layout = BlockLayout::of(&TokenMeta::packed(&[vec![37, 20]], 64).unwrap(), 8).unwrap();
    let n = layout.blocks();
    let config = SeerConfig::new().with_block(8);
    let list = block_list(&config, Select::Budget(8), normal([1, 1, n, n], 4), &layout).unwrap();
    let seen: Vec<usize> =
        (0..n).map(|i| (0..n).filter(|j| list.sees(0, 0, i, *j)).count()).collect();
    assert_eq!(seen, [1, 1, 1, 4, 5, 1, 2, 3]);
}

/// A threshold that nothing reaches leaves every row its best block, and no query blind.
#[test]
fn no_row_is_left_empty() {
    let select = Select::Threshold(0.9);
    assert_eq!(select.choose(&[0.1, 0.3, 0.2], 3, 8).unwrap(), [false; 3]);
    assert_eq!(select.choose(&[], 3, 8).unwrap(), Vec::<bool>::new());
    assert!(select.choose(&[0.0, f32::NAN], 2, 8).is_err());
    let config = everything().with_last_block_dense(false);
    let layout = BlockLayout::of(&TokenMeta::contiguous(1, 24, 0), 8).unwrap();
    let logits: Vec<f32> = (0..9).map(|i| [0.1, 0.3, 0.2][i % 3]).collect();
    let logits = Tensor::from_data(TensorData::new(logits, [1, 1, 3, 3]), &Device::flex());
    for (keep_best, last) in [(true, [false, true, false]), (false, [false; 3])] {
        let config = SeerConfig { keep_best, ..config.clone() };
        let list = block_list(&config, select, logits.clone(), &layout).unwrap();
        assert_eq!([0, 1, 2].map(|j| list.sees(0, 0, 2, j)), last);
    }
    let device = Device::flex().autodiff();
    let mixer = seer(&config.with_select(Some(select)), &device, 2).unwrap();
    let tokens = TokenMeta::contiguous(1, 100, 0);
    let y = forward(&mixer, normal([1, 100, HIDDEN], 1), &tokens, Phase::Infer, None).unwrap().y;
    assert!(host(y).iter().all(|y| y.is_finite()));
}
