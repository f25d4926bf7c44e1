//! The same test bodies on every device that is compiled in.
//!
//! Each compares with the reference form on the device itself, so that a build for a GPU alone
//! can run them.

mod convolution;
mod hopper;
mod layers;
mod products;
mod scan;
mod ssd;
mod token;

use burn::tensor::{Device, Tensor, TensorData};
use convolution::convolutions_equal_the_formula;
use hopper::{
    auto_takes_hopper_where_it_runs, hopper_equals_the_reference_at_every_width,
    hopper_equals_the_reference_behind_a_cache, hopper_equals_the_reference_with_heads_of_64,
    hopper_equals_the_reference_with_heads_of_128, hopper_equals_the_reference_with_heads_of_192,
    hopper_equals_the_reference_with_heads_of_256, hopper_reads_what_is_seen, hopper_repeats,
};
use layers::{
    embeddings_equal_the_formula, empty_layers_are_empty, gated_activations_equal_the_formula,
    losses_equal_the_formula, losses_pass_over_tokens_without_a_label,
    norms_do_not_reach_other_rows, norms_equal_the_formula, rotations_equal_the_formula,
    steps_of_adamw_equal_the_formula, steps_of_many_equal_steps_of_each,
    sums_of_squares_equal_sums,
};
use longburn::Result;
use longburn::attention::{AttnShape, LongGenConfig, LongLoraConfig, MixerConfig};
use longburn::datasets::{Side, TokenBatch};
use longburn::kernel::loss::linear_cross_entropy_with;
use longburn::kernel::{
    AttentionOptions, BlockStride, Branch, GroupSize, Groups, Implementation, Mask, MaskSpec,
    Reduce, TokenMeta, attention_stats, linear_nll, masked_attention,
};
use longburn::models::lora::{self, LoraConfig};
use longburn::models::{
    Blocks, Decoder, ForwardOptions, GenerateConfig, ModelConfig, generate, ids_tensor,
};
use longburn::positional::RopeConfig;
use longburn::streams::{Draw, Purpose, Streams};
use longburn::testing::{CheckOptions, check_mixer, ratio};
use longburn::training::{LossParts, Muon, NextToken, Objective, TrainConfig, Trainer};
use products::{
    products_equal_sums_in_f64, products_keep_their_place, products_of_frozen_parts,
    products_run_their_own_code, products_with_wide_weights,
};
use scan::{
    scans_do_not_reach_other_documents, scans_of_documents_equal_the_reference,
    scans_of_every_length_equal_the_reference, scans_of_every_width_equal_the_reference,
    scans_repeat_and_carry_on, scans_run_their_own_code,
    scans_with_every_option_equal_the_reference,
};
use ssd::{
    ssd_does_not_reach_other_documents, ssd_of_documents_equals_the_reference,
    ssd_of_whole_rows_equals_the_reference,
};
use token::{
    tokens_have_kernels_on_hopper, tokens_leave_what_others_hold,
    tokens_one_by_one_equal_whole_rows, tokens_run_their_own_kernels,
};

/// Single precision with another order of summation.
const FORWARD: f64 = 1e-5;
const GRADIENTS: f64 = 1e-4;

macro_rules! device_test {
    ($($name:ident),+ $(,)?) => {
        device_test!(@on flex, "flex", Device::flex(), $($name),+);
        device_test!(@on wgpu, "wgpu", Device::wgpu(Default::default()), $($name),+);
        device_test!(@on cuda, "cuda", Device::cuda(0), $($name),+);
    };
    (@on $module:ident, $feature:literal, $device:expr, $($name:ident),+) => {
        #[cfg(feature = $feature)]
        mod $module {
            use burn::tensor::Device;

            $(#[test]
            fn $name() {
                super::$name(&$device);
            })+
        }
    };
}

