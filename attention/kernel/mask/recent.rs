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
    /// Queries and keys of all masks that are kept, except for the newest, which is always kept.
    const TOKENS: usize = 1 << 22;

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
        let of = |mask: &Mask| mask.queries().pos().len() + mask.keys().pos().len();
        let mut all = self.all();
        all.push_front(mask.clone());
        all.truncate(Self::MOST);
        while all.len() > 1 && all.iter().map(of).sum::<usize>() > Self::TOKENS {
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
        let get = |len: usize| recent.get(&MaskSpec::causal(), &of(len), &of(len), 1).is_some();
        for len in 1..=Recent::MOST {
            recent.put(&mask(MaskSpec::causal(), &of(len), &of(len), 1));
        }
        // What was asked for is new again.
        assert!(get(1));
        recent.put(&mask(MaskSpec::causal(), &of(100), &of(100), 1));
        assert!(get(1) && !get(2) && get(3));
        // All others leave for one of very many tokens, and it for the next.
        let many = Recent::TOKENS / 2 + 1;
        recent.put(&mask(MaskSpec::causal(), &of(many), &of(many), 1));
        assert!(get(many) && !get(1) && !get(100));
        recent.put(&mask(MaskSpec::causal(), &of(9), &of(9), 1));
        assert!(get(9) && !get(many));
    }
}
