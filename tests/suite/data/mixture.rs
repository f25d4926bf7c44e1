use super::{message, numbered};
use longburn::datasets::{Mixture, MixtureCursor, PackConfig, PackedSource};
use longburn::streams::Streams;
use longburn::training::BatchSource;

const LEN: usize = 6;

fn part(lengths: &[usize], epochs: Option<u64>) -> PackedSource {
    let config = PackConfig::new(LEN).with_shuffle(true).with_epochs(epochs);
    config.init(numbered(lengths), 1, Streams::new(7)).unwrap()
}

/// Two sources whose ids do not overlap.
fn parts(epochs: Option<u64>) -> [PackedSource; 2] {
    let mut other = numbered(&[11, 20, 5]);
    for document in &mut other {
        document.ids = document.ids.iter().map(|id| id + 100_000).collect();
    }
    let config = PackConfig::new(LEN).with_shuffle(true).with_epochs(epochs);
    [part(&[9, 14, 30], epochs), config.init(other, 1, Streams::new(7)).unwrap()]
}

fn mixed(weights: [f64; 2], batch: usize, epochs: Option<u64>) -> Mixture {
    let parts = weights.into_iter().zip(parts(epochs)).collect();
    Mixture::new(parts, batch).unwrap()
}

#[test]
fn a_mixture_is_its_parts_in_their_shares() {
    let mut mixture = mixed([3.0, 1.5], 4, None);
    let mut alone = parts(None);
    for batches in 1..=40_u64 {
        let batch = mixture.next_batch().unwrap().unwrap();
        for row in batch.ids.chunks(LEN) {
            let part = usize::from(row.iter().all(|id| *id >= 100_000));
            assert!(part == 1 || row.iter().all(|id| *id < 100_000));
            assert_eq!(row, alone[part].next_batch().unwrap().unwrap().ids);
        }
        let rows = mixture.rows();
        assert_eq!(rows[0] + rows[1], 4 * batches);
        assert!((rows[0] as f64 - 8.0 * batches as f64 / 3.0).abs() < 1.0, "{rows:?}");
    }
}

#[test]
fn a_mixture_goes_on_where_its_cursor_stands() {
    for stop in [0, 1, 5, 13] {
        let mut mixture = mixed([1.0, 2.0], 3, None);
        for _ in 0..stop {
            mixture.next_batch().unwrap();
        }
        let cursor = BatchSource::cursor(&mixture);
        let mut resumed = mixed([1.0, 2.0], 3, None);
        let text = cursor.to_string();
        BatchSource::seek(&mut resumed, &serde_json::from_str(&text).unwrap()).unwrap();
        for _ in 0..12 {
            assert_eq!(mixture.next_batch().unwrap(), resumed.next_batch().unwrap());
        }
    }
    let mut mixture = mixed([1.0, 1.0], 1, None);
    let before = mixture.cursor();
    assert!(message(mixture.seek(&MixtureCursor::default())).contains("0 sources"));
    let mut outside = before.clone();
    outside.parts[1].place.index = 99;
    assert!(message(mixture.seek(&outside)).contains("does not lie"));
    assert_eq!(mixture.cursor(), before);
    let wrong = serde_json::json!({"epoch": 1});
    assert!(message(BatchSource::seek(&mut mixture, &wrong)).contains("no place in a mixture"));
}

#[test]
fn a_source_at_its_end_leaves_its_share() {
    let mut mixture = mixed([1.0, 1.0], 2, Some(1));
    let mut ids = Vec::new();
    while let Some(batch) = mixture.next_batch().unwrap() {
        let real = batch.ids.iter().zip(batch.tokens.segment()).filter(|(_, s)| **s >= 0);
        ids.extend(real.map(|(id, _)| *id));
    }
    assert_eq!(ids.len(), 9 + 14 + 30 + 11 + 20 + 5);
    // 53 and 36 tokens in rows of 6.
    assert_eq!(mixture.rows(), [9, 6]);
    assert_eq!(mixture.report().kept.tokens, 89);
    let cursor = mixture.cursor();
    let mut resumed = mixed([1.0, 1.0], 2, Some(1));
    resumed.seek(&cursor).unwrap();
    assert_eq!(resumed.next_batch().unwrap(), None);
}

#[test]
fn mixtures_that_cannot_be_are_refused() {
    let refused = |parts, batch| message(Mixture::new(parts, batch));
    assert!(refused(vec![], 1).contains("at least one source"));
    assert!(refused(vec![(1.0, part(&[9], None))], 0).contains("batch"));
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let parts = vec![(1.0, part(&[9], None)), (weight, part(&[9], None))];
        assert!(refused(parts, 1).contains("weight of source 1"));
    }
    let other = PackConfig::new(5).init(numbered(&[9]), 1, Streams::new(0)).unwrap();
    assert!(refused(vec![(1.0, part(&[9], None)), (1.0, other)], 1).contains("row length"));
}
