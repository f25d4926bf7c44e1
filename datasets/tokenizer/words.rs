//! The words of byte-level BPE (GPT-2's pattern), without the general machinery.
//!
//! The `tokenizers` crate tracks the origin of every byte through a backtracking pattern, about
//! 1 MB/s; training and encoding need words only. ASCII stretches are split here, and each word is
//! merged once per text; everything else goes through the crate, with the same ids.

use super::failed;
use crate::Result;
use std::collections::HashMap;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{Model, ModelWrapper, PreTokenizerWrapper};

/// The pattern's classes of ASCII characters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Space,
    Letter,
    Digit,
    Other,
}

fn class(byte: u8) -> Class {
    match byte {
        b' ' | b'\t'..=b'\r' => Class::Space,
        b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
        b'0'..=b'9' => Class::Digit,
        _ => Class::Other,
    }
}

/// A stretch of text that merges never cross.
pub(super) enum Piece<'a> {
    /// One ASCII word.
    Word(&'a str),
    /// Any number of words with characters that the classes above do not know.
    Foreign(&'a str),
}

/// Splits text into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Splitter {
    pub(super) single_digits: bool,
}

impl Splitter {
    /// The splitter that gives what `pre_tokenizer` does, if there is one.
    pub(super) fn of(pre_tokenizer: &PreTokenizerWrapper) -> Option<Self> {
        let plain = |p: &ByteLevel| !p.add_prefix_space && p.use_regex;
        match pre_tokenizer {
            PreTokenizerWrapper::ByteLevel(p) if plain(p) => Some(Self { single_digits: false }),
            PreTokenizerWrapper::Sequence(sequence) => match sequence.as_ref() {
                [PreTokenizerWrapper::Digits(d), PreTokenizerWrapper::ByteLevel(p)]
                    if d.individual_digits && plain(p) =>
                {
                    Some(Self { single_digits: true })
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// Hand the pieces of `text` to `each`, in order.
    pub(super) fn pieces<'a>(
        self,
        text: &'a str,
        mut each: impl FnMut(Piece<'a>) -> Result<()>,
    ) -> Result<()> {
        let mut rest = text;
        while !rest.is_empty() {
            let (stretch, behind) = rest.split_at(stretch_end(rest.as_bytes()));
            rest = behind;
            if !stretch.is_ascii() {
                each(Piece::Foreign(stretch))?;
                continue;
            }
            let mut start = 0;
            while start < stretch.len() {
                let end = self.word_end(stretch.as_bytes(), start);
                each(Piece::Word(&stretch[start..end]))?;
                start = end;
            }
        }
        Ok(())
    }

    /// End of the word that begins at `start` of an ASCII stretch.
    fn word_end(self, bytes: &[u8], start: usize) -> usize {
        let class_at = |i: usize| bytes.get(i).map(|byte| class(*byte));
        let run = |from: usize, of: Class| {
            from + bytes[from..].iter().take_while(|byte| class(**byte) == of).count()
        };
        if bytes[start] == b'\'' {
            for ending in ["s", "t", "re", "ve", "m", "ll", "d"] {
                if bytes[start + 1..].starts_with(ending.as_bytes()) {
                    return start + 1 + ending.len();
                }
            }
        }
        // One space joins the word behind it; a single digit has been cut out before.
        let joins =
            |next: Class| next != Class::Space && !(self.single_digits && next == Class::Digit);
        let first =
            start + usize::from(bytes[start] == b' ' && class_at(start + 1).is_some_and(joins));
        match class(bytes[first]) {
            Class::Digit if self.single_digits => first + 1,
            Class::Space => {
                let end = run(start, Class::Space);
                let cut = self.single_digits && class_at(end) == Some(Class::Digit);
                // The last of several spaces is left to the word behind them.
                if end == bytes.len() || cut || end - start == 1 { end } else { end - 1 }
            }
            of => run(first, of),
        }
    }
}

/// End of the first stretch that is ASCII, or of the shortest one around a foreign character.
///
/// Stretches end in front of a space that follows a visible ASCII character: a word ends there
/// whatever stands on either side.
fn stretch_end(bytes: &[u8]) -> usize {
    let visible = |byte: u8| byte.is_ascii() && class(byte) != Class::Space;
    let ends = |i: usize| class(bytes[i]) == Class::Space && visible(bytes[i - 1]);
    let foreign = bytes.iter().position(|byte| !byte.is_ascii()).unwrap_or(bytes.len());
    if foreign == bytes.len() {
        return foreign;
    }
    let before = (1..foreign).rev().find(|i| ends(*i));
    before.or_else(|| (foreign + 1..bytes.len()).find(|i| ends(*i))).unwrap_or(bytes.len())
}

/// An ASCII word in the alphabet of byte-level vocabularies.
pub(super) fn byte_level(word: &str) -> String {
    let shifted = |byte: u8| match byte {
        0..=b' ' => 0x100 + u32::from(byte),
        0x7f => 0x121,
        _ => u32::from(byte),
    };
    word.bytes().filter_map(|byte| char::from_u32(shifted(byte))).collect()
}

/// Encodes with a [`Splitter`], where the tokenizer is one that this can stand for.
#[derive(Clone, Debug)]
pub(super) struct WordEncoder {
    splitter: Splitter,
    /// Texts of added tokens: where one occurs, the crate cuts it out first.
    added: Vec<String>,
    /// What the template puts in front and behind.
    around: (Vec<u32>, Vec<u32>),
}

impl WordEncoder {
    pub(super) fn of(inner: &tokenizers::Tokenizer) -> Option<Self> {
        let splitter = inner.get_pre_tokenizer().and_then(Splitter::of)?;
        let deterministic = match inner.get_model() {
            ModelWrapper::BPE(bpe) => bpe.dropout.is_none_or(|p| p == 0.0),
            _ => false,
        };
        if inner.get_normalizer().is_some() || !deterministic {
            return None;
        }
        let ids = |special| Some(inner.encode_fast("a", special).ok()?.get_ids().to_vec());
        let (plain, special) = (ids(false)?, ids(true)?);
        let at = special.windows(plain.len().max(1)).position(|window| window == plain)?;
        let around = (special[..at].to_vec(), special[at + plain.len()..].to_vec());
        let added = inner.get_added_vocabulary().get_vocab().keys().cloned().collect();
        Some(Self { splitter, added, around })
    }

    /// Ids of `text`; `None` where added tokens occur in it.
    pub(super) fn encode(
        &self,
        inner: &tokenizers::Tokenizer,
        text: &str,
        add_special: bool,
    ) -> Option<Result<Vec<u32>>> {
        if self.added.iter().any(|token| text.contains(token)) {
            return None;
        }
        let (front, behind) = &self.around;
        let mut ids = if add_special { front.clone() } else { Vec::new() };
        let mut known: HashMap<&str, Vec<u32>> = HashMap::new();
        let done = self.splitter.pieces(text, |piece| {
            match piece {
                Piece::Word(word) => match known.get(word) {
                    Some(found) => ids.extend(found),
                    None => {
                        let tokens =
                            inner.get_model().tokenize(&byte_level(word)).map_err(failed)?;
                        let found: Vec<u32> = tokens.iter().map(|token| token.id).collect();
                        ids.extend(&found);
                        known.insert(word, found);
                    }
                },
                Piece::Foreign(text) => {
                    ids.extend(inner.encode_fast(text, false).map_err(failed)?.get_ids());
                }
            }
            Ok(())
        });
        if add_special {
            ids.extend(behind);
        }
        Some(done.map(|()| ids))
    }
}

#[cfg(test)]
mod tests {
    use crate::datasets::{BpeConfig, train_bpe};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn words_are_those_of_the_crate(
            text in "([ \n\t\r]{0,3}|['sdtlrevm]{1,3}|[a-c]{1,3}|[0-9]{1,3}|[.;#_\u{7f}\u{1}]|[éß²\u{a0}日\u{301}]|<s>){0,25}",
            single_digits in any::<bool>(),
        ) {
            let config = BpeConfig::new(290)
                .with_single_digits(single_digits)
                .with_special(vec!["<s>".into()]);
            let sample = "ab abc  12 123\n\n\t bc's we'll .. é éß #; ab\r\n";
            let tokenizer = train_bpe([sample].iter(), &config).unwrap();
            prop_assert!(tokenizer.words.is_some());
            let expected = tokenizer.inner.encode_fast(text.as_str(), true).unwrap();
            prop_assert_eq!(tokenizer.encode(&text, true).unwrap(), expected.get_ids());
        }
    }
}
