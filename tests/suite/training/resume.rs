//! R1-R3: a run that stops, writes, reads and goes on ends with the bits of one that did not.

use super::{VOCAB, bits, decoder, silent, weights};
use burn::module::Module;
use burn::tensor::Device;
use longburn::attention::MixerConfig;
use longburn::datasets::{PackConfig, PackedSource, TokenDocument};
use longburn::models::keymap::params;
use longburn::models::lora::{self, LoraConfig};
use longburn::models::{Decoder, SaveOptions, peft};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::training::{
    AdamW, Muon, NextToken, ParamGroup, Schedule, Step, TrainConfig, TrainState, Trainer, Warmup,
};
use longburn::{Error, Result};
use std::path::Path;

const STEPS: u64 = 7;

fn train_config() -> TrainConfig {
    TrainConfig::new(STEPS, 1e-2)
        .with_micro_batches(2)
        .with_schedule(Schedule::cosine().with_warmup(Warmup::Steps(2)))
        .with_adamw(AdamW { weight_decay: 0.1, ..AdamW::default() })
        .with_groups(vec![ParamGroup::no_decay()])
        .with_clip(0.5)
        .with_seed(11)
}

/// Shuffled documents of unequal length: the place in them matters.
fn data() -> PackedSource {
    let mut rng = Streams::new(5).rng(Purpose::Synthetic, 0, 0, 0);
    let document = |i: usize| TokenDocument {
        id: format!("document {i}"),
        ids: (0..10 + 7 * i).map(|_| rng.below(VOCAB) as u32).collect(),
    };
    let documents: Vec<_> = (0..6).map(document).collect();
    let config = PackConfig { segments: true, shuffle: true, ..PackConfig::new(16) };
    config.init(documents, 2, Streams::new(11)).unwrap()
}

/// A run between two steps.
type Point = (Decoder, TrainState);

/// A whole run, as it was after these steps and at its end.
fn whole(config: &TrainConfig, model: Decoder, at: &[u64]) -> Vec<Point> {
    let mut points = Vec::new();
    let mut data = data();
    let outcome = Trainer::new(config.clone())
        .unwrap()
        .fit(model, &NextToken, &mut data, &mut |step| {
            if at.contains(&step.report.step) {
                points.push((step.model.valid(), step.state()?));
            }
            Ok(())
        })
        .unwrap();
    let state = outcome.state().unwrap();
    points.push((outcome.model, state));
    points
}

fn resumed(config: &TrainConfig, (model, state): Point) -> Result<Point> {
    let mut data = data();
    let trainer = Trainer::new(config.clone())?.resume(state);
    let outcome = trainer.fit(model, &NextToken, &mut data, &mut silent)?;
    let state = outcome.state()?;
    Ok((outcome.model, state))
}

/// A model by way of its files. It has other parameter ids then, as in another process.
fn reread(model: &Decoder, dir: &Path) -> Decoder {
    if params(model).iter().all(|p| p.trainable) {
        model.save(dir, &SaveOptions::default()).unwrap();
        return Decoder::load(dir, &MixerConfig::Dense, &Device::flex()).unwrap();
    }
    peft::save_adapter(model, dir, "base").unwrap();
    peft::load_adapter(decoder(true), dir).unwrap()
}

fn assert_resumes_with_the_same_bits(config: TrainConfig, fresh: Decoder, trainable: usize) {
    let dir = tempfile::tempdir().unwrap();
    let trains = |model: &Decoder| params(model).iter().filter(|p| p.trainable).count();
    assert_eq!(trains(&fresh), trainable);
    let mut points = whole(&config, fresh, &[1, 4]);
    let (model, last) = points.pop().unwrap();
    assert_eq!(last.counters.step, STEPS);
    assert_eq!(points.len(), 2);
    for (before, state) in points {
        let dir = dir.path().join(state.counters.step.to_string());
        state.write(&dir).unwrap();
        let read = TrainState::read(&dir).unwrap();
        assert_eq!(read, state);
        assert!(read.counters.tokens > 0 && read.counters.cursor["index"].is_u64());
        let again = reread(&before, &dir);
        assert_eq!(trains(&again), trainable);
        let (again, end) = resumed(&config, (again, read)).unwrap();
        assert_eq!(bits(&weights(&again)), bits(&weights(&model)));
        assert_eq!(end, last);
    }
}

#[test]
fn r1_resuming_gives_the_same_bits() {
    assert_resumes_with_the_same_bits(train_config(), decoder(true), 2 * 9 + 2);
    let muon = train_config().with_muon(Some(Muon { weight_decay: 0.1, ..Muon::default() }));
    assert_resumes_with_the_same_bits(muon, decoder(true), 2 * 9 + 2);
}

