//! Which tokens form which chunk. Every document of every row has chunks of its own, counted from
//! its beginning, so that a packed row is what its documents are one by one; and the n-th chunks
//! of all documents are worked on together.

use crate::attention::newton_schulz::NewtonSchulz;
use longburn_kernels::TokenMeta;
use std::cmp::Reverse;
use std::ops::Range;

/// What earlier calls left of each row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Carry<'a> {
    /// Document that the row is in; negative where there was none yet.
    pub segment: &'a [i32],
    /// Tokens of its last chunk, at most C.
    pub pending: &'a [usize],
    /// Tokens per row for which the buffers have room.
    pub room: usize,
}

/// A document as far as this call sees it.
struct Document {
    row: usize,
    segment: i32,
    /// Whether its beginning was in an earlier call.
    carried: bool,
    /// Tokens of an earlier call that come first, at most C.
    start: usize,
    /// Where the buffers of its row begin, behind all tokens.
    buffer: usize,
    /// The new tokens, as `row·T + t`; at least one.
    tokens: Vec<usize>,
    /// Whether its row ends in it.
    last: bool,
}

impl Document {
    fn len(&self) -> usize {
        self.start + self.tokens.len()
    }

    /// Place of token `i` among all tokens and then all buffers.
    fn source(&self, i: usize) -> usize {
        if i < self.start { self.buffer + i } else { self.tokens[i - self.start] }
    }

    /// What chunk `c` asks.
    fn asking(&self, c: usize, chunk: usize) -> Range<usize> {
        self.start.max(c * chunk)..self.len().min((c + 1) * chunk)
    }
}

/// The n-th chunks of all documents that have so many.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wave {
    /// Queries read with the initial weights: of documents that begin here.
    pub fresh: usize,
    /// Documents read with weights of their own ..
    pub own: usize,
    /// .. and the queries of each; shorter ones are filled up.
    pub width: usize,
    /// So many documents, the first ones, learn from their chunk and go on.
    pub updates: usize,
}

/// What the next call finds of a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct After {
    pub segment: i32,
    /// 0 for the initial weights, then those that the rows had before, then those of the documents
    /// that ended, in the order in which they did.
    pub weights: usize,
    /// Where the tokens of its last chunk come from.
    pub pending: Vec<usize>,
}

/// How a call goes.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub waves: Vec<Wave>,
    /// Token `row·T + t` of every query, wave by wave.
    pub queries: Vec<usize>,
    /// Query of every token; one behind the last for padding.
    pub answers: Vec<usize>,
    /// Where every key comes from, wave by wave: tokens, then buffers.
    pub keys: Vec<usize>,
    /// Rows whose weights are read in the first wave.
    pub carried: Vec<usize>,
    /// Weights with which the documents that are updated begin, as in [`After::weights`].
    pub first: Vec<usize>,
    /// Of every row.
    pub after: Vec<After>,
}

impl Plan {
    /// Chunks of `chunk` tokens; `carry` is what earlier calls left.
    pub(super) fn new(tokens: &TokenMeta, chunk: usize, carry: Option<Carry<'_>>) -> Self {
        let chunks = |d: &Document| d.len().div_ceil(chunk);
        let mut documents = documents(tokens, carry);
        // Those that go on are then always the first ones.
        documents.sort_by_key(|d| Reverse(chunks(d)));
        let before = |d: &Document| if d.carried { 1 + d.row } else { 0 };

        let mut plan = Self { after: untouched(tokens, carry), ..Self::default() };
        let mut answers = vec![usize::MAX; tokens.batch() * tokens.len()];
        let mut ended = 1 + carry.map_or(0, |_| tokens.batch());
        for c in 0..documents.first().map_or(0, chunks) {
            let live = documents.partition_point(|d| chunks(d) > c);
            let updates = documents.partition_point(|d| chunks(d) > c + 1);
            let (fresh, own): (Vec<_>, Vec<_>) =
                documents[..live].iter().partition(|d| c == 0 && !d.carried);
            let width = own.iter().map(|d| d.asking(c, chunk).len()).max().unwrap_or(0);
            let mut ask = |document: &Document, width: usize| {
                let asking = document.asking(c, chunk);
                let filling = width.saturating_sub(asking.len());
                for i in asking {
                    answers[document.source(i)] = plan.queries.len();
                    plan.queries.push(document.source(i));
                }
                plan.queries.extend(std::iter::repeat_n(document.tokens[0], filling));
            };
            fresh.iter().for_each(|document| ask(document, 0));
            own.iter().for_each(|document| ask(document, width));
            if c == 0 {
                plan.carried = own.iter().map(|d| d.row).collect();
                plan.first = documents[..updates].iter().map(before).collect();
            }
            for document in &documents[..updates] {
                plan.keys.extend((c * chunk..(c + 1) * chunk).map(|i| document.source(i)));
            }
            for (i, document) in documents[updates..live].iter().enumerate() {
                if document.last {
                    plan.after[document.row] = After {
                        segment: document.segment,
                        weights: if c == 0 { before(document) } else { ended + i },
                        pending: (c * chunk..document.len()).map(|i| document.source(i)).collect(),
                    };
                }
            }
            if c > 0 {
                ended += live - updates;
            }
            let fresh = fresh.iter().map(|d| d.asking(c, chunk).len()).sum();
            plan.waves.push(Wave { fresh, own: own.len(), width, updates });
        }
        let none = plan.queries.len();
        plan.answers = answers.into_iter().map(|a| a.min(none)).collect();
        plan
    }

