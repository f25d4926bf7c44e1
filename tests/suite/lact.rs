//! What the LaCT paper's layer must show.

mod models;
mod sets;
mod states;

use crate::twins::{assert_equal_twins, everything, host, moved, normal};
use burn::tensor::{Device, Tensor, TensorData};
use longburn::attention::lact::{
    Branches, FastOptimizer, FastWeights, Learner, SetOp, UpdateRule, WeightNorm, read_and_learn,
    run_ops,
};
use longburn::attention::newton_schulz::NewtonSchulz;
use longburn::attention::*;
use longburn::datasets::{Side, TokenBatch};
use longburn::kernel::TokenMeta;
use longburn::models::keymap::{map_params, params, read_params};
use longburn::models::{Blocks, Decoder, ForwardOptions, ModelConfig, SaveOptions, ids_tensor};
use longburn::positional::{Positions, RopeConfig, RopeTable};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::testing::ratio;
use longburn::training::{Muon, NextToken, Recipe, Strategy, TrainConfig, Trainer};
use longburn::{Error, Result};

const HIDDEN: usize = 12;
const CHUNK: usize = 8;

fn device() -> Device {
    Device::flex().autodiff()
}

fn shape(heads: usize) -> AttnShape {
    AttnShape {
        hidden: HIDDEN,
        heads,
        kv_heads: heads,
        head_dim: HIDDEN / heads,
        qkv_bias: true,
        o_bias: true,
        qk_norm: None,
    }
}

/// Small, with every part that there is, and rates that make the weights move.
fn config() -> LactConfig {
    LactConfig::new()
        .with_fast_heads(2)
        .with_chunk(CHUNK)
        .with_window(5)
        .with_low_rank(2)
        .with_base_lr(0.1)
        .with_qkv_bias(true)
}

/// The kinds of layers that differ in what they compute.
fn kinds() -> Vec<(&'static str, LactConfig)> {
    let sgd = || config().with_optimizer(FastOptimizer::Sgd);
    vec![
        ("muon", config()),
        ("muon, pre-norm, no momentum", config().with_norm(WeightNorm::Pre).with_momentum(false)),
        ("sgd", sgd().with_inter_multi(1.5).with_low_rank(0).with_qk_norm(true)),
        (
            "sgd, pre-norm, no momentum, not rotated",
            sgd()
                .with_norm(WeightNorm::Pre)
                .with_momentum(false)
                .with_rotate(false)
                .with_silu_v(false)
                .with_learnable_scale(false)
                .with_inter_multi(0.5),
        ),
    ]
}

fn layer(config: &LactConfig) -> Lact {
    moved(config.init(&shape(3), (0.5, 0.4), &Streams::new(2), 0, &device()).unwrap())
}

fn table(tokens: &TokenMeta) -> RopeTable {
    let rope = RopeConfig::new(100.0, HIDDEN / 3).init().unwrap();
    rope.table(&Positions::of(tokens), &device())
}

