//! N5: tokens count the same in whatever micro-batch they lie.

use super::{batch, bits, decoder, ratio, silent, weights};
use burn::module::Module;
use longburn::datasets::{IGNORE, Side, TokenBatch};
use longburn::models::Decoder;
use longburn::training::{
    AdamW, EmptyStep, NextToken, Objective, StepReport, Stop, Strategy, TrainConfig, Trainer,
};
use longburn::{Error, Result};

/// Rows whose numbers of targets differ; the third has none.
const TARGETS: [usize; 8] = [11, 1, 0, 5, 7, 2, 11, 3];

fn row(step: u64, index: usize) -> TokenBatch {
    let mut row = batch(100 * step + index as u64, &[12]);
    row.labels[TARGETS[index]..].fill(IGNORE);
    row
}

/// Rows below each other.
fn stacked(rows: &[TokenBatch]) -> TokenBatch {
    let ids = rows.iter().map(|row| row.ids.clone()).collect();
    let mut all = TokenBatch::from_rows(ids, Side::Right, 0).unwrap();
    all.labels = rows.iter().flat_map(|row| row.labels.clone()).collect();
    all
}

fn run(
    config: TrainConfig,
    model: Decoder,
    data: &mut dyn FnMut(u64, u32) -> Result<Option<TokenBatch>>,
) -> Result<(Decoder, Stop, Vec<StepReport>)> {
    let mut reports = Vec::new();
    let outcome = Trainer::new(config)?.fit(model, &NextToken, &mut { data }, &mut |step| {
        reports.push(step.report.clone());
        Ok(())
    })?;
    Ok((outcome.model, outcome.stop, reports))
}

#[test]
fn n5_accumulation_is_one_large_batch() {
    // A large epsilon, so that the update is a smooth function of the gradient.
    let adamw = AdamW { eps: 1e-2, ..AdamW::default() };
    let rows = |step| (0..8).map(|i| row(step, i)).collect::<Vec<_>>();
    let split = |strategy| {
        let config = TrainConfig::new(3, 1e-2)
            .with_micro_batches(8)
            .with_adamw(adamw)
            .with_strategy(strategy);
        run(config, decoder(true), &mut |step, micro| Ok(Some(row(step, micro as usize)))).unwrap()
    };
    let config = TrainConfig::new(3, 1e-2).with_adamw(adamw);
    let whole = run(config, decoder(true), &mut |step, _| Ok(Some(stacked(&rows(step))))).unwrap();
    for strategy in [Strategy::Plain, Strategy::Recompute] {
        let split = split(strategy);
        for (a, b) in split.2.iter().zip(&whole.2) {
            assert_eq!((a.weight, a.tokens), (40.0, 96));
            assert_eq!((b.weight, b.tokens), (40.0, 96));
            assert!((a.loss - b.loss).abs() <= 1e-6 * b.loss, "{} {}", a.loss, b.loss);
            assert!((a.grad_norm - b.grad_norm).abs() <= 1e-5 * b.grad_norm);
        }
        let after = weights(&whole.0);
        for (path, a) in weights(&split.0) {
            let r = ratio(&a, &after[&path]);
            assert!(r <= 1e-6, "{path}: {r:e}");
        }
    }

    // The mean of the micro-batches' means is another number.
    let model = decoder(true).train();
    let means = rows(1).into_iter().filter(|row| row.targets() > 0).map(|row| {
        let options = longburn::models::ForwardOptions::train();
        let parts = NextToken.loss(&model, &row, &options).unwrap();
        f64::from(parts.sum.into_scalar::<f32>()) / parts.weight
    });
    let wrong = means.sum::<f64>() / 7.0;
    assert!((wrong - whole.2[0].loss).abs() > 1e-3);
}

#[test]
fn n5_the_last_window_may_be_partial() {
    let mut left = 5;
    let mut data = |step, micro: u32| {
        let more = left > 0;
        left -= i32::from(more);
        Ok(more.then(|| row(step, micro as usize)))
    };
    let config = TrainConfig::new(9, 1e-2).with_micro_batches(2);
    let (_, stop, reports) = run(config, decoder(true), &mut data).unwrap();
    assert_eq!(stop, Stop::DataEnded);
    let weights: Vec<_> = reports.iter().map(|r| (r.step, r.weight, r.total_tokens)).collect();
    assert_eq!(weights, [(1, 12.0, 24), (2, 12.0, 48), (3, 11.0, 60)]);
    let mut one = |_, _| Ok(Some(row(3, 0)));
    let config = TrainConfig::new(1, 1e-2).with_micro_batches(1);
    let alone = run(config, decoder(true), &mut one).unwrap();
    assert!(alone.2[0].loss.is_finite() && reports[2].loss.is_finite());
}

#[test]
fn n5_a_step_without_targets_is_refused_or_skipped() {
    let mut none = |step, _| Ok(Some(row(step, if step == 2 { 2 } else { 0 })));
    let config = TrainConfig::new(3, 1e-2).with_micro_batches(2);
    let error = run(config.clone(), decoder(true), &mut none).unwrap_err();
    assert!(matches!(error, Error::Data(_)) && error.to_string().contains("step 2"), "{error}");

    let config = config.with_empty_step(EmptyStep::Skip);
    let (_, _, reports) = run(config, decoder(true), &mut none).unwrap();
    let skipped: Vec<_> = reports.iter().map(|r| r.skipped).collect();
    assert_eq!(skipped, [false, true, false]);
    assert_eq!((reports[1].loss, reports[1].weight), (0.0, 0.0));

    let all_empty = TrainConfig::new(2, 1e-2).with_empty_step(EmptyStep::Skip);
    let outcome = Trainer::new(all_empty)
        .unwrap()
        .fit(decoder(true), &NextToken, &mut |step, _| Ok(Some(row(step, 2))), &mut silent)
        .unwrap();
    let before = weights(&decoder(true));
    assert_eq!(bits(&weights(&outcome.model)), bits(&before));
}

#[test]
fn the_number_of_workers_changes_no_bit() {
    let trained = |workers| {
        let config = TrainConfig::new(2, 1e-2).with_micro_batches(5).with_workers(workers);
        let mut data = |step, micro: u32| Ok(Some(row(step, micro as usize)));
        let (model, _, mut reports) = run(config, decoder(true), &mut data).unwrap();
        reports.iter_mut().for_each(|r| (r.seconds, r.tokens_per_second) = (0.0, 0.0));
        (weights(&model), reports)
    };
    let alone = trained(1);
    for workers in [2, 5, 9] {
        let together = trained(workers);
        assert_eq!(bits(&together.0), bits(&alone.0));
        assert_eq!(together.1, alone.1);
    }
}
