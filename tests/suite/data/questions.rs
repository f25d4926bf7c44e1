//! Tasks of recall in token ids: what a row is made of, where its answers are, and that nobody knows
//! them without looking.

use longburn::Error;
use longburn::datasets::synthetic::{
    CopyingConfig, HiddenKeyConfig, MqarConfig, Question, QuestionBatch, QuestionRow, QuestionTask,
    TaskConfig,
};
use longburn::kernel::TokenMeta;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

fn mqar(length: usize, pairs: (usize, usize)) -> MqarConfig {
    MqarConfig { length, pairs, keys: 12, values: 8, filler: 4 }
}

fn copying(length: usize) -> CopyingConfig {
    CopyingConfig { length, items: 5, values: 12, filler: 4 }
}

fn passkey(length: usize) -> HiddenKeyConfig {
    HiddenKeyConfig { length, digits: 4, values: 8, filler: 6 }
}

/// All tasks at a length.
fn tasks(length: usize) -> Vec<Box<dyn QuestionTask>> {
    vec![
        Box::new(mqar(length, (2, 8)).init().unwrap()),
        Box::new(copying(length).init().unwrap()),
        Box::new(passkey(length).init().unwrap()),
    ]
}

/// The three of them as a file names them, and the same with other rows.
#[test]
fn a_task_is_named_by_its_kind() {
    let copying = CopyingConfig { length: 64, items: 4, values: 16, filler: 4 };
    let passkey = HiddenKeyConfig { length: 64, digits: 4, values: 16, filler: 4 };
    let mqar = MqarConfig { length: 64, pairs: (1, 6), keys: 16, values: 16, filler: 4 };
    for (kind, config) in [
        ("mqar", TaskConfig::Mqar(mqar)),
        ("copying", TaskConfig::Copying(copying)),
        ("passkey", TaskConfig::Passkey(passkey)),
    ] {
        let text = serde_json::to_value(&config).unwrap();
        assert_eq!((&text["kind"], &text["length"]), (&json!(kind), &json!(64)));
        assert_eq!(serde_json::from_value::<TaskConfig>(text.clone()).unwrap(), config);
        let mut unknown = text.clone();
        unknown["width"] = json!(3);
        let error = serde_json::from_value::<TaskConfig>(unknown).unwrap_err().to_string();
        assert!(error.contains("width"), "{error}");
        let longer = config.clone().with_length(100);
        assert_eq!((config.length(), longer.length()), (64, 100));
        let (task, long) = (config.init().unwrap(), longer.init().unwrap());
        assert_eq!(task.vocabulary(), long.vocabulary());
        let rows = long.rows(1, 0, 3);
        assert!(rows.iter().all(|row| row.ids.len() == 100));
        // A guess among what is left: 13 of 16 values behind three that were said.
        let chance = if kind == "mqar" { 16.0 } else { 13.0 };
        assert_eq!(task.chance(), 1.0 / chance);
        let answers = task.answers();
        assert_eq!(answers.len(), 16);
        let asked = rows.iter().flat_map(|row| &row.questions);
        assert!(asked.map(|question| question.answer).all(|answer| answers.contains(&answer)));
    }
}

#[test]
fn recall_has_pairs_in_front_and_every_key_again() {
    let task = mqar(40, (2, 8)).init().unwrap();
    assert_eq!((task.vocabulary(), task.answers()), (24, 16..24));
    let mut seen = BTreeSet::new();
    for QuestionRow { ids, questions } in task.rows(0, 3, 200) {
        let pairs = questions.len();
        seen.insert(pairs);
        assert_eq!(ids.len(), 40);
        let keys: BTreeSet<u32> = ids[..2 * pairs].iter().copied().step_by(2).collect();
        assert_eq!(keys.len(), pairs);
        assert!(keys.iter().all(|key| (4..16).contains(key)));
        let mut asked = BTreeSet::new();
        let mut filler = BTreeSet::from_iter(2 * pairs..40);
        for Question { at, evidence, answer } in questions {
            assert!(at >= 2 * pairs && evidence < 2 * pairs && evidence % 2 == 1);
            assert_eq!(ids[at], ids[evidence - 1]);
            assert_eq!((ids[at + 1], ids[evidence]), (answer, answer));
            assert!(task.answers().contains(&answer));
            assert!(filler.remove(&at) && filler.remove(&(at + 1)));
            asked.insert(ids[at]);
        }
        assert_eq!(asked, keys);
        assert!(filler.into_iter().all(|place| ids[place] < 4));
    }
    assert_eq!(seen, BTreeSet::from_iter(2..=8));
    // No room for anything else.
    let full = mqar(32, (8, 8)).init().unwrap();
    assert!(full.rows(0, 0, 20).iter().all(|row| row.ids.iter().all(|id| *id >= 4)));
}

