use super::{message, numbered};
use longburn::datasets::{
    IGNORE, Pack, PackConfig, PackedSource, Side, TokenBatch, TokenDocument, WindowSampler,
};
use longburn::streams::{Purpose, Streams};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn drain(source: &mut PackedSource) -> Vec<TokenBatch> {
    std::iter::from_fn(|| source.next_batch().unwrap()).collect()
}

#[test]
fn d3_packing_leak() {
    let pack = |documents: Vec<TokenDocument>| {
        let config = PackConfig::new(16).with_segments(true).with_epochs(Some(1));
        let mut source = config.init(documents, 2, Streams::new(0)).unwrap();
        drain(&mut source).remove(0)
    };
    let batch = pack(numbered(&[5, 7, 12]));
    // 5 + 7 + 4 of 12, then the other 8 and padding.
    let segments: Vec<i32> = [(0, 5), (1, 7), (2, 4), (0, 8), (-1, 8)]
        .iter()
        .flat_map(|(s, n)| std::iter::repeat_n(*s, *n))
        .collect();
    assert_eq!(batch.tokens.segment(), segments);
    let positions: Vec<i32> = (0..5).chain(0..7).chain(0..4).chain(0..8).chain([0; 8]).collect();
    assert_eq!(batch.tokens.pos(), positions);
    // The last token of a document has no target, the last of a row has the next row's first.
    assert_eq!((batch.labels[4], batch.labels[11]), (IGNORE, IGNORE));
    assert_eq!((batch.labels[15], batch.labels[23]), (3004, IGNORE));
    assert!(batch.labels[24..].iter().all(|l| *l == IGNORE));
    assert_eq!(batch.source, "doc0, doc1, doc2");

    // Another first document of the same length leaves the others as they are.
    let mut documents = numbered(&[5, 7, 12]);
    documents[0] = TokenDocument { id: "other".into(), ids: vec![9; 5].into() };
    let changed = pack(documents);
    assert_ne!(changed.ids[..5], batch.ids[..5]);
    assert_eq!(changed.ids[5..], batch.ids[5..]);
    assert_eq!(changed.labels[5..], batch.labels[5..]);
    assert_eq!(changed.tokens, batch.tokens);
}

#[test]
fn long_documents_follow_the_policy() {
    let rows = |pack: Pack| {
        let config = PackConfig::new(4).with_pack(pack).with_segments(true).with_epochs(Some(1));
        let mut source = config.init(numbered(&[3, 6, 2]), 8, Streams::new(0)).unwrap();
        let batch = drain(&mut source).remove(0);
        let row = |ids: &[u32]| ids.iter().map(|id| *id as i64).collect::<Vec<_>>();
        let ids: Vec<_> = batch.ids.chunks(4).map(row).collect();
        (ids, batch.labels, source.report().clone())
    };
    let (ids, labels, report) = rows(Pack::Split);
    let expected = [[1000, 1001, 1002, 0], [2000, 2001, 2002, 2003], [2004, 2005, 3000, 3001]];
    assert_eq!(ids, expected);
    assert_eq!(labels[7], 2004);
    assert_eq!((report.kept.tokens, report.padding, report.lost_share()), (11, 1, 0.0));

    let (ids, labels, report) = rows(Pack::Truncate);
    assert_eq!(ids, [[1000, 1001, 1002, 0], [2000, 2001, 2002, 2003], [3000, 3001, 0, 0]]);
    assert_eq!(labels[7], IGNORE);
    assert_eq!((report.truncated.documents, report.truncated.tokens), (1, 2));

    let (ids, _, report) = rows(Pack::Drop);
    assert_eq!(ids, [[1000, 1001, 1002, 0], [3000, 3001, 0, 0]]);
    assert_eq!(report.dropped["longer than a row"].tokens, 6);
    assert!((report.lost_share() - 6.0 / 11.0).abs() < 1e-12);
}

