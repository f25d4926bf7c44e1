//! Text from ids that arrive one by one.

use crate::Result;

/// Turns ids into text as they come. A character, or a space that only the next word shows, may
/// take several tokens: text is handed out once later tokens cannot change it.
///
/// `decode` turns ids into text, as a tokenizer does.
pub struct TextStream<F> {
    decode: F,
    ids: Vec<u32>,
    /// Ids before this have been handed out and are no longer looked at.
    context: usize,
    /// Ids before this have been handed out; from `context` on they give the next piece its
    /// left neighbours.
    shown: usize,
}

impl<F: FnMut(&[u32]) -> Result<String>> TextStream<F> {
    /// Start behind `prompt`, whose text is not handed out again.
    pub fn new(prompt: &[u32], decode: F) -> Self {
        // A few neighbours are enough for any rule about spaces.
        let ids = prompt[prompt.len().saturating_sub(NEIGHBOURS)..].to_vec();
        Self { decode, shown: ids.len(), ids, context: 0 }
    }

    /// Take the next id; the text that is now certain, often none.
    ///
    /// # Errors
    /// What `decode` returns.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.ids.push(id);
        let piece = self.pending()?;
        // An incomplete character decodes to the replacement character.
        if piece.is_empty() || piece.ends_with('\u{FFFD}') {
            return Ok(None);
        }
        self.context = self.shown;
        self.shown = self.ids.len();
        Ok(Some(piece))
    }

    /// The rest, when no id follows.
    ///
    /// # Errors
    /// What `decode` returns.
    pub fn finish(mut self) -> Result<String> {
        self.pending()
    }

    fn pending(&mut self) -> Result<String> {
        let before = (self.decode)(&self.ids[self.context..self.shown])?;
        let all = (self.decode)(&self.ids[self.context..])?;
        // Not a plain prefix where an incomplete character became whole.
        let same = before.chars().zip(all.chars()).take_while(|(a, b)| a == b);
        let same: usize = same.map(|(a, _)| a.len_utf8()).sum();
        Ok(all[same..].to_string())
    }
}

/// Tokens of the prompt that are kept as neighbours of the first new one.
const NEIGHBOURS: usize = 6;
