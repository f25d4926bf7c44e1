//! Block recompute gives the gradients of one graph, for less memory.

use super::{VOCAB, batch, config, decoder, gradients, ratio};
use crate::alloc::measure;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use longburn::attention::{
    AttnProjections, Dense, DenseConfig, LongLoraConfig, MixContext, MixOutput, MixerConfig,
    SequenceMixer, State,
};
use longburn::models::keymap::{map_params, params};
use longburn::models::lora::{self, LoraConfig};
use longburn::models::{Blocks, Decoder, ForwardOptions, ModelConfig};
use longburn::training::strategy::{Plain, Recompute};
use longburn::training::{
    GradientSum, LossParts, NextToken, Objective, TrainConfig, TrainStrategy, Trainer,
};
use longburn::{Error, Result};
use std::collections::HashMap;

/// Attention with a gain, and a loss term of its own on its input.
#[derive(Module, Debug)]
struct Penalised {
    inner: Dense,
    gain: Param<Tensor<1>>,
}

impl Penalised {
    fn new(proj: AttnProjections) -> Self {
        let gain = Param::from_tensor(Tensor::full([16], 0.7, &Device::flex()));
        Self { inner: DenseConfig::new().init(proj), gain }
    }
}

impl SequenceMixer for Penalised {
    fn forward(
        &self,
        x: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput> {
        let scaled = x.clone() * self.gain.val().unsqueeze();
        let out = self.inner.forward(x, ctx, state)?;
        let aux = (scaled - out.y.clone()).square().mean().mul_scalar(0.3);
        Ok(MixOutput { aux: Some(aux), ..out })
    }
}

fn assert_recompute_is_plain<M: Blocks>(model: M, expected: usize) {
    let model = model.train();
    let batch = batch(1, &[13, 9, 13]);
    let plain = gradients(&model, &NextToken, &Plain, &batch).unwrap();
    let recompute = gradients(&model, &NextToken, &Recompute, &batch).unwrap();
    assert_eq!(plain.len(), expected, "{:?}", plain.keys());
    assert!(plain.keys().eq(recompute.keys()));
    for (path, grad) in &plain {
        let r = ratio(&recompute[path], grad);
        assert!(r <= 1e-6, "{path}: {r:e}");
        assert!(grad.iter().any(|g| *g != 0.0), "{path} has no gradient");
    }
}

#[test]
fn recompute_is_plain() {
    // Per block: two norms, q, k, v, o, gate, up, down; beside them embedding, norm, head.
    assert_recompute_is_plain(decoder(false), 2 * 9 + 3);
    assert_recompute_is_plain(decoder(true), 2 * 9 + 2);
    // Sparse in training only: the phase must reach the second run of a block.
    let sparse = LongLoraConfig::new().with_group_size(4).with_ragged(true);
    let sparse = decoder(true).swap_mixer(MixerConfig::LongLora(sparse)).unwrap();
    assert_recompute_is_plain(sparse, 2 * 9 + 2);
}

#[test]
fn recompute_is_plain_with_frozen_weights() {
    let adapted = |config: LoraConfig| {
        let model = lora::apply(decoder(true), &config).unwrap();
        let sizes: HashMap<_, _> =
            params(&model).into_iter().map(|p| (p.path.clone(), p.numel())).collect();
        // B starts at zero, where A has no gradient.
        let value = |path: &str| path.ends_with(".lora.b").then(|| vec![0.1; sizes[path]]);
        map_params(model, value, |_| None)
    };
    let config = LoraConfig::new().with_rank(2);
    assert_recompute_is_plain(adapted(config), 2 * 4 * 2);
    let config = LoraConfig::longlora().with_rank(2);
    assert_recompute_is_plain(adapted(config), 2 * 4 * 2 + 1 + 5);
}

#[test]
fn recompute_is_plain_with_auxiliary_losses() {
    let mixer = |_, proj| Ok(Penalised::new(proj));
    let model = Decoder::with_mixer(&config(true), 3, &Device::flex(), mixer).unwrap();
    assert_recompute_is_plain(model.clone(), 2 * 10 + 2);

    let (model, batch) = (model.train(), batch(1, &[13, 9]));
    let parts = |strategy: &dyn TrainStrategy<_, NextToken>| {
        let options = ForwardOptions::train();
        let sum = &mut GradientSum::new();
        let parts = strategy.accumulate(&model, &NextToken, &batch, &options, sum).unwrap();
        (parts.sum.into_scalar::<f32>(), parts.aux.unwrap().into_scalar::<f32>(), parts.weight)
    };
    let (plain, recompute) = (parts(&Plain), parts(&Recompute));
    assert!((plain.0 - recompute.0).abs() <= 1e-6 * plain.0.abs());
    assert!((plain.1 - recompute.1).abs() <= 1e-6 * plain.1.abs() && plain.1 > 0.0);
    assert_eq!((plain.2, recompute.2), (20.0, 20.0));
    let whole = NextToken.loss(&model, &batch, &ForwardOptions::train()).unwrap();
    let total = whole.total().into_scalar::<f32>();
    assert!((total - plain.0 - 20.0 * plain.1).abs() < 1e-5 * total);
}

/// A step reports the mean of its micro-batches' own terms, each by its targets.
#[test]
fn auxiliary_losses_are_weighted_over_micro_batches() {
    let mixer = |_, proj| Ok(Penalised::new(proj));
    let model = Decoder::with_mixer(&config(true), 3, &Device::flex(), mixer).unwrap();
    let batches = [batch(1, &[13, 9]), batch(2, &[5])];
    let (mut sum, mut weight) = (0.0, 0.0);
    for batch in &batches {
        let parts = NextToken.loss(&model, batch, &ForwardOptions::train()).unwrap();
        sum += parts.weight * f64::from(parts.aux.unwrap().into_scalar::<f32>());
        weight += parts.weight;
    }
    let mut reported = f64::NAN;
    let mut data = |_: u64, micro: u32| Ok(Some(batches[micro as usize].clone()));
    let trainer = Trainer::new(TrainConfig::new(1, 0.0).with_micro_batches(2)).unwrap();
    let trained = trainer.fit(model, &NextToken, &mut data, &mut |step| {
        reported = step.report.aux.unwrap();
        Ok(())
    });
    trained.unwrap();
    let expected = sum / weight;
    assert!((reported - expected).abs() < 1e-6 * expected, "{reported} {expected}");
}

/// Next tokens, but not cut at the hidden states.
struct Whole;

impl<M: Blocks> Objective<M> for Whole {
    type Batch = longburn::datasets::TokenBatch;