device_test!(
    attention_equals_the_reference,
    statistics_equal_the_reference,
    loss_equals_the_reference,
    longlora_conforms,
    longgen_conforms,
    gradients_of_a_model_equal_the_reference,
    training_lowers_the_loss_as_the_reference_does,
    skipped_steps_change_nothing,
    cached_logits_equal_uncached,
    greedy_ids_equal_uncached_ones,
    scans_of_every_length_equal_the_reference,
    scans_with_every_option_equal_the_reference,
    scans_of_every_width_equal_the_reference,
    scans_of_documents_equal_the_reference,
    scans_do_not_reach_other_documents,
    scans_repeat_and_carry_on,
    scans_run_their_own_code,
    hopper_equals_the_reference_at_every_width,
    hopper_equals_the_reference_with_heads_of_64,
    hopper_equals_the_reference_with_heads_of_128,
    hopper_equals_the_reference_with_heads_of_192,
    hopper_equals_the_reference_with_heads_of_256,
    hopper_equals_the_reference_behind_a_cache,
    auto_takes_hopper_where_it_runs,
    hopper_repeats,
    hopper_reads_what_is_seen,
    ssd_of_documents_equals_the_reference,
    ssd_of_whole_rows_equals_the_reference,
    ssd_does_not_reach_other_documents,
    tokens_have_kernels_on_hopper,
    tokens_leave_what_others_hold,
    tokens_one_by_one_equal_whole_rows,
    tokens_run_their_own_kernels,
    products_equal_sums_in_f64,
    products_with_wide_weights,
    products_of_frozen_parts,
    products_run_their_own_code,
    products_keep_their_place,
    empty_layers_are_empty,
    gated_activations_equal_the_formula,
    norms_do_not_reach_other_rows,
    norms_equal_the_formula,
    rotations_equal_the_formula,
    steps_of_adamw_equal_the_formula,
    steps_of_many_equal_steps_of_each,
    embeddings_equal_the_formula,
    sums_of_squares_equal_sums,
    losses_equal_the_formula,
    losses_pass_over_tokens_without_a_label,
    convolutions_equal_the_formula,
);

fn random<const D: usize>(shape: [usize; D], stream: u64, device: &Device) -> Tensor<D> {
    let mut rng = Streams::new(11).rng(Purpose::Synthetic, stream, 0, 0);
    let data: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor::from_data(TensorData::new(data, shape), device)
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.inner().into_data().iter::<f32>().collect()
}

fn attention_equals_the_reference(device: &Device) {
    let (b, h, kv, t, d) = (2, 4, 2, 75, 12);
    let plain = TokenMeta::contiguous(b, t, 0);
    let groups = Groups { size: GroupSize::Fixed(16), shift: true, ragged: true };
    let cases = [
        ("causal", MaskSpec::causal(), plain.clone()),
        ("window", MaskSpec::causal().with_window(Some(9)).with_sinks(2), plain.clone()),
        ("groups", MaskSpec::causal().with_groups(groups), plain),
        ("padding", MaskSpec::causal(), TokenMeta::left_padded(&[75, 20], t).unwrap()),
        ("packed", MaskSpec::causal(), TokenMeta::packed(&[vec![5, 70], vec![75]], t).unwrap()),
        (
            "anchor",
            MaskSpec::causal().with_anchor(true),
            TokenMeta::anchored(&[vec![5, 60], vec![74]], t).unwrap(),
        ),
        (
            "near blocks, sinks",
            MaskSpec::causal().with_stride(BlockStride::near(8, 2, kv)).with_sinks(8),
            TokenMeta::contiguous(b, t, 0),
        ),
    ];
    for (name, spec, tokens) in cases {
        let mask = Mask::new(spec, tokens.clone(), tokens, h).unwrap();
        let run = |implementation, device: &Device| {
            let leaf = |heads, stream| {
                Tensor::from_inner(random([b, heads, t, d], stream, device)).require_grad()
            };
            let (q, k, v) = (leaf(h, 1), leaf(kv, 2), leaf(kv, 3));
            let branch = Branch { q: q.clone(), k: k.clone(), mask: mask.clone() };
            let options = AttentionOptions::default().with_implementation(implementation);
            let out = masked_attention(&[branch], v.clone(), &options).unwrap().out;
            let weight = Tensor::from_inner(random([b, h, t, d], 4, device));
            let grads = (out.clone() * weight).sum().backward();
            let of = |x: &Tensor<4>| host(x.grad(&grads).expect("a gradient"));
            [host(out), of(&q), of(&k), of(&v)]
        };
        let (got, want) = (
            run(Implementation::Auto, device),
            run(Implementation::Reference, &hopper::reference(device)),
        );
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let r = ratio(got, want);
            let allowed = if i == 0 { FORWARD } else { GRADIENTS };
            assert!(r <= allowed, "{name}: tensor {i} (out, q, k, v) differs by {r:.1e}");
        }
    }
}

