//! A mask as the kernels read it: which rules there are, which is compiled in, and arrays with numbers per
//! token, which come with a launch.

use super::launch::Side;
use crate::{Mask, TokenMeta};
use std::collections::HashMap;

/// Tokens that rows are rounded up to: whole tiles of all kernels but those with three warpgroups that compute, which
/// look at numbers behind them and drop what comes of it.
pub(super) const ROUND: usize = 128;

/// Stands for all columns of blocks, as in mask.cuh.
const ALL_COLUMNS: i32 = i32::MIN;

/// What a mask looks at, as mask.cuh has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Rules(u32);

impl Rules {
    pub const CAUSAL: Self = Self(1);
    pub const WINDOW: Self = Self(2);
    pub const SINKS: Self = Self(4);
    pub const LABELS: Self = Self(8);
    pub const ANCHOR: Self = Self(16);
    pub const POSITIONS: Self = Self(32);
    pub const STRIDE: Self = Self(64);
    pub const LIST: Self = Self(128);
    pub const BLOCKS: Self = Self(256);
    pub const SMALL: Self = Self(512);
    pub const APART: Self = Self(1024);

    pub fn bits(self) -> u32 {
        self.0
    }

    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub fn and(self, other: Self, wanted: bool) -> Self {
        if wanted { Self(self.0 | other.0) } else { self }
    }

    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// What is asked of every pair: lists of tiles say what blocks hide.
    pub fn of_pairs(self) -> Self {
        let of_blocks = Self::STRIDE.and(Self::LIST, true);
        if self.has(Self::BLOCKS) { self.without(of_blocks) } else { self }
    }

    /// Those of a mask; positions of tokens with index 0 (query, key) where no array has them.
    pub fn of(mask: &Mask) -> (Self, [i32; 2]) {
        let spec = mask.spec();
        // No position is as far away as that.
        let window = spec.window.is_some_and(|window| window < i32::MAX as usize);
        let stride = mask.strided().is_some() && mask.classes().iter().any(|c| c.column.is_some());
        let rules = Self::default()
            .and(Self::CAUSAL, spec.causal)
            .and(Self::WINDOW, window)
            .and(Self::SINKS, spec.sinks > 0 && (window || stride))
            .and(Self::ANCHOR, spec.anchor && mask.keys().has_anchor())
            .and(Self::STRIDE, stride)
            .and(Self::LIST, mask.list().is_some());
        let starts = starts(mask, rules);
        let labels = rules.has(Self::ANCHOR) || !one_label(mask);
        let rules = rules.and(Self::LABELS, labels).and(Self::POSITIONS, starts.is_none());
        let blocks = by_blocks(mask, rules);
        let rules = rules
            .and(Self::BLOCKS, blocks)
            .and(Self::SMALL, blocks && small(mask, rules))
            .and(Self::APART, blocks && apart(mask));
        (rules, starts.unwrap_or_default())
    }
}

/// Tokens of which there is one answer about blocks.
pub(super) const BLOCK: usize = 64;

/// Whether stride and list say the same of all pairs of so many queries and keys, from multiples on.
fn by_blocks(mask: &Mask, rules: Rules) -> bool {
    let (stride, list) = (rules.has(Rules::STRIDE), rules.has(Rules::LIST));
    if !(stride || list) || stride && rules.has(Rules::SINKS) {
        return false;
    }
    let whole = |tokens: &TokenMeta, values: &[i32]| {
        let mut rows = values.chunks(tokens.len().max(1));
        rows.all(|row| row.chunks(BLOCK).all(|part| part.iter().all(|x| *x == part[0])))
    };
    let strided = mask.strided().filter(|_| stride).is_none_or(|strided| {
        let far: Vec<i32> = mask.queries().pos().iter().map(|x| strided.farthest(*x)).collect();
        let keys = |values: &[i32]| whole(mask.keys(), values);
        whole(mask.queries(), &far) && keys(&strided.k_block) && keys(&strided.k_column)
    });
    let listed = |list: &crate::BlockList| list.block().iter().all(|x| x.is_multiple_of(BLOCK));
    strided && mask.list().is_none_or(listed)
}

