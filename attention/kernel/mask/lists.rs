//! Blocks of keys that were chosen for each block of queries, at run time.

use super::BlockKind;
use crate::Error;
use std::ops::Range;
use std::sync::Arc;

/// Which blocks of keys every block of queries may see, per row and query head; cheap to clone.
///
/// Blocks are of token *indices* of one call, padding included. A list takes pairs away from what
/// the mask's rules let through and never adds one: on the diagonal a causal mask stays causal.
///
/// ```
/// use longburn_kernels::{BlockList, Mask};
/// // One row, one head, 6 tokens in blocks of 2: the last block sees the first and itself.
/// let chosen = [vec![0], vec![1], vec![0, 2]];
/// let list = BlockList::from_lists([1, 1, 6, 6], [2, 2], &chosen)?;
/// let mask = Mask::causal(1, 6, 1).with_blocks(list)?;
/// assert_eq!(mask.pairs(), 3 + 3 + (4 + 3));
/// # Ok::<(), longburn_kernels::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct BlockList {
    /// `[B, H, T, S]`
    tokens: [usize; 4],
    /// Queries and keys per block.
    block: [usize; 2],
    /// Numbers of blocks.
    numbers: (usize, usize),
    /// Words of a row of key blocks.
    words: usize,
    /// One bit per block, `[B, H, query block, words]`.
    bits: Arc<Vec<u64>>,
}

impl BlockList {
    /// From a function of (row, query head, query block, key block).
    ///
    /// # Shapes
    /// tokens: `[B, H, T, S]`; block: queries and keys per block, of which the last may be shorter.
    ///
    /// # Errors
    /// For blocks of 0 tokens, and for more of them than memory holds.
    pub fn from_fn(
        tokens: [usize; 4],
        block: [usize; 2],
        seen: impl Fn(usize, usize, usize, usize) -> bool,
    ) -> Result<Self, Error> {
        let mut list = Self::empty(tokens, block)?;
        let (rows, columns) = list.numbers();
        for n in 0..tokens[0] * tokens[1] * rows {
            let (b, h, q) = (n / rows / tokens[1], n / rows % tokens[1], n % rows);
            (0..columns).filter(|k| seen(b, h, q, *k)).for_each(|k| list.set(n, k));
        }
        Ok(list)
    }

    /// From the key blocks of every (row, query head, query block), in this order.
    ///
    /// # Errors
    /// As [`from_fn`](Self::from_fn), for another number of lists, and for a key block that is
    /// not there.
    pub fn from_lists(
        tokens: [usize; 4],
        block: [usize; 2],
        lists: &[Vec<usize>],
    ) -> Result<Self, Error> {
        let mut list = Self::empty(tokens, block)?;
        let [batch, heads, ..] = tokens;
        let (rows, columns) = list.numbers();
        if lists.len() != batch * heads * rows {
            let reason =
                format!("{batch} rows of {heads} heads of {rows} query blocks need one each");
            return Err(Error::mask("blocks", format!("{} lists", lists.len()), reason));
        }
        for (n, chosen) in lists.iter().enumerate() {
            for &k in chosen {
                if k >= columns {
                    let (b, h, q) = (n / rows / heads, n / rows % heads, n % rows);
                    let reason = format!(
                        "listed for row {b}, head {h}, query block {q}; there are {columns} \
                         key blocks"
                    );
                    return Err(Error::mask("blocks", k, reason));
                }
                list.set(n, k);
            }
        }
        Ok(list)
    }

    fn empty(tokens: [usize; 4], block: [usize; 2]) -> Result<Self, Error> {
        if block.contains(&0) {
            let reason = "a block holds at least one token";
            return Err(Error::mask("blocks", format!("{block:?} tokens"), reason));
        }
        let [batch, heads, queries, keys] = tokens;
        let (rows, columns) = (queries.div_ceil(block[0]), keys.div_ceil(block[1]));
        let words = columns.div_ceil(64);
        let sizes = [batch, heads, rows, words];
        let count = sizes.iter().try_fold(1usize, |product, n| product.checked_mul(*n));
        let mut bits: Vec<u64> = Vec::new();
        let count = count.filter(|count| bits.try_reserve_exact(*count).is_ok());
        let Some(count) = count else {
            let reason = format!("memory does not hold as many for {tokens:?}; take larger ones");
            return Err(Error::mask("blocks", format!("{block:?} tokens"), reason));
        };
        bits.resize(count, 0);
        Ok(Self { tokens, block, numbers: (rows, columns), words, bits: Arc::new(bits) })
    }

    /// Let the query blocks of line `n` see key block `k`.
    fn set(&mut self, n: usize, k: usize) {
        Arc::make_mut(&mut self.bits)[n * self.words + k / 64] |= 1 << (k % 64);
    }

    /// `[B, H, T, S]` that the list is for.
    pub fn tokens(&self) -> [usize; 4] {
        self.tokens
    }

    /// Queries and keys per block.
    pub fn block(&self) -> [usize; 2] {
        self.block
    }

    /// Numbers of blocks (queries, keys).
    pub fn numbers(&self) -> (usize, usize) {
        self.numbers
    }

    /// Whether query block `q` may see key block `k`.
    pub fn sees(&self, b: usize, h: usize, q: usize, k: usize) -> bool {
        let line = (b * self.tokens[1] + h) * self.numbers.0 + q;
        self.bits[line * self.words + k / 64] >> (k % 64) & 1 == 1
    }

    /// Whether two heads have the same lists, in every row.
    pub(super) fn alike(&self, a: usize, b: usize) -> bool {
        let words = self.numbers.0 * self.words;
        let of = |row: usize, head: usize| {
            let first = (row * self.tokens[1] + head) * words;
            &self.bits[first..first + words]
        };
        (0..self.tokens[0]).all(|row| of(row, a) == of(row, b))
    }

    /// What the list says of a tile.
    pub(super) fn kind(
        &self,
        (b, h): (usize, usize),
        queries: &Range<usize>,
        keys: &Range<usize>,
    ) -> BlockKind {
        let [rows, columns] = self.touched(queries, keys);
        let all = rows.len() * columns.len();
        let seen = |q| columns.clone().filter(|k| self.sees(b, h, q, *k)).count();
        match rows.map(seen).sum::<usize>() {
            0 => BlockKind::Skip,
            n if n == all => BlockKind::Full,
            _ => BlockKind::Partial,
        }
    }

    /// Blocks that hold these tokens.
    fn touched(&self, queries: &Range<usize>, keys: &Range<usize>) -> [Range<usize>; 2] {
        let [q, k] = self.block;
        [queries.start / q..queries.end.div_ceil(q), keys.start / k..keys.end.div_ceil(k)]
    }

    /// The parts of a tile that may not be seen: queries and keys of the call.
    #[cfg(feature = "flex")]
    pub(crate) fn hidden(
        &self,
        (b, h): (usize, usize),
        queries: &Range<usize>,
        keys: &Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let [rows, columns] = self.touched(queries, keys);
        let within = |n: usize, block: usize, of: &Range<usize>| {
            (n * block).max(of.start)..(n + 1).saturating_mul(block).min(of.end)
        };
        let [q_block, k_block] = self.block;
        rows.flat_map(move |q| columns.clone().map(move |k| (q, k)))
            .filter(move |&(q, k)| !self.sees(b, h, q, k))
            .map(move |(q, k)| (within(q, q_block, queries), within(k, k_block, keys)))
    }
}