fn statistics_equal_the_reference(device: &Device) {
    let (b, h, kv, t, d) = (2, 4, 2, 150, 12);
    let tokens = TokenMeta::packed(&[vec![5, 140], vec![150]], t).unwrap();
    let mask = Mask::new(MaskSpec::causal(), tokens.clone(), tokens, h).unwrap();
    let of = |heads, stream, device: &Device| random([b, heads, t, d], stream, device);
    let branch = |device: &Device| {
        let (q, k) = (of(h, 1, device), of(kv, 2, device));
        Branch { q, k, mask: mask.clone() }
    };
    let all = [branch(device)];
    let lse = masked_attention(&all, of(kv, 3, device), &AttentionOptions::default()).unwrap().lse;
    let (queries, keys) = (32, 7);
    for reduce in [
        Reduce::ColumnSums,
        Reduce::DiagonalSums,
        Reduce::BlockMax { queries, keys },
        Reduce::BlockSum { queries, keys },
        Reduce::Entropy,
    ] {
        let run = |implementation, device: &Device| {
            let options = AttentionOptions::default().with_implementation(implementation);
            let lse = Tensor::from_data(lse.to_data(), device);
            host(attention_stats(&branch(device), lse, reduce, &options).unwrap())
        };
        let exact = hopper::reference(device);
        let (got, want) =
            (run(Implementation::Auto, device), run(Implementation::Reference, &exact));
        let r = ratio(&got, &want);
        assert!(r <= FORWARD, "{reduce:?} differs by {r:.1e}");
    }
}

fn loss_equals_the_reference(device: &Device) {
    let (n, d, v) = (150, 8, 90);
    let labels: Vec<i64> = (0..n).map(|i| if i % 5 == 2 { -100 } else { (i * 7) % v }).collect();
    let run = |implementation, device: &Device| {
        let leaf =
            |rows, stream| Tensor::from_inner(random([rows, d], stream, device)).require_grad();
        let (x, w) = (leaf(n as usize, 1), leaf(v as usize, 2));
        let loss =
            linear_cross_entropy_with(x.clone(), w.clone(), &labels, implementation).unwrap();
        let grads = loss.clone().mul_scalar(0.5).backward();
        [host(loss), host(x.grad(&grads).unwrap()), host(w.grad(&grads).unwrap())]
    };
    // Burn's products on NVIDIA cards, which the reference has, may round factors to TF32.
    let exact = hopper::reference(device);
    let (got, want) = (run(Implementation::Auto, device), run(Implementation::Reference, &exact));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let r = ratio(got, want);
        assert!(r <= GRADIENTS, "tensor {i} (loss, x, weight) differs by {r:.1e}");
    }
    let rows = |rows, stream| random([rows, d], stream, device);
    let each = linear_nll(rows(n as usize, 1), rows(v as usize, 2), &labels).unwrap();
    let sum = each.iter().sum::<f32>();
    assert!((sum - want[0][0]).abs() <= 1e-4 * sum, "{sum} and {}", want[0][0]);
}

fn longlora_conforms(device: &Device) {
    let config = LongLoraConfig::new().with_group_size(8).with_ragged(true);
    conforms(&MixerConfig::LongLora(config), device);
}

fn longgen_conforms(device: &Device) {
    let config = LongGenConfig::new().with_block(8).with_local_blocks(2).with_stride(3);
    conforms(&MixerConfig::LongGen(config), device);
}

fn conforms(mixer: &MixerConfig, device: &Device) {
    let options = CheckOptions::new(16)
        .with_rope(RopeConfig::new(10_000.0, 4))
        .with_lengths(vec![1, 63])
        .with_device(device.clone(), GRADIENTS);
    let report = check_mixer(&options, |device| {
        let shape = AttnShape {
            hidden: 16,
            heads: 4,
            kv_heads: 2,
            head_dim: 4,
            qkv_bias: false,
            o_bias: false,
            qk_norm: None,
        };
        mixer.init(shape.init((0.3, 0.3), &Streams::new(3), 0, device), None)
    })
    .unwrap();
    assert!(report.passed(), "{report}");
}

