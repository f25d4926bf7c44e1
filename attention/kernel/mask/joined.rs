//! Tokens that were put behind others a moment ago: every layer's cache of a model grows by the same.

use super::TokenMeta;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The last ones, the newest first. They are held by whoever asked for them alone.
#[derive(Debug)]
pub(super) struct Joined(Mutex<VecDeque<[Faint; 3]>>);

impl Joined {
    /// As many models may decode in turns, or caches of a model have several lengths.
    const MOST: usize = 8;

    pub const fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    /// `a` followed by `b`, where these very lists were put together before and the result is still there.
    pub fn get(&self, a: &TokenMeta, b: &TokenMeta) -> Option<TokenMeta> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.iter().position(|[of_a, of_b, _]| of_a.is(a) && of_b.is(b))?;
        let joined = all[found][2].tokens();
        if joined.is_none() {
            all.remove(found);
        }
        joined
    }

    pub fn put(&self, a: &TokenMeta, b: &TokenMeta, joined: &TokenMeta) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push_front([a, b, joined].map(Faint::of));
        all.truncate(Self::MOST);
    }
}

/// Tokens that are somebody else's. While a weak pointer is left, no other list gets its address.
#[derive(Debug)]
struct Faint {
    batch: usize,
    len: usize,
    pos: Weak<Vec<i32>>,
    segment: Weak<Vec<i32>>,
    rotary: Option<Weak<Vec<i32>>>,
}

impl Faint {
    fn of(tokens: &TokenMeta) -> Self {
        let TokenMeta { batch, len, pos, segment, rotary } = tokens;
        let rotary = rotary.as_ref().map(Arc::downgrade);
        let (pos, segment) = (Arc::downgrade(pos), Arc::downgrade(segment));
        Self { batch: *batch, len: *len, pos, segment, rotary }
    }

    fn is(&self, tokens: &TokenMeta) -> bool {
        let same = |faint: &Weak<_>, list: &Arc<_>| faint.as_ptr() == Arc::as_ptr(list);
        let rotary = match (&self.rotary, &tokens.rotary) {
            (Some(faint), Some(list)) => same(faint, list),
            (None, None) => true,
            _ => false,
        };
        let sizes = (self.batch, self.len) == (tokens.batch, tokens.len);
        sizes && same(&self.pos, &tokens.pos) && same(&self.segment, &tokens.segment) && rotary
    }

    fn tokens(&self) -> Option<TokenMeta> {
        let rotary = match &self.rotary {
            Some(list) => Some(list.upgrade()?),
            None => None,
        };
        let (pos, segment) = (self.pos.upgrade()?, self.segment.upgrade()?);
        Some(TokenMeta { batch: self.batch, len: self.len, pos, segment, rotary })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_lists_are_found_and_only_while_somebody_holds_them() {
        let (a, b) = (TokenMeta::contiguous(2, 5, 0), TokenMeta::contiguous(2, 1, 5));
        let all = a.concat(&b).unwrap();
        let joined = Joined::new();
        joined.put(&a, &b, &all);
        let again = joined.get(&a.clone(), &b).unwrap();
        assert!(Arc::ptr_eq(&again.pos, &all.pos) && again == all);
        let equal = TokenMeta::contiguous(2, 1, 5);
        let turned = b.clone().with_rotary(vec![7; 2]).unwrap();
        for (a, b) in [(&a, &equal), (&b, &a), (&a, &turned)] {
            assert!(joined.get(a, b).is_none());
        }
        drop((again, all));
        assert!(joined.get(&a, &b).is_none());
    }

    #[test]
    fn the_oldest_leave() {
        let (a, joined) = (TokenMeta::contiguous(1, 3, 0), Joined::new());
        let parts: Vec<_> = (0..=Joined::MOST).map(|_| TokenMeta::contiguous(1, 1, 3)).collect();
        parts.iter().for_each(|b| joined.put(&a, b, &a));
        assert!(joined.get(&a, &parts[0]).is_none() && joined.get(&a, &parts[1]).is_some());
    }
}
