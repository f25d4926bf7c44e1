//! Text to token ids and back, from and to a Hugging Face `tokenizer.json`.

mod stream;
mod train;
mod words;

pub use stream::DecodeStream;
pub use train::{BpeConfig, train_bpe};

use crate::streams::{Draw, Purpose, Streams};
use crate::{Error, Result};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::ops::Range;
use std::path::Path;
use words::WordEncoder;

/// Ids of the special tokens that have a role, where the tokenizer has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Begins a sequence.
    pub bos: Option<u32>,
    /// Ends a document.
    pub eos: Option<u32>,
    /// Fills rows.
    pub pad: Option<u32>,
    /// Stands for what the vocabulary lacks.
    pub unk: Option<u32>,
}

/// Field of `tokenizer_config.json` of each role, and the names it has by custom; a file without
/// the field is searched for those.
const ROLES: [(&str, &[&str]); 4] = [
    ("bos_token", &["<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>"]),
    ("eos_token", &["</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>"]),
    ("pad_token", &["<pad>", "[PAD]", "<|padding|>"]),
    ("unk_token", &["<unk>", "[UNK]"]),
];

/// A tokenizer as `tokenizer.json` describes it.
///
/// Truncation and padding that the file asks for are switched off: nothing is cut silently, and
/// rows are padded where batches are made.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// `tokenizer_config.json`, kept whole so that what is not understood survives a save.
    config: Map<String, Value>,
    special: SpecialIds,
    vocab_size: usize,
    words: Option<WordEncoder>,
}

