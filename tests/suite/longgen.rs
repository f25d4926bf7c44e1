//! What LongGen's layers must show.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use longburn::attention::*;
use longburn::kernel::*;
use longburn::models::{Blocks, Decoder, ForwardOptions, ModelConfig};
use longburn::positional::{Positions, RopeConfig, RopeTable};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::testing::ratio;
use longburn::training::plan::PlanConfig;

const HEADS: usize = 8;
const KEY_HEADS: usize = 4;
const DIM: usize = 6;
const HIDDEN: usize = 12;

/// Both patterns, and their mixtures: all heads alike, dense heads, phases, sinks beside a stride.
fn patterns() -> Vec<(&'static str, LongGenConfig)> {
    let of = |block, near| LongGenConfig::new().with_block(block).with_local_blocks(near);
    vec![
        ("window and sink", of(8, 2)),
        ("no sink", of(8, 3).with_sink_blocks(0)),
        ("two sinks, odd block", of(7, 1).with_sink_blocks(2)),
        ("stride", of(8, 2).with_stride(4).with_step(1)),
        ("default step", of(8, 1).with_stride(3)),
        ("offset, dense head", of(4, 3).with_stride(5).with_offset(2).with_dense_heads(1)),
        ("heads alike", of(8, 2).with_stride(3).with_step(0)),
        ("pairs of heads alike", of(8, 1).with_stride(2).with_step(1)),
        ("sink beside a stride", of(8, 1).with_stride(4).with_step(3).with_sink_blocks(1)),
        ("stride beyond the end", of(16, 1).with_stride(20).with_step(5)),
    ]
}

fn normal<const D: usize>(shape: [usize; D], stream: u32) -> Tensor<D> {
    let mut rng = Streams::new(5).rng(Purpose::Synthetic, 0, 0, stream);
    let data: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor::from_data(TensorData::new(data, shape), &Device::flex().autodiff())
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.inner().into_data().iter::<f32>().collect()
}

fn attention(spec: MaskSpec, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let [b, h, t, _] = q.dims();
    let tokens = TokenMeta::contiguous(b, t, 0);
    let mask = Mask::new(spec, tokens.clone(), tokens, h).unwrap();
    masked_attention(&[Branch { q, k, mask }], v, &AttentionOptions::default()).unwrap().out
}

fn projections(device: &Device) -> AttnProjections {
    let shape = AttnShape {
        hidden: HIDDEN,
        heads: HEADS,
        kv_heads: KEY_HEADS,
        head_dim: DIM,
        qkv_bias: true,
        o_bias: false,
        qk_norm: None,
    };
    shape.init((0.4, 0.4), &Streams::new(2), 0, device)
}

fn table(tokens: &TokenMeta) -> RopeTable {
    let rope = RopeConfig::new(10_000.0, DIM).init().unwrap();
    rope.table(&Positions::of(tokens), &Device::flex())
}

fn call(
    mixer: &impl SequenceMixer,
    x: Tensor<3>,
    tokens: &TokenMeta,
    keep_state: bool,
    state: Option<State>,
) -> longburn::Result<MixOutput> {
    let table = table(tokens);
    let ctx = MixContext { rope: Some(&table), keep_state, ..MixContext::infer(tokens) };
    mixer.forward(x, &ctx, state)
}

/// Outputs and gradients equal the table of blocks, written down once more.
#[test]
fn the_pattern_equals_its_reference() {
    for (t, (name, config)) in
        [1, 63, 65, 100, 257].into_iter().flat_map(|t| patterns().into_iter().map(move |p| (t, p)))
    {
        let run = |reference: bool| {
            let leaf = |heads, stream| normal([2, heads, t, DIM], stream).require_grad();
            let (q, k, v) = (leaf(HEADS, 1), leaf(KEY_HEADS, 2), leaf(KEY_HEADS, 3));
            let (a, b, c) = (q.clone(), k.clone(), v.clone());
            let out = match reference {
                true => reference::longgen::attention(&config, a, b, c),
                false => attention(config.spec(KEY_HEADS), a, b, c),
            };
            let grads = (out.clone() * normal([2, HEADS, t, DIM], 4)).sum().backward();
            let grad = |x: &Tensor<4>| host(x.grad(&grads).unwrap());
            [host(out), grad(&q), grad(&k), grad(&v)]
        };
        for (i, (got, want)) in run(false).iter().zip(&run(true)).enumerate() {
            // A token alone has weight 1, whatever its score.
            if want.iter().all(|x| x.abs() < 1e-6) {
                assert!(got.iter().all(|x| x.abs() < 1e-5), "{name}, T = {t}, tensor {i}");
                continue;
            }
            let r = ratio(got, want);
            assert!(r <= 1e-5, "{name}, T = {t}, tensor {i}: {r:e}");
        }
    }
}