#[test]
fn n4_lengths_zero_and_one() {
    let documents = numbered(&[3, 2]);
    for (len, batch) in [(0, 1), (4, 0)] {
        let packed = PackConfig::new(len).init(documents.clone(), batch, Streams::new(0));
        assert!(message(packed).contains("is 0; expected at least 1"));
        let sampled = WindowSampler::new(documents.clone(), len, batch, Streams::new(0));
        assert!(message(sampled).contains("is 0; expected at least 1"));
    }
    for pack in [Pack::Concat, Pack::Split] {
        let config = PackConfig::new(1).with_pack(pack).with_epochs(Some(1));
        let mut source = config.init(documents.clone(), 8, Streams::new(0)).unwrap();
        let batch = drain(&mut source).remove(0);
        assert_eq!(batch.ids, [1000, 1001, 1002, 2000, 2001]);
        assert_eq!(batch.labels, [1001, 1002, IGNORE, 2001, IGNORE]);
    }
    let sampler = WindowSampler::new(documents.clone(), 1, 4, Streams::new(0)).unwrap();
    assert_eq!(sampler.batch(0, 0).unwrap().len(), 1);
    let long = WindowSampler::new(documents, 4, 1, Streams::new(0));
    assert!(message(long).contains("none of 2 documents has 4 tokens"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn packing_conserves_tokens(
        lengths in prop::collection::vec(0_usize..40, 1..12),
        len in 1_usize..20,
        batch in 1_usize..4,
        pack in prop::sample::select(vec![Pack::Concat, Pack::Split, Pack::Truncate, Pack::Drop]),
        segments in any::<bool>(),
        eos in any::<bool>(),
        shuffle in any::<bool>(),
    ) {
        const EOS: u32 = 7;
        let documents = numbered(&lengths);
        let config = PackConfig::new(len)
            .with_pack(pack)
            .with_segments(segments)
            .with_eos(eos.then_some(EOS))
            .with_shuffle(shuffle)
            .with_epochs(Some(1));
        let Ok(mut source) = config.init(documents.clone(), batch, Streams::new(3)) else {
            let fits = |n: &usize| *n > 0 && (pack != Pack::Drop || n + usize::from(eos) <= len);
            prop_assert!(!lengths.iter().any(fits));
            return Ok(());
        };
        let batches = drain(&mut source);
        let report = source.report();
        let (mut seen, mut targets, mut padding) = (Vec::new(), Vec::new(), 0);
        for batch in &batches {
            prop_assert_eq!(batch.len(), len);
            for row in 0..batch.batch() {
                let mut last_segment = -1;
                for t in 0..len {
                    let at = row * len + t;
                    let (id, label) = (batch.ids[at], batch.labels[at]);
                    let (pos, segment) = (batch.tokens.pos()[at], batch.tokens.segment()[at]);
                    if segment < 0 {
                        padding += 1;
                        prop_assert_eq!(label, IGNORE);
                        continue;
                    }
                    if id != EOS {
                        seen.push(id);
                    }
                    if label != IGNORE {
                        // Within one document, the next token of it.
                        prop_assert!(label == id as i64 + 1 || (eos && label == EOS as i64));
                        targets.push(label);
                    }
                    let begins = t == 0 || (id != EOS && id / 1000 != batch.ids[at - 1] / 1000
                        && batch.ids[at - 1] != EOS) || (t > 0 && batch.ids[at - 1] == EOS);
                    if segments {
                        prop_assert_eq!(segment != last_segment, begins);
                        prop_assert_eq!(pos == 0, begins);
                    } else {
                        prop_assert_eq!((pos, segment), (t as i32, 0));
                    }
                    last_segment = segment;
                }
            }
        }
        let lost: u64 = report.dropped.values().map(|d| d.tokens).sum::<u64>() + report.truncated.tokens;
        prop_assert_eq!(seen.len() as u64, report.kept.tokens);
        prop_assert_eq!(seen.len() as u64 + lost, lengths.iter().sum::<usize>() as u64);
        prop_assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len());
        prop_assert_eq!(padding, report.padding);
        // Every token of a document but its first is a target exactly once.
        let firsts = seen.iter().filter(|id| *id % 1000 == 0).count();
        targets.retain(|t| *t != EOS as i64);
        prop_assert_eq!(targets.len(), seen.len() - firsts);
        prop_assert_eq!(targets.iter().collect::<BTreeSet<_>>().len(), targets.len());
    }

    #[test]
    fn packed_source_resumes_exactly(
        lengths in prop::collection::vec(0_usize..30, 1..8),
        len in 1_usize..16,
        stop in 0_usize..20,
        pack in prop::sample::select(vec![Pack::Concat, Pack::Split, Pack::Truncate]),
    ) {
        prop_assume!(lengths.iter().any(|n| *n > 0));
        let config = PackConfig::new(len).with_pack(pack).with_segments(true).with_shuffle(true);
        let make = || config.init(numbered(&lengths), 2, Streams::new(5)).unwrap();
        let mut source = make();
        for _ in 0..stop {
            source.next_batch().unwrap();
        }
        let json = serde_json::to_string(&source.cursor()).unwrap();
        let mut resumed = make();
        resumed.seek(serde_json::from_str(&json).unwrap()).unwrap();
        for _ in 0..20 {
            prop_assert_eq!(source.next_batch().unwrap(), resumed.next_batch().unwrap());
        }
    }
}

#[test]
fn epochs_are_shuffled_and_a_cursor_must_fit() {
    let config = PackConfig::new(10).with_shuffle(true).with_epochs(Some(2));
    let mut source = config.init(numbered(&[10; 12]), 12, Streams::new(1)).unwrap();
    let batches = drain(&mut source);
    let order = |b: &TokenBatch| b.ids.chunks(10).map(|row| row[0]).collect::<Vec<_>>();
    let (one, two) = (order(&batches[0]), order(&batches[1]));
    assert_ne!(one, two);
    assert_eq!(one.iter().collect::<BTreeSet<_>>(), two.iter().collect());
    let before = source.cursor();
    let mut wrong = before;
    (wrong.index, wrong.carry) = (3, 10);
    assert!(message(source.seek(wrong)).contains("the data that the run started with"));
    assert_eq!(source.cursor(), before);
}

#[test]
fn windows_are_a_function_of_step_and_micro_batch() {
    let documents = numbered(&[20, 9, 40, 10]);
    let sampler = WindowSampler::new(documents, 10, 3, Streams::new(4)).unwrap();
    assert_eq!(sampler.report().dropped["shorter than a window"].documents, 1);
    let batch = sampler.batch(17, 2).unwrap();
    assert_eq!(batch, sampler.batch(17, 2).unwrap());
    assert_ne!(batch.ids, sampler.batch(17, 3).unwrap().ids);
    assert_ne!(batch.ids, sampler.batch(18, 2).unwrap().ids);
    for step in 0..50 {
        let batch = sampler.batch(step, 0).unwrap();
        for (ids, labels) in batch.ids.chunks(10).zip(batch.labels.chunks(10)) {
            let next: Vec<i64> = ids[1..].iter().map(|id| *id as i64).collect();
            assert_eq!(labels[..9], next);
            let last = ids[9];
            let ends = [1019, 3039, 4009].contains(&last);
            assert_eq!(labels[9], if ends { IGNORE } else { last as i64 + 1 });
        }
    }
    // 11 + 31 + 1 windows, all of them drawn about equally often.
    let mut rng = Streams::new(4).rng(Purpose::Window, 0, 0, 0);
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..4300 {
        let window = sampler.window(&mut rng);
        *seen.entry((window.document.to_string(), window.start)).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 43);
    assert!(seen.values().all(|n| (55..150).contains(n)), "{seen:?}");
}

#[test]
fn rows_are_padded_on_either_side() {
    let rows = vec![vec![5, 6, 7], vec![8]];
    let right = TokenBatch::from_rows(rows.clone(), Side::Right, 0).unwrap();
    assert_eq!(right.ids, [5, 6, 7, 8, 0, 0]);
    assert_eq!(right.labels, [6, 7, IGNORE, IGNORE, IGNORE, IGNORE]);
    assert_eq!(right.tokens.segment(), [0, 0, 0, 0, -1, -1]);
    let left = TokenBatch::from_rows(rows, Side::Left, 0).unwrap();
    assert_eq!(left.ids, [5, 6, 7, 0, 0, 8]);
    assert_eq!(left.labels, [6, 7, IGNORE, IGNORE, IGNORE, IGNORE]);
    assert_eq!(left.tokens.segment(), [0, 0, 0, -1, -1, 0]);
    assert_eq!(left.tokens.pos(), [0, 1, 2, 0, 0, 0]);
    assert_eq!((left.batch(), left.len(), left.targets()), (2, 3, 2));
}
