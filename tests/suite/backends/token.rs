//! Tokens appended one by one are what whole rows give; on Hopper cards through kernels of the whole model.

use super::{host, random};
use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};
use longburn::attention::{Compute, Mixer, MixerConfig};
use longburn::kernel::attention::implementation_for;
use longburn::kernel::{Implementation, TokenMeta, TokenPass, Tokens, traced};
use longburn::models::generate::Generator;
use longburn::models::{Blocks, Decoder, ForwardOptions, ModelConfig, ids_tensor};
use longburn::testing::ratio;

const VOCAB: usize = 100;
/// Of logits in bf16.
const ROUNDED: f64 = 2e-2;

/// Two layers with norms, and biases where they are asked for, that are not what they begin with.
fn model(config: &ModelConfig, biased: bool, device: &Device) -> Decoder {
    let mut model = Decoder::new(config, &MixerConfig::Dense, 5, device).unwrap();
    let width = config.hidden_size;
    let norm = |salt| Param::from_tensor(random::<1>([width], salt, device) * 0.3 + 1.0);
    model.norm.weight = norm(1);
    for (i, block) in model.layers.iter_mut().enumerate() {
        let salt = 10 * (i as u64 + 1);
        block.input_layernorm.weight = norm(salt);
        block.post_attention_layernorm.as_mut().unwrap().weight = norm(salt + 1);
        let Mixer::Dense(dense) = &mut block.self_attn else { panic!("a dense layer") };
        let proj = &mut dense.proj;
        for (j, linear) in
            [&mut proj.q_proj, &mut proj.k_proj, &mut proj.v_proj].into_iter().enumerate()
        {
            let len = linear.features().1;
            linear.bias =
                biased.then(|| Param::from_tensor(random::<1>([len], salt + 2 + j as u64, device)));
        }
    }
    model.rounded(Compute::Bf16)
}

fn ids(row: usize, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (i * i * 7 + i * 13 + row as u32 * 29) % VOCAB as u32).collect()
}

/// Logits behind the last of the row's first `len` tokens, computed from all of them at once.
fn whole(model: &Decoder, row: usize, len: usize, device: &Device) -> Vec<f32> {
    let options = ForwardOptions::infer().with_compute(Compute::Bf16);
    let (ids, tokens) = (ids_tensor(&ids(row, len), 1, device), TokenMeta::contiguous(1, len, 0));
    let last = model.forward_ids(ids, &tokens, &options, vec![]).unwrap().last;
    host(model.logits(last.narrow(1, len - 1, 1)))
}

/// Feeds tokens of rows whose padding is on the left; those that have `ended` are fed padding.
fn feed(
    generator: &mut Generator<Decoder>,
    (padding, ended): (&[usize], &[bool]),
    range: std::ops::Range<usize>,
) -> Vec<Vec<f32>> {
    let (mut all, mut pos, mut segment) = (vec![], vec![], vec![]);
    for (row, padding) in padding.iter().enumerate() {
        let of_row = ids(row, range.end);
        for at in range.clone() {
            let place = at.checked_sub(*padding).filter(|_| !ended[row]);
            all.push(place.map_or(0, |place| of_row[place]));
            pos.push(place.unwrap_or(0) as i32);
            segment.push(place.map_or(-1, |_| 0));
        }
    }
    let tokens = TokenMeta::new(padding.len(), range.len(), pos, segment).unwrap();
    generator.feed_rows(&all, &tokens).unwrap()
}

/// Prefill, tokens one by one, after some of which every fourth row but the first ends, a few at once, and one by one
/// again.
fn check(config: &ModelConfig, biased: bool, prompt: usize, padding: &[usize], device: &Device) {
    let model = model(config, biased, device);
    let mut generator = Generator::new(&model).with_compute(Compute::Bf16);
    let mut ends = vec![prompt];
    ends.extend(prompt + 1..prompt + 20);
    ends.extend([prompt + 22, prompt + 23, prompt + 24]);
    let mut from = 0;
    for end in ends {
        let rows = 0..padding.len();
        let ended: Vec<bool> = rows.map(|row| end > prompt + 12 && row % 4 == 1).collect();
        let got = feed(&mut generator, (padding, &ended), from..end);
        from = end;
        for (row, padding) in padding.iter().enumerate() {
            if end <= *padding || ended[row] {
                continue;
            }
            let want = whole(&model, row, end - padding, device);
            let r = ratio(&got[row], &want);
            assert!(r <= ROUNDED, "row {row} behind {end} tokens: logits differ by {r:.1e}");
        }
    }
}

fn llama(hidden: usize, heads: usize, kv_heads: usize, inner: usize) -> ModelConfig {
    ModelConfig::llama(VOCAB, hidden, 2, heads).with_kv_heads(kv_heads).with_intermediate(inner)
}

