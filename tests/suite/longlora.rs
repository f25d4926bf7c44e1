//! What the LongLoRA paper's mechanism must show.

use burn::tensor::{Device, Tensor, TensorData};
use longburn::attention::*;
use longburn::kernel::*;
use longburn::models::{Blocks, Decoder, ForwardOptions, ModelConfig};
use longburn::positional::{RopeConfig, RopeKind};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::testing::ratio;

fn normal<const D: usize>(shape: [usize; D], stream: u32) -> Tensor<D> {
    let mut rng = Streams::new(1).rng(Purpose::Synthetic, 0, 0, stream);
    let n = shape.iter().product();
    let data: Vec<f32> = (0..n).map(|_| rng.normal() as f32).collect();
    Tensor::from_data(TensorData::new(data, shape), &Device::flex().autodiff())
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.inner().into_data().iter::<f32>().collect()
}

fn repeat(x: Tensor<4>, heads: usize) -> Tensor<4> {
    let [b, kv, t, d] = x.dims();
    x.reshape([b, kv, 1, t, d]).repeat_dim(2, heads / kv).reshape([b, heads, t, d])
}

fn grouped(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, groups: Groups) -> Tensor<4> {
    let [b, h, t, _] = q.dims();
    let tokens = TokenMeta::contiguous(b, t, 0);
    let spec = MaskSpec::causal().with_groups(groups);
    let mask = Mask::new(spec, tokens.clone(), tokens, h).unwrap();
    masked_attention(&[Branch { q, k, mask }], v, &AttentionOptions::default()).unwrap().out
}

fn fixed(size: usize, shift: bool) -> Groups {
    Groups { size: GroupSize::Fixed(size), shift, ragged: false }
}

/// Item 1: the segment form is the rolled form with the leaking quadrant masked, values and
/// gradients.
#[test]
fn segments_equal_the_rolled_form_with_the_leak_masked() {
    let (t, h, d) = (64, 4, 8);
    for group in [8, 16, 32] {
        for kv in [1, 2, 4] {
            let run = |reference: bool| {
                let leaf = |heads, stream| normal([2, heads, t, d], stream).require_grad();
                let (q, k, v) = (leaf(h, 1), leaf(kv, 2), leaf(kv, 3));
                let out = match reference {
                    true => {
                        let (k, v) = (repeat(k.clone(), h), repeat(v.clone(), h));
                        reference::longlora::rolled(q.clone(), k, v, group, false)
                    }
                    false => grouped(q.clone(), k.clone(), v.clone(), fixed(group, true)),
                };
                let grads = (out.clone() * normal([2, h, t, d], 4)).sum().backward();
                let grad = |x: &Tensor<4>| host(x.grad(&grads).unwrap());
                [host(out), grad(&q), grad(&k), grad(&v)]
            };
            for (i, (got, want)) in run(false).iter().zip(&run(true)).enumerate() {
                let r = ratio(got, want);
                assert!(r <= 1e-5, "group {group}, {kv} key heads, tensor {i}: {r:e}");
            }
        }
    }
}

/// Item 2: one group of everything is dense; its shifted half is two independent halves.
#[test]
fn one_group_is_dense_and_its_shift_two_halves() {
    let (t, h, d) = (64, 4, 8);
    let [q, k, v] = [1, 2, 3].map(|s| normal([1, h, t, d], s));
    let dense = |q: Tensor<4>, k: Tensor<4>, v: Tensor<4>| {
        let [b, h, t, _] = q.dims();
        let branch = Branch { q, k, mask: Mask::causal(b, t, h) };
        masked_attention(&[branch], v, &AttentionOptions::default()).unwrap().out
    };
    let all = dense(q.clone(), k.clone(), v.clone());
    let plain = grouped(q.clone(), k.clone(), v.clone(), fixed(t, false));
    assert!(ratio(&host(plain), &host(all.clone())) <= 1e-5);
    let shifted = grouped(q.clone(), k.clone(), v.clone(), fixed(t, true));
    let unshifted = |x: Tensor<4>| x.narrow(1, 0, h / 2);
    assert!(ratio(&host(unshifted(shifted.clone())), &host(unshifted(all))) <= 1e-5);
    for start in [0, t / 2] {
        let half = |x: &Tensor<4>| x.clone().narrow(1, h / 2, h / 2).narrow(2, start, t / 2);
        let want = dense(half(&q), half(&k), half(&v));
        assert!(ratio(&host(half(&shifted)), &host(want)) <= 1e-5, "half at {start}");
    }
}

fn mixer(config: &LongLoraConfig, device: &Device) -> LongLora {
    let shape = AttnShape {
        hidden: 16,
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
        qkv_bias: false,
        o_bias: false,
        qk_norm: None,
    };
    config.init(shape.init((0.4, 0.4), &Streams::new(2), 0, device), None).unwrap()
}

