//! Which tiles the kernels go through, and in which order workgroups take them up.

use super::arrange::{Item, arranged};
use super::hidden::Hidden;
use super::later::Later;
use crate::{BlockKind, Mask};

/// Set where a tile is seen in part.
const PART: i32 = i32::MIN;
/// Set, too, where the part is what does not come later.
pub(super) const LATER: i32 = 1 << 30;

/// What a list costs beside its tiles, in tiles: queries that are loaded, results that are stored. By queries in tiles
/// of 128 keys.
const START_BY_QUERIES: f64 = 0.6;
const START_BY_KEYS: f64 = 2.0;

/// Under what a mask keeps lists of a kind for a device: masks are shared by calls with heads of other widths, whose
/// tiles may be alike in one direction only.
pub(super) fn kept_under(
    device: usize,
    kind: usize,
    tile: (usize, usize),
    kv: usize,
) -> [usize; 4] {
    [device, kind, tile.0 << 16 | tile.1, kv]
}

/// Lists of the tiles that are computed, for the workgroups of one pass.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Lists {
    /// Where the list of each (row, class of heads, tile) begins, and the end of the last.
    pub starts: Vec<i32>,
    /// Tiles of the other side; negative where a part is seen, with [`LATER`] where later keys alone are hidden, else with
    /// the bits of [`Hidden`].
    pub tiles: Vec<i32>,
    /// (row and head, tile) of every workgroup as they are taken up, or of every place of the turns.
    pub order: Vec<i32>,
    /// Turns that `order` has, where there are any.
    pub turns: usize,
}

impl Lists {
    /// A list per tile of `tile.0` queries of tiles of `tile.1` keys, from the last to the first: the nearest
    /// ones are most likely still in the cache. `groups` workgroups share them out among themselves; query
    /// heads are those of `kv` key heads.
    pub fn by_queries(mask: &Mask, tile: (usize, usize), kv: usize, groups: usize) -> Self {
        let map = mask.blocks(tile.0, tile.1);
        let (rows, columns) = map.tiles();
        let entries = Entries::new(mask, tile);
        let mut lists = Self::new(mask, rows, |b, class, q, tiles| {
            let seen = map.keys_of(b, class, q).iter().rev();
            tiles.extend(seen.map(|&k| {
                let whole = map.kind(b, class, q, k as usize) == BlockKind::Full;
                let whole = whole && !is_ragged(mask, k as usize, columns, tile.1);
                k as i32 | entries.said_of(b, class, [q, k as usize], whole)
            }));
        });
        let heads = mask.heads();
        let work = lists.work(mask, rows, heads, heads / kv.max(1));
        let shared = arranged(work, groups, START_BY_QUERIES * 128.0 / tile.1 as f64);
        (lists.order, lists.turns) = shared.turns();
        lists
    }

    /// Lists by queries of a mask with one tile of queries, each cut into parts as if these were rows, so that
    /// `groups` workgroups have something to do; how many parts.
    pub fn in_parts(mask: &Mask, tile: (usize, usize), groups: usize) -> (Self, usize) {
        let mut lists = Self::by_queries(mask, tile, mask.heads(), groups);
        let (rows, heads) = (lists.starts.len() - 1, mask.heads());
        let long = |row: usize| lists.starts[row + 1] - lists.starts[row];
        let most = (0..rows).map(long).max().unwrap_or_default() as usize;
        // Turns of all workgroups, each with an equal part and what it costs beside.
        let cost =
            |parts: &usize| (rows * heads * parts).div_ceil(groups) * (most.div_ceil(*parts) + 2);
        let parts = (1..=most.clamp(1, groups)).min_by_key(cost).unwrap_or(1);
        let mut starts = vec![0];
        let mut work = Vec::new();
        for row in 0..rows {
            for part in 0..parts {
                let end = long(row) as usize * (part + 1) / parts;
                let end = lists.starts[row] + end as i32;
                let long = (end - starts[starts.len() - 1]) as usize;
                starts.push(end);
                let place = |head: usize| [((row * parts + part) * heads + head) as i32, 0];
                work.extend((0..heads).map(|head| Item { place: place(head), part: row, long }));
            }
        }
        lists.starts = starts;
        (lists.order, lists.turns) = arranged(work, groups, START_BY_QUERIES).turns();
        (lists, parts)
    }