/// Item 1: nothing is far, or everything is kept.
#[test]
fn near_blocks_over_everything_and_a_stride_of_one_are_equal_to_dense() {
    let t = 100;
    let [q, k, v] =
        [(HEADS, 1), (KEY_HEADS, 2), (KEY_HEADS, 3)].map(|(h, s)| normal([2, h, t, DIM], s));
    let go = |spec| host(attention(spec, q.clone(), k.clone(), v.clone()));
    let dense = go(MaskSpec::causal());
    let of = |near| LongGenConfig::new().with_block(8).with_local_blocks(near);
    for config in [of(13), of(1 << 40).with_sink_blocks(0), of(1).with_stride(1)] {
        assert!(ratio(&go(config.spec(KEY_HEADS)), &dense) <= 1e-6, "{config:?}");
    }
    assert!(ratio(&go(of(12).with_sink_blocks(0).spec(KEY_HEADS)), &dense) > 1e-3);
}

/// Item 3: every step of decoding behind the evicting cache, and every piece of a prefill, equals
/// the whole sequence; what is held is what the formula says, at its peak and in bytes.
#[test]
fn decoding_behind_the_evicting_cache_equals_one_pass() {
    let device = Device::flex();
    let t = 150;
    for (name, config) in patterns() {
        let mixer = config.init(projections(&device), None).unwrap();
        let x = normal([1, t, HIDDEN], 6).inner();
        let tokens = TokenMeta::contiguous(1, t, 0);
        let whole = host(call(&mixer, x.clone(), &tokens, false, None).unwrap().y);
        let formula = config.peak_tokens(t, HEADS, KEY_HEADS);
        let mut state = None;
        let mut peak = vec![0; KEY_HEADS];
        for step in 0..t {
            let (one, at) = (x.clone().narrow(1, step, 1), tokens.slice(step..step + 1).unwrap());
            // Held during the step: what was kept, and the new token.
            for (head, peak) in peak.iter_mut().enumerate() {
                *peak = (*peak).max(held(&config, state.as_ref(), head) + 1);
            }
            let out = call(&mixer, one, &at, true, state).unwrap();
            let r = ratio(&host(out.y), &whole[step * HIDDEN..(step + 1) * HIDDEN]);
            assert!(r <= 1e-5, "{name}, step {step}: {r:e}");
            state = out.state;
            let tokens: usize = (0..KEY_HEADS).map(|h| held(&config, state.as_ref(), h)).sum();
            assert_eq!(state.as_ref().unwrap().bytes(), tokens * 2 * DIM * 4, "{name}, {step}");
            let most = (0..KEY_HEADS).map(|h| held(&config, state.as_ref(), h)).max();
            assert_eq!(state.as_ref().map(State::len), most, "{name}, {step}");
        }
        assert_eq!(peak, formula, "{name}");
    }
}

/// Keys that the cache of a key head holds.
fn held(config: &LongGenConfig, state: Option<&State>, head: usize) -> usize {
    let Some(state) = state else { return 0 };
    let State::Heads(caches) = state else { panic!("a state of parts") };
    // Heads are put together by phase, in the order of their first.
    let phase = |h: usize| {
        let of = config.stride?;
        let step = config.step.unwrap_or((of / HEADS).max(1));
        (of > 1 && h + config.dense_heads < KEY_HEADS).then(|| (h * step + config.offset) % of)
    };
    let mut seen = Vec::new();
    for h in 0..KEY_HEADS {
        if !seen.contains(&phase(h)) {
            seen.push(phase(h));
        }
    }
    assert_eq!(caches.len(), seen.len());
    caches[seen.iter().position(|of| *of == phase(head)).unwrap()].tokens.len()
}

