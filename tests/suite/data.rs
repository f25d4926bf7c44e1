//! Data: tokenizer, sources, packing, sampling, pass keys.

mod cache;
mod faults;
mod mixture;
mod packing;
mod passkey;
mod questions;
mod sources;
mod tokenizer;

pub(crate) use faults::{write_parquet, zstd};

use longburn::datasets::{BpeConfig, TokenDocument, Tokenizer, train_bpe};
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
pub(crate) fn sentencepiece(folder: &std::path::Path) -> Tokenizer {
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

/// Documents whose tokens are all different: document d has d·1000, d·1000 + 1 ...
fn numbered(lengths: &[usize]) -> Vec<TokenDocument> {
    let one = |(d, n): (usize, &usize)| {
        let first = (d as u32 + 1) * 1000;
        TokenDocument { id: format!("doc{d}"), ids: (first..first + *n as u32).collect() }
    };
    lengths.iter().enumerate().map(one).collect()
}

pub(crate) fn message<T>(result: longburn::Result<T>) -> String {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.to_string(),
    }
}
