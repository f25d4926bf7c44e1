//! Which blocks of 64 queries and 64 keys of a tile stride and list hide, where these say the same of all pairs of a
//! block: entries of lists tell, and no kernel looks it up.

use super::rules::{BLOCK, Rules};
use crate::Mask;

/// The first of four bits of an entry: of the blocks of a tile, queries first, one where it is hidden.
pub(super) const AT: usize = 26;

/// What decides that.
pub(super) struct Hidden<'a> {
    mask: &'a Mask,
    tile: (usize, usize),
    /// Whether they say the same of all pairs of a block.
    by_blocks: bool,
}

impl<'a> Hidden<'a> {
    /// For tiles of `tile.0` queries and `tile.1` keys, two blocks of each at most.
    pub fn new(mask: &'a Mask, tile: (usize, usize)) -> Self {
        let by_blocks = Rules::of(mask).0.has(Rules::BLOCKS);
        // An entry has bits for no more.
        assert!(!by_blocks || tile.0.max(tile.1) <= 2 * BLOCK, "{tile:?} are more than two blocks");
        Self { mask, tile, by_blocks }
    }

    /// The bits of a tile. Blocks behind the last token are hidden.
    pub fn bits(&self, b: usize, class: usize, q: usize, k: usize) -> i32 {
        if !self.by_blocks {
            return 0;
        }
        let (queries, keys) = (self.tile.0 / BLOCK, self.tile.1 / BLOCK);
        let blocks = (0..queries).flat_map(|i| (0..keys).map(move |j| (i, j)));
        let hidden = blocks.filter(|(i, j)| {
            !self.sees(b, class, q * self.tile.0 + i * BLOCK, k * self.tile.1 + j * BLOCK)
        });
        hidden.map(|(i, j)| 1 << (AT + 2 * i + j)).sum()
    }

    /// What stride and list say of a pair.
    fn sees(&self, b: usize, class: usize, query: usize, key: usize) -> bool {
        let (queries, keys) = (self.mask.queries(), self.mask.keys());
        if query >= queries.len() || key >= keys.len() {
            return false;
        }
        let of_class = &self.mask.classes()[class];
        let strided = self.mask.strided().is_none_or(|strided| {
            let (p, r) =
                (queries.pos()[b * queries.len() + query], keys.pos()[b * keys.len() + key]);
            strided.sees(of_class.column, p, r)
        });
        strided
            && self.mask.list().is_none_or(|list| {
                let [q_block, k_block] = list.block();
                list.sees(b, of_class.heads.start, query / q_block, key / k_block)
            })
    }
}
