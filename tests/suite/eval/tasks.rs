//! Scoring by log-likelihood, as lm-evaluation-harness does it.

use super::{VOCABULARY, close, decoder, greedy, text};
use burn::tensor::Device;
use longburn::Error;
use longburn::attention::MixerConfig;
use longburn::datasets::{BpeConfig, Document, Tokenizer, train_bpe};
use longburn::kernel::TokenMeta;
use longburn::models::keymap::map_params;
use longburn::models::{Blocks, Decoder, ForwardOptions, ModelConfig, ids_tensor};
use longburn::training::eval::{
    ChoiceItem, ChoiceReport, Continuation, EncodedPair, LastWordItem, LastWordReport,
    LastWordScore, Loglikelihood, LoglikelihoodEval, RollingReport, choices, last_words, read_rows,
    rolling, rolling_windows,
};
use serde_json::json;

fn tokenizer() -> Tokenizer {
    let texts = vec!["the river ran past the mill and the river was wide. "; 20];
    let config = BpeConfig::new(280).with_special(vec!["<|endoftext|>".into()]);
    train_bpe(texts.into_iter(), &config).unwrap()
}

/// Every token has the same probability.
fn uniform(vocabulary: usize) -> Decoder {
    let config = ModelConfig::llama(vocabulary, 16, 1, 2);
    let model = Decoder::new(&config, &MixerConfig::Dense, 0, &Device::flex()).unwrap();
    map_params(model, |path| path.starts_with("norm").then(|| vec![0.0; 16]), |_| None)
}

fn pairs() -> Vec<Continuation> {
    let pair = |i: u32| Continuation {
        context: text(i, 1 + (i as usize * 5) % 17),
        continuation: text(100 + i, 1 + i as usize % 4),
    };
    (0..11).map(pair).collect()
}

/// log p of the continuation's tokens from the logits of the row alone, in f64.
fn by_hand(model: &Decoder, pair: &Continuation, max_len: usize) -> (f64, bool) {
    let all = [&pair.context[..], &pair.continuation].concat();
    let seen = &all[..all.len() - 1];
    let seen = &seen[seen.len().saturating_sub(max_len)..];
    let tokens = TokenMeta::contiguous(1, seen.len(), 0);
    let ids = ids_tensor(seen, 1, &Device::flex());
    let last = model.forward_ids(ids, &tokens, &ForwardOptions::infer(), vec![]).unwrap().last;
    let logits: Vec<f32> = model.logits(last).into_data().iter::<f32>().collect();
    let rows: Vec<&[f32]> = logits.chunks(VOCABULARY).collect();
    let (mut sum, mut greedy) = (0.0, true);
    for (row, target) in rows[rows.len() - pair.continuation.len()..].iter().zip(&pair.continuation)
    {
        let total: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
        sum += f64::from(row[*target as usize]) - total.ln();
        greedy &= row.iter().all(|l| *l <= row[*target as usize]);
    }
    (sum, greedy)
}

#[test]
fn log_likelihoods_equal_a_gather_by_hand_in_any_batch() {
    let model = decoder(5);
    let mut pairs = pairs();
    // What greedy decoding writes is greedy, and one other token ends that.
    let written = greedy(&model, &pairs[3].context, 3);
    pairs[3].continuation = written;
    pairs[4] = pairs[3].clone();
    pairs[4].continuation[1] = (pairs[4].continuation[1] + 1) % VOCABULARY as u32;
    let score = |pairs: &[Continuation], batch, max_len| {
        LoglikelihoodEval::new(max_len).with_batch_size(batch).eval(&model, pairs).unwrap()
    };
    for max_len in [64, 9] {
        let scores = score(&pairs, 8, max_len);
        let alone = score(&pairs, 1, max_len);
        let reversed: Vec<_> = pairs.iter().rev().cloned().collect();
        let reversed = score(&reversed, 3, max_len).into_iter().rev();
        for (((pair, got), alone), reversed) in pairs.iter().zip(&scores).zip(&alone).zip(reversed)
        {
            let (sum, greedy) = by_hand(&model, pair, max_len);
            close(got.sum, sum, 1e-5);
            close(got.sum, alone.sum, 1e-5);
            close(got.sum, reversed.sum, 1e-5);
            assert_eq!((got.greedy, got.tokens), (greedy, pair.continuation.len()));
            let seen = pair.context.len() + pair.continuation.len() - 1;
            assert_eq!(got.cut, seen.saturating_sub(max_len));
        }
        assert!(scores[3].greedy && !scores[4].greedy || max_len < 64);
        assert!(max_len == 64 || scores.iter().any(|score| score.cut > 0));
    }
}