/// Output of attention before the output projection, `[B, H, T, D]`, in training.
fn mixed(config: &LongLoraConfig, x: Tensor<3>, tokens: &TokenMeta) -> longburn::Result<Tensor<4>> {
    let ctx = MixContext { phase: Phase::Train, taps: &[Tap::Mixed], ..MixContext::infer(tokens) };
    let out = mixer(config, &x.device()).forward(x, &ctx, None)?;
    Ok(out.taps.mixed.expect("the tap was asked for"))
}

/// Item 3: the last token changes nothing before it, bit for bit; in the rolled compatibility
/// form it changes the first half group of the shifted heads, and those alone.
#[test]
fn the_segment_form_does_not_leak_and_the_rolled_form_does() {
    let (t, group) = (32, 8);
    let tokens = TokenMeta::contiguous(1, t, 0);
    let x = normal([1, t, 16], 5);
    let last = normal([1, 1, 16], 6);
    let y = Tensor::cat(vec![x.clone().narrow(1, 0, t - 1), last], 1);
    let changed = |form: LongLoraForm| {
        let config = LongLoraConfig::new().with_group_size(group).with_form(form);
        let (a, b) = (mixed(&config, x.clone(), &tokens), mixed(&config, y.clone(), &tokens));
        let (a, b) = (host(a.unwrap()), host(b.unwrap()));
        let at = |i: usize| (i / (t * 4), i / 4 % t);
        let mut places: Vec<_> = (0..a.len()).filter(|i| a[*i] != b[*i]).map(at).collect();
        places.dedup();
        places.retain(|(_, token)| *token < t - 1);
        places
    };
    assert_eq!(changed(LongLoraForm::Segment), []);
    let leaks = changed(LongLoraForm::Rolled);
    let expected: Vec<_> = (2..4).flat_map(|head| (0..group / 2).map(move |t| (head, t))).collect();
    assert_eq!(leaks, expected, "(head, token) that the last token changed");
}

/// Item 4: over two layers a token depends on the group before its own; without the shift never.
#[test]
fn two_layers_carry_information_across_groups() {
    let device = Device::flex().autodiff();
    let config = ModelConfig::llama(32, 16, 2, 4).with_max_positions(64);
    let reach = |shift: bool| {
        let mixer =
            MixerConfig::LongLora(LongLoraConfig::new().with_group_size(8).with_shift(shift));
        let model = Decoder::new(&config, &mixer, 3, &device).unwrap();
        let x = normal([1, 32, 16], 7).require_grad();
        let tokens = TokenMeta::contiguous(1, 32, 0);
        let hidden =
            model.forward_embeds(x.clone(), &tokens, &ForwardOptions::train(), vec![]).unwrap();
        // Token 17 lies in the third group; tokens 12 to 15 in the second.
        let grads = hidden.last.narrow(1, 17, 1).sum().backward();
        host(x.grad(&grads).unwrap().narrow(1, 12, 4))
    };
    assert!(reach(true).iter().any(|g| *g != 0.0), "no flow across groups");
    assert!(reach(false).iter().all(|g| *g == 0.0), "flow without a shift");
}

/// Item 7: operations and visited blocks, exactly.
#[test]
fn the_cost_is_that_of_the_groups() {
    for (t, group) in [(512, 128), (2048, 512)] {
        let tokens = TokenMeta::contiguous(1, t, 0);
        let pairs = |shift: bool, heads: usize| {
            let spec = MaskSpec::causal().with_groups(fixed(group, shift));
            Mask::new(spec, tokens.clone(), tokens.clone(), heads).unwrap()
        };
        let triangle = |n: usize| (n * (n + 1) / 2) as u64;
        let groups = (t / group) as u64;
        assert_eq!(pairs(false, 2).pairs(), 2 * groups * triangle(group));
        // Shifted: one group less, and a half at either end.
        let shifted = (groups - 1) * triangle(group) + 2 * triangle(group / 2);
        assert_eq!(pairs(true, 2).pairs(), groups * triangle(group) + shifted);
        let dense = triangle(t);
        let share = (groups * triangle(group)) as f64 / dense as f64;
        let expected = (group + 1) as f64 / (t + 1) as f64;
        assert!((share - expected).abs() < 1e-12, "unshifted share of dense is G/T, up to the +1");
        assert!(shifted < groups * triangle(group), "shifted heads cost just under that");
        let visited = pairs(true, 2).blocks(64, 64).visited();
        let all = Mask::causal(1, t, 2).blocks(64, 64).visited();
        assert!((visited as f64) < 1.3 * all as f64 * expected, "{visited} of {all} blocks");
    }
}