fn tiny(mixer: &MixerConfig, device: &Device) -> Decoder {
    let config = ModelConfig::llama(61, 24, 2, 4).with_kv_heads(2);
    Decoder::new(&config, mixer, 5, device).unwrap()
}

fn ids(len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (i * 17 + 5) % 61).collect()
}

/// Loss of LongLoRA's training pass and some of its gradients.
fn gradients(device: &Device, implementation: Implementation) -> [Vec<f32>; 5] {
    let device = device.clone().autodiff();
    let mixer = MixerConfig::LongLora(LongLoraConfig::new().with_group_size(16));
    let model = tiny(&mixer, &device);
    let (ids, tokens) = (ids(65), TokenMeta::contiguous(1, 64, 0));
    let labels: Vec<i64> = ids[1..].iter().map(|id| *id as i64).collect();
    let options = ForwardOptions::train().with_implementation(implementation);
    let input = ids_tensor(&ids[..64], 1, &device);
    let hidden = model.forward_ids(input, &tokens, &options, vec![]).unwrap();
    let x = hidden.last.reshape([64, 24]);
    let loss = linear_cross_entropy_with(x, model.head(), &labels, implementation).unwrap();
    let grads = loss.clone().backward();
    let proj = model.layers[0].self_attn.projections().unwrap();
    let of = |x: Tensor<2>| host(x.grad(&grads).expect("a gradient"));
    [
        host(loss),
        of(model.embed_tokens.val()),
        of(proj.q_proj.weight.val()),
        of(proj.v_proj.weight.val()),
        of(model.layers[1].mlp.as_ref().unwrap().down_proj.weight.val()),
    ]
}

fn equal(got: &[Vec<f32>; 5], want: &[Vec<f32>; 5]) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let r = ratio(got, want);
        assert!(r <= GRADIENTS, "tensor {i} (loss, embedding, q, v, down) differs by {r:.1e}");
    }
}

fn gradients_of_a_model_equal_the_reference(device: &Device) {
    let want = gradients(&hopper::reference(device), Implementation::Reference);
    equal(&gradients(device, Implementation::Auto), &want);
}

#[cfg(all(feature = "flex", any(feature = "wgpu", feature = "cuda")))]
#[test]
fn gradients_of_a_model_equal_those_of_the_cpu() {
    let want = gradients(&Device::flex(), Implementation::Auto);
    #[cfg(feature = "wgpu")]
    equal(&gradients(&Device::wgpu(Default::default()), Implementation::Auto), &want);
    #[cfg(feature = "cuda")]
    equal(&gradients(&Device::cuda(0), Implementation::Auto), &want);
}

fn training_lowers_the_loss_as_the_reference_does(device: &Device) {
    let run = |implementation| {
        let mixer = MixerConfig::LongLora(LongLoraConfig::new());
        let model = lora::apply(tiny(&mixer, device), &LoraConfig::longlora()).unwrap();
        let mut data =
            |_, _| TokenBatch::from_rows(vec![ids(32), ids(24)], Side::Left, 0).map(Some);
        let mut losses = Vec::new();
        let options = ForwardOptions::train().with_implementation(implementation);
        Trainer::new(TrainConfig::new(5, 2e-2))
            .unwrap()
            .with_options(options)
            .fit(model, &NextToken, &mut data, &mut |step| {
                losses.push(step.report.loss as f32);
                Ok(())
            })
            .unwrap();
        losses
    };
    let losses = run(Implementation::Auto);
    assert!(losses.len() == 5 && losses[4] < 0.9 * losses[0], "{losses:?}");
    let r = ratio(&losses, &run(Implementation::Reference));
    assert!(r <= 1e-3, "losses differ by {r:.1e}");
}

/// Next tokens; a row of one length has an infinite loss and gradients.
struct SteepAt(usize);

impl Objective<Decoder> for SteepAt {
    type Batch = TokenBatch;