/// Item 8, decided otherwise: pieces that begin within a block are right, too; and rows of several
/// lengths keep what they need, padded on the left.
#[test]
fn pieces_that_begin_anywhere_equal_the_whole() {
    let device = Device::flex();
    let t = 130;
    let tokens = TokenMeta::left_padded(&[t, t - 37, 3], t).unwrap();
    for (name, config) in patterns() {
        let mixer = config.init(projections(&device), None).unwrap();
        let x = normal([3, t, HIDDEN], 7).inner();
        let whole = call(&mixer, x.clone(), &tokens, false, None).unwrap().y;
        let (mut state, mut start, mut parts) = (None, 0, Vec::new());
        for size in [13, 1, 1, 40, 5, 1, 50, 19] {
            let part = tokens.slice(start..start + size).unwrap();
            let out = call(&mixer, x.clone().narrow(1, start, size), &part, true, state).unwrap();
            (state, start) = (out.state, start + size);
            parts.push(out.y);
        }
        assert_eq!(start, t);
        let parts = Tensor::cat(parts, 1);
        for (row, n) in [(0, t), (1, t - 37), (2, 3)] {
            let seen = |y: &Tensor<3>| host(y.clone().narrow(0, row, 1).narrow(1, t - n, n));
            let r = ratio(&seen(&parts), &seen(&whole));
            assert!(r <= 1e-5, "{name}, row {row}: {r:e}");
        }
        let longest = config.peak_tokens(t, HEADS, KEY_HEADS).into_iter().max().unwrap();
        let held = state.unwrap().len();
        assert!(held <= longest, "{name}: {held} of at most {longest}");
    }
}

/// A document that has ended, and padding, are dropped.
#[test]
fn rows_that_have_ended_shrink() {
    let device = Device::flex();
    let config = LongGenConfig::new().with_block(4).with_local_blocks(2);
    let mixer = config.init(projections(&device), None).unwrap();
    let x = |t| normal([1, t, HIDDEN], 8).inner();
    let first = TokenMeta::contiguous(1, 30, 0);
    let mut state = call(&mixer, x(30), &first, true, None).unwrap().state;
    // The sink's 4, and of the two blocks before position 30 those from 24 on.
    assert_eq!(state.as_ref().unwrap().len(), 4 + 6);
    let padding = TokenMeta::new(1, 1, vec![0], vec![-1]).unwrap();
    for _ in 0..5 {
        state = call(&mixer, x(1), &padding, true, state).unwrap().state;
    }
    assert_eq!(state.unwrap().len(), 4 + 6);
}

/// Gradients flow through what was kept, and equal those of one pass.
#[test]
fn gradients_through_the_state_equal_those_of_one_pass() {
    let device = Device::flex().autodiff();
    let t = 60;
    let tokens = TokenMeta::contiguous(2, t, 0);
    for (name, config) in patterns() {
        let mixer = config.init(projections(&device), None).unwrap();
        let w = normal([2, t, HIDDEN], 10);
        let grad = |sizes: &[usize]| {
            let x = normal([2, t, HIDDEN], 9).require_grad();
            let (mut state, mut start, mut ys) = (None, 0, Vec::new());
            for size in sizes {
                let part = tokens.slice(start..start + size).unwrap();
                let piece = x.clone().narrow(1, start, *size);
                let out = call(&mixer, piece, &part, sizes.len() > 1, state).unwrap();
                (state, start) = (out.state, start + size);
                ys.push(out.y);
            }
            let grads = (Tensor::cat(ys, 1) * w.clone()).sum().backward();
            host(x.grad(&grads).unwrap())
        };
        let r = ratio(&grad(&[20, 1, 25, 14]), &grad(&[t]));
        assert!(r <= 1e-5, "{name}: {r:e}");
    }
}