#[test]
fn log_likelihoods_refuse_what_they_cannot_score() {
    let model = decoder(0);
    let pair = |context: &[u32], continuation: &[u32]| {
        let pair = Continuation { context: context.into(), continuation: continuation.into() };
        LoglikelihoodEval::new(3).eval(&model, &[pair]).unwrap_err()
    };
    let long = pair(&[1], &[1, 2, 3, 4]).to_string();
    assert!(long.contains("4 tokens long") && long.contains("max_len = 3"), "{long}");
    assert!(matches!(pair(&[], &[1]), Error::Shape { .. }));
    assert!(matches!(pair(&[1], &[]), Error::Shape { .. }));
    assert!(matches!(pair(&[1], &[VOCABULARY as u32]), Error::Tokenizer(_)));
    let nan = |path: &str| path.starts_with("norm").then(|| vec![f32::NAN; 16]);
    let broken = map_params(decoder(0), nan, |_| None);
    let pair = Continuation { context: vec![1], continuation: vec![2] };
    let error = LoglikelihoodEval::new(3).eval(&broken, &[pair]).unwrap_err();
    assert!(matches!(error, Error::Evaluation { .. }), "{error}");
}

#[test]
fn pairs_are_encoded_as_the_harness_does() {
    let tokenizer = tokenizer();
    let encode = |a: &str, b: &str| EncodedPair::encode(&tokenizer, a, b);
    assert_eq!(encode("the mill: ", "river").unwrap(), encode("the mill:", " river").unwrap());
    let pair = encode("the mill:", " river").unwrap();
    assert!(!pair.joined);
    assert_eq!(tokenizer.decode(&pair.pair.continuation, false).unwrap(), " river");
    assert_eq!(tokenizer.decode(&pair.pair.context, false).unwrap(), "the mill:");
    // Without context: behind BOS, which is not doubled where the text begins with it.
    let bos = tokenizer.special_ids().bos.unwrap();
    let empty = encode("", "river").unwrap();
    assert_eq!(empty.pair.context, [bos]);
    assert_eq!(empty, encode("", "<|endoftext|>river").unwrap());
    assert!(encode("the", "").is_err() && encode("", "").is_err());

    // BOS by template, and merges across the border.
    let folder = tempfile::tempdir().unwrap();
    let pieces = crate::data::sentencepiece(folder.path());
    let id = |token: &str| pieces.token_id(token).unwrap();
    let pair = EncodedPair::encode(&pieces, "a a", "bc").unwrap();
    assert!(pair.joined);
    assert_eq!(pair.pair.context, [1, id("▁a"), id("▁a")]);
    assert_eq!(pair.pair.continuation, [id("c")]);
    let marked = EncodedPair::encode(&pieces, "<s>a", " a").unwrap();
    assert_eq!(marked.pair.context.iter().filter(|token| **token == 1).count(), 1);
}

#[test]
fn choices_by_sum_character_and_byte() {
    let tokenizer = tokenizer();
    let model = uniform(tokenizer.vocab_size());
    let item = |choices: [&str; 2], gold| ChoiceItem {
        context: "past the mill:".into(),
        choices: choices.map(String::from).into(),
        gold,
    };
    let tokens = |text: &str| tokenizer.encode(&format!(" {text}"), false).unwrap().len() as f64;
    let (short, long) = ("z", "the river the river the river");
    assert!(tokens(short) < tokens(long) && tokens(short) > tokens(long) / long.len() as f64);
    let (wide, narrow) = ("éé", "zzz");
    assert!(tokens(wide) / 2.0 > tokens(narrow) / 3.0);
    assert!(tokens(wide) / 4.0 < tokens(narrow) / 3.0);
    let items = [item([short, long], 1), item([wide, narrow], 0)];
    let eval = LoglikelihoodEval::new(64);
    let scores = choices(&model, &tokenizer, &items, &eval).unwrap();
    let nats = (tokenizer.vocab_size() as f64).ln();
    close(scores[0].choices[1].sum, -nats * tokens(long), 1e-4);
    let rights = |i: usize| (scores[i].right, scores[i].right_norm, scores[i].right_bytes);
    assert_eq!(rights(0), (false, true, true));
    assert_eq!(rights(1), (tokens(wide) < tokens(narrow), false, true));
    let report = ChoiceReport::of(&scores).unwrap();
    assert_eq!((report.items, report.acc_norm.value, report.acc_bytes.value), (2, 0.5, 1.0));
    close(report.acc_norm.se.unwrap(), 0.5, 1e-12);
    assert_eq!(ChoiceReport::of(&scores[..1]).unwrap().acc.se, None);
    assert!(ChoiceReport::of(&[]).is_err());
    // Of equals the first.
    let tie = [item(["river", "river"], 0), item(["river", "river"], 1)];
    let scores = choices(&model, &tokenizer, &tie, &eval).unwrap();
    assert!(scores[0].right && !scores[1].right);
}

