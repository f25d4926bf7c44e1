//! Which keys of a tile a query may see, for tiles that are neither hidden nor visible as a whole.

use super::{Side, TILE};
use crate::mask::{BlockList, Strided};
use std::ops::Range;

/// The keys of a tile as the queries of a head look at them.
pub(super) struct Edge<'a> {
    side: &'a Side<'a>,
    /// (row, query head)
    at: (usize, usize),
    keys: Range<usize>,
    /// Labels of all queries.
    of_queries: &'a [i32],
    label: &'a [i32],
    pos: &'a [i32],
    sink: &'a [bool],
    /// Blocks of the keys, these modulo the stride, and the one that the head keeps.
    strided: Option<(&'a Strided, &'a [i32], &'a [i32], i32)>,
    list: Option<&'a BlockList>,
}

/// Keys of a tile that a query may see: from the first to the last.
#[derive(Clone, Copy, Default)]
pub(super) struct Seen {
    pub from: u8,
    pub to: u8,
    /// Whether there are hidden ones between them.
    pub gaps: bool,
}

const _: () = assert!(TILE.1 <= u8::MAX as usize);

impl Seen {
    pub fn range(self) -> Range<usize> {
        self.from as usize..self.to as usize
    }
}

impl<'a> Edge<'a> {
    pub fn new(side: &'a Side<'a>, at: (usize, usize), keys: &Range<usize>) -> Self {
        let class = &side.mask.classes()[side.class_of[at.1]];
        let labels = &side.mask.labels()[class.labels];
        let k = side.mask.keys();
        let of_row = at.0 * k.len() + keys.start..at.0 * k.len() + keys.end;
        let strided = side.mask.strided().zip(class.column).map(|(strided, column)| {
            let of_keys = |x: &'a [i32]| &x[of_row.clone()];
            (strided, of_keys(&strided.k_block), of_keys(&strided.k_column), column)
        });
        Self {
            side,
            at,
            keys: keys.clone(),
            of_queries: &labels.q,
            label: &labels.k[of_row.clone()],
            pos: &k.pos()[of_row.clone()],
            sink: &side.mask.sink()[of_row],
            strided,
            list: side.mask.list(),
        }
    }

    /// 1 for each key that query `t` of the call may see, else 0.
    #[inline(always)]
    fn flags(&self, t: usize) -> [i32; TILE.1] {
        let mut flags = [0; TILE.1];
        let (spec, q) = (self.side.mask.spec(), self.side.mask.queries());
        let query = self.at.0 * q.len() + t;
        let (label, pos) = (self.of_queries[query], q.pos()[query]);
        let last = if spec.causal { pos } else { i32::MAX };
        // No position lies at or before −1.
        let window = spec.window.map_or(i32::MAX, |w| w.min(i32::MAX as usize) as i32);
        let first = if window == i32::MAX { -1 } else { pos.saturating_sub(window) };
        let keys = self.label.iter().zip(self.pos).zip(self.sink);
        for (flag, ((k_label, k_pos), sink)) in flags.iter_mut().zip(keys) {
            let near = (*k_pos <= last) & ((*k_pos > first) | sink);
            *flag = ((*k_label == label) & near) as i32;
        }
        if let Some((strided, blocks, columns, column)) = self.strided {
            let far = strided.farthest(pos);
            for (flag, (block, own)) in flags.iter_mut().zip(blocks.iter().zip(columns)) {
                *flag &= ((*block > far) | (*own == column)) as i32;
            }
        }
        if let Some(list) = self.list {
            for (_, keys) in list.hidden(self.at, &(t..t + 1), &self.keys) {
                flags[keys.start - self.keys.start..keys.end - self.keys.start].fill(0);
            }
        }
        flags
    }

    /// What query `t` of the call may see.
    #[inline(always)]
    pub fn seen(&self, t: usize) -> Seen {
        let flags = self.flags(t);
        let (mut from, mut to, mut count) = (TILE.1 as i32, 0, 0);
        for (j, flag) in flags.iter().enumerate() {
            let j = j as i32;
            from = from.min(if *flag == 0 { TILE.1 as i32 } else { j });
            to = to.max(if *flag == 0 { 0 } else { j + 1 });
            count += flag;
        }
        Seen { from: from.min(to) as u8, to: to as u8, gaps: count != to - from.min(to) }
    }

    /// Writes −inf over what query `t` may not see; `x` are its scores of the tile.
    #[inline(always)]
    pub fn hide(&self, t: usize, x: &mut [f32]) {
        for (x, flag) in x.iter_mut().zip(&self.flags(t)) {
            *x = if *flag == 0 { f32::NEG_INFINITY } else { *x };
        }
    }

    /// The same of a query of which [`seen`](Self::seen) has told.
    #[inline(always)]
    pub fn hide_beside(&self, t: usize, seen: Seen, x: &mut [f32]) {
        if seen.gaps {
            return self.hide(t, x);
        }
        let (from, to) = (seen.from as i32, seen.to as i32);
        for (j, x) in x.iter_mut().enumerate() {
            let j = j as i32;
            *x = if (j >= from) & (j < to) { *x } else { f32::NEG_INFINITY };
        }
    }
}
