//! N1: NaN and infinity stop a run before they reach a weight.

use super::optimizer::{Toy, gradient, toy};
use super::{batch, bits, decoder, silent, weights};
use longburn::models::{Decoder, ForwardOptions};
use longburn::training::strategy::Plain;
use longburn::training::{LossParts, NextToken, Objective, TrainConfig, TrainOutcome, Trainer};
use longburn::{Error, Result};

/// A finite loss; in steps whose batch is bad, gradient or loss are not.
struct Bad {
    loss: bool,
    norm: bool,
    proj: bool,
}

impl Objective<Toy> for Bad {
    type Batch = u64;

    fn loss(&self, model: &Toy, step: &u64, options: &ForwardOptions) -> Result<LossParts> {
        let mut parts = super::optimizer::Linear.loss(model, &gradient(*step), options)?;
        // √0 is 0, with an infinite slope.
        let steep = |x: burn::tensor::Tensor<1>| x.mul_scalar(0.0).sqrt().sum();
        if step.is_multiple_of(2) {
            if self.loss {
                parts.sum = parts.sum.mul_scalar(f32::INFINITY);
            }
            if self.norm {
                parts.sum = parts.sum + steep(model.norm.weight.val());
            }
            if self.proj {
                parts.sum = parts.sum + steep(model.proj.weight.val());
            }
        }
        Ok(parts)
    }

    fn source(&self, step: &u64) -> String {
        format!("document {step}")
    }
}

fn run(objective: Bad, steps: u64, skips: u64) -> Result<TrainOutcome<Toy>> {
    let config = TrainConfig::new(steps, 1e-2).with_skip_nonfinite(skips);
    let mut data = |step, _| Ok(Some(step));
    Trainer::new(config)?.fit_with(toy(), &objective, &Plain, &mut data, &mut silent)
}

#[test]
fn n1_nonfinite_values_abort_and_name_the_culprit() {
    let none = Bad { loss: false, norm: false, proj: false };
    for (objective, culprit) in [
        (Bad { loss: true, ..none }, "loss"),
        (Bad { norm: true, ..none }, "gradient of norm.weight"),
        (Bad { proj: true, ..none }, "gradient of proj.weight"),
        // The backward pass comes to the later one first.
        (Bad { norm: true, proj: true, ..none }, "gradient of proj.weight"),
    ] {
        match run(objective, 4, 0).err() {
            Some(Error::NonFinite { step: 2, what, value, batch }) => {
                assert_eq!((what.as_str(), batch.as_str()), (culprit, "document 2"));
                assert!(!value.is_finite());
            }
            other => panic!("{culprit}: {other:?}"),
        }
    }
}

#[test]
fn n1_skipped_steps_change_nothing_and_are_counted() {
    let bad = || Bad { loss: false, norm: false, proj: true };
    let mut skipped = Vec::new();
    let mut seen = Vec::new();
    let config = TrainConfig::new(5, 1e-2).with_skip_nonfinite(2);
    let outcome = Trainer::new(config)
        .unwrap()
        .fit_with(toy(), &bad(), &Plain, &mut |step, _| Ok(Some(step)), &mut |step| {
            skipped.push(step.report.skipped);
            seen.push(weights(step.model));
            Ok(())
        })
        .unwrap();
    assert_eq!(skipped, [false, true, false, true, false]);
    assert_eq!(outcome.counters().skipped, 2);
    for (i, pair) in seen.windows(2).enumerate() {
        assert_eq!(bits(&pair[0]) == bits(&pair[1]), skipped[i + 1], "step {}", i + 2);
    }
    assert!(matches!(run(bad(), 5, 1), Err(Error::NonFinite { step: 4, .. })));
}

/// Next tokens, with an infinite slope at one weight.
struct SteepDown;

impl Objective<Decoder> for SteepDown {
    type Batch = longburn::datasets::TokenBatch;

    fn loss(
        &self,
        model: &Decoder,
        batch: &Self::Batch,
        options: &ForwardOptions,
    ) -> Result<LossParts> {
        let mut parts = NextToken.loss(model, batch, options)?;
        let steep = model.layers[1]
            .mlp
            .as_ref()
            .unwrap()
            .down_proj
            .weight
            .val()
            .mul_scalar(0.0)
            .sqrt()
            .sum();
        parts.sum = parts.sum + steep;
        Ok(parts)
    }

    fn source(&self, batch: &Self::Batch) -> String {
        batch.source.clone()
    }
}

#[test]
fn n1_names_parameters_as_checkpoints_do() {
    let mut data = |step, _| Ok(Some(batch(step, &[9, 9])));
    let fit = Trainer::new(TrainConfig::new(1, 1e-2)).unwrap().fit(
        decoder(true),
        &SteepDown,
        &mut data,
        &mut silent,
    );
    let error = fit.err().unwrap().to_string();
    assert!(error.contains("gradient of layers.1.mlp.down_proj.weight"), "{error}");
    assert!(error.contains("row 0, row 1"), "{error}");
}

#[test]
fn an_objective_out_of_reach_of_all_parameters_is_an_error() {
    struct Constant;
    impl Objective<Toy> for Constant {
        type Batch = u64;
        fn loss(&self, _: &Toy, _: &u64, _: &ForwardOptions) -> Result<LossParts> {
            let one = burn::tensor::Tensor::ones([1], &burn::tensor::Device::flex());
            Ok(LossParts::new(one, 1.0, 1))
        }
        fn source(&self, _: &u64) -> String {
            String::new()
        }
    }
    let config = TrainConfig::new(1, 1e-2);
    let mut data = |step, _| Ok(Some(step));
    let fit =
        Trainer::new(config).unwrap().fit_with(toy(), &Constant, &Plain, &mut data, &mut silent);
    assert!(matches!(fit.err(), Some(Error::Training(_))));
}
