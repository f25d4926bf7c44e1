//! Tiles of which a part is seen, and where nothing hides keys but that they come later: documents, windows,
//! blocks of a list or a stride cover the whole tile. A comparison of indices does there.

use super::rules::Rules;
use crate::Mask;

/// What decides that, per tile.
pub(super) struct Later<'a> {
    mask: &'a Mask,
    rules: Rules,
    tile: (usize, usize),
    /// How far positions of queries are ahead of those of keys with the same index.
    ahead: i64,
    /// Per labels of heads, row and tile: the label that all its tokens have.
    q_labels: Vec<Option<i32>>,
    k_labels: Vec<Option<i32>>,
    /// Of a stride, per row and tile: the last block that is not near for a query, the first of a key.
    q_far: Vec<i32>,
    k_block: Vec<i32>,
}

impl<'a> Later<'a> {
    /// For tiles of `tile.0` queries and `tile.1` keys.
    pub fn new(mask: &'a Mask, tile: (usize, usize)) -> Self {
        let (rules, [q_start, k_start]) = Rules::of(mask);
        let (queries, keys) = (mask.queries(), mask.keys());
        let mut later = Self {
            mask,
            rules,
            tile,
            ahead: i64::from(q_start) - i64::from(k_start),
            q_labels: Vec::new(),
            k_labels: Vec::new(),
            q_far: Vec::new(),
            k_block: Vec::new(),
        };
        if !later.possible() {
            return later;
        }
        if rules.has(Rules::LABELS) {
            for labels in mask.labels() {
                later.q_labels.extend(per_tile(&labels.q, queries.len(), tile.0, one));
                later.k_labels.extend(per_tile(&labels.k, keys.len(), tile.1, one));
            }
        }
        if let Some(strided) = mask.strided().filter(|_| rules.has(Rules::STRIDE)) {
            let far: Vec<i32> = queries.pos().iter().map(|pos| strided.farthest(*pos)).collect();
            let most = |x: &[i32]| x.iter().copied().max().unwrap_or(i32::MAX);
            let least = |x: &[i32]| x.iter().copied().min().unwrap_or(i32::MIN);
            later.q_far = per_tile(&far, queries.len(), tile.0, most);
            later.k_block = per_tile(&strided.k_block, keys.len(), tile.1, least);
        }
        later
    }

    fn possible(&self) -> bool {
        self.rules.has(Rules::CAUSAL) && !self.rules.has(Rules::POSITIONS.and(Rules::ANCHOR, true))
    }

    /// Whether of this tile just later keys are hidden.
    pub fn hides(&self, b: usize, class: usize, q: usize, k: usize) -> bool {
        self.possible()
            && self.in_window(q, k)
            && self.of_one_label(b, class, q, k)
            && self.near(b, class, q, k)
            && self.listed(b, class, q, k)
    }

    fn in_window(&self, q: usize, k: usize) -> bool {
        let last = ((q + 1) * self.tile.0).min(self.mask.queries().len()) as i64 - 1;
        let apart = last + self.ahead - (k * self.tile.1) as i64;
        let window = self.mask.spec().window.unwrap_or(usize::MAX);
        !self.rules.has(Rules::WINDOW) || apart < i64::try_from(window).unwrap_or(i64::MAX)
    }

    fn of_one_label(&self, b: usize, class: usize, q: usize, k: usize) -> bool {
        if !self.rules.has(Rules::LABELS) {
            return true;
        }
        let row = self.mask.classes()[class].labels * self.mask.queries().batch() + b;
        let of_query = self.q_labels[row * self.mask.queries().len().div_ceil(self.tile.0) + q];
        let of_key = self.k_labels[row * self.mask.keys().len().div_ceil(self.tile.1) + k];
        of_query.is_some_and(|label| label >= 0) && of_query == of_key
    }

    fn near(&self, b: usize, class: usize, q: usize, k: usize) -> bool {
        if !self.rules.has(Rules::STRIDE) || self.mask.classes()[class].column.is_none() {
            return true;
        }
        let far = self.q_far[b * self.mask.queries().len().div_ceil(self.tile.0) + q];
        self.k_block[b * self.mask.keys().len().div_ceil(self.tile.1) + k] > far
    }

    fn listed(&self, b: usize, class: usize, q: usize, k: usize) -> bool {
        let Some(list) = self.mask.list() else { return true };
        let head = self.mask.classes()[class].heads.start;
        let [q_block, k_block] = list.block();
        let blocks = |tile: usize, tall: usize, len: usize, block: usize| {
            tile * tall / block..=(((tile + 1) * tall).min(len) - 1) / block
        };
        let of_keys = blocks(k, self.tile.1, self.mask.keys().len(), k_block);
        let mut of_queries = blocks(q, self.tile.0, self.mask.queries().len(), q_block);
        of_queries.all(|q| of_keys.clone().all(|k| list.sees(b, head, q, k)))
    }
}

/// The number that all are, if they are.
fn one(x: &[i32]) -> Option<i32> {
    let first = *x.first()?;
    x.iter().all(|x| *x == first).then_some(first)
}

/// Of every tile of every row.
fn per_tile<T>(x: &[i32], len: usize, tall: usize, of: impl Fn(&[i32]) -> T) -> Vec<T> {
    x.chunks(len.max(1)).flat_map(|row| row.chunks(tall)).map(of).collect()
}
