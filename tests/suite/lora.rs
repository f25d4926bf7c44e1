//! Low-rank adaptation: what trains, what it costs, merging, PEFT folders.

mod mamba;
mod peft;

use crate::alloc::measure;
use crate::tiny::{self, ids, logits, ratio};
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use longburn::attention::{
    AttnProjections, HasProjections, Linear, LinearConfig, MixContext, MixOutput, SequenceMixer,
    State,
};
use longburn::kernel::TokenMeta;
use longburn::models::keymap::{params, read_params};
use longburn::models::lora::{self, LoraConfig, Role, Target, TrainableReport};
use longburn::models::{Blocks, Decoder, ForwardOptions, ids_tensor};
use longburn::streams::Streams;
use longburn::{Error, Result};

/// Updates far from zero.
fn trained<M: SequenceMixer>(model: Decoder<M>) -> Decoder<M> {
    tiny::scattered(model, 3, |path| path.contains(".lora."))
}

fn trainable<M: SequenceMixer>(model: &Decoder<M>) -> Vec<String> {
    params(model).into_iter().filter(|p| p.trainable).map(|p| p.path).collect()
}

/// Sum of all logits' squares, with gradients.
fn loss<M: Blocks>(model: &M, ids: &[u32]) -> Tensor<1> {
    let device = model.head().device();
    let tokens = TokenMeta::contiguous(1, ids.len(), 0);
    let ids: Tensor<2, Int> = ids_tensor(ids, 1, &device);
    let hidden = model.forward_ids(ids, &tokens, &ForwardOptions::train(), vec![]).unwrap();
    model.logits(hidden.last).square().sum()
}

#[test]
fn the_longlora_policy_trains_updates_embedding_and_residual_norms_and_nothing_else() {
    for device in [Device::flex(), Device::flex().autodiff()] {
        let model = tiny::model(&tiny::qwen3(), &device);
        let model = lora::apply(model, &LoraConfig::longlora().with_rank(3)).unwrap();
        let mut expected = vec!["embed_tokens".to_string(), "norm.weight".into()];
        for layer in 0..2 {
            for part in ["q", "k", "v", "o"] {
                for factor in ["a", "b"] {
                    expected
                        .push(format!("layers.{layer}.self_attn.proj.{part}_proj.lora.{factor}"));
                }
            }
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                expected.push(format!("layers.{layer}.{norm}.weight"));
            }
        }
        let mut found = trainable(&model);
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
        // A validation copy, which carries no gradients, still knows.
        assert_eq!(trainable(&model.valid()).len(), expected.len());
    }
}

#[test]
fn roles_are_told_apart() {
    for (path, role) in [
        ("embed_tokens", Some(Role::Embedding)),
        ("norm.weight", Some(Role::Norm)),
        ("layers.3.input_layernorm.weight", Some(Role::Norm)),
        ("layers.3.post_attention_layernorm.weight", Some(Role::Norm)),
        ("layers.3.self_attn.proj.q_norm.weight", Some(Role::QkNorm)),
        ("layers.3.self_attn.proj.k_norm.weight", Some(Role::QkNorm)),
        ("layers.3.self_attn.norm.weight", Some(Role::QkNorm)),
        ("layers.3.self_attn.ttt_norm.weight", Some(Role::QkNorm)),
        ("layers.3.self_attn.qk_scale", Some(Role::QkNorm)),
        ("layers.3.self_attn.A_log", Some(Role::StateSpace)),
        ("layers.3.self_attn.D", Some(Role::StateSpace)),
        ("layers.3.self_attn.dt_bias", Some(Role::StateSpace)),
        ("layers.3.self_attn.dt_proj.bias", Some(Role::Bias)),
        ("layers.3.self_attn.conv1d.weight", None),
        ("lm_head.weight", Some(Role::Head)),
        ("layers.3.mlp.up_proj.bias", Some(Role::Bias)),
        ("layers.3.mlp.up_proj.weight", None),
        ("layers.3.self_attn.proj.q_proj.lora.a", None),
        ("layers.3.self_attn.my_norm.weight", None),
    ] {
        assert_eq!(Role::of(path), role, "{path}");
    }
}

