//! Data: tokenizer, sources, packing, sampling, pass keys.

use longburn::Error;
use longburn::datasets::source::{
    BadLines, CrateSourceConfig, JsonlSourceConfig, TextSourceConfig, open,
};
use longburn::datasets::synthetic::{
    PasskeyConfig, PasskeyPromptConfig, PasskeyTemplate, insert_statements, stratified_depth,
};
use longburn::datasets::{
    BpeConfig, Cursor, Document, DocumentSource, IGNORE, Pack, PackConfig, PackedSource, Side,
    TokenBatch, TokenDocument, Tokenizer, WindowSampler, split, tokenize, train_bpe,
};
use longburn::streams::{Purpose, Streams};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::sync::OnceLock;

const WORDS: [&str; 12] = [
    "river", "stone", "lamp", "window", "garden", "bridge", "letter", "market", "winter", "paper",
    "silver", "harbour",
];

fn corpus() -> Vec<String> {
    let sentence = |i: usize| {
        let word = |k: usize| WORDS[(i * 7 + k * 5) % WORDS.len()];
        format!(
            "The {} is near the {} {}.\nfn {}() {{ {} }}\n",
            word(0),
            word(1),
            word(2),
            word(3),
            i
        )
    };
    (0..300).map(sentence).collect()
}

fn bpe(vocab_size: usize) -> Tokenizer {
    let config = BpeConfig::new(vocab_size).with_special(vec!["<|endoftext|>".into()]);
    train_bpe(corpus().iter(), &config).unwrap()
}

fn tokenizer() -> &'static Tokenizer {
    static ONCE: OnceLock<Tokenizer> = OnceLock::new();
    ONCE.get_or_init(|| bpe(320))
}

/// A SentencePiece-like vocabulary: BOS by template, spaces as `▁`, bytes as a fallback.
fn sentencepiece(folder: &std::path::Path) -> Tokenizer {
    let mut vocab = vec!["<unk>".to_string(), "<s>".into(), "</s>".into()];
    vocab.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    vocab.extend(["▁", "a", "b", "c", "▁a", "ab", "▁ab"].map(String::from));
    let vocab: serde_json::Map<_, _> =
        vocab.into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
    let added = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst",
            "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false, "vocab": vocab,
            "merges": ["▁ a", "a b", "▁a b"]},
    });
    let file = folder.join("tokenizer.json");
    fs::write(&file, json.to_string()).unwrap();
    fs::write(folder.join("tokenizer_config.json"), r#"{"eos_token": {"content": "</s>"}}"#)
        .unwrap();
    Tokenizer::from_file(folder).unwrap()
}

fn document(id: &str, ids: impl IntoIterator<Item = u32>) -> TokenDocument {
    TokenDocument { id: id.into(), ids: ids.into_iter().collect() }
}

/// Documents whose tokens are all different: document d has d·1000, d·1000 + 1 ...
fn numbered(lengths: &[usize]) -> Vec<TokenDocument> {
    let one = |(d, n): (usize, &usize)| {
        let first = (d as u32 + 1) * 1000;
        document(&format!("doc{d}"), first..first + *n as u32)
    };
    lengths.iter().enumerate().map(one).collect()
}

fn drain(source: &mut PackedSource) -> Vec<TokenBatch> {
    std::iter::from_fn(|| source.next_batch().unwrap()).collect()
}

fn message<T>(result: longburn::Result<T>) -> String {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.to_string(),
    }
}

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
    assert_eq!(again.encode_batch(vec![text, ""], true).unwrap(), [ids, vec![]]);
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
        assert!(
            WORDS.iter().any(|w| word[1..].starts_with(&w[..3])
                || &word[1..] == "near"
                || &word[1..] == "the"),
            "{word:?}"
        );
    }
    assert!(message(tokenizer().single_token_words(10_000, 0)).contains("10000"));
}