#[test]
fn r3_resuming_keeps_the_base_frozen() {
    let adapted = lora::apply(decoder(true), &LoraConfig::longlora().with_rank(2)).unwrap();
    assert_resumes_with_the_same_bits(train_config(), adapted, 2 * 4 * 2 + 1 + 5);
}

#[test]
fn r4_resuming_at_the_edge_of_an_epoch_trains_the_steps_that_are_left() {
    // Two steps of two micro-batches of two rows to an epoch.
    let source = |epochs| {
        let document = |i: u32| TokenDocument {
            id: i.to_string(),
            ids: [3 + i, 7, 20 - i, 5].repeat(8).into(),
        };
        let config = PackConfig { shuffle: true, epochs, ..PackConfig::new(16) };
        config.init((0..4).map(document).collect::<Vec<_>>(), 2, Streams::new(11)).unwrap()
    };
    for (epochs, steps) in [(None, STEPS), (Some(2), 4)] {
        let fit = |(model, state): (Decoder, Option<TrainState>)| {
            let mut edge = None;
            let trainer = Trainer::new(train_config()).unwrap();
            let trainer = match state {
                Some(state) => trainer.resume(state),
                None => trainer,
            };
            let mut observe = |step: &Step<'_, Decoder>| {
                if step.report.step == 2 {
                    edge = Some((step.model.valid(), step.state()?));
                }
                Ok(())
            };
            let outcome =
                trainer.fit(model, &NextToken, &mut source(epochs), &mut observe).unwrap();
            (edge, outcome.state().unwrap(), weights(&outcome.model))
        };
        let (edge, end, model) = fit((decoder(true), None));
        let (before, state) = edge.unwrap();
        let cursor = &state.counters.cursor;
        assert_eq!((&cursor["index"], &cursor["carry"]), (&4.into(), &0.into()));
        let (_, again, other) = fit((before, Some(state)));
        assert_eq!((again.counters.step, &again), (steps, &end));
        assert_eq!(bits(&other), bits(&model));
    }
}

#[test]
fn r2_every_part_of_the_state_matters() {
    let mut points = whole(&train_config(), decoder(true), &[4]);
    let (model, _) = points.pop().unwrap();
    let (before, state) = points.pop().unwrap();
    let mut changed: Vec<(&str, Point)> = vec![("weights", (decoder(true), state.clone()))];
    let mut with = |what, change: fn(&mut TrainState)| {
        let mut other = state.clone();
        change(&mut other);
        changed.push((what, (before.clone(), other)));
    };
    with("optimizer", |s| s.optimizer = Default::default());
    with("step", |s| s.counters.step = 5);
    with("cursor", |s| s.counters.cursor["carry"] = 0.into());
    for (what, point) in changed {
        let (again, _) = resumed(&train_config(), point).unwrap();
        assert!(bits(&weights(&again)) != bits(&weights(&model)), "{what}");
    }
}

#[test]
fn resuming_with_something_else_is_refused() {
    let (model, state) = whole(&train_config(), decoder(true), &[1]).swap_remove(0);
    let adapted = lora::apply(decoder(true), &LoraConfig::new().with_rank(2)).unwrap();
    match resumed(&train_config(), (adapted, state.clone())).err() {
        // Two moments of every parameter that no longer trains.
        Some(Error::TensorMismatch { unexpected, .. }) => {
            assert_eq!(unexpected.len(), 2 * (2 * 9 + 2));
        }
        other => panic!("{other:?}"),
    }
    let mut other = state.clone();
    other.counters.seed = 12;
    let refused = resumed(&train_config(), (model.clone(), other)).err().unwrap().to_string();
    assert!(refused.contains("seed"), "{refused}");
    let mut other = state;
    other.counters.cursor = "here".into();
    assert!(matches!(resumed(&train_config(), (model, other)).err(), Some(Error::Data(_))));
}

#[test]
fn files_of_two_states_do_not_pass_for_one() {
    let dir = tempfile::tempdir().unwrap();
    let points = whole(&train_config(), decoder(true), &[1]);
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    points[0].1.write(&a).unwrap();
    points[1].1.write(&b).unwrap();
    std::fs::copy(b.join("optimizer.safetensors"), a.join("optimizer.safetensors")).unwrap();
    let error = TrainState::read(&a).unwrap_err().to_string();
    assert!(error.contains("optimizer.safetensors") && error.contains("step 7"), "{error}");
}