/// Item 8: rows of different lengths, padded left or right, equal their own runs; each row has
/// groups of a quarter of its *own* length.
#[test]
fn padded_rows_have_groups_of_their_own() {
    let config = LongLoraConfig::new();
    let lengths = [64, 16, 32];
    for (side, tokens) in [
        ("left", TokenMeta::left_padded(&lengths, 64).unwrap()),
        ("right", TokenMeta::right_padded(&lengths, 64).unwrap()),
    ] {
        let x = normal([3, 64, 16], 8).require_grad();
        let w = normal([3, 4, 64, 4], 9);
        let start = |n: usize| if side == "left" { 64 - n } else { 0 };
        let part = |x: Tensor<4>, row: usize, n: usize| x.narrow(0, row, 1).narrow(2, start(n), n);
        let out = mixed(&config, x.clone(), &tokens).unwrap();
        let loss = |out: &Tensor<4>| {
            let rows = lengths.iter().enumerate();
            rows.map(|(row, &n)| part(out.clone() * w.clone(), row, n).sum())
                .reduce(|a, b| a + b)
                .unwrap()
        };
        let grad = x.grad(&loss(&out).backward()).unwrap();
        for (row, &n) in lengths.iter().enumerate() {
            let own = x.clone().narrow(0, row, 1).narrow(1, start(n), n).detach().require_grad();
            let alone = mixed(&config, own.clone(), &TokenMeta::contiguous(1, n, 0)).unwrap();
            let r = ratio(&host(part(out.clone(), row, n)), &host(alone.clone()));
            assert!(r <= 1e-6, "{side}, row {row}: values differ by {r:e}");
            let grads = (alone * part(w.clone(), row, n)).sum().backward();
            let got = grad.clone().narrow(0, row, 1).narrow(1, start(n), n);
            let r = ratio(&host(got), &host(own.grad(&grads).unwrap()));
            assert!(r <= 1e-5, "{side}, row {row}: gradients differ by {r:e}");
        }
    }
}

/// Item 8: a checkpoint that is stretched already is stretched further, not anew.
#[test]
fn interpolation_multiplies_the_factor_in_place() {
    let rope = RopeConfig::new(10_000.0, 8).with_kind(RopeKind::Linear { factor: 2.0 });
    assert_eq!(rope.interpolated(4.0).unwrap().kind, RopeKind::Linear { factor: 8.0 });
    assert_eq!(RopeConfig::new(10_000.0, 8).interpolated(4.0).unwrap().linear_factor(), 4.0);
}

/// Item 9: what cannot be honoured is refused, with the number that is wrong.
#[test]
fn bad_settings_are_refused() {
    let device = Device::flex().autodiff();
    let shape = |heads| AttnShape {
        hidden: 12,
        heads,
        kv_heads: 1,
        head_dim: 4,
        qkv_bias: false,
        o_bias: false,
        qk_norm: None,
    };
    let init = |config: LongLoraConfig, heads| {
        let proj = shape(heads).init((0.1, 0.1), &Streams::new(0), 0, &device);
        config.init(proj, None).err().map(|e| e.to_string())
    };
    let config = LongLoraConfig::new;
    assert!(init(config().with_group_size(5), 4).unwrap().contains("group_size` is 5"));
    assert!(init(config().with_group_size(0), 4).unwrap().contains("group_size` is 0"));
    assert!(init(config().with_group_ratio(0), 4).unwrap().contains("group_ratio` is 0"));
    assert!(init(config(), 3).unwrap().contains("heads` is 3"));
    let rolled = config().with_form(LongLoraForm::Rolled);
    assert!(init(rolled.clone().with_ragged(true), 4).unwrap().contains("ragged"));
    assert_eq!(init(config(), 4), None);

    let run = |config: &LongLoraConfig, t: usize| {
        let x = normal([1, t, 16], 1);
        mixed(config, x, &TokenMeta::contiguous(1, t, 0)).err().map(|e| e.to_string())
    };
    assert!(run(&config(), 30).unwrap().contains("30 does not divide by 4"));
    assert!(run(&config().with_group_size(8), 30).unwrap().contains("no multiple"));
    assert!(run(&config().with_group_size(64), 32).unwrap().contains("32 tokens only"));
    assert!(run(&config(), 12).unwrap().contains("groups.size is 3"), "odd quarter");
    assert!(run(&rolled.clone().with_group_size(8), 30).is_some());
    assert_eq!(run(&config().with_group_size(8).with_ragged(true), 30), None);

    // A cache and shifted sparse attention exclude each other.
    let tokens = TokenMeta::contiguous(1, 8, 0);
    let ctx = MixContext { phase: Phase::Train, keep_state: true, ..MixContext::infer(&tokens) };
    let x = normal([1, 8, 16], 1);
    let error = mixer(&config().with_group_size(4), &device).forward(x, &ctx, None).unwrap_err();
    assert!(error.to_string().contains("cache"), "{error}");
}