#[test]
fn copying_says_scattered_tokens_in_their_order() {
    let task = copying(30).init().unwrap();
    assert_eq!((task.vocabulary(), task.answers()), (17, 5..17));
    let mut places = BTreeSet::new();
    for QuestionRow { ids, questions } in task.rows(1, 0, 200) {
        assert_eq!((ids.len(), questions.len(), ids[25]), (30, 5, 4));
        let items: Vec<u32> = ids[..25].iter().copied().filter(|id| *id > 3).collect();
        let answers: Vec<u32> = questions.iter().map(|question| question.answer).collect();
        assert_eq!(items, answers);
        assert_eq!(items.iter().collect::<BTreeSet<_>>().len(), 5);
        assert_eq!(ids[26..], answers[..4]);
        for (i, Question { at, evidence, answer }) in questions.into_iter().enumerate() {
            assert_eq!((at, ids[evidence]), (25 + i, answer));
            places.insert(evidence);
        }
    }
    assert_eq!(places, BTreeSet::from_iter(0..25));
}

/// The same rows with nothing given: every question is the sign.
#[test]
fn signs_ask_for_what_copying_says() {
    let config = copying(30);
    let (copying, signs) = (config.init().unwrap(), TaskConfig::Signs(config).init().unwrap());
    assert_eq!((signs.vocabulary(), signs.answers()), (copying.vocabulary(), copying.answers()));
    // Of twelve values any may come, since none has been seen.
    assert_eq!(signs.chance(), 1.0 / 12.0);
    for (given, asked) in copying.rows(1, 0, 20).into_iter().zip(signs.rows(1, 0, 20)) {
        assert_eq!(given.questions, asked.questions);
        assert_eq!(given.ids[..25], asked.ids[..25]);
        assert_eq!(asked.ids[25..], [4; 5]);
    }
}

#[test]
fn a_pass_key_stands_between_words_that_repeat_and_is_asked_for_at_the_end() {
    let task = passkey(40).init().unwrap();
    assert_eq!((task.vocabulary(), task.answers()), (15, 7..15));
    let mut starts = BTreeSet::new();
    for QuestionRow { ids, questions } in task.rows(2, 0, 600) {
        let key: Vec<u32> = questions.iter().map(|question| question.answer).collect();
        let start = ids.iter().position(|id| *id == 6).unwrap();
        starts.insert(start);
        assert_eq!((ids.len(), key.len(), ids[36]), (40, 4, 6));
        assert_eq!(key.iter().collect::<BTreeSet<_>>().len(), 4);
        assert_eq!(ids[start + 1..start + 5], key);
        assert_eq!(ids[37..], key[..3]);
        for (i, Question { at, evidence, .. }) in questions.into_iter().enumerate() {
            assert_eq!((at, evidence), (36 + i, start + 1 + i));
        }
        let shift = |i: usize| (ids[i] + 60 - i as u32) % 6;
        let words = (0..36).filter(|i| !(start..start + 5).contains(i));
        assert_eq!(words.map(shift).collect::<BTreeSet<_>>().len(), 1);
    }
    assert_eq!(starts, BTreeSet::from_iter(0..32));
}

#[test]
fn rows_are_those_of_their_seed_and_number() {
    for task in tasks(48) {
        let rows = task.rows(7, 3, 4);
        assert_eq!(rows, task.rows(7, 3, 4));
        // Whatever the number of others.
        assert_eq!(rows[..2], task.rows(7, 3, 2));
        assert_ne!(rows, task.rows(7, 4, 4));
        assert_ne!(rows, task.rows(8, 3, 4));
    }
    // And on every machine.
    let row = &mqar(12, (2, 2)).init().unwrap().rows(0, 0, 1)[0];
    assert_eq!(row.ids, [6, 16, 9, 22, 2, 3, 9, 22, 6, 16, 2, 1]);
}

/// Of copied tokens and digits those that came before are known not to be the last one.
#[test]
fn chance_is_what_is_left_to_guess() {
    assert_eq!(mqar(40, (2, 8)).init().unwrap().chance(), 1.0 / 8.0);
    assert_eq!(copying(30).init().unwrap().chance(), 1.0 / (12.0 - 4.0));
    assert_eq!(passkey(40).init().unwrap().chance(), 1.0 / (8.0 - 3.0));
}

