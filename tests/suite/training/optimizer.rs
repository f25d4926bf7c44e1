//! The update against an independent f64 AdamW; clipping; groups; what stays frozen.

use super::{batch, bits, decoder, silent, weights};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use longburn::attention::{Mamba2Config, MixerConfig};
use longburn::models::keymap::params;
use longburn::models::lora::{self, LoraConfig, Role};
use longburn::models::{Decoder, ForwardOptions};
use longburn::training::strategy::Plain;
use longburn::training::{
    AdamW, LossParts, Muon, NextToken, Objective, ParamGroup, Schedule, TrainConfig, Trainer,
    Warmup,
};
use longburn::{Error, Result};

/// Two parameters, one in the role of a norm.
#[derive(Module, Debug)]
pub struct Toy {
    pub norm: Scale,
    pub proj: Scale,
}

#[derive(Module, Debug)]
pub struct Scale {
    pub weight: Param<Tensor<1>>,
}

pub fn toy() -> Toy {
    let scale = |values: [f32; 3]| Scale {
        weight: Param::from_tensor(Tensor::from_floats(values, &Device::flex())),
    };
    Toy { norm: scale([1.0, -0.5, 2.0]), proj: scale([0.3, 0.0, -1.5]) }
}

/// Loss whose mean over four targets has the batch as its gradient: that of `norm`, then that of
/// `proj`.
pub struct Linear;

impl Objective<Toy> for Linear {
    type Batch = [[f32; 3]; 2];

    fn loss(&self, model: &Toy, batch: &Self::Batch, _: &ForwardOptions) -> Result<LossParts> {
        let fixed = |values: [f32; 3]| Tensor::<1>::from_floats(values, &Device::flex());
        let sum = (model.norm.weight.val() * fixed(batch[0])).sum()
            + (model.proj.weight.val() * fixed(batch[1])).sum();
        Ok(LossParts::new(sum.mul_scalar(4.0), 4.0, 4))
    }

    fn source(&self, batch: &Self::Batch) -> String {
        format!("{batch:?}")
    }
}

pub fn gradient(step: u64) -> [[f32; 3]; 2] {
    let s = step as f32;
    [[0.5 * s, -1.0, 0.01], [2.0, 0.3 - s, 1e-3 * s]]
}

/// AdamW as its paper has it, with decay by lr·λ, in f64.
fn reference(
    w: &mut [f64],
    grads: impl Fn(u64) -> Vec<f64>,
    steps: u64,
    lr: impl Fn(u64) -> f64,
    (beta1, beta2, eps, decay): (f64, f64, f64, f64),
) {
    let (mut m, mut v) = (vec![0.0; w.len()], vec![0.0; w.len()]);
    for step in 1..=steps {
        for (i, g) in grads(step).into_iter().enumerate() {
            m[i] = beta1 * m[i] + (1.0 - beta1) * g;
            v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
            let mean = m[i] / (1.0 - beta1.powi(step as i32));
            let root = (v[i] / (1.0 - beta2.powi(step as i32))).sqrt();
            w[i] -= lr(step) * (decay * w[i] + mean / (root + eps));
        }
    }
}