#[test]
fn the_report_counts_and_reads_well() {
    let model = tiny::model(&tiny::llama(false), &Device::flex());
    let before = TrainableReport::of(&model);
    assert_eq!((before.trainable, before.total), (model.num_params(), model.num_params()));
    let model = lora::apply(model, &LoraConfig::longlora().with_rank(2)).unwrap();
    let report = TrainableReport::of(&model);
    // Per layer: q and o 24·2 + 2·24 each, k and v 24·2 + 2·12 each.
    let updates = 2 * (2 * 96 + 2 * 72);
    assert_eq!(
        report.by_role,
        [("embedding", 61 * 24), ("norm", 5 * 24), ("lora", updates)],
        "{report}"
    );
    assert_eq!(report.trainable, 61 * 24 + updates + 5 * 24);
    assert_eq!(report.total, before.total + updates);
    assert_eq!(
        report.to_string(),
        "trainable 2,256 of 16,392 (13.8 %): embedding 1,464, norm 120, lora 672"
    );
}

#[test]
fn an_update_starts_at_zero_with_a_bounded_random_a() {
    let model = tiny::model(&tiny::llama(false), &Device::flex());
    let base = logits(&model, &ids(9));
    let all = LoraConfig::new().with_targets(&Target::TRANSFORMER);
    let adapted = lora::apply(model.clone(), &all).unwrap();
    assert_eq!(logits(&adapted, &ids(9)), base);

    let a = |seed| {
        let model = lora::apply(model.clone(), &all.clone().with_seed(seed)).unwrap();
        read_params(&model, |path| path.ends_with(".lora.a"))
    };
    let (first, same, other) = (a(0), a(0), a(1));
    assert_eq!(first, same);
    for (i, (path, shape, values)) in first.iter().enumerate() {
        let bound = 1.0 / (shape[1] as f32).sqrt();
        let largest = values.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert!(largest <= bound && largest > 0.95 * bound, "{path}: {largest} of {bound}");
        assert_ne!(*values, other[i].2, "{path}");
        assert!(first[..i].iter().all(|(_, _, earlier)| earlier != values), "{path}");
    }
}

#[test]
fn merged_equals_unmerged() {
    let model = tiny::model(&tiny::llama(false), &Device::flex());
    let base = logits(&model, &ids(17));
    for (rslora, scale) in [(false, 16.0 / 4.0), (true, 16.0 / 2.0)] {
        let config = LoraConfig::longlora().with_rank(4).with_rslora(rslora);
        let config = config.with_targets(&[Target::Q, Target::O, Target::Up, Target::Down]);
        let adapted = trained(lora::apply(model.clone(), &config).unwrap());
        let updates = adapted.layers[0].mlp.as_ref().unwrap().up_proj.lora.as_ref().unwrap();
        assert_eq!(updates.scale(), scale);
        let unmerged = logits(&adapted, &ids(17));
        assert!(ratio(&unmerged, &base) > 0.1);
        let merged = lora::merge(adapted);
        let apart = ratio(&logits(&merged, &ids(17)), &unmerged);
        assert!(apart < 1e-5, "{apart}");
        assert!(!lora::is_adapted(&merged));
        assert_eq!(merged.num_params(), model.num_params());
        assert_eq!(trainable(&merged).len(), params(&merged).len());
    }
}

#[test]
fn gradients_reach_what_trains_and_only_that() {
    let model = tiny::model(&tiny::llama(false), &Device::flex().autodiff());
    let model = trained(lora::apply(model, &LoraConfig::longlora()).unwrap());
    let grads = loss(&model, &ids(9)).backward();
    let block = &model.layers[0];
    let q = &block.self_attn.projections().unwrap().q_proj;
    let update = q.lora.as_ref().unwrap();
    assert!(q.weight.grad(&grads).is_none());
    assert!(block.mlp.as_ref().unwrap().up_proj.weight.grad(&grads).is_none());
    assert!(model.lm_head.as_ref().unwrap().weight.grad(&grads).is_none());
    for grad in [&update.a, &update.b, &model.embed_tokens].map(|p| p.grad(&grads)) {
        assert!(grad.unwrap().abs().max().into_scalar::<f32>() > 1e-3);
    }
    assert!(block.input_layernorm.weight.grad(&grads).is_some());
}