    /// Multiplications and additions of one head: 6·d·d_h for each token that is read, 12·d·d_h
    /// for each that is learned from, and those of the orthogonalisation of each step.
    pub(super) fn operations(&self, d: usize, d_h: usize, orthogonal: bool) -> u64 {
        let read = self.answers.iter().filter(|a| **a < self.queries.len()).count();
        let steps: usize = self.waves.iter().map(|wave| wave.updates).sum();
        let products = (6 * read + 12 * self.keys.len()) as u64 * (d * d_h) as u64;
        match orthogonal {
            true => products + steps as u64 * 3 * NewtonSchulz::operations(d_h, d),
            false => products,
        }
    }
}

/// Rows as they are before any token.
fn untouched(tokens: &TokenMeta, carry: Option<Carry<'_>>) -> Vec<After> {
    let row = |row: usize| match carry {
        None => After { segment: -1, weights: 0, pending: Vec::new() },
        Some(carry) => {
            let buffer = tokens.batch() * tokens.len() + row * carry.room;
            After {
                segment: carry.segment[row],
                weights: 1 + row,
                pending: (buffer..buffer + carry.pending[row]).collect(),
            }
        }
    };
    (0..tokens.batch()).map(row).collect()
}

/// Runs of tokens of one segment, padding left out.
fn documents(tokens: &TokenMeta, carry: Option<Carry<'_>>) -> Vec<Document> {
    let (batch, len) = (tokens.batch(), tokens.len());
    let mut found: Vec<Document> = Vec::new();
    for row in 0..batch {
        let before = found.len();
        for token in row * len..(row + 1) * len {
            let segment = tokens.segment()[token];
            if segment < 0 {
                continue;
            }
            match found[before..].last_mut() {
                Some(document) if document.segment == segment => document.tokens.push(token),
                previous => {
                    let carry = carry.filter(|c| c.segment[row] == segment && previous.is_none());
                    found.push(Document {
                        row,
                        segment,
                        carried: carry.is_some(),
                        start: carry.map_or(0, |c| c.pending[row]),
                        buffer: batch * len + row * carry.map_or(0, |c| c.room),
                        tokens: vec![token],
                        last: false,
                    });
                }
            }
        }
        if let Some(document) = found[before..].last_mut() {
            document.last = true;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_rows_are_taken_chunk_by_chunk() {
        let plan = Plan::new(&TokenMeta::contiguous(2, 7, 0), 3, None);
        let wave = |fresh, own, width, updates| Wave { fresh, own, width, updates };
        assert_eq!(plan.waves, [wave(6, 0, 0, 2), wave(0, 2, 3, 2), wave(0, 2, 1, 0)]);
        assert_eq!(plan.queries, [0, 1, 2, 7, 8, 9, 3, 4, 5, 10, 11, 12, 6, 13]);
        assert_eq!(plan.keys, [0, 1, 2, 7, 8, 9, 3, 4, 5, 10, 11, 12]);
        assert_eq!(plan.answers[6..8], [12, 3]);
        assert_eq!(plan.after[1], After { segment: 0, weights: 2, pending: vec![13] });
    }

    #[test]
    fn documents_begin_anew_and_padding_is_nobody() {
        let tokens = TokenMeta::packed(&[vec![2, 5], vec![4]], 8).unwrap();
        let plan = Plan::new(&tokens, 3, None);
        let wave = |fresh, own, width, updates| Wave { fresh, own, width, updates };
        // By number of chunks: the second document of row 0, the one of row 1, the first.
        assert_eq!(plan.waves, [wave(8, 0, 0, 2), wave(0, 2, 2, 0)]);
        assert_eq!(plan.queries, [2, 3, 4, 8, 9, 10, 0, 1, 5, 6, 11, 8]);
        assert_eq!(plan.keys, [2, 3, 4, 8, 9, 10]);
        assert_eq!(plan.answers[7], 12);
        assert_eq!(plan.after[0], After { segment: 1, weights: 1, pending: vec![5, 6] });
    }

    #[test]
    fn a_full_buffer_waits_for_the_next_token() {
        let carry = |pending| Carry { segment: &[0, 0], pending, room: 3 };
        let tokens = TokenMeta::contiguous(2, 1, 3);
        let plan = Plan::new(&tokens, 3, Some(carry(&[3, 2])));
        let wave = |fresh, own, width, updates| Wave { fresh, own, width, updates };
        assert_eq!(plan.waves, [wave(0, 2, 1, 1), wave(0, 1, 1, 0)]);
        assert_eq!((plan.keys, plan.first), (vec![2, 3, 4], vec![1]));
        assert_eq!(plan.after[0], After { segment: 0, weights: 3, pending: vec![0] });
        assert_eq!(plan.after[1], After { segment: 0, weights: 2, pending: vec![5, 6, 1] });
        // Padding leaves a row as it was.
        let padding = TokenMeta::new(2, 1, vec![0, 0], vec![0, -1]).unwrap();
        let plan = Plan::new(&padding, 3, Some(carry(&[1, 2])));
        assert_eq!(plan.after[1], After { segment: 0, weights: 2, pending: vec![5, 6] });
        assert_eq!(plan.answers, [0, 1]);
    }
}