#[test]
fn d2_empty_documents_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    put("a.txt", b"river");
    put("b.txt", b" \n\t ");
    put("c.txt", b"");
    put("d.txt", &[0xff, 0xfe, b'x']);
    put("e.bin", b"nul \0 byte");
    put("f.md", "\u{feff}lamp\r\n".as_bytes());
    put(".hidden", b"secret");
    fs::create_dir(folder.path().join("Sub")).unwrap();
    put("Sub/z.txt", b"stone");

    let mut source = TextSourceConfig::new(folder.path()).init().unwrap();
    let documents = source.read_all().unwrap();
    let names: Vec<_> = documents.iter().map(|d| (d.id.as_str(), d.text.as_str())).collect();
    assert_eq!(names, [("Sub/z.txt", "stone"), ("a.txt", "river"), ("f.md", "lamp\r\n")]);
    assert_eq!(source.report().kept.documents, 3);
    assert_eq!(source.report().kept.characters, 16);
    assert_eq!(source.report().dropped["empty"].documents, 2);
    assert_eq!(source.report().skipped["not UTF-8 text"], 2);

    let only_md = TextSourceConfig::new(folder.path()).with_extensions(Some(vec![".MD".into()]));
    assert_eq!(only_md.init().unwrap().read_all().unwrap().len(), 1);
    let none = TextSourceConfig::new(folder.path()).with_extensions(Some(vec!["rs".into()]));
    assert!(message(none.init()).contains("rs"));
    let empty = open(folder.path().join("c.txt")).unwrap().read_all();
    assert!(message(empty).contains("empty"));

    let documents =
        ["river", "<|endoftext|>", ""].map(|t| Document { id: t.into(), text: t.into() });
    let (kept, report) = tokenize(&documents, tokenizer(), true).unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(report.dropped["no tokens of its own"].documents, 2);
    assert_eq!(report.kept.tokens, kept[0].ids.len() as u64);

    let packed = [document("a", 1..4), document("none", [])];
    let source = PackConfig::new(4).init(packed, 1, Streams::new(0)).unwrap();
    assert_eq!(source.report().dropped["empty"].documents, 1);
    let nothing = PackConfig::new(4).init([document("none", [])], 1, Streams::new(0));
    assert!(matches!(nothing, Err(Error::Data(_))));
    assert!(TokenBatch::from_rows(vec![vec![1], vec![]], Side::Left, 0).is_err());
    assert!(TokenBatch::from_rows(vec![], Side::Left, 0).is_err());
}

#[test]
fn jsonl_names_the_line_or_skips_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.jsonl");
    let lines = [
        "\u{feff}{\"text\": \"one\", \"id\": \"first\"}\r\n",
        "\n",
        "{\"text\": \"  \"}\n",
        "{\"text\": 3}\n",
        "{\"body\": \"x\"}\n",
        "{\"text\": \n",
        "{\"text\": \"a line that is longer than sixty-four bytes, the cap of this test\"}\n",
        "{\"text\": \"naïve\"}",
    ];
    fs::write(&file, lines.concat()).unwrap();
    let config = JsonlSourceConfig::new(&file).with_line_cap(64);

    let mut source = config.clone().init().unwrap();
    assert_eq!(source.next_document().unwrap().unwrap().id, "first");
    for (line, reason) in [(4, "not a string"), (5, "no field `text`"), (6, "JSON"), (7, "64")] {
        let text = message(source.next_document());
        assert!(text.contains(&format!("a.jsonl:{line}:")) && text.contains(reason), "{text}");
    }
    let last = source.next_document().unwrap().unwrap();
    assert_eq!((last.id.as_str(), last.text.as_str()), ("a.jsonl:8", "naïve"));
    assert_eq!(source.next_document().unwrap(), None);

    fs::write(folder.path().join("b.jsonl"), b"{\"text\": \"two\"}\n\xff\n").unwrap();
    let mut skipping = JsonlSourceConfig::new(folder.path())
        .with_line_cap(64)
        .with_bad_lines(BadLines::Skip)
        .init()
        .unwrap();
    assert_eq!(skipping.read_all().unwrap().len(), 3);
    assert_eq!(skipping.report().skipped["bad line"], 5);
    assert_eq!(skipping.report().dropped["empty"].documents, 1);
    // A folder of nothing but .jsonl files is opened as lines, not as text.
    assert_eq!(open(folder.path()).unwrap().next_document().unwrap().unwrap().text, "one");
    let body = config.with_field("body").with_bad_lines(BadLines::Skip).init().unwrap().read_all();
    assert_eq!(body.unwrap()[0].text, "x");
}