pub fn tokens_one_by_one_equal_whole_rows(device: &Device) {
    if !Compute::Bf16.runs_on(device) {
        return println!("skipped: no bf16");
    }
    check(&llama(256, 4, 2, 352), true, 5, &[0], device);
    // Keys in several parts, and more tokens of them than a stage has, at odd places.
    check(&llama(256, 4, 1, 352), false, 700, &[0, 300, 690], device);
    check(&llama(384, 6, 3, 352), false, 300, &[0, 31, 0], device);
    check(&llama(512, 4, 4, 512).with_tied(true), true, 33, &[0, 1, 2, 3, 4, 30, 6, 7, 40], device);
    // The most rows, a row that begins with the first token after the prompt, and another width on either side.
    let padding: Vec<usize> = (0..16).map(|row| row * 3 % 19).collect();
    check(&llama(768, 12, 4, 1376).with_head_dim(64), false, 18, &padding, device);
    check(&llama(320, 8, 1, 704).with_head_dim(128), true, 270, &[17], device);
}

/// Whether the kernels run on the device.
fn on_hopper(device: &Device) -> bool {
    let probe = Tensor::<4>::zeros([1, 1, 1, 64], (device, DType::BF16));
    matches!(implementation_for(Implementation::Auto, &probe), Ok(Implementation::Hopper))
}

/// They run: five a layer and one for the logits, at least.
pub fn tokens_run_their_own_kernels(device: &Device) {
    if !on_hopper(device) {
        return println!("skipped: no Hopper card");
    }
    let model = model(&llama(256, 4, 2, 352), false, device);
    let mut generator = Generator::new(&model).with_compute(Compute::Bf16);
    feed(&mut generator, (&[0, 2], &[false; 2]), 0..40);
    feed(&mut generator, (&[0, 2], &[false; 2]), 40..41);
    // Memory that is put in order meanwhile moves what nobody uses, but not the weights.
    drop(Tensor::<1>::zeros([64 << 20], device));
    device.memory_cleanup();
    let token = || feed(&mut generator, (&[0, 2], &[false; 2]), 41..42);
    match traced(device, token) {
        Ok((_, launches)) => {
            let count = |name| launches.iter().filter(|launch| launch.name == name).count();
            // Those of other tests at the same time are among them.
            let found = (count("thin"), count("one"));
            assert!(found.0 > 4 * 2 && found.1 >= 2, "{found:?} of {}", launches.len());
        }
        Err(reason) => println!("skipped: {reason}"),
    }
}

/// Tokens and caches that somebody else holds stay as they are, and what comes of them is the same.
pub fn tokens_leave_what_others_hold(device: &Device) {
    let model = model(&llama(320, 8, 1, 704).with_head_dim(128), true, device);
    let Some(mut pass) = model.token_model().and_then(|model| TokenPass::new(&model)) else {
        return println!("skipped: no Hopper card");
    };
    let narrow = |len: usize, salt| random::<1>([len], salt, device).cast(DType::BF16);
    let cache = |salt| narrow(2 * 40 * 128, salt).reshape([2, 1, 40, 128]);
    let angles = |salt| random::<2>([1, 64], salt, device);
    let given = || Tokens {
        x: narrow(640, 1).reshape([2, 320]),
        cos: angles(2),
        sin: angles(3),
        caches: vec![[cache(4), cache(5)], [cache(6), cache(7)]],
        len: 20,
        starts: vec![0, 3],
    };
    let kept = given();
    let (x, caches) = (kept.x.clone(), kept.caches.clone());
    let (held, after) = pass.step(kept).unwrap();
    let (alone, _) = pass.step(given()).unwrap();
    assert_eq!(host(held), host(alone));
    assert_eq!(host(x), host(given().x));
    for (kept, given) in caches.into_iter().flatten().zip(given().caches.into_iter().flatten()) {
        assert_eq!(host(kept), host(given));
    }
    // The new ones hold one token more, and what was before it.
    for (new, given) in after.into_iter().flatten().zip(given().caches.into_iter().flatten()) {
        let part = |x: &Tensor<4>, from, len| host(x.clone().narrow(2, from, len));
        assert_eq!(part(&new, 0, 20), part(&given, 0, 20));
        assert_eq!(part(&new, 21, 19), part(&given, 21, 19));
        assert_ne!(part(&new, 20, 1), part(&given, 20, 1));
    }
    let wrong = Tokens { len: 40, ..given() };
    assert!(pass.step(wrong).is_err(), "no room");
    let wrong = Tokens { starts: vec![0], ..given() };
    assert!(pass.step(wrong).is_err(), "a row without a start");
}

/// The kernels are there where the card is, and for what they can do.
pub fn tokens_have_kernels_on_hopper(device: &Device) {
    let pass = |config: &ModelConfig, compute| {
        let model = model(config, false, device);
        let model = if compute == Compute::Bf16 {
            model
        } else {
            Decoder::new(config, &MixerConfig::Dense, 5, device).unwrap()
        };
        model.token_model().and_then(|model| TokenPass::new(&model)).is_some()
    };
    assert_eq!(pass(&llama(256, 4, 2, 352), Compute::Bf16), on_hopper(device));
    assert!(!pass(&llama(256, 4, 2, 352), Compute::F32), "weights in f32");
    assert!(!pass(&llama(128, 4, 2, 352), Compute::Bf16), "heads of 32 channels");
    assert!(!pass(&llama(256, 4, 2, 350), Compute::Bf16), "a width that is not divided whole");
    assert!(!pass(&llama(1024, 16, 1, 352), Compute::Bf16), "16 query heads of a key head");
}
