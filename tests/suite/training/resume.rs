//! R1-R3: a run that stops, writes, reads and goes on ends with the bits of one that did not.

use super::{VOCAB, bits, decoder, silent, weights};
use longburn::datasets::{PackConfig, PackedSource, TokenDocument};
use longburn::models::Decoder;
use longburn::models::keymap::params;
use longburn::models::lora::{self, LoraConfig};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::training::{
    AdamW, NextToken, ParamGroup, Schedule, TrainConfig, TrainState, Trainer, Warmup,
};
use longburn::{Error, Result};

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

/// A whole run, and the states after these steps.
fn whole(model: Decoder, at: &[u64]) -> (Decoder, Vec<TrainState>) {
    let mut states = Vec::new();
    let mut data = data();
    let outcome = Trainer::new(train_config())
        .unwrap()
        .fit(model, &NextToken, &mut data, &mut |step| {
            if at.contains(&step.report.step) {
                states.push(step.state()?);
            }
            Ok(())
        })
        .unwrap();
    states.push(outcome.state().unwrap());
    (outcome.model, states)
}

fn resumed(model: Decoder, state: TrainState) -> Result<(Decoder, TrainState)> {
    let mut data = data();
    let trainer = Trainer::new(train_config())?.resume(state);
    let outcome = trainer.fit(model, &NextToken, &mut data, &mut silent)?;
    let state = outcome.state()?;
    Ok((outcome.model, state))
}

fn assert_resumes_with_the_same_bits(fresh: impl Fn() -> Decoder, trainable: usize) {
    let dir = tempfile::tempdir().unwrap();
    let (model, mut states) = whole(fresh(), &[1, 4]);
    let last = states.pop().unwrap();
    assert_eq!(last.counters.step, STEPS);
    assert_eq!(states.len(), 2);
    for state in states {
        let dir = dir.path().join(state.counters.step.to_string());
        state.write(&dir).unwrap();
        let read = TrainState::read(&dir).unwrap();
        assert_eq!(read, state);
        assert_eq!(read.weights.len(), trainable);
        assert!(read.counters.tokens > 0 && read.counters.cursor["index"].is_u64());
        // A fresh model has other parameter ids, as one in another process does.
        let (again, end) = resumed(fresh(), read).unwrap();
        assert_eq!(bits(&weights(&again)), bits(&weights(&model)));
        assert_eq!(end, last);
    }
}

#[test]
fn r1_resuming_gives_the_same_bits() {
    assert_resumes_with_the_same_bits(|| decoder(true), 2 * 9 + 2);
}

#[test]
fn r3_resuming_keeps_the_base_frozen() {
    let adapted = || lora::apply(decoder(true), &LoraConfig::longlora().with_rank(2)).unwrap();
    assert_resumes_with_the_same_bits(adapted, 2 * 4 * 2 + 1 + 5);
}

#[test]
fn r2_every_part_of_the_state_matters() {
    let (model, mut states) = whole(decoder(true), &[4]);
    let state = states.swap_remove(0);
    let mut changed: Vec<(&str, TrainState)> = Vec::new();
    let mut with = |what, change: fn(&mut TrainState)| {
        let mut other = state.clone();
        change(&mut other);
        changed.push((what, other));
    };
    with("optimizer", |s| s.optimizer = Default::default());
    with("step", |s| s.counters.step = 5);
    with("cursor", |s| s.counters.cursor["carry"] = 0.into());
    with("weights", |s| {
        let norm = s.weights.get_mut("norm.weight").unwrap();
        norm.data[0] ^= 1;
    });
    for (what, state) in changed {
        let (again, _) = resumed(decoder(true), state).unwrap();
        assert!(bits(&weights(&again)) != bits(&weights(&model)), "{what}");
    }
}

#[test]
fn resuming_with_something_else_is_refused() {
    let (_, mut states) = whole(decoder(true), &[1]);
    let state = states.swap_remove(0);
    let adapted = lora::apply(decoder(true), &LoraConfig::new().with_rank(2)).unwrap();
    let names: Vec<_> = params(&adapted).into_iter().filter(|p| p.trainable).collect();
    let refused = resumed(adapted, state.clone()).err();
    assert!(matches!(refused, Some(Error::TensorMismatch { .. })));
    match state.restore(lora::apply(decoder(true), &LoraConfig::new()).unwrap()).err() {
        Some(Error::TensorMismatch { missing, unexpected, .. }) => {
            assert_eq!((missing.len(), unexpected.len()), (names.len(), 2 * 9 + 2));
        }
        other => panic!("{other:?}"),
    }
    let mut other = state.clone();
    other.counters.seed = 12;
    let refused = resumed(decoder(true), other).err().unwrap().to_string();
    assert!(refused.contains("seed"), "{refused}");
    let mut other = state;
    other.counters.cursor = "here".into();
    assert!(matches!(resumed(decoder(true), other).err(), Some(Error::Data(_))));
}

#[test]
fn files_of_two_states_do_not_pass_for_one() {
    let dir = tempfile::tempdir().unwrap();
    let (_, states) = whole(decoder(true), &[1]);
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    states[0].write(&a).unwrap();
    states[1].write(&b).unwrap();
    std::fs::copy(b.join("optimizer.safetensors"), a.join("optimizer.safetensors")).unwrap();
    let error = TrainState::read(&a).unwrap_err().to_string();
    assert!(error.contains("optimizer.safetensors") && error.contains("step 7"), "{error}");
}