/// Whether blocks of keys are no whole tiles.
fn small(mask: &Mask, rules: Rules) -> bool {
    let of_stride = mask.spec().stride.as_ref().filter(|_| rules.has(Rules::STRIDE));
    let of_list = mask.list().map(|list| list.block()[1]);
    let mut blocks = of_stride.map(|stride| stride.block).into_iter().chain(of_list);
    blocks.any(|block| !block.is_multiple_of(ROUND))
}

/// Whether neighbouring 64 queries see other keys.
fn apart(mask: &Mask) -> bool {
    mask.list().is_some_and(|list| !list.block()[0].is_multiple_of(ROUND))
}

/// Whether all tokens have the same label, so that nobody needs to look.
fn one_label(mask: &Mask) -> bool {
    let same = |labels: &crate::mask::Labels| {
        let first = labels.q.first().copied().unwrap_or_default();
        first >= 0 && labels.q.iter().chain(&labels.k).all(|label| *label == first)
    };
    mask.labels().iter().all(same)
}

/// The positions of tokens with index 0 if those of all follow from their indices, as far as rules look
/// at them.
fn starts(mask: &Mask, rules: Rules) -> Option<[i32; 2]> {
    if rules.has(Rules::ANCHOR) {
        return None;
    }
    if rules.has(Rules::SINKS) {
        return Some([start(mask.queries())?, start(mask.keys())?]);
    }
    if !rules.has(Rules::CAUSAL) {
        return Some([0, 0]);
    }
    // Tokens that see each other are of one label, and what counts is how far they are apart.
    let mut apart = None;
    for labels in mask.labels() {
        let of_queries = ahead(mask.queries(), &labels.q)?;
        let of_keys = ahead(mask.keys(), &labels.k)?;
        for (place, of_query) in of_queries {
            let Some(of_key) = of_keys.get(&place) else { continue };
            if *apart.get_or_insert(of_query - of_key) != of_query - of_key {
                return None;
            }
        }
    }
    Some([apart.unwrap_or_default(), 0])
}

/// The position of every row's token with index 0, if positions count on from there.
fn start(tokens: &TokenMeta) -> Option<i32> {
    let first = tokens.pos().first().copied().unwrap_or_default();
    let row = |row: &[i32]| row.iter().zip(first..).all(|(pos, index)| *pos == index);
    tokens.pos().chunks(tokens.len().max(1)).all(row).then_some(first)
}

/// How far the positions of every (row, label) are ahead of their indices, if all of them are alike.
fn ahead(tokens: &TokenMeta, labels: &[i32]) -> Option<HashMap<(usize, i32), i32>> {
    let mut of_labels = HashMap::new();
    // Neighbours mostly have the same label.
    let mut last = None;
    for (i, (pos, label)) in tokens.pos().iter().zip(labels).enumerate() {
        if *label < 0 {
            continue;
        }
        let (row, index) = (i / tokens.len(), i % tokens.len());
        let place = (row, *label);
        let ahead = pos - index as i32;
        if last == Some((place, ahead)) {
            continue;
        }
        if *of_labels.entry(place).or_insert(ahead) != ahead {
            return None;
        }
        last = Some((place, ahead));
    }
    Some(of_labels)
}

/// A mask's numbers, in one array, and where in it they begin.
#[derive(Debug)]
pub(super) struct Tokens {
    pub rules: Rules,
    pub numbers: Vec<i32>,
    /// Without addresses and lists of tiles.
    pub side: Side,
}