fn with_context<T>(
    tokens: &TokenMeta,
    keep_state: bool,
    work: impl FnOnce(&MixContext<'_>) -> T,
) -> T {
    let table = table(tokens);
    work(&MixContext {
        rope: Some(&table),
        phase: Phase::Train,
        keep_state,
        ..MixContext::infer(tokens)
    })
}

fn answer(layer: &Lact, x: Tensor<3>, tokens: &TokenMeta) -> Tensor<3> {
    with_context(tokens, false, |ctx| layer.forward(x, ctx, None)).unwrap().y
}

fn branches(layer: &Lact, x: Tensor<3>) -> Branches {
    let [b, t, _] = x.dims();
    let tokens = TokenMeta::contiguous(b, t, 0);
    with_context(&tokens, false, |ctx| layer.branches(x, ctx, None)).unwrap()
}

/// Relative differences allowed of values and of gradients. Orthogonalisation lifts what is almost
/// nothing, rounding included, up to 500 times.
fn tolerances(config: &LactConfig) -> (f64, f64) {
    match config.optimizer {
        FastOptimizer::Sgd => (2e-6, 2e-5),
        FastOptimizer::Muon => (5e-5, 2e-3),
    }
}

#[test]
fn layers_equal_the_reference_in_values_and_all_gradients() {
    for (name, config) in kinds() {
        let layer = layer(&config);
        let twin = |x: Tensor<3>, tokens: &TokenMeta| {
            reference::lact::lact(&layer, x, tokens, Some(&table(tokens)))
        };
        let own = |x: Tensor<3>, tokens: &TokenMeta| answer(&layer, x, tokens);
        assert_equal_twins(name, &layer, HIDDEN, tolerances(&config), own, twin);
    }
}

/// Item 1: up to one chunk, the branch is the network of the initial weights, whatever its rates.
#[test]
fn one_chunk_equals_a_network_that_does_not_learn() {
    for (name, config) in kinds() {
        let layer = layer(&config);
        let (initial, rule) = (layer.initial(), config.rule());
        let learner = Learner::new(rule, &initial);
        let d = HIDDEN / 2;
        let tokens = [1, 2, 3].map(|s| normal([3, 2, CHUNK, d], s));
        let rates = normal([3, 2, CHUNK, 4], 4).abs();
        let still = initial.apply(tokens[0].clone().narrow(0, 0, 1));
        let got = read_and_learn(&initial, &learner, tokens, rates, CHUNK).unwrap();
        assert!(ratio(&host(got.narrow(0, 0, 1)), &host(still)) <= 1e-6, "{name}");

        let x = normal([2, CHUNK, HIDDEN], 5);
        let other = |path: &str| path.starts_with("lr_proj").then(|| vec![0.5; 6 * HIDDEN]);
        let deaf =
            map_params(layer.clone(), |p| other(p).filter(|_| p.ends_with("weight")), |_| None);
        assert_eq!(host(branches(&layer, x.clone()).fast), host(branches(&deaf, x).fast), "{name}");
    }
}

/// Item 1: a window that reaches everything is dense causal attention.
#[test]
fn a_wide_window_equals_dense_attention() {
    let t = 21;
    let layer = layer(&config().with_window(t));
    let x = normal([2, t, HIDDEN], 6);
    let all: std::collections::HashMap<_, _> =
        read_params(&layer, |_| true).into_iter().map(|(path, _, data)| (path, data)).collect();
    let part = |name: &str, i: usize| {
        let data = &all[&format!("qkv.{name}")];
        data[i * data.len() / 3..(i + 1) * data.len() / 3].to_vec()
    };
    let unit = |i: usize| if i / HIDDEN == i % HIDDEN { 1.0 } else { 0.0 };
    let value = |path: &str| match path.split_once('.')? {
        ("o_proj", "weight") => Some((0..HIDDEN * HIDDEN).map(unit).collect()),
        ("o_proj", _) => None,
        (proj, name) => {
            Some(part(name, ["q_proj", "k_proj", "v_proj"].iter().position(|p| *p == proj)?))
        }
    };
    let proj = shape(3).init((1.0, 1.0), &Streams::new(0), 0, &device());
    let dense = DenseConfig::new().init(map_params(proj, value, |_| None));
    let tokens = TokenMeta::contiguous(2, t, 0);
    let want = with_context(&tokens, false, |ctx| dense.forward(x.clone(), ctx, None)).unwrap().y;
    assert!(ratio(&host(branches(&layer, x).window), &host(want)) <= 1e-5);
}

/// Item 2: the gradient written by hand is that of `Σ rate·⟨f(k), v⟩`, each matrix with its rate.
#[test]
fn the_step_equals_the_gradient_of_the_inner_loss() {
    for (d, d_h) in [(6, 6), (6, 9), (6, 4)] {
        let (n, heads, chunk) = (2, 3, 7);
        let leaf = |a, b, stream| normal([n, heads, a, b], stream).require_grad();
        let w = [leaf(d_h, d, 1), leaf(d, d_h, 2), leaf(d_h, d, 3)];
        let rule = config().with_momentum(false).rule();
        let weights = FastWeights::new(w.clone(), &rule);
        let (k, v) = (normal([n, heads, chunk, d], 4), normal([n, heads, chunk, d], 5));
        let rates = normal([n, heads, chunk, 3], 6).abs();
        let steps = weights.gradients(k.clone(), v.clone(), &rates);
        for (i, (leaf, step)) in w.iter().zip(steps).enumerate() {
            let said = (weights.apply(k.clone()) * v.clone()).sum_dim(3);
            let loss = (said * rates.clone().narrow(3, i, 1)).sum();
            let want = leaf.grad(&loss.backward()).unwrap();
            let r = ratio(&host(step), &host(want));
            assert!(r <= 1e-5, "d = {d}, d_h = {d_h}, W{i}: {r:.1e}");
        }
    }
}

/// Item 3: a token changes its own answer and those of later chunks, in the branch alone.
#[test]
fn a_token_teaches_the_chunks_behind_its_own() {
    for (name, config) in kinds() {
        let layer = layer(&config);
        let t = 3 * CHUNK + 2;
        let x = normal([1, t, HIDDEN], 7);
        let base = host(branches(&layer, x.clone()).fast);
        for j in [0, CHUNK - 1, CHUNK, 2 * CHUNK + 3, t - 1] {
            let other = normal([1, 1, HIDDEN], 8);
            let mut parts = Vec::new();
            parts.extend((j > 0).then(|| x.clone().narrow(1, 0, j)));
            parts.push(other);
            parts.extend((j + 1 < t).then(|| x.clone().narrow(1, j + 1, t - j - 1)));
            let got = host(branches(&layer, Tensor::cat(parts, 1)).fast);
            let changed: Vec<usize> = (0..t)
                .filter(|i| got[i * HIDDEN..(i + 1) * HIDDEN] != base[i * HIDDEN..(i + 1) * HIDDEN])
                .collect();
            let mut expected = vec![j];
            expected.extend((j / CHUNK + 1) * CHUNK..t);
            assert_eq!(changed, expected, "{name}, token {j}");
        }
    }
}

/// Answers piece by piece, with gradient, and the last state.
fn in_pieces(
    layer: &Lact,
    x: &Tensor<3>,
    tokens: &TokenMeta,
    sizes: &[usize],
) -> Result<(Tensor<3>, Option<State>)> {
    let t = tokens.len();
    let (mut state, mut start, mut parts) = (None, 0, Vec::new());
    for size in sizes.iter().copied().cycle() {
        let size = size.min(t - start);
        let part = tokens.slice(start..start + size)?;
        let piece = x.clone().narrow(1, start, size);
        let out = with_context(&part, true, |ctx| layer.forward(piece, ctx, state.take()))?;
        parts.push(out.y);
        state = out.state;
        start += size;
        if start == t {
            break;
        }
    }
    Ok((Tensor::cat(parts, 1), state))
}

/// Item 4: token by token and in ragged pieces, decoding equals one pass, in values and gradients.
#[test]
fn decoding_goes_on_learning_and_equals_one_pass() {
    for (name, config) in kinds() {
        let layer = layer(&config);
        let (values, gradients) = tolerances(&config);
        for t in [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 7] {
            let tokens = TokenMeta::contiguous(2, t, 0);
            let input = normal([2, t, HIDDEN], 10);
            let run = |sizes: Option<&[usize]>| {
                let x = input.clone().require_grad();
                let y = match sizes {
                    Some(sizes) => in_pieces(&layer, &x, &tokens, sizes).unwrap().0,
                    None => answer(&layer, x.clone(), &tokens),
                };
                everything(&layer, &x, y)
            };
            let whole = run(None);
            for sizes in [&[1][..], &[5, 1, 17, 3], &[CHUNK], &[CHUNK + 1, 1]] {
                for (i, ((path, got), (_, want))) in run(Some(sizes)).iter().zip(&whole).enumerate()
                {
                    if want.iter().all(|w| w.abs() < 1e-6) {
                        continue;
                    }
                    let r = ratio(got, want);
                    let allowed = if i == 0 { values } else { gradients };
                    assert!(r <= allowed, "{name}, T = {t}, {sizes:?}, {path}: {r:.1e}");
                }
            }
        }
    }
}

/// Documents that begin and end anywhere, padding between: pieces equal one pass.
#[test]
fn packed_rows_in_pieces_equal_one_pass() {
    let t = 41;
    let tokens = TokenMeta::packed(&[vec![21, 1, 9], vec![8, 30]], t).unwrap();
    for (name, config) in kinds() {
        let layer = layer(&config);
        let x = normal([2, t, HIDDEN], 11);
        let whole = host(answer(&layer, x.clone(), &tokens));
        for sizes in [&[1][..], &[22, 3], &[10, 4, 1]] {
            let (y, state) = in_pieces(&layer, &x, &tokens, sizes).unwrap();
            let r = ratio(&host(y), &whole);
            assert!(r <= 1e-5, "{name}, {sizes:?}: {r:.1e}");
            let Some(State::Lact(state)) = state else { panic!("no state") };
            assert_eq!(state.memory.segment, [2, 1]);
            assert_eq!(state.memory.pending, [9 - CHUNK, 30 - 3 * CHUNK]);
        }
    }
}

/// The window keeps what it reaches, and the state's tensors can be replaced.
#[test]
fn the_state_is_bounded_and_made_of_tensors() {
    let layer = layer(&config());
    let t = 5 * CHUNK + 1;
    let tokens = TokenMeta::contiguous(2, t, 0);
    let x = normal([2, t, HIDDEN], 12);
    let (_, state) = in_pieces(&layer, &x, &tokens, &[1]).unwrap();
    let state = state.unwrap();
    assert_eq!(state.len(), config().window - 1);
    let long = state.bytes();
    let short = in_pieces(&layer, &x, &tokens.slice(0..CHUNK + 1).unwrap(), &[1]).unwrap().1;
    assert_eq!(short.unwrap().bytes(), long, "the state grows with the length");
    let tensors = state.tensors();
    assert_eq!(tensors.len(), 2 + 3 + 2 * 3, "window, buffers, weights and momentum");
    let again = state.from_tensors(tensors.iter().cloned().map(Tensor::detach).collect()).unwrap();
    assert_eq!(again.bytes(), long);
    let error = state.from_tensors(tensors[1..].to_vec()).unwrap_err().to_string();
    assert!(error.contains("10 tensors") && error.contains("11"), "{error}");
}

fn lengths(w: &Tensor<4>) -> Vec<f32> {
    host(w.clone().square().sum_dim(3).sqrt())
}

/// Item 5: a step changes the direction of every row and leaves its length.
#[test]
fn rows_keep_their_length() {
    for (name, config) in kinds() {
        let layer = layer(&config);
        let initial = layer.initial();
        let learner = Learner::new(config.rule(), &initial);
        let d = HIDDEN / 2;
        let mut weights = initial.clone();
        for step in 0..3 {
            let part = |stream: u32, width| normal([1, 2, CHUNK, width], 3 * step + stream);
            weights = learner.update(weights, part(20, d), part(21, d), part(22, 4).abs());
            for (i, (now, then)) in weights.w.iter().zip(&initial.w).enumerate() {
                for (a, b) in lengths(now).iter().zip(lengths(then)) {
                    assert!((a / b - 1.0).abs() < 1e-4, "{name}, step {step}, W{i}: {a} {b}");
                }
                let apart = ratio(&host(now.clone()), &host(then.clone()));
                assert!(apart > 1e-2, "{name}, step {step}, W{i} stays where it was");
            }
        }
    }
}

/// Item 5: a share of nothing is no momentum, and a share of something is another layer.
#[test]
fn no_share_of_momentum_equals_none() {
    let layer = layer(&config());
    let x = normal([2, 4 * CHUNK, HIDDEN], 13);
    let share = |bias: f32| {
        let value = |path: &str| match path {
            "momentum_proj.weight" => Some(vec![0.0; 2 * HIDDEN]),
            "momentum_proj.bias" => Some(vec![bias; 2]),
            _ => None,
        };
        map_params(layer.clone(), value, |_| None)
    };
    let none = {
        let bare = config().with_momentum(false).init(
            &shape(3),
            (0.5, 0.4),
            &Streams::new(2),
            0,
            &device(),
        );
        let all: std::collections::HashMap<_, _> =
            read_params(&layer, |_| true).into_iter().map(|(path, _, data)| (path, data)).collect();
        map_params(bare.unwrap(), |path| all.get(path).cloned(), |_| None)
    };
    let want = host(branches(&none, x.clone()).fast);
    assert!(ratio(&host(branches(&share(-200.0), x.clone()).fast), &want) <= 1e-6);
    assert!(ratio(&host(branches(&share(0.0), x).fast), &want) > 1e-3);
}

/// Largest and smallest eigenvalue of a symmetric matrix, by powers of it.
fn eigenvalues(a: &[f32], n: usize) -> [f64; 2] {
    let power = |a: &dyn Fn(usize, usize) -> f64| {
        let mut x: Vec<f64> = (0..n).map(|i| 1.0 + 0.1 * (i as f64).sin()).collect();
        let mut size = 0.0;
        for _ in 0..4000 {
            let y: Vec<f64> = (0..n).map(|i| (0..n).map(|j| a(i, j) * x[j]).sum()).collect();
            size = y.iter().map(|y| y * y).sum::<f64>().sqrt();
            x = y.iter().map(|y| y / size).collect();
        }
        size
    };
    let at = |i: usize, j: usize| f64::from(a[i * n + j]);
    let largest = power(&at);
    let shifted = |i: usize, j: usize| if i == j { 1.01 * largest - at(i, j) } else { -at(i, j) };
    [largest, 1.01 * largest - power(&shifted)]
}

/// Item 5: singular values end near 1; item 8: zeros stay zeros, with finite gradients.
#[test]
fn newton_schulz_makes_singular_values_equal() {
    for (rows, columns) in [(32, 48), (48, 32)] {
        let x = NewtonSchulz::LACT.orthogonalize(normal([1, rows, columns], 14));
        let gram = match rows < columns {
            true => x.clone().matmul(x.transpose()),
            false => x.clone().transpose().matmul(x),
        };
        let [largest, smallest] = eigenvalues(&host(gram), 32).map(f64::sqrt);
        assert!(smallest >= 0.97 && largest <= 1.04, "{smallest} to {largest}");
    }
    let values = |scale: f64| {
        let x = normal([2, 5, 7], 15).mul_scalar(scale);
        host(NewtonSchulz::LACT.orthogonalize(x))
    };
    assert!(ratio(&values(1e-2), &values(1.0)) < 1e-4, "the size of the input does not matter");
    // In 16 bits it is nearly the same, and not the same.
    let wide = normal([2, 5, 7], 15);
    let narrow = NewtonSchulz::LACT.with_bf16(true).orthogonalize(wide.clone());
    let r = ratio(&host(narrow), &host(NewtonSchulz::LACT.orthogonalize(wide)));
    assert!((1e-4..3e-2).contains(&r), "{r:.1e}");
    // The products are those of the smaller side, whichever it is.
    for (rows, columns) in [(4, 7), (7, 4)] {
        assert_eq!(NewtonSchulz::operations(rows, columns), 5 * (4 * 4 * 4 * 7 + 2 * 4 * 4 * 4));
    }
    // Of almost nothing: LaCT adds to the norm, the optimizer has a least one.
    for (iteration, norm) in [(NewtonSchulz::LACT_SET, 1.1e-7), (NewtonSchulz::MUON, 1e-7)] {
        let one = Tensor::<3>::full([1, 1, 1], 1e-8, &device());
        let polynomial = |x: f64, _| x * (3.4445 + x * x * (-4.7750 + x * x * 2.0315));
        let want = (0..5).fold(1e-8 / norm, polynomial);
        let got = host(iteration.orthogonalize(one))[0];
        assert!((f64::from(got) / want - 1.0).abs() < 1e-4, "{iteration:?}: {got}, {want}");
    }
    for iteration in [NewtonSchulz::LACT, NewtonSchulz::LACT_SET, NewtonSchulz::MUON] {
        let zeros = Tensor::<3>::zeros([2, 4, 3], &device()).require_grad();
        let x = iteration.orthogonalize(zeros.clone());
        assert!(host(x.clone()).iter().all(|x| *x == 0.0), "{iteration:?}");
        let grad = zeros.grad(&(x * normal([2, 4, 3], 16)).sum().backward()).unwrap();
        assert!(host(grad).iter().all(|g| g.is_finite()), "{iteration:?}");
    }
}

/// Item 8: tokens that say nothing (a vector of zeros) give finite values and gradients.
#[test]
fn silent_tokens_give_no_nan() {
    for (name, config) in kinds() {
        let value = |path: &str| path.ends_with("offset").then(|| vec![0.0; 2 * HIDDEN]);
        let layer = map_params(layer(&config), value, |_| None);
        let bias = |path: &str| (path == "qkv.bias").then(|| vec![0.0; 3 * HIDDEN]);
        let layer = map_params(layer, bias, |_| None);
        let t = 2 * CHUNK + 3;
        let x = Tensor::zeros([1, t, HIDDEN], &device()).require_grad();
        let y = answer(&layer, x.clone(), &TokenMeta::contiguous(1, t, 0));
        for (path, values) in everything(&layer, &x, y) {
            assert!(values.iter().all(|v| v.is_finite()), "{name}, {path}");
        }
    }
}

/// Item 7: the operations of the branch, exactly.
#[test]
fn the_cost_is_linear_in_the_length() {
    for (name, config) in kinds() {
        let layer = layer(&config);
        let (d, d_h) = config.widths(HIDDEN).unwrap();
        let heads = config.fast_heads;
        for (b, t) in [(1, 1), (2, CHUNK), (3, CHUNK + 1), (2, 5 * CHUNK), (1, 5 * CHUNK + 3)] {
            let last = t - (t - 1) / CHUNK * CHUNK;
            let mut expected = (18 * (t - last) + 6 * last) * d * d_h;
            if config.optimizer == FastOptimizer::Muon {
                assert_eq!(d, d_h, "30 d³ is for square matrices");
                expected += (t - last) / CHUNK * 3 * 30 * d.pow(3);
            }
            let got = layer.fast_operations(&TokenMeta::contiguous(b, t, 0));
            assert_eq!(got, (b * heads * expected) as u64, "{name}, {b} x {t}");
        }
    }
}

/// What checkpoints are checked against, without building a layer.
#[test]
fn names_and_shapes_are_those_of_the_layer() {
    for (name, config) in kinds() {
        let own = MixerConfig::Lact(config.clone()).own_weights(HIDDEN);
        let mut listed: Vec<_> =
            own.into_iter().map(|(path, shape)| (path.into(), shape)).collect();
        let all = params(&layer(&config)).into_iter().map(|p| (p.path, p.shape));
        let mut built: Vec<(String, Vec<usize>)> = all.collect();
        listed.sort();
        built.sort();
        assert_eq!(listed, built, "{name}");
    }
}

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    let init = |config: LactConfig, heads: usize, kv_heads: usize| {
        let shape = AttnShape { kv_heads, ..shape(heads) };
        config.init(&shape, (0.5, 0.5), &Streams::new(0), 0, &Device::flex())
    };
    assert!(init(config(), 3, 3).is_ok());
    for (config, field) in [
        (config().with_fast_heads(5), "fast_heads"),
        (config().with_fast_heads(0), "fast_heads"),
        (config().with_chunk(0), "chunk"),
        (config().with_window(0), "window"),
        (config().with_inter_multi(0.0), "inter_multi"),
        (config().with_inter_multi(f64::NAN), "inter_multi"),
        (config().with_inter_multi(f64::INFINITY), "inter_multi"),
        (config().with_base_lr(0.0), "base_lr"),
        (config().with_low_rank(7), "low_rank"),
    ] {
        let error = init(config, 3, 3).expect_err(field).to_string();
        assert!(error.contains(&format!("`{field}`")), "{error}");
    }
    // Keys have a projection of their own, whatever the model's attention has.
    let names = |kv_heads| {
        let layer = init(config(), 4, kv_heads).unwrap();
        params(&layer).len()
    };
    assert_eq!(names(2), names(4));
    let odd = AttnShape { head_dim: 5, ..shape(3) };
    let error = config().init(&odd, (0.5, 0.5), &Streams::new(0), 0, &Device::flex());
    assert!(error.err().unwrap().to_string().contains("heads"));

    let layer = layer(&config());
    let x = normal([2, 9, HIDDEN], 17);
    let two = TokenMeta::contiguous(2, 9, 0);
    let state = with_context(&two, true, |ctx| layer.forward(x.clone(), ctx, None)).unwrap().state;
    let one = TokenMeta::contiguous(1, 9, 9);
    let refused = with_context(&one, true, |ctx| {
        layer.forward(x.clone().narrow(0, 0, 1), ctx, state.clone()).err().unwrap().to_string()
    });
    assert!(refused.contains("1 rows with a state of 2"), "{refused}");
    let refused = with_context(&two, true, |ctx| {
        let rope = RopeConfig::new(100.0, HIDDEN / 3).init().unwrap();
        let ctx = MixContext { unrotated_cache: Some(&rope), ..ctx.clone() };
        layer.forward(x.clone(), &ctx, None).err().unwrap()
    });
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
}