#[test]
fn last_words_are_scored_per_word() {
    let tokenizer = tokenizer();
    let model = uniform(tokenizer.vocab_size());
    let words = ["the mill and the river", "past the zzz"];
    let items = words.map(|text| LastWordItem::from_row(&json!({ "text": text })).unwrap());
    assert_eq!((&*items[1].context, &*items[1].word), ("past the", "zzz"));
    let scores = last_words(&model, &tokenizer, &items, &LoglikelihoodEval::new(64)).unwrap();
    let tokens: usize = scores.iter().map(|score| score.word.tokens).sum();
    let report = LastWordReport::of(&scores).unwrap();
    close(report.perplexity.ln(), tokens as f64 / 2.0 * (tokenizer.vocab_size() as f64).ln(), 1e-5);
    let sure = Loglikelihood { sum: 0.0, greedy: true, tokens: 3, cut: 0 };
    let sure = LastWordReport::of(&[LastWordScore { word: sure, joined: false }]).unwrap();
    assert_eq!((sure.perplexity, sure.acc.value), (1.0, 1.0));
    for bad in [json!({"text": "word"}), json!({"text": "word "}), json!({"body": "a b"})] {
        assert!(LastWordItem::from_row(&bad).is_err(), "{bad}");
    }
}

#[test]
fn rolling_predicts_every_token_once() {
    for (n, max_len, context) in [(10, 4, 1), (10, 4, 3), (13, 5, 5), (1, 4, 2), (0, 4, 1)] {
        let ids: Vec<u32> = (1..=n).collect();
        let windows = rolling_windows(&ids, 0, max_len, context).unwrap();
        let predicted: Vec<u32> = windows.iter().flat_map(|w| w.continuation.clone()).collect();
        assert_eq!(predicted, ids);
        for window in &windows {
            assert!(window.context.len() + window.continuation.len() <= max_len + 1);
            assert_eq!(window.context.last().unwrap() + 1, window.continuation[0]);
        }
    }
    assert!(rolling_windows(&[1], 0, 4, 0).is_err() && rolling_windows(&[1], 0, 4, 5).is_err());

    let tokenizer = tokenizer();
    let model = uniform(tokenizer.vocab_size());
    let texts = ["the river  ran\npast ", "the mill é"];
    let documents = texts.map(|text| Document { id: text.into(), text: text.into() });
    let items = rolling(&model, &tokenizer, &documents, 5, 2).unwrap();
    assert_eq!((items[0].words, items[1].words, items[1].bytes), (5, 3, 11));
    let report = RollingReport::of(items);
    let tokens: usize = texts.iter().map(|t| tokenizer.encode(t, false).unwrap().len()).sum();
    let bits = tokens as f64 * (tokenizer.vocab_size() as f64).log2();
    close(report.bits_per_byte, bits / (20.0 + 11.0), 1e-5);
    close(report.word_perplexity.log2(), bits / 8.0, 1e-5);
    close(report.byte_perplexity.log2(), report.bits_per_byte, 1e-9);
    close(report.token_perplexity, tokenizer.vocab_size() as f64, 1e-2);
}

#[test]
fn rows_of_choices_have_two_shapes() {
    let prompt = "Q: {question}\nA:";
    let row = json!({"query": "Two and two is", "choices": ["four", "five"], "gold": 0});
    let item = ChoiceItem::from_row(&row, prompt).unwrap();
    assert_eq!((&*item.context, item.gold), ("Two and two is", 0));
    let arc = json!({"question": "What is wet?", "answerKey": "B",
        "choices": {"text": ["sand", "rain"], "label": ["A", "B"]}});
    let item = ChoiceItem::from_row(&arc, prompt).unwrap();
    assert_eq!((&*item.context, item.gold), ("Q: What is wet?\nA:", 1));
    for (row, reason) in [
        (json!({"query": "x", "choices": ["a"], "gold": 1}), "number 1 of 1"),
        (json!({"query": "x", "choices": ["a"], "gold": -1}), "gold"),
        (json!({"query": "x", "choices": ["a", 3], "gold": 0}), "choices"),
        (json!({"query": "x", "choices": ["a", ""], "gold": 0}), "empty"),
        (json!({"choices": ["a"], "gold": 0}), "query"),
        (
            json!({"question": "x", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "C"}),
            "C",
        ),
        (json!([1]), "query"),
    ] {
        let error = ChoiceItem::from_row(&row, prompt).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, "{\"text\": \"a b\"}\n\n{\"text\": \"c d\"}\n{\"text\": 1}\n").unwrap();
    assert_eq!(read_rows(&path, 2, LastWordItem::from_row).unwrap().len(), 2);
    let error = read_rows(&path, 9, LastWordItem::from_row).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl:4:") && error.contains("`text`"), "{error}");
    std::fs::write(&path, "\n").unwrap();
    assert!(read_rows(&path, 9, LastWordItem::from_row).is_err());
}