#[test]
fn sources_go_on_where_a_cursor_stands() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        let lines: String = (0..4).map(|i| format!("{{\"text\": \"{name}{i}\"}}\n")).collect();
        fs::write(folder.path().join(format!("{name}.jsonl")), lines).unwrap();
    }
    let sources: [&dyn Fn() -> Box<dyn DocumentSource>; 2] =
        [&|| Box::new(JsonlSourceConfig::new(folder.path()).init().unwrap()), &|| {
            Box::new(TextSourceConfig::new(folder.path()).init().unwrap())
        }];
    for make in sources {
        let whole = make().read_all().unwrap();
        let mut source = make();
        for seen in 0..whole.len() {
            let json = serde_json::to_string(&source.cursor()).unwrap();
            let mut other = make();
            other.seek(&serde_json::from_str::<Cursor>(&json).unwrap()).unwrap();
            assert_eq!(other.read_all().unwrap(), whole[seen..]);
            source.next_document().unwrap();
        }
        let end = source.cursor();
        source.seek(&end).unwrap();
        assert_eq!(source.next_document().unwrap(), None);
        for wrong in
            [Cursor { file: 9, offset: 0, line: 0 }, Cursor { file: 0, offset: 3, line: 1 }]
        {
            assert!(message(source.seek(&wrong)).contains("not a place"));
        }
    }
}

#[test]
fn crates_of_a_lock_file_are_documents() {
    let home = tempfile::tempdir().unwrap();
    let registry = home.path().join("registry/src/index-1");
    let put = |root: &std::path::Path, path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put(&registry, "alpha-1.0.0/src/lib.rs", "mod b;");
    put(&registry, "alpha-1.0.0/src/b.rs", "fn b() {}\n");
    put(&registry, "alpha-1.0.0/README.md", "not Rust");
    put(&registry, "beta-0.1.0/lib.rs", &"é".repeat(60));
    put(&registry, "beta-0.2.0/lib.rs", &"e".repeat(99));
    put(&registry, "tiny-1.0.0/lib.rs", "//");
    let vendor = home.path().join("vendor");
    put(&vendor, "gamma/src/lib.rs", "fn gamma() {}");
    let package = |name: &str, version: &str, source: &str| {
        format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n{source}\n")
    };
    let registry_line = "source = \"registry+index\"";
    let lock: String = [
        package("alpha", "1.0.0", registry_line),
        package("beta", "0.1.0", registry_line),
        package("beta", "0.2.0", registry_line),
        package("gamma", "3.0.0", registry_line),
        package("missing", "1.0.0", registry_line),
        package("../../etc", "1", registry_line),
        package("own", "0.1.0", ""),
        package("tiny", "1.0.0", registry_line),
    ]
    .concat();
    let config = CrateSourceConfig::new(&lock).with_cargo_home(home.path()).with_vendor(&vendor);
    let texts = |min, max, enough| {
        let crates = config.clone().with_sizes(min, max, enough).read().unwrap();
        let texts = crates.documents.iter().map(|d| (d.id.clone(), d.text.clone()));
        (texts.collect::<Vec<_>>(), crates)
    };
    let owned = |id: &str, text: &str| (id.to_string(), text.to_string());
    let alpha = owned("alpha-1.0.0", "fn b() {}\nmod b;\n");
    let gamma = owned("gamma-3.0.0", "fn gamma() {}\n");

    let (within, crates) = texts(10, 50, 2);
    assert_eq!(within, [alpha.clone(), gamma.clone()]);
    assert_eq!(crates.report.skipped["crate not unpacked here"], 2);
    assert_eq!(crates.report.skipped["other version of a crate"], 1);
    assert_eq!(crates.report.skipped["crate larger than wanted"], 1);
    assert_eq!(crates.report.skipped["crate smaller than wanted"], 1);
    // Too few of that size: the larger ones too, cut, and the newest version of each.
    let (cut, other) = texts(10, 50, 3);
    assert_eq!(cut, [alpha, owned("beta-0.2.0", &"e".repeat(50)), gamma]);
    assert_eq!((other.report.truncated.documents, other.report.truncated.characters), (1, 50));
    assert_ne!(crates.sha256, other.sha256);
    assert_eq!(crates.sha256, texts(10, 50, 2).1.sha256);
    assert_eq!(crates.sha256.len(), 64);

    let nowhere = CrateSourceConfig::new(&lock).with_cargo_home(home.path().join("none")).read();
    assert!(message(nowhere).contains("--data PATH"));
    assert!(matches!(CrateSourceConfig::new("[[package").read(), Err(Error::Parse { .. })));
}