    /// A workgroup per tile of `tile.1` keys of each of `kv` key heads, which goes through tiles of
    /// `tile.0` queries; `groups` of them run at a time.
    pub fn by_keys(mask: &Mask, tile: (usize, usize), kv: usize, groups: usize) -> Self {
        let map = mask.blocks(tile.0, tile.1);
        let columns = map.tiles().1;
        let entries = Entries::new(mask, tile);
        let mut lists = Self::new(mask, columns, |b, class, k, tiles| {
            let seen = map.queries_of(b, class, k).iter();
            tiles.extend(seen.map(|&q| {
                let whole = map.kind(b, class, q as usize, k) == BlockKind::Full;
                let whole = whole && !is_ragged(mask, k, columns, tile.1);
                q as i32 | entries.said_of(b, class, [q as usize, k], whole)
            }));
        });
        let work = lists.work(mask, columns, kv, 1);
        let items = arranged(work, groups, START_BY_KEYS).items;
        lists.order = items.iter().flat_map(|item| item.place).collect();
        lists
    }

    fn new(mask: &Mask, tiles: usize, list: impl Fn(usize, usize, usize, &mut Vec<i32>)) -> Self {
        let mut lists = Self { starts: vec![0], ..Self::default() };
        for b in 0..mask.queries().batch() {
            for class in 0..mask.classes().len() {
                for tile in 0..tiles {
                    list(b, class, tile, &mut lists.tiles);
                    lists.starts.push(lists.tiles.len() as i32);
                }
            }
        }
        lists
    }

    /// What there is to do for `heads` heads, which are query heads or share them, `near` of them with the
    /// same keys.
    fn work(&self, mask: &Mask, tiles: usize, heads: usize, near: usize) -> Vec<Item> {
        let (batch, group) = (mask.queries().batch(), mask.heads() / heads.max(1));
        let long = |b: usize, head: usize, tile: usize| -> usize {
            let of = |h| {
                let line = (b * mask.classes().len() + mask.class_of(h)) * tiles + tile;
                (self.starts[line + 1] - self.starts[line]) as usize
            };
            (head * group..(head + 1) * group).map(of).sum()
        };
        let mut all = Vec::with_capacity(tiles * batch * heads);
        for tile in (0..tiles).rev() {
            for n in 0..batch * heads {
                let long = long(n / heads, n % heads, tile);
                all.push(Item { place: [n as i32, tile as i32], part: n / near, long });
            }
        }
        all
    }

    /// What a launch of them costs, in tiles.
    pub fn cost(&self) -> usize {
        self.tiles.len()
    }
}

/// Whether keys fill their last tile in part: the mask tells them apart from the zeros behind them.
fn is_ragged(mask: &Mask, k: usize, columns: usize, tall: usize) -> bool {
    k + 1 == columns && !mask.keys().len().is_multiple_of(tall)
}

/// What entries say of tiles.
struct Entries<'a> {
    later: Later<'a>,
    hidden: Hidden<'a>,
}

impl<'a> Entries<'a> {
    fn new(mask: &'a Mask, tile: (usize, usize)) -> Self {
        Self { later: Later::new(mask, tile), hidden: Hidden::new(mask, tile) }
    }

    fn said_of(&self, b: usize, class: usize, [q, k]: [usize; 2], whole: bool) -> i32 {
        match whole {
            true => 0,
            false if self.later.hides(b, class, q, k) => PART | LATER,
            false => PART | self.hidden.bits(b, class, q, k),
        }
    }
}
