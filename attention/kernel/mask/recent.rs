//! Masks that were made a moment ago, since all layers of a model and all its steps ask for the same: labels,
//! maps of tiles and what cards are told of them are made once.

use super::{Mask, MaskSpec, TokenMeta};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The last ones, the newest first.
#[derive(Debug)]
pub(super) struct Recent(Mutex<VecDeque<Mask>>);

impl Recent {
    /// Masks that are kept: a model has one or two of them for each kind of its layers.
    const MOST: usize = 8;
    /// Masks of the same rules that are kept: of the rows in training, in evaluation and of workers beside
    /// each other. A step of decoding, or with other documents, makes older ones useless.
    const ALIKE: usize = 4;
    /// Queries, keys and tiles of all masks that are kept, except for the newest, which is always kept.
    const NUMBERS: usize = 1 << 22;
    /// Pairs of a tile.
    const TILE: usize = 1 << 14;

    pub const fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    /// The mask of these rules and tokens, if it is there.
    pub fn get(&self, spec: &MaskSpec, q: &TokenMeta, k: &TokenMeta, heads: usize) -> Option<Mask> {
        let mut all = self.all();
        let same = |mask: &Mask| {
            mask.heads() == heads && mask.spec() == spec && mask.queries() == q && mask.keys() == k
        };
        let found = all.iter().position(same)?;
        let mask = all.remove(found)?;
        all.push_front(mask.clone());
        Some(mask)
    }

    /// Keeps `mask`, which was not there.
    pub fn put(&self, mask: &Mask) {
        let of = |mask: &Mask| {
            let (queries, keys) = (mask.queries(), mask.keys());
            let pairs = queries.pos().len().saturating_mul(keys.len());
            let tiles = (pairs / Self::TILE).saturating_mul(mask.classes().len());
            tiles.saturating_add(queries.pos().len() + keys.pos().len())
        };
        let mut all = self.all();
        all.push_front(mask.clone());
        let mut alike = 0;
        all.retain(|other| {
            let same = other.heads() == mask.heads() && other.spec() == mask.spec();
            alike += usize::from(same);
            !same || alike <= Self::ALIKE
        });
        all.truncate(Self::MOST);
        let sum = |all: &VecDeque<Mask>| all.iter().map(of).fold(0, usize::saturating_add);
        while all.len() > 1 && sum(&all) > Self::NUMBERS {
            all.pop_back();
        }
    }

    fn all(&self) -> MutexGuard<'_, VecDeque<Mask>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn mask(spec: MaskSpec, q: &TokenMeta, k: &TokenMeta, heads: usize) -> Mask {
        Mask::build(spec, q.clone(), k.clone(), heads).unwrap()
    }

    #[test]
    fn only_the_same_mask_is_found() {
        let (short, long) = (TokenMeta::contiguous(2, 5, 0), TokenMeta::contiguous(2, 7, 0));
        let later = TokenMeta::contiguous(2, 5, 1);
        let rotary = short.clone().with_rotary(vec![3; 10]).unwrap();
        let window = MaskSpec::causal().with_window(Some(3));
        let recent = Recent::new();
        let kept = mask(window.clone(), &short, &long, 4);
        recent.put(&kept);
        let equal = TokenMeta::contiguous(2, 5, 0);
        let found = recent.get(&window, &equal, &long, 4).unwrap();
        assert!(Arc::ptr_eq(&found.0, &kept.0));
        for (spec, q, k, heads) in [
            (&MaskSpec::causal(), &short, &long, 4),
            (&window, &later, &long, 4),
            (&window, &rotary, &long, 4),
            (&window, &short, &short, 4),
            (&window, &short, &long, 2),
        ] {
            assert!(recent.get(spec, q, k, heads).is_none());
        }
    }

    #[test]
    fn the_oldest_leave() {
        let recent = Recent::new();
        let of = |len: usize| TokenMeta::contiguous(1, len, 0);
        // Lengths that share their rules by fours at most.
        let spec = |len: usize| MaskSpec::causal().with_window(Some(1 + len / 4));
        let get = |len: usize| recent.get(&spec(len), &of(len), &of(len), 1).is_some();
        let put = |len: usize| recent.put(&mask(spec(len), &of(len), &of(len), 1));
        (1..=Recent::MOST).for_each(put);
        // What was asked for is new again.
        assert!(get(1));
        put(100);
        assert!(get(1) && !get(2) && get(3));
        // All others leave for one of very many tiles, and it for the next.
        let many = 1 << 18;
        put(many);
        assert!(get(many) && !get(1) && !get(100));
        put(9);
        assert!(get(9) && !get(many));
    }

    #[test]
    fn masks_of_the_same_rules_leave_for_newer_ones() {
        let recent = Recent::new();
        let of = |len: usize| TokenMeta::contiguous(1, len, 0);
        let put = |spec, len, heads| recent.put(&mask(spec, &of(len), &of(len), heads));
        let get = |spec, len, heads| recent.get(&spec, &of(len), &of(len), heads).is_some();
        put(MaskSpec::bidirectional(), 3, 1);
        put(MaskSpec::causal(), 3, 2);
        (1..=Recent::ALIKE + 1).for_each(|len| put(MaskSpec::causal(), len, 1));
        assert!(!get(MaskSpec::causal(), 1, 1) && get(MaskSpec::causal(), 2, 1));
        assert!(get(MaskSpec::bidirectional(), 3, 1) && get(MaskSpec::causal(), 3, 2));
    }
}