/// Item 4: with as many key heads as the stride has columns, every block is kept by some head; the
/// heads of a group see the same.
#[test]
fn the_columns_of_all_key_heads_cover_every_block() {
    let covered = |kv_heads: usize, config: &LongGenConfig| {
        let tokens = TokenMeta::contiguous(1, 4 * 40, 0);
        let mask = Mask::new(config.spec(kv_heads), tokens.clone(), tokens, 2 * kv_heads).unwrap();
        let last = 4 * 40 - 1;
        let sees = |h: usize, n: usize| mask.visible(0, h, last, n * 4);
        for h in 0..kv_heads {
            assert!((0..40).all(|n| sees(2 * h, n) == sees(2 * h + 1, n)), "group {h}");
        }
        (0..39).filter(|n| (0..2 * kv_heads).any(|h| sees(h, *n))).count()
    };
    let strided =
        |stride| LongGenConfig::new().with_block(4).with_local_blocks(1).with_stride(stride);
    assert_eq!(covered(8, &strided(8).with_step(1)), 39);
    assert_eq!(covered(8, &strided(8)), 39, "the default step is 1 here");
    // 8 of 16 columns, of which 39 blocks have 20.
    assert_eq!(
        covered(8, &strided(16).with_step(1)),
        (0..39).filter(|n| n % 16 == 0 || n % 16 > 8).count()
    );
    // By key heads the step would be 2: it counts query heads.
    assert_eq!(strided(31).spec(8).stride.unwrap().phase(1, 16), Some(1));
    assert_eq!(strided(32).spec(8).stride.unwrap().phase(1, 16), Some(2));
}

fn decoder(schedule: &LayerSchedule, sparse: &LongGenConfig, device: &Device) -> Decoder {
    let config = ModelConfig::llama(32, 16, schedule.layers(), 4).with_kv_heads(2);
    let mixers = schedule.mixers(&MixerConfig::LongGen(sparse.clone()));
    let config = config.with_max_positions(4096);
    Decoder::new(&config, MixerSchedule::of(&mixers), 3, device).unwrap()
}

/// Item 5: all layers full is the dense model, bit for bit; none is pure sparse.
#[test]
fn a_schedule_of_full_layers_equals_the_dense_model() {
    let device = Device::flex();
    let sparse = LongGenConfig::new().with_block(4).with_local_blocks(2);
    let x = normal([1, 50, 16], 11).inner();
    let tokens = TokenMeta::contiguous(1, 50, 0);
    let run = |model: &Decoder| {
        let options = ForwardOptions::infer();
        host(model.forward_embeds(x.clone(), &tokens, &options, vec![]).unwrap().last)
    };
    let full = decoder(&LayerSchedule::middle_full(3, 3).unwrap(), &sparse, &device);
    let config = full.config().clone();
    let dense = Decoder::new(&config, &MixerConfig::Dense, 3, &device).unwrap();
    assert_eq!(run(&full), run(&dense));
    let pure = decoder(&LayerSchedule::middle_full(3, 0).unwrap(), &sparse, &device);
    let swapped = dense.clone().swap_mixer(MixerConfig::LongGen(sparse.clone())).unwrap();
    assert_eq!(run(&pure), run(&swapped));
    let hybrid = decoder(&LayerSchedule::middle_full(3, 1).unwrap(), &sparse, &device);
    assert!(ratio(&run(&hybrid), &run(&dense)) > 1e-3);
    assert!(ratio(&run(&hybrid), &run(&pure)) > 1e-3);
    let back = hybrid.swap_mixer(&MixerConfig::Dense).unwrap();
    assert_eq!(run(&back), run(&dense));
}

#[test]
fn schedules_put_full_layers_in_the_middle() {
    let full = |schedule: LayerSchedule| -> Vec<usize> {
        (0..schedule.layers()).filter(|layer| schedule.is_full(*layer)).collect()
    };
    let middle = |layers, n| full(LayerSchedule::middle_full(layers, n).unwrap());
    assert_eq!(middle(32, 12), (10..22).collect::<Vec<_>>());
    assert_eq!(middle(6, 2), [2, 3]);
    assert_eq!(middle(5, 2), [1, 2]);
    assert!(middle(4, 0).is_empty());
    let third = |layers| full(LayerSchedule::middle_third(layers).unwrap()).len();
    assert_eq!([1, 2, 3, 6, 32, 80].map(third), [0, 1, 1, 2, 11, 27]);
    assert_eq!(full(LayerSchedule::from_list(5, &[4, 1]).unwrap()), [1, 4]);
    let error = |schedule: longburn::Result<LayerSchedule>| schedule.unwrap_err().to_string();
    assert!(
        error(LayerSchedule::middle_full(4, 5)).contains("`full` is 5; expected at most the 4")
    );
    assert!(error(LayerSchedule::from_list(4, &[1, 4])).contains("`full[1]` is 4; expected below"));
    assert!(error(LayerSchedule::from_list(4, &[1, 1])).contains("`full[1]` is 1; expected each"));
    assert!(error(LayerSchedule::middle_third(0)).contains("at least 1"));
}

