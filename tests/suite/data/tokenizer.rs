use super::{bpe, corpus, message, sentencepiece, tokenizer};
use longburn::Error;
use longburn::datasets::{BpeConfig, Tokenizer, train_bpe};
use std::fs;

#[test]
fn trained_bpe_is_deterministic_and_lossless() {
    let one = bpe(320);
    let folder = tempfile::tempdir().unwrap();
    one.save(folder.path()).unwrap();
    let mut reversed = corpus();
    reversed.reverse();
    let config = BpeConfig::new(320).with_special(vec!["<|endoftext|>".into()]);
    train_bpe(reversed.iter(), &config).unwrap().save(folder.path().join("two.json")).unwrap();
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read("tokenizer.json"), read("two.json"));
    assert!(read("tokenizer_config.json").contains("PreTrainedTokenizerFast"));

    let again = Tokenizer::from_file(folder.path()).unwrap();
    assert_eq!(one.vocab_size(), 320);
    assert_eq!(again.special_ids().eos, Some(0));
    assert_eq!(again.token_id("<|endoftext|>"), Some(0));
    let text = "The harbour,\r\n\t 2026 · naïve 日本 🦀 \u{0} end";
    let ids = again.encode(text, true).unwrap();
    assert_eq!(again.decode(&ids, false).unwrap(), text);
    assert_eq!(again.encode("2026", false).unwrap().len(), 4);
    assert_eq!(again.encode_batch(&[text, ""], true).unwrap(), [ids, vec![]]);
    let merged =
        train_bpe(["2026 ".repeat(9)].iter(), &BpeConfig::new(260).with_single_digits(false));
    assert_eq!(merged.unwrap().encode("2026", false).unwrap().len(), 1);
    assert!(message(train_bpe(["a"].iter(), &BpeConfig::new(255))).contains("at least 256"));
}

#[test]
fn sentencepiece_template_and_config_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = sentencepiece(folder.path());
    // ▁ab=265, ▁a=263, c=262, é as two bytes; neither cut to 4 nor filled to 9.
    assert_eq!(tokenizer.encode("ab ac éa", true).unwrap(), [1, 265, 263, 262, 259, 198, 172, 260]);
    assert_eq!(tokenizer.encode("ab", false).unwrap(), [265]);
    assert_eq!(tokenizer.special_ids().bos, Some(1));
    assert_eq!(tokenizer.special_ids().eos, Some(2));
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(265));
}

#[test]
fn stream_gives_the_text_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let pieces = sentencepiece(folder.path());
    for (tokenizer, text) in
        [(tokenizer(), "naïve 🦀🦀 of  the river.\n"), (&pieces, "ab é ab  a🦀🦀🦀 abcabcabc")]
    {
        let ids = tokenizer.encode(text, true).unwrap();
        // Cut anywhere, also inside a character: the rest continues the text.
        for cut in 0..ids.len() {
            let mut stream = tokenizer.decode_stream(&ids[..cut], true);
            let mut out = String::new();
            for id in &ids[cut..] {
                let piece = stream.push(*id).unwrap().unwrap_or_default();
                assert!(!piece.contains('\u{fffd}'), "{piece:?} of {text:?} behind {cut}");
                out.push_str(&piece);
            }
            assert_eq!(stream.finish().unwrap(), None);
            let complete = |n: &usize| tokenizer.decode(&ids[..*n], true).unwrap();
            let shown = (0..=cut).rev().find(|n| !complete(n).ends_with('\u{fffd}')).unwrap();
            let before = complete(&shown);
            assert_eq!(format!("{before}{out}"), text, "behind {cut}");
        }
    }
    let crab = tokenizer().encode("🦀", false).unwrap();
    let mut stream = tokenizer().decode_stream(&[], true);
    assert_eq!(stream.push(crab[0]).unwrap(), None);
    assert_eq!(stream.finish().unwrap().as_deref(), Some("\u{fffd}"));
}

#[test]
fn f8_tokenizer_larger_than_model() {
    let tokenizer = tokenizer();
    tokenizer.check_model(320).unwrap();
    tokenizer.check_model(512).unwrap();
    let error = tokenizer.check_model(319).unwrap_err();
    assert!(matches!(error, Error::Tokenizer(_)));
    let text = error.to_string();
    assert!(text.contains("319") && text.contains("320") && text.contains("remedy"), "{text}");

    // A token added behind the vocabulary counts.
    let folder = tempfile::tempdir().unwrap();
    tokenizer.save(folder.path()).unwrap();
    let file = folder.path().join("tokenizer.json");
    let mut json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let mut added = json["added_tokens"][0].clone();
    (added["id"], added["content"]) = (320.into(), "<|user|>".into());
    json["added_tokens"].as_array_mut().unwrap().push(added);
    fs::write(&file, json.to_string()).unwrap();
    let added = Tokenizer::from_file(&file).unwrap();
    assert!(message(added.check_model(320)).contains("id is 320"));
    added.check_model(321).unwrap();

    fs::write(&file, "{\"version\": 3}").unwrap();
    assert!(message(Tokenizer::from_file(&file)).contains("tokenizer.json"));
    assert!(matches!(Tokenizer::from_file(folder.path().join("none")), Err(Error::Io { .. })));
}

#[test]
fn words_are_single_tokens() {
    let words = tokenizer().single_token_words(6, 1).unwrap();
    assert_eq!(words, tokenizer().single_token_words(6, 1).unwrap());
    assert_ne!(words, tokenizer().single_token_words(6, 2).unwrap());
    assert!(words.is_sorted());
    for (word, id) in &words {
        assert_eq!(tokenizer().encode(&format!("x{word}"), false).unwrap().last(), Some(id));
        let letters = word.strip_prefix(' ').unwrap();
        assert!((3..=9).contains(&letters.len()), "{word:?}");
        assert!(letters.bytes().all(|b| b.is_ascii_lowercase()), "{word:?}");
    }
    assert!(message(tokenizer().single_token_words(10_000, 0)).contains("10000"));
}