impl Tokenizer {
    /// Read a `tokenizer.json`, or the one in a folder; a `tokenizer_config.json` beside it names
    /// the roles of the special tokens.
    ///
    /// # Errors
    /// When a file is missing, is not a tokenizer, or has no tokens.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        let bytes = std::fs::read(&file).map_err(|e| Error::io(&file, e))?;
        let inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| {
            Error::Tokenizer(format!(
                "{}: {e} (remedy: use the `tokenizer.json` of a fast tokenizer, \
                 `AutoTokenizer.from_pretrained(..).save_pretrained(DIR)` writes one)",
                file.display()
            ))
        })?;
        let beside = file.with_file_name("tokenizer_config.json");
        let config = match std::fs::read(&beside) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| Error::Parse {
                file: beside.display().to_string(),
                message: format!("{e} (remedy: get it again from where the checkpoint is from)"),
                text: None,
                span: None,
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Map::new(),
            Err(e) => return Err(Error::io(beside, e)),
        };
        Self::new(inner, config, &file.display().to_string())
    }

    fn new(
        mut inner: tokenizers::Tokenizer,
        config: Map<String, Value>,
        name: &str,
    ) -> Result<Self> {
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        let vocab_size =
            inner.get_vocab(true).values().max().map(|id| *id as usize + 1).ok_or_else(|| {
                Error::Tokenizer(format!(
                    "{name}: the vocabulary is empty (remedy: get the file again)"
                ))
            })?;
        let [bos, eos, pad, unk] = ROLES.map(|(field, names)| match named(&config, field) {
            Some(token) => inner.token_to_id(token),
            None => names.iter().find_map(|token| inner.token_to_id(token)),
        });
        let special = SpecialIds { bos, eos, pad, unk };
        let words = WordEncoder::of(&inner);
        Ok(Self { inner, config, special, vocab_size, words })
    }

    /// Ids of `text`; `add_special` lets the tokenizer's own template add its tokens (a BOS, say).
    ///
    /// # Errors
    /// When the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let by_words = self.words.as_ref();
        if let Some(ids) = by_words.and_then(|words| words.encode(&self.inner, text, add_special)) {
            return ids;
        }
        let encoding = self.inner.encode_fast(text, add_special).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of `text`, nothing added, and the bytes that each stands for: together the whole text,
    /// each byte once. A character of several tokens belongs to the first of them, a space that a
    /// tokenizer passes over to the token behind it.
    ///
    /// # Errors
    /// When the tokenizer cannot represent the text.
    pub fn encode_ranges(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let encoding = self.inner.encode(text, false).map_err(failed)?;
        let mut end = 0;
        let range = |(id, (_, to)): (&u32, &(usize, usize))| {
            let from = end;
            end = end.max(*to);
            (*id, from..end)
        };
        Ok(encoding.get_ids().iter().zip(encoding.get_offsets()).map(range).collect())
    }

    /// [`encode`](Self::encode) of many texts, on all threads.
    ///
    /// # Errors
    /// When the tokenizer cannot represent a text.
    pub fn encode_batch(&self, texts: &[&str], add_special: bool) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text, add_special)).collect()
    }

    /// Text of `ids`; ids outside the vocabulary (rows of a padded embedding) have none.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(failed)
    }

    /// Decode token by token what is generated behind `context` (empty at the start of a text).
    pub fn decode_stream(&self, context: &[u32], skip_special: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, context, skip_special)
    }

    /// The largest id, added tokens included, plus one.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of a token by its written form in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Ids of the special tokens that have a role.
    pub fn special_ids(&self) -> SpecialIds {
        self.special
    }

    /// Special tokens by their role, as chat templates know them: `bos_token`, `eos_token` ...
    pub fn special_tokens(&self) -> Vec<(&'static str, String)> {
        let SpecialIds { bos, eos, pad, unk } = self.special;
        let token = |((field, _), id): ((&'static str, _), Option<u32>)| {
            let by_id = || id.and_then(|id| self.inner.id_to_token(id));
            Some((field, named(&self.config, field).map(str::to_string).or_else(by_id)?))
        };
        ROLES.into_iter().zip([bos, eos, pad, unk]).filter_map(token).collect()
    }

    /// Whether `id` is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        added.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// Check that every id has a row in an embedding of `embedding_rows` rows; more rows than
    /// tokens (a padded vocabulary) are fine.
    ///
    /// # Errors
    /// Names the largest id and the number of rows.
    pub fn check_model(&self, embedding_rows: usize) -> Result<()> {
        if self.vocab_size <= embedding_rows {
            return Ok(());
        }
        Err(Error::Tokenizer(format!(
            "the largest token id is {}, but the model's embedding has {embedding_rows} rows \
             (remedy: use the tokenizer of this checkpoint, or resize the embedding to {} rows)",
            self.vocab_size - 1,
            self.vocab_size
        )))
    }

    /// SHA-256 over everything that decides the ids, hexadecimal.
    ///
    /// # Errors
    /// When the tokenizer cannot be written as JSON.
    pub fn fingerprint(&self) -> Result<String> {
        super::fingerprint(&self.inner.to_string(false).map_err(failed)?)
    }

    /// Write to a `.json` file, or `tokenizer.json` and `tokenizer_config.json` into a folder,
    /// which is made where it does not exist.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let write =
            |file: &Path, text: String| std::fs::write(file, text).map_err(|e| Error::io(file, e));
        let tokenizer = self.inner.to_string(true).map_err(failed)?;
        if path.extension().is_some_and(|e| e == "json") {
            return write(path, tokenizer);
        }
        std::fs::create_dir_all(path).map_err(|e| Error::io(path, e))?;
        write(&path.join("tokenizer.json"), tokenizer)?;
        let mut config = self.config.clone();
        config.entry("tokenizer_class").or_insert(json!("PreTrainedTokenizerFast"));
        config.entry("clean_up_tokenization_spaces").or_insert(json!(false));
        let SpecialIds { bos, eos, pad, unk } = self.special;
        for ((field, _), id) in ROLES.into_iter().zip([bos, eos, pad, unk]) {
            if let Some(token) = id.and_then(|id| self.inner.id_to_token(id)) {
                config.entry(field).or_insert(json!(token));
            }
        }
        write(&path.join("tokenizer_config.json"), format!("{:#}\n", Value::Object(config)))
    }

    /// `n` words that are one token each where they follow another word: ` [a-z]{3,9}`, drawn by
    /// `seed`, in alphabetical order, with their ids.
    ///
    /// # Errors
    /// When the vocabulary has fewer such words.
    pub fn single_token_words(&self, n: usize, seed: u64) -> Result<Vec<(String, u32)>> {
        let mut words = Vec::new();
        for (token, id) in self.inner.get_vocab(false) {
            // The written forms of a leading space in byte-level and SentencePiece vocabularies.
            let Some(word) = token.strip_prefix('Ġ').or_else(|| token.strip_prefix('▁')) else {
                continue;
            };
            let fits =
                (3..=9).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_lowercase());
            if fits && self.encode(&format!("a {word}"), false)?.last() == Some(&id) {
                words.push((format!(" {word}"), id));
            }
        }
        if words.len() < n {
            return Err(Error::Tokenizer(format!(
                "the vocabulary has {} words of 3 to 9 small letters that are one token; {n} are \
                 needed (remedy: a larger vocabulary, or fewer words)",
                words.len()
            )));
        }
        // The vocabulary is a hash map: order it before drawing.
        words.sort();
        Streams::new(seed).rng(Purpose::Synthetic, 0, 0, 0).shuffle(&mut words);
        words.truncate(n);
        words.sort();
        Ok(words)
    }
}

/// The token that `tokenizer_config.json` names for a role.
fn named<'a>(config: &'a Map<String, Value>, field: &str) -> Option<&'a str> {
    match config.get(field) {
        Some(Value::String(token)) => Some(token),
        Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
        _ => None,
    }
}

fn failed(error: tokenizers::Error) -> Error {
    Error::Tokenizer(error.to_string())
}