    fn loss(
        &self,
        model: &Decoder,
        batch: &TokenBatch,
        options: &ForwardOptions,
    ) -> Result<LossParts> {
        let mut parts = NextToken.loss(model, batch, options)?;
        if batch.ids.len() == self.0 {
            let factor = Tensor::from_floats([f32::INFINITY], &parts.sum.device());
            parts.sum = parts.sum * factor;
        }
        Ok(parts)
    }

    fn source(&self, batch: &TokenBatch) -> String {
        batch.source.clone()
    }
}

/// Weights and moments are those of a run without the step, which others may have begun before its norm is known.
fn skipped_steps_change_nothing(device: &Device) {
    let run = |lengths: &[usize], muon: bool| {
        let mut data = |step: u64, _| {
            TokenBatch::from_rows(vec![ids(lengths[step as usize - 1])], Side::Right, 0).map(Some)
        };
        let config = TrainConfig::new(lengths.len() as u64, 1e-2).with_skip_nonfinite(1);
        let config = config.with_muon(muon.then(Muon::default));
        let trainer = Trainer::new(config).unwrap();
        let steep = SteepAt(20);
        let model = tiny(&MixerConfig::Dense, device);
        let done = trainer.fit(model, &steep, &mut data, &mut |_| Ok(())).unwrap();
        let weight = host(done.model.layers[0].mlp.as_ref().unwrap().down_proj.weight.val());
        (done.counters().skipped, weight, done.state().unwrap().optimizer)
    };
    let rows = [(vec![20, 9], vec![9]), (vec![12, 20, 9], vec![12, 9])];
    // With another optimizer for some, which is not ready beforehand.
    for ((with, without), muon) in rows.iter().flat_map(|rows| [(rows, false), (rows, true)]) {
        let (skipped, weight, state) = run(with, muon);
        let (none, of_weight, of_state) = run(without, muon);
        assert_eq!((skipped, none), (1, 0), "{with:?}");
        assert!(state.tensors.keys().eq(of_state.tensors.keys()), "{with:?}");
        assert_eq!(state.scalars, of_state.scalars, "{with:?}");
        let r = ratio(&weight, &of_weight);
        assert!(r <= 1e-6, "{with:?}: weights differ by {r:.1e}");
        for (name, tensor) in &state.tensors {
            let r = ratio(&tensor.to_f32().unwrap(), &of_state.tensors[name].to_f32().unwrap());
            assert!(r <= GRADIENTS, "{with:?}: {name} differs by {r:.1e}");
        }
    }
}

fn greedy_ids_equal_uncached_ones(device: &Device) {
    let model = tiny(&MixerConfig::Dense, device);
    let mut all = ids(7);
    let config = GenerateConfig::new().with_max_new_tokens(6);
    let got = generate(&model, &all, &config, |_| ()).unwrap().ids;
    for _ in 0..6 {
        let tokens = TokenMeta::contiguous(1, all.len(), 0);
        let input = ids_tensor(&all, 1, device);
        let hidden = model.forward_ids(input, &tokens, &ForwardOptions::infer(), vec![]).unwrap();
        let logits = host(model.logits(hidden.last));
        let last = &logits[logits.len() - 61..];
        let best = (0..61).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        all.push(best as u32);
    }
    assert_eq!(got, all[7..]);
}

fn cached_logits_equal_uncached(device: &Device) {
    let model = tiny(&MixerConfig::Dense, device);
    let (ids, mut states) = (ids(12), vec![]);
    let options = ForwardOptions::infer();
    let whole = ids_tensor(&ids, 1, device);
    let all = TokenMeta::contiguous(1, 12, 0);
    let hidden = model.forward_ids(whole, &all, &options, vec![]).unwrap();
    let want = host(model.logits(hidden.last));
    let mut got = Vec::new();
    for (i, id) in ids.iter().enumerate() {
        let tokens = TokenMeta::contiguous(1, 1, i);
        let options = options.clone().with_state(true);
        let hidden =
            model.forward_ids(ids_tensor(&[*id], 1, device), &tokens, &options, states).unwrap();
        states = hidden.states;
        got.extend(host(model.logits(hidden.last)));
    }
    let r = ratio(&got, &want);
    assert!(r <= FORWARD, "cached logits differ by {r:.1e}");
}
