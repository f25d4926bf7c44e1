//! The order in which the tiles of a job are computed: neighbouring tiles of keys together, since long
//! products cost least, and what reads the same of them one after the other.

use super::{TILE, part};
use std::ops::Range;

/// Key tiles that are computed together.
pub(super) const RUN: usize = 4;

/// Key tiles that are computed together, ascending; they need not be neighbours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tiles {
    list: [u32; RUN],
    count: usize,
}

impl Tiles {
    fn new(tiles: &[u32]) -> Self {
        let mut list = [0; RUN];
        list[..tiles.len()].copy_from_slice(tiles);
        Self { list, count: tiles.len() }
    }

    pub fn list(&self) -> &[u32] {
        &self.list[..self.count]
    }

    /// Keys of all of them, of `s` in the call.
    pub fn len(&self, s: usize) -> usize {
        self.list()
            .last()
            .map_or(0, |last| (self.count - 1) * TILE.1 + part(*last as usize, TILE.1, s).len())
    }

    /// What lies together: where it begins among the keys of all, and which keys of the call it is.
    #[inline(always)]
    pub fn pieces(&self, s: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = next;
            let start = *self.list().get(first)? as usize;
            next += 1;
            while next < self.count && self.list[next] as usize == start + next - first {
                next += 1;
            }
            let end = ((start + next - first) * TILE.1).min(s);
            Some((first * TILE.1, start * TILE.1..end))
        })
    }
}

/// A line of those below, and what is computed for it.
pub(super) type Step = (usize, Tiles);

/// Steps of some tiles of queries, each with the list of its key tiles: all that lie in the same `RUN` key
/// tiles follow each other, and are read once.
pub(super) fn by_keys(lines: &[&[u32]]) -> Vec<Step> {
    let mut left = lines.to_vec();
    let mut steps = Vec::with_capacity(lines.iter().map(|line| line.len()).sum());
    while let Some(first) = left.iter().filter_map(|line| line.first()).min() {
        let end = (*first as usize / RUN + 1) * RUN;
        for (n, line) in left.iter_mut().enumerate() {
            let near = line.iter().take_while(|k| (**k as usize) < end).count();
            let (near, others) = line.split_at(near);
            *line = others;
            if !near.is_empty() {
                steps.push((n, Tiles::new(near)));
            }
        }
    }
    steps
}

/// The same where tiles of queries share few: as many as can be of one after the other.
pub(super) fn one_by_one(lines: &[&[u32]]) -> Vec<Step> {
    let lines = lines.iter().enumerate();
    let chunks = lines.flat_map(|(n, line)| line.chunks(RUN).map(move |tiles| (n, tiles)));
    chunks.map(|(n, tiles)| (n, Tiles::new(tiles))).collect()
}

/// Steps of some neighbouring tiles of keys from `first` on, `RUN` at most, each with the list of its query
/// tiles: by these.
pub(super) fn by_queries(lines: &[&[u32]], first: usize) -> Vec<Step> {
    let mut left = lines.to_vec();
    let mut steps = Vec::with_capacity(lines.iter().map(|line| line.len()).sum());
    while let Some(&q) = left.iter().filter_map(|line| line.first()).min() {
        let mut tiles = Tiles::new(&[]);
        for (tile, line) in (first as u32..).zip(&mut left) {
            if line.first() == Some(&q) {
                *line = &line[1..];
                tiles.list[tiles.count] = tile;
                tiles.count += 1;
            }
        }
        steps.push((q as usize, tiles));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: (usize, usize) = (7, 14);

    fn computed(q: usize, k: usize) -> bool {
        q != 3 && k != 8 && (k == 5 || q == 4 && k > 6 || (q * 5 + k * 3) % 7 < 3)
    }

    fn list(of: impl Iterator<Item = usize>) -> Vec<u32> {
        of.map(|i| i as u32).collect()
    }

    fn pairs(steps: &[Step]) -> Vec<(usize, usize)> {
        steps.iter().flat_map(|(q, k)| k.list().iter().map(|k| (*q, *k as usize))).collect()
    }

    /// Every tile once, keys together or queries together, ascending in each step.
    #[test]
    fn steps_of_queries_go_through_the_keys_once() {
        let (queries, keys) = (0..NUMBERS.0, 0..NUMBERS.1);
        let lines: Vec<_> =
            queries.clone().map(|q| list(keys.clone().filter(|k| computed(q, *k)))).collect();
        let lines: Vec<&[u32]> = lines.iter().map(Vec::as_slice).collect();
        let all = || queries.clone().flat_map(|q| keys.clone().map(move |k| (q, k)));
        let mut want: Vec<_> = all().filter(|(q, k)| computed(*q, *k)).collect();

        let steps = one_by_one(&lines);
        assert_eq!(pairs(&steps), want);
        let of = |q: usize| steps.iter().filter(move |step| step.0 == q).count();
        assert!(queries.clone().all(|q| of(q) == lines[q].len().div_ceil(RUN)), "{steps:?}");

        let steps = by_keys(&lines);
        want.sort_by_key(|(q, k)| (k / RUN, *q, *k));
        assert_eq!(pairs(&steps), want);
        let same = |(q, k): &(usize, usize)| (k / RUN, *q);
        assert_eq!(steps.len(), want.chunk_by(|a, b| same(a) == same(b)).count());
        assert!(steps.iter().any(|(_, tiles)| tiles.list().len() + 1 == RUN), "{steps:?}");
        assert_eq!((by_keys(&[&[], &[]]), one_by_one(&[&[]])), (vec![], vec![]));
    }

    #[test]
    fn steps_of_keys_go_through_the_queries_once() {
        for (first, count) in [(0, RUN), (4, 3), (12, 2), (13, 1)] {
            let tiles = first..first + count;
            let of = |k| list((0..NUMBERS.0).filter(|q| computed(*q, k)));
            let lines: Vec<_> = tiles.clone().map(of).collect();
            let lines: Vec<&[u32]> = lines.iter().map(Vec::as_slice).collect();
            let steps = by_queries(&lines, first);
            let all = (0..NUMBERS.0).flat_map(|q| tiles.clone().map(move |k| (q, k)));
            assert_eq!(pairs(&steps), all.filter(|(q, k)| computed(*q, *k)).collect::<Vec<_>>());
            assert!(steps.windows(2).all(|pair| pair[0].0 < pair[1].0), "{steps:?}");
        }
    }

    #[test]
    fn pieces_are_what_lies_together() {
        let pieces = |tiles: &[u32], s| {
            let tiles = Tiles::new(tiles);
            let pieces: Vec<_> = tiles.pieces(s).collect();
            let len: usize = pieces.iter().map(|(_, keys)| keys.len()).sum();
            assert_eq!(tiles.len(s), len);
            pieces
        };
        let of = |first: usize, end: usize| first * TILE.1..end * TILE.1;
        assert_eq!(pieces(&[2, 3, 4, 5], 9999), [(0, of(2, 6))]);
        assert_eq!(pieces(&[0, 2, 3, 9], 9999), [(0, of(0, 1)), (64, of(2, 4)), (192, of(9, 10))]);
        assert_eq!(pieces(&[1, 3], 3 * TILE.1 + 5), [(0, of(1, 2)), (64, 192..197)]);
        assert_eq!(pieces(&[], 70), []);
    }
}