#[test]
fn adamw_with_groups_schedule_and_clipping() {
    let steps = 7;
    let adamw = AdamW { beta1: 0.8, beta2: 0.9, eps: 1e-3, weight_decay: 0.2 };
    let norms = ParamGroup::new(&[Role::Norm]).with_weight_decay(0.0).with_lr_factor(0.1);
    let schedule = Schedule::linear().with_warmup(Warmup::Steps(2));
    let clip = 3.0;
    let config = TrainConfig::new(steps, 0.05)
        .with_adamw(adamw)
        .with_groups(vec![norms])
        .with_schedule(schedule)
        .with_clip(clip);
    let mut norms_seen = Vec::new();
    let trained = Trainer::new(config)
        .unwrap()
        .fit_with(toy(), &Linear, &Plain, &mut |step, _| Ok(Some(gradient(step))), &mut |step| {
            norms_seen.push(step.report.grad_norm);
            Ok(())
        })
        .unwrap();

    let norm = |step| {
        let all = gradient(step).concat();
        all.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt()
    };
    assert!((1..=steps).any(|s| norm(s) < clip) && (1..=steps).any(|s| norm(s) > clip));
    for (step, seen) in (1..).zip(&norms_seen) {
        assert!((seen - norm(step)).abs() < 1e-5 * norm(step));
    }
    let grads = |part: usize| {
        move |step| {
            let scale = (clip / (norm(step) + 1e-6)).min(1.0);
            gradient(step)[part].iter().map(|g| f64::from(*g) * scale).collect::<Vec<_>>()
        }
    };
    let factor = |step| schedule.factor(step, steps);
    let rule = |decay| (0.8f32.into(), 0.9f32.into(), 1e-3, decay);
    let after = weights(&trained.model);
    let mut expected = [1.0, -0.5, 2.0];
    reference(&mut expected, grads(0), steps, |s| 0.005 * factor(s), rule(0.0));
    close(&after["norm.weight"], &expected);
    let mut expected = [0.3f32.into(), 0.0, -1.5];
    reference(&mut expected, grads(1), steps, |s| 0.05 * factor(s), rule(0.2f32.into()));
    close(&after["proj.weight"], &expected);
}

/// A_log, D and dt_bias, which a group may claim.
#[test]
fn what_shapes_a_state_does_not_decay_by_itself() {
    let mixer = MixerConfig::Mamba2(Mamba2Config::new().with_head_dim(8).with_d_state(4));
    // After one step: the gradients of a second would depend on what has decayed.
    let after = |weight_decay: f32, groups: Vec<ParamGroup>| {
        let adamw = AdamW { weight_decay, ..AdamW::default() };
        let config = TrainConfig::new(1, 0.1).with_adamw(adamw).with_groups(groups);
        let mut data = |step, _| Ok(Some(batch(step, &[12, 9])));
        let model = Decoder::new(&super::config(false), &mixer, 3, &Device::flex()).unwrap();
        let trained = Trainer::new(config).unwrap().fit(model, &NextToken, &mut data, &mut silent);
        weights(&trained.unwrap().model)
    };
    let (none, some) = (after(0.0, vec![]), after(0.5, vec![]));
    let claimed = after(0.5, vec![ParamGroup::new(&[Role::StateSpace])]);
    for (name, decays) in
        [("A_log", false), ("D", false), ("dt_bias", false), ("in_proj.weight", true)]
    {
        let path = format!("layers.0.self_attn.{name}");
        assert_eq!(some[&path] != none[&path], decays, "{name}");
        assert_ne!(claimed[&path], none[&path], "{name}");
    }
}

fn close(a: &[f32], b: &[f64]) {
    for (a, b) in a.iter().zip(b) {
        assert!((f64::from(*a) - b).abs() < 2e-6, "{a} {b}");
    }
}

#[test]
fn frozen_weights_keep_their_bits() {
    let model = lora::apply(decoder(true), &LoraConfig::longlora().with_rank(2)).unwrap();
    let trainable: Vec<_> =
        params(&model).into_iter().filter(|p| p.trainable).map(|p| p.path).collect();
    let before = weights(&model);
    let adamw = AdamW { weight_decay: 0.1, ..AdamW::default() };
    let config = TrainConfig::new(4, 1e-2).with_adamw(adamw).with_clip(1.0);
    let mut data = |step, _| Ok(Some(batch(step, &[12, 7])));
    let outcome =
        Trainer::new(config).unwrap().fit(model, &NextToken, &mut data, &mut silent).unwrap();
    let after = weights(&outcome.model);
    let (before, after) = (bits(&before), bits(&after));
    let changed: Vec<_> = before.keys().filter(|k| before[*k] != after[*k]).copied().collect();
    let mut expected: Vec<_> = trainable.iter().map(String::as_str).collect();
    expected.sort_unstable();
    assert_eq!(changed, expected);
    let still: Vec<_> =
        params(&outcome.model).into_iter().filter(|p| p.trainable).map(|p| p.path).collect();
    assert_eq!(still, trainable);
}