#[test]
fn training_a_tied_embedding_trains_the_head() {
    let device = Device::flex().autodiff();
    let longlora = LoraConfig::longlora();
    let model = lora::apply(tiny::model(&tiny::llama(true), &device), &longlora).unwrap();
    // A word that is not in the text gets a gradient through the head alone.
    let grads = loss(&model, &[1, 2, 3]).backward();
    let unused = |m: &Decoder, grads| {
        let grad = m.embed_tokens.grad(grads).unwrap().narrow(0, 50, 1);
        grad.abs().max().into_scalar::<f32>()
    };
    assert!(unused(&model, &grads) > 1e-3);

    let model = lora::apply(tiny::model(&tiny::llama(false), &device), &longlora).unwrap();
    let grads = loss(&model, &[1, 2, 3]).backward();
    assert_eq!(unused(&model, &grads), 0.0);
}

#[test]
fn no_gradient_of_a_frozen_weights_shape_is_formed() {
    const WIDTH: usize = 1024;
    let device = Device::flex().autodiff();
    let linear = LinearConfig::new(WIDTH, WIDTH).init(&Streams::new(0), 0, &device);
    let factor = |shape| burn::module::Param::from_tensor(Tensor::<2>::ones(shape, &device));
    let adapted = |frozen: bool| Linear {
        weight: linear.weight.clone().set_require_grad(!frozen),
        bias: None,
        lora: Some(longburn::attention::Lora {
            a: factor([4, WIDTH]),
            b: factor([WIDTH, 4]),
            alpha: 8.0,
            rslora: false,
        }),
    };
    let usage = |linear: &Linear| {
        measure(|| {
            let x = Tensor::<3>::ones([1, 16, WIDTH], &device).require_grad();
            let grads = linear.forward(x.clone()).square().sum().backward();
            assert!(linear.lora.as_ref().unwrap().a.grad(&grads).is_some());
            assert!(x.grad(&grads).is_some());
        })
    };
    let weight = WIDTH * WIDTH * 4;
    let (frozen, trained) = (usage(&adapted(true)), usage(&adapted(false)));
    assert!(frozen.largest < weight / 2, "{frozen:?}");
    assert!(trained.largest >= weight, "the measurement sees nothing: {trained:?}");
}

#[test]
fn unusable_settings_are_refused_by_name() {
    let tied = || tiny::model(&tiny::llama(true), &Device::flex());
    let field = |config: LoraConfig| match lora::apply(tied(), &config) {
        Err(Error::Config { field, expected, .. }) => (field, expected),
        other => panic!("{:?}", other.map(|_| ())),
    };
    let new = LoraConfig::new;
    assert_eq!(field(new().with_rank(0)).0, "rank");
    assert_eq!(field(new().with_rank(usize::MAX)).0, "rank");
    assert_eq!(field(new().with_alpha(f64::NAN)).0, "alpha");
    assert_eq!(field(new().with_targets(&[])).0, "targets");
    assert_eq!(field(new().with_extra(&[Role::QkNorm])).0, "extra");
    assert_eq!(field(new().with_extra(&[Role::Bias])).0, "extra");
    let (name, expected) = field(new().with_extra(&[Role::Head]));
    assert!(name == "extra" && expected.contains("embedding"), "{expected}");
    let twice = lora::apply(lora::apply(tied(), &new()).unwrap(), &new());
    assert!(matches!(twice, Err(Error::Unsupported { .. })));
}

/// A mixer from outside: every token keeps its own value, scaled.
#[derive(Module, Debug)]
struct Keep {
    proj: AttnProjections,
}

impl SequenceMixer for Keep {
    fn forward(&self, x: Tensor<3>, _: &MixContext<'_>, _: Option<State>) -> Result<MixOutput> {
        let v = self.proj.v_proj.forward(x);
        Ok(MixOutput::new(self.proj.o_proj.forward(Tensor::cat(vec![v.clone(), v], 2))))
    }
}

impl HasProjections for Keep {
    fn projections(&self) -> Option<&AttnProjections> {
        Some(&self.proj)
    }

    fn projections_mut(&mut self) -> Option<&mut AttnProjections> {
        Some(&mut self.proj)
    }
}

#[test]
fn a_mixer_from_outside_can_be_adapted_and_merged() {
    let config = tiny::llama(true);
    let model =
        Decoder::with_mixer(&config, 0, &Device::flex(), |_, proj| Ok(Keep { proj })).unwrap();
    let base = logits(&model, &ids(5));
    let adapted = trained(lora::apply(model, &LoraConfig::longlora()).unwrap());
    let unmerged = logits(&adapted, &ids(5));
    assert!(ratio(&base, &unmerged) > 1e-2);
    assert!(ratio(&logits(&lora::merge(adapted), &ids(5)), &unmerged) < 1e-5);
}
