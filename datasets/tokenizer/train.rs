//! Training of a byte-level BPE vocabulary.

use super::words::{Piece, Splitter, byte_level};
use super::{Tokenizer, failed};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Map;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{
    AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    PreTokenizerWrapper, Trainer,
};

/// Settings of [`train_bpe`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BpeConfig {
    /// Tokens in all: special tokens, the 256 bytes and merges.
    pub vocab_size: usize,
    /// Every digit a token of its own.
    #[serde(default = "yes")]
    pub single_digits: bool,
    /// Special tokens, which get the first ids.
    #[serde(default)]
    pub special: Vec<String>,
}

fn yes() -> bool {
    true
}

impl BpeConfig {
    /// Single digits, no special tokens.
    pub fn new(vocab_size: usize) -> Self {
        Self { vocab_size, single_digits: true, special: Vec::new() }
    }

    /// Choose whether digits stay single.
    pub fn with_single_digits(mut self, single_digits: bool) -> Self {
        self.single_digits = single_digits;
        self
    }

    /// Choose the special tokens.
    pub fn with_special(mut self, special: Vec<String>) -> Self {
        self.special = special;
        self
    }
}

/// Learn a byte-level BPE vocabulary; equal texts give equal tokenizers, in any order of texts.
///
/// # Errors
/// When `vocab_size` has no room for the bytes and special tokens.
pub fn train_bpe<S: AsRef<str> + Send>(
    texts: impl Iterator<Item = S> + Send,
    config: &BpeConfig,
) -> Result<Tokenizer> {
    let least = 256 + config.special.len();
    if config.vocab_size < least {
        return Err(Error::config(
            "tokenizer",
            "vocab_size",
            config.vocab_size,
            format!("at least {least}: 256 bytes and {} special tokens", config.special.len()),
        ));
    }
    let bytes = ByteLevel::new(false, false, true);
    let pre_tokenizer = if config.single_digits {
        let steps: Vec<PreTokenizerWrapper> = vec![Digits::new(true).into(), bytes.into()];
        Sequence::new(steps).into()
    } else {
        PreTokenizerWrapper::from(bytes)
    };
    let special = config.special.iter().map(|s| AddedToken::from(s.clone(), true)).collect();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(config.vocab_size)
        .show_progress(false)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let splitter = Splitter { single_digits: config.single_digits };
    trainer.feed(texts, |text| Ok(words(splitter, &pre_tokenizer, text)?)).map_err(failed)?;
    let mut model = BPE::default();
    let special = trainer.train(&mut model).map_err(failed)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    tokenizer.with_post_processor(Some(bytes));
    tokenizer.with_decoder(Some(bytes));
    tokenizer.add_special_tokens(&special);
    Tokenizer::new(tokenizer, Map::new(), "trained vocabulary")
}

/// The words of a text in the byte-level alphabet.
fn words(
    splitter: Splitter,
    pre_tokenizer: &PreTokenizerWrapper,
    text: &str,
) -> Result<Vec<String>> {
    let mut words = Vec::new();
    splitter.pieces(text, |piece| {
        match piece {
            Piece::Word(word) => words.push(byte_level(word)),
            Piece::Foreign(text) => {
                let mut split = PreTokenizedString::from(text);
                pre_tokenizer.pre_tokenize(&mut split).map_err(failed)?;
                let pieces = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
                words.extend(pieces.into_iter().map(|(word, _, _)| word.to_string()));
            }
        }
        Ok(())
    })?;
    Ok(words)
}