#[test]
fn split_is_by_document_and_complete() {
    let documents = |n: usize| -> Vec<Document> {
        let one = |i: usize| Document { id: format!("{:02}", n - i), text: String::new() };
        (0..n).map(one).collect()
    };
    let (train, held) = split(documents(13), 6).unwrap();
    let ids = |d: &[Document]| d.iter().map(|d| d.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&held), ["06", "12"]);
    assert_eq!(train.len(), 11);
    let mut other = documents(13);
    other.reverse();
    assert_eq!(split(other, 6).unwrap(), (train, held));
    assert_eq!(ids(&split(documents(2), 6).unwrap().1), ["02"]);
    assert!(message(split(documents(1), 6)).contains("at least two"));
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
    documents[0] = document("other", [9, 9, 9, 9, 9]);
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

    #[test]
    fn statements_stand_at_their_places(
        n in 0_usize..20,
        places in prop::collection::vec(0_usize..20, 0..5),
    ) {
        let ids: Vec<u32> = (0..n as u32).collect();
        let row = insert_statements(&ids, &[100, 101], &places);
        prop_assert_eq!(row.is_ok(), places.iter().all(|p| *p <= n));
        if let Ok(row) = row {
            let kept: Vec<u32> = row.iter().copied().filter(|id| *id < 100).collect();
            prop_assert_eq!(kept, ids);
            let mut found: Vec<usize> = (0..row.len())
                .filter(|i| row[*i] == 100)
                .map(|i| row[..i].iter().filter(|id| **id < 100).count())
                .collect();
            found.sort();
            let mut places = places;
            places.sort();
            prop_assert_eq!(found, places);
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

#[test]
fn passkey_rows_state_and_ask_for_the_key() {
    let config = PasskeyConfig::new().with_words(5).with_key_words(3);
    let passkey = config.init(tokenizer()).unwrap();
    assert!((passkey.chance() - 1.0 / 125.0).abs() < 1e-12);
    let text = "fn garden() { 1 }\n".repeat(80);
    let document = tokenizer().encode(&text, false).unwrap();
    let rng = |micro| Streams::new(0).rng(Purpose::Synthetic, 0, micro, 0);
    let decode = |ids: &[u32]| tokenizer().decode(ids, false).unwrap();

    let row = passkey.training_row(&document, 200, 3, &mut rng(0)).unwrap();
    assert_eq!(row.len(), 200);
    let shown = decode(&row);
    let key = decode(&row[197..]);
    assert_eq!(shown.matches(&format!("\n// The pass key is{key}.\n")).count(), 3);
    assert!(shown.ends_with(&format!("\n// The pass key is{key}")));
    assert_eq!(row, passkey.training_row(&document, 200, 3, &mut rng(0)).unwrap());
    assert_ne!(row, passkey.training_row(&document, 200, 3, &mut rng(1)).unwrap());

    let room = passkey.document_len(120, 1).unwrap();
    for (depth, place) in [(0.0, 0), (0.5, (room as f64 / 2.0).round() as usize), (1.0, room)] {
        let (prompt, answer) = passkey.evaluation_row(&document, 120, depth, &mut rng(2)).unwrap();
        assert_eq!((prompt.len(), answer.len()), (117, 3));
        assert_eq!(prompt[..place], document[..place]);
        let statement = format!("\n// The pass key is{}.\n", decode(&answer));
        assert!(decode(&prompt[place..]).starts_with(&statement));
        assert_eq!(decode(&prompt).matches(&statement).count(), 1);
        assert!(decode(&prompt).ends_with("\n// The pass key is"));
    }
    for depth in [-0.1, 1.1, f64::NAN] {
        let row = passkey.evaluation_row(&document, 120, depth, &mut rng(0));
        assert!(message(row).contains("depth"));
    }
    assert!(message(passkey.training_row(&document, 20, 3, &mut rng(0))).contains("of 20"));
    assert!(
        message(passkey.training_row(&document[..9], 200, 3, &mut rng(0))).contains("9 tokens")
    );
    assert!(PasskeyConfig::new().with_words(0).init(tokenizer()).is_err());
}

#[test]
fn passkey_prompts_have_length_and_depth() {
    let task = PasskeyPromptConfig::new().init().unwrap();
    let mut rng = Streams::new(0).rng(Purpose::Synthetic, 0, 0, 0);
    let folder = tempfile::tempdir().unwrap();
    let pieces = sentencepiece(folder.path());
    for (tokenizer, unit) in [(tokenizer(), 100), (&pieces, 120)] {
        for (len, depth) in [(600, 0.0), (1500, 0.37), (1500, 1.0)] {
            let sample = task.sample(tokenizer, len, depth, &mut rng).unwrap();
            let tokens = sample.ids.len() + sample.answer_ids.len();
            assert!(tokens <= len && tokens + unit > len, "{tokens} of {len}");
            assert_eq!(sample.answer.len(), 5);
            assert_eq!(sample.prompt.matches(&sample.answer).count(), 2);
            let place = sample.prompt.find(&sample.answer).unwrap() as f64;
            let share = place / sample.prompt.len() as f64;
            assert!((share - depth).abs() < 0.3 && (sample.depth - depth).abs() < 0.1);
            assert_eq!(tokenizer.decode(&sample.ids, true).unwrap(), sample.prompt);
            let whole = [&sample.ids[..], &sample.answer_ids].concat();
            let expected = format!("{} {}", sample.prompt, sample.answer);
            assert_eq!(tokenizer.decode(&whole, true).unwrap(), expected);
        }
    }
    assert!(message(task.sample(tokenizer(), 40, 0.5, &mut rng)).contains("of 40"));
    assert!(message(task.sample(tokenizer(), 600, 2.0, &mut rng)).contains("depth"));

    let file = folder.path().join("template.toml");
    let template =
        "task = \"\"\nfiller = \"Tick.\"\ninformation = \"It is {key}\"\nquestion = \"It is\"\n";
    fs::write(&file, template).unwrap();
    let own = PasskeyTemplate::from_file(&file).unwrap();
    let own = PasskeyPromptConfig::new().with_template(own).with_digits(2).init().unwrap();
    let sample = own.sample(tokenizer(), 60, 0.0, &mut rng).unwrap();
    assert!(sample.prompt.starts_with(&format!("It is {}\nTick. Tick.", sample.answer)));
    fs::write(&file, template.replace("{key}", "here")).unwrap();
    assert!(message(PasskeyTemplate::from_file(&file)).contains("information"));
    fs::write(&file, format!("{template}more = 1\n")).unwrap();
    assert!(matches!(PasskeyTemplate::from_file(&file), Err(Error::Parse { span: Some(_), .. })));
}

#[test]
fn depths_are_stratified() {
    let mut rng = Streams::new(0).rng(Purpose::Synthetic, 0, 0, 0);
    for bucket in 0..4 {
        let depth = stratified_depth(bucket, 4, &mut rng).unwrap();
        assert_eq!((depth * 4.0) as usize, bucket);
    }
    assert!(stratified_depth(4, 4, &mut rng).is_err());
}