impl Tokens {
    /// Those of a mask; none where they are more than an i32 counts.
    pub fn new(mask: &Mask) -> Option<Self> {
        let (rules, [q_start, k_start]) = Rules::of(mask);
        let of_pairs = rules.of_pairs();
        let (queries, keys) = (mask.queries(), mask.keys());
        let small = |x: usize| x.min(i32::MAX as usize) as i32;
        let wide = |tokens: &TokenMeta| tokens.len().next_multiple_of(ROUND);
        let mut side = Side {
            classes: small(mask.classes().len()),
            q_start,
            k_start,
            window: small(mask.spec().window.unwrap_or_default()),
            sinks: small(mask.spec().sinks),
            batch: small(queries.batch()),
            all_heads: small(mask.heads()),
            queries: small(queries.len()),
            keys: small(keys.len()),
            tall: small(wide(queries)),
            wide: small(wide(keys)),
            ..Side::default()
        };
        let mut all = Vec::new();
        side.heads = add(&mut all, &heads(mask))?;
        let mut rows = |x: &[i32], tokens: &TokenMeta, padding: i32| {
            add(&mut all, &padded(x, tokens.len(), padding))
        };
        if rules.has(Rules::LABELS) {
            let joined = |pick: fn(&crate::mask::Labels) -> &[i32]| -> Vec<i32> {
                mask.labels().iter().flat_map(|labels| pick(labels).to_vec()).collect()
            };
            side.q_label = rows(&joined(|labels| &labels.q), queries, crate::mask::BLIND_QUERY)?;
            side.k_label = rows(&joined(|labels| &labels.k), keys, crate::mask::HIDDEN_KEY)?;
        }
        if rules.has(Rules::POSITIONS) {
            side.q_pos = rows(queries.pos(), queries, 0)?;
            side.k_pos = rows(keys.pos(), keys, 0)?;
        }
        if let Some(strided) = mask.strided().filter(|_| of_pairs.has(Rules::STRIDE)) {
            let far: Vec<i32> = queries.pos().iter().map(|pos| strided.farthest(*pos)).collect();
            side.q_far = rows(&far, queries, 0)?;
            side.k_block = rows(&strided.k_block, keys, 0)?;
            side.k_column = rows(&strided.k_column, keys, 0)?;
        }
        if let Some(list) = mask.list().filter(|_| of_pairs.has(Rules::LIST)) {
            let [q_block, k_block] = list.block();
            let listed: Vec<i32> = (0..keys.len()).map(|s| small(s / k_block)).collect();
            side.k_listed = rows(&listed, keys, 0)?;
            let (lines, columns) = list.numbers();
            let words = columns.div_ceil(32);
            (side.list_queries, side.list_rows) = (small(q_block), small(lines));
            side.list_words = small(words);
            let of_all = queries.batch() * mask.heads() * lines;
            let mut bits = vec![0u32; of_all.checked_mul(words)?];
            for n in 0..of_all {
                let (b, h, q) = (n / lines / mask.heads(), n / lines % mask.heads(), n % lines);
                for k in (0..columns).filter(|k| list.sees(b, h, q, *k)) {
                    bits[n * words + k / 32] |= 1 << (k % 32);
                }
            }
            let bits: Vec<i32> = bits.into_iter().map(|word| word as i32).collect();
            side.bits = add(&mut all, &bits)?;
        }
        Some(Self { rules, numbers: all, side })
    }
}

/// Appends `x`; where it begins.
fn add(all: &mut Vec<i32>, x: &[i32]) -> Option<i32> {
    let at = i32::try_from(all.len()).ok()?;
    all.extend_from_slice(x);
    i32::try_from(all.len()).ok()?;
    Some(at)
}

/// Rows of `len` numbers, rounded up.
fn padded(x: &[i32], len: usize, padding: i32) -> Vec<i32> {
    let mut rows = Vec::new();
    for row in x.chunks(len.max(1)) {
        rows.extend_from_slice(row);
        rows.resize(rows.len().next_multiple_of(ROUND), padding);
    }
    rows
}

/// Class, labels and column of every head, and a number that makes them four.
fn heads(mask: &Mask) -> Vec<i32> {
    let of = |head| {
        let class = mask.class_of(head);
        let of_class = &mask.classes()[class];
        let column = of_class.column.unwrap_or(ALL_COLUMNS);
        [class as i32, of_class.labels as i32, column, 0]
    };
    (0..mask.heads()).flat_map(of).collect()
}