/// Muon updates the linear layers inside the blocks, AdamW everything else as if alone.
#[test]
fn muon_is_for_the_matrices_inside_the_blocks() {
    let after = |muon: Option<Muon>| {
        let config = TrainConfig::new(1, 1e-2).with_muon(muon);
        let mut data = |step, _| Ok(Some(batch(step, &[12, 7])));
        let outcome = Trainer::new(config)
            .unwrap()
            .fit(decoder(false), &NextToken, &mut data, &mut silent)
            .unwrap();
        (outcome.state().unwrap().optimizer, weights(&outcome.model))
    };
    let (_, alone) = after(None);
    let (state, with) = after(Some(Muon::default()));
    let (alone, with) = (bits(&alone), bits(&with));
    let changed: Vec<_> = with.keys().filter(|k| with[*k] != alone[*k]).copied().collect();
    let matrices: Vec<_> = with.keys().filter(|k| k.contains("_proj.weight")).copied().collect();
    assert_eq!(changed, matrices);
    assert!(changed.len() >= 2 * 7 && with.contains_key("lm_head.weight"));
    for name in with.keys() {
        let of: Vec<_> = state.tensors.keys().filter(|k| k.starts_with(*name)).collect();
        assert_eq!(of.len(), if matrices.contains(name) { 1 } else { 2 }, "{name}: {of:?}");
    }
    // A step is as long as AdamW's first one, whose numbers are all of the learning rate's size.
    let moved = |path: &str| -> f64 {
        let start = weights(&decoder(false));
        let now = after(Some(Muon { nesterov: false, ..Muon::default() })).1;
        let apart = start[path].iter().zip(&now[path]).map(|(a, b)| f64::from(a - b).powi(2));
        (apart.sum::<f64>() / start[path].len() as f64).sqrt()
    };
    let size = moved("layers.0.mlp.up_proj.weight");
    assert!((0.1e-2..0.4e-2).contains(&size), "{size}");
}

#[test]
fn a_model_without_trainable_parameters_is_refused() {
    let mut data = |step, _| Ok(Some(batch(step, &[12])));
    let config = TrainConfig::new(1, 1e-2);
    let fit = Trainer::new(config).unwrap().fit(
        decoder(true).no_grad(),
        &NextToken,
        &mut data,
        &mut silent,
    );
    assert!(matches!(fit.err(), Some(Error::Config { .. })));
}

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    let read = |text: &str| -> Result<(), String> {
        let config: TrainConfig = toml::from_str(text).map_err(|e| e.to_string())?;
        Trainer::new(config).map(drop).map_err(|e| e.to_string())
    };
    read("steps = 3\nlr = 1e-3\nstrategy = \"recompute\"\n[[groups]]\nroles = [\"norm\"]").unwrap();
    for (text, field) in [
        ("steps = 3", "lr"),
        ("steps = 3\nlr = 1e-3\nmicrobatches = 2", "microbatches"),
        ("steps = 3\nlr = -1.0", "lr"),
        ("steps = 3\nlr = 1.0\nmicro_batches = 0", "micro_batches"),
        ("steps = 3\nlr = 1.0\nclip = 0.0", "clip"),
        ("steps = 3\nlr = 1.0\nadamw = { beta2 = 1.0 }", "adamw.beta2"),
        ("steps = 3\nlr = 1.0\nadamw = { eps = 0.0 }", "adamw.eps"),
        ("steps = 3\nlr = 1.0\nmuon = { momentum = 1.0 }", "muon.momentum"),
        ("steps = 3\nlr = 1.0\nmuon = { weight_decay = -1.0 }", "muon.weight_decay"),
        ("steps = 3\nlr = 1.0\nmuon = { lr_factor = -1.0 }", "muon.lr_factor"),
        ("steps = 3\nlr = 1.0\n[[groups]]\nroles = []", "groups[0].roles"),
        (
            "steps = 3\nlr = 1.0\n[[groups]]\nroles = [\"norm\"]\n[[groups]]\nroles = [\"norm\"]",
            "groups[1].roles",
        ),
        ("steps = 3\nlr = 1.0\nschedule = { name = \"cosine\", last = 2.0 }", "schedule.last"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(field), "{text}: {error}");
    }
}
