//! Which length a dynamic table is made for, call after call.

/// The memory of one rotary module of `transformers`: its dynamic table grows with the longest
/// sequence seen, stays there, and shrinks back only when a sequence shorter than L comes.
///
/// Longburn's own tables depend on the sequence at hand alone; this is for who has to reproduce
/// a series of calls.
#[derive(Clone, Debug)]
pub struct LengthHistory {
    original: usize,
    longest: usize,
}

impl LengthHistory {
    /// Nothing longer than `original` (L) was seen yet.
    pub fn new(original: usize) -> Self {
        Self { original, longest: original }
    }

    /// A call with a sequence of `length` tokens; the length that its table is made for.
    pub fn observe(&mut self, length: usize) -> usize {
        self.longest = self.longest.max(length);
        if length < self.original {
            self.longest = self.original;
        }
        self.longest
    }
}