/// The best that can be said of an answer by who sees the question's token, its ordinal, or both.
#[test]
fn answers_are_not_known_without_the_evidence() {
    for task in tasks(48) {
        let mut counts: BTreeMap<(usize, u32), BTreeMap<u32, f64>> = BTreeMap::new();
        for QuestionRow { ids, questions } in task.rows(3, 0, 12_000) {
            for (i, Question { at, answer, .. }) in questions.into_iter().enumerate() {
                for seen in [(i, u32::MAX), (usize::MAX, ids[at]), (i, ids[at])] {
                    *counts.entry(seen).or_default().entry(answer).or_default() += 1.0;
                }
            }
        }
        for (seen, answers) in counts {
            let all: f64 = answers.values().sum();
            let most = answers.values().copied().fold(0.0, f64::max) / all;
            let chance = task.chance();
            // Six standard deviations of a count.
            let noise = 6.0 * (chance * (1.0 - chance) / all).sqrt();
            assert!(most <= chance + noise, "{seen:?}: {most} of {all}, chance {chance}");
        }
    }
}

#[test]
fn only_answers_are_targets_and_packed_rows_share_an_anchor() {
    for task in tasks(40) {
        let rows = task.rows(0, 0, 5);
        let plain = QuestionBatch::stack(&rows).unwrap();
        assert_eq!((plain.batch.batch(), plain.batch.len()), (5, 40));
        assert_eq!(plain.batch.targets(), plain.questions.len());
        for (b, question) in &plain.questions {
            assert_eq!(plain.batch.labels[b * 40 + question.at], i64::from(question.answer));
        }
        let packed = QuestionBatch::packed(&rows, 2, Some(99)).unwrap();
        let (batch, n) = (&packed.batch, 81);
        assert_eq!((batch.batch(), batch.len()), (3, n));
        assert_eq!(packed.questions.len(), plain.questions.len());
        for ((b, q), (document, alone)) in packed.questions.iter().zip(&plain.questions) {
            let start = 1 + 40 * (document % 2);
            assert_eq!((*b, q.at), (document / 2, start + alone.at));
            assert_eq!((q.evidence, q.answer), (start + alone.evidence, alone.answer));
            assert_eq!(batch.labels[b * n + q.at], i64::from(q.answer));
        }
        assert_eq!(batch.targets(), packed.questions.len());
        let tokens = &batch.tokens;
        for b in 0..3 {
            assert_eq!((batch.ids[b * n], tokens.segment()[b * n]), (99, TokenMeta::ANCHOR));
        }
        assert_eq!(batch.ids[1..41], rows[0].ids);
        assert_eq!(batch.ids[41..n], rows[1].ids);
        assert_eq!((tokens.segment()[40], tokens.segment()[41]), (0, 1));
        assert_eq!((tokens.pos()[40], tokens.pos()[41]), (39, 0));
        // Rotary positions go on through the row; the last row is half padding.
        let rotary = tokens.rotary();
        assert_eq!(rotary[..n], (0..n as i32).collect::<Vec<_>>());
        assert!(tokens.segment()[2 * n + 41..].iter().all(|segment| *segment < 0));
    }
}

#[test]
fn sizes_that_cannot_be_are_named() {
    let field = |made: longburn::Result<()>| match made {
        Err(Error::Config { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    for (config, expected) in [
        (mqar(40, (0, 4)), "pairs"),
        (mqar(40, (5, 4)), "pairs"),
        (mqar(40, (2, 11)), "pairs"),
        (mqar(400, (2, 13)), "pairs"),
        (MqarConfig { values: 0, ..mqar(40, (2, 4)) }, "values"),
    ] {
        assert_eq!(field(config.init().map(drop)), expected, "{config:?}");
    }
    assert_eq!(field(copying(9).init().map(drop)), "items");
    assert_eq!(field(CopyingConfig { values: 5, ..copying(40) }.init().map(drop)), "items");
    assert_eq!(field(CopyingConfig { filler: 0, ..copying(40) }.init().map(drop)), "filler");
    assert_eq!(field(passkey(8).init().map(drop)), "digits");
    assert_eq!(field(HiddenKeyConfig { values: 4, ..passkey(40) }.init().map(drop)), "digits");
    assert!(passkey(9).init().is_ok() && copying(10).init().is_ok());
    let rows = passkey(9).init().unwrap().rows(0, 0, 1);
    assert_eq!(field(QuestionBatch::packed(&rows, 0, None).map(drop)), "documents per row");
    assert!(matches!(QuestionBatch::stack(&[]), Err(Error::Shape { .. })));
}