    fn loss(&self, model: &M, batch: &Self::Batch, options: &ForwardOptions) -> Result<LossParts> {
        NextToken.loss(model, batch, options)
    }

    fn source(&self, batch: &Self::Batch) -> String {
        batch.source.clone()
    }
}

#[test]
fn recompute_refuses_by_name_what_it_cannot_cut() {
    let model = decoder(true).train();
    gradients(&model, &Whole, &Plain, &batch(1, &[5])).unwrap();
    let error = gradients(&model, &Whole, &Recompute, &batch(1, &[5])).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }));
    assert!(error.to_string().contains("strategies::Whole"), "{error}");
}

#[test]
fn recompute_needs_less_memory() {
    let config = ModelConfig::llama(VOCAB, 64, 12, 2);
    let model = Decoder::new(&config, &MixerConfig::Dense, 0, &Device::flex()).unwrap();
    let (model, batch) = (model.train(), batch(1, &[512, 512]));
    let peak = |strategy: &(dyn TrainStrategy<Decoder, NextToken> + Sync)| {
        let work = || {
            let options = ForwardOptions::train();
            let mut sum = GradientSum::new();
            strategy.accumulate(&model, &NextToken, &batch, &options, &mut sum).unwrap();
        };
        measure(work).peak
    };
    let (plain, recompute) = (peak(&Plain), peak(&Recompute));
    assert!(3 * recompute < plain, "recompute {recompute}, plain {plain} bytes");
}