/// Item 7: the published saving of 62 % for the shapes of Llama 2 at 128 k, by the formula; and at
/// 1/32 of the length and less width by what the caches of a model hold, to the byte.
#[test]
fn the_cache_shrinks_by_62_percent() {
    let published = LongGenConfig::new();
    for (layers, full, heads, kv_heads) in [(32, 12, 32, 32), (80, 30, 64, 8)] {
        let schedule = LayerSchedule::middle_full(layers, full).unwrap();
        let keys = schedule.cached_keys(&published, 131_072, heads, kv_heads);
        let share = keys as f64 / (layers * kv_heads * 131_072) as f64;
        assert!((share - 0.384_77).abs() < 1e-4, "{layers} layers: {share}");
        // The planner says the same, in bytes of f32.
        let config = ModelConfig::llama(100, 128 * heads, layers, heads).with_kv_heads(kv_heads);
        let mixers = schedule.mixers(&MixerConfig::LongGen(published.clone()));
        let plan = PlanConfig::new(config, 131_072).with_mixer(MixerSchedule::of(&mixers));
        assert_eq!(plan.init().unwrap().kv_cache, (keys * 2 * 128 * 4) as u64);
    }
    // The same 64th of the tokens and 12 of 32 layers.
    let (t, sparse) = (2048, LongGenConfig::new().with_block(8).with_local_blocks(3));
    let schedule = LayerSchedule::middle_full(32, 12).unwrap();
    let held = |schedule: &LayerSchedule| {
        let config = ModelConfig::llama(32, 4, 32, 1).with_max_positions(t).with_intermediate(4);
        let mixers = schedule.mixers(&MixerConfig::LongGen(sparse.clone()));
        let model = Decoder::new(&config, MixerSchedule::of(&mixers), 0, &Device::flex()).unwrap();
        let (mut states, mut start) = (Vec::new(), 0);
        while start < t {
            let size = 256.min(t - start);
            let x = normal([1, size, 4], start as u32).inner();
            let tokens = TokenMeta::contiguous(1, size, start);
            let options = ForwardOptions::infer().with_state(true);
            states = model.forward_embeds(x, &tokens, &options, states).unwrap().states;
            start += size;
        }
        states
    };
    let bytes = |states: &[State]| states.iter().map(State::bytes).sum::<usize>();
    let (hybrid, dense) = (held(&schedule), held(&LayerSchedule::middle_full(32, 32).unwrap()));
    assert_eq!(bytes(&dense), 32 * t * 2 * 4 * 4);
    // Position 2048 begins a block: of the near ones two are behind it.
    let of_sparse = 8 + 2 * 8;
    assert_eq!(bytes(&hybrid), (12 * t + 20 * of_sparse) * 2 * 4 * 4);
    let most = schedule.cached_keys(&sparse, t, 1, 1) * 2 * 4 * 4;
    assert!(bytes(&hybrid) <= most);
    let share = most as f64 / bytes(&dense) as f64;
    assert!((share - 0.384_77).abs() < 1e-4, "{share}");
}

/// What was dropped is given back to the system: the peak of a long decoding is that of the window.
#[test]
fn memory_of_the_cache_does_not_grow() {
    let config = LongGenConfig::new().with_block(8).with_local_blocks(3);
    let peak = |config: Option<LongGenConfig>| {
        crate::alloc::measure(move || {
            let proj = projections(&Device::flex());
            let mixer = match config {
                Some(config) => MixerConfig::LongGen(config).init(proj, None),
                None => MixerConfig::Dense.init(proj, None),
            };
            let (mixer, mut state) = (mixer.unwrap(), None);
            for start in (0..4096).step_by(32) {
                let tokens = TokenMeta::contiguous(1, 32, start);
                let x = normal([1, 32, HIDDEN], start as u32).inner();
                state = call(&mixer, x, &tokens, true, state).unwrap().state;
            }
            state.unwrap().bytes()
        })
        .peak
    };
    let (sparse, dense) = (peak(Some(config)), peak(None));
    assert!(sparse * 4 < dense, "{sparse} bytes beside {dense}");
}

