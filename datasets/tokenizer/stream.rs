//! Text out of a stream of tokens, piece by piece.

use super::Tokenizer;
use crate::Result;

/// What a decoder writes for bytes that are no complete character (yet).
const INCOMPLETE: char = char::REPLACEMENT_CHARACTER;

/// Tokens of context that a decoder needs to place spaces and join bytes.
const CONTEXT: usize = 8;

/// Tokens that one character can be spread over.
const CHARACTER: usize = 4;

/// Decodes tokens one at a time into pieces whose concatenation is the decoding of the whole:
/// characters of several tokens come out when they are complete, and a leading space that a
/// decoder strips at the start of a text is kept in its middle.
#[derive(Clone, Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The tokens of the last piece, then those that have not come out yet.
    ids: Vec<u32>,
    /// Where the tokens that have not come out begin.
    pending: usize,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, context: &[u32], skip_special: bool) -> Self {
        // Begin and end between characters: some decoders give up on all bytes of a run that has
        // half a character at either end.
        let whole = |(from, to): &(usize, usize)| {
            tokenizer
                .decode(&context[*from..*to], skip_special)
                .is_ok_and(|text| !text.starts_with(INCOMPLETE) && !text.ends_with(INCOMPLETE))
        };
        let n = context.len();
        let (from, to) = (0..CHARACTER)
            .map(|cut| n.saturating_sub(cut))
            .flat_map(|to| (0..CHARACTER).map(move |more| (to.saturating_sub(CONTEXT + more), to)))
            .find(whole)
            .unwrap_or((n.saturating_sub(CONTEXT), n));
        Self { tokenizer, skip_special, ids: context[from..].to_vec(), pending: to - from }
    }

    /// Add a token; returns the text that is complete with it, if any.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.ids.push(id);
        let piece = self.rest()?;
        if piece.is_empty() || piece.ends_with(INCOMPLETE) {
            return Ok(None);
        }
        self.ids.drain(..self.pending);
        self.pending = self.ids.len();
        Ok(Some(piece))
    }

    /// The end of the stream: whatever has not come out, incomplete characters included.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn finish(self) -> Result<Option<String>> {
        Ok(Some(self.rest()?).filter(|piece| !piece.is_empty()))
    }

    /// What the pending tokens add to the text of those before them.
    fn rest(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.pending], self.skip_special)?;
        let all = self.tokenizer.decode(&self.ids, self.skip_special)?;
        match all.strip_prefix(&before) {
            Some(rest) => Ok(rest.to_string()),
            None => self.tokenizer.decode(&self.ids[self.pending..], self.skip_special),
        }
    }
}