/// Item 7: operations and blocks by the formula.
#[test]
fn the_cost_is_that_of_the_pattern() {
    let (t, block, near) = (1024, 64, 3);
    let tokens = TokenMeta::contiguous(1, t, 0);
    let config = LongGenConfig::new().with_block(block).with_local_blocks(near);
    let mask = Mask::new(config.spec(2), tokens.clone(), tokens, 4).unwrap();
    let triangle = (block * (block + 1) / 2) as u64;
    // Whole blocks before the own one: near ones, and the sink where it is not near.
    let whole = |m: u64| m.min(near as u64 - 1) + u64::from(m >= near as u64);
    let of_head: u64 = (0..16).map(|m| triangle + whole(m) * (block * block) as u64).sum();
    assert_eq!(mask.pairs(), 4 * of_head);
    let visited: u64 = (0..16).map(|m| 1 + whole(m)).sum();
    assert_eq!(mask.blocks(block, block).visited() as u64, 4 * visited);
}

/// Item 8.
#[test]
fn bad_settings_are_refused() {
    let device = Device::flex();
    let init = |config: LongGenConfig| {
        config.init(projections(&device), None).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let new = LongGenConfig::new;
    assert_eq!(init(new()), "");
    assert!(init(new().with_block(0)).contains("`block` is 0"));
    assert!(init(new().with_local_blocks(0)).contains("`local_blocks` is 0"));
    assert!(init(new().with_stride(8).with_local_blocks(0)).contains("`local_blocks` is 0"));
    assert!(init(new().with_stride(0)).contains("`stride` is 0"));
    assert!(init(new().with_step(1)).contains("`step` is 1; expected nothing without a `stride`"));
    assert!(init(new().with_offset(2)).contains("`offset` is 2"));
    assert!(init(new().with_dense_heads(1)).contains("`dense_heads` is 1"));
    let many = new().with_stride(4).with_dense_heads(5);
    assert!(init(many).contains("`dense_heads` is 5; expected at most the 4 key heads"));
    let window = new().init(projections(&device), Some(9)).unwrap_err().to_string();
    assert!(window.contains("sliding window of 9"), "{window}");
    // Absurd sizes are as good as what reaches just as far.
    assert_eq!(init(new().with_block(usize::MAX).with_sink_blocks(usize::MAX)), "");

    let mixer = new().init(projections(&device), None).unwrap();
    let dense = DenseConfig::new().init(projections(&device));
    let x = || normal([1, 3, HIDDEN], 1).inner();
    let tokens = TokenMeta::contiguous(1, 3, 0);
    for (one, other) in [(true, false), (false, true)] {
        let run = |sparse: bool, state| match sparse {
            true => call(&mixer, x(), &tokens, true, state),
            false => call(&dense, x(), &tokens, true, state),
        };
        let state = run(one, None).unwrap().state;
        let error = run(other, state).unwrap_err().to_string();
        assert!(error.contains("another kind of layer, keys and values"), "{error}");
    }
}

/// A checkpoint's weights stay as they are, and so do the names of its parameters.
#[test]
fn swapping_keeps_the_weights() {
    let config = ModelConfig::llama(32, 16, 2, 4);
    let model = Decoder::new(&config, &MixerConfig::Dense, 3, &Device::flex()).unwrap();
    let paths = |model: &Decoder| -> Vec<_> {
        let all = longburn::models::keymap::params(model);
        all.into_iter().map(|p| (p.path, p.id)).collect()
    };
    let before = paths(&model);
    let swapped = model.swap_mixer(MixerConfig::LongGen(LongGenConfig::new())).unwrap();
    assert_eq!(paths(&swapped), before);
    assert_eq!(
        swapped.num_params(),
        swapped.clone().swap_mixer(&MixerConfig::Dense).unwrap().num_params()
    );
}
