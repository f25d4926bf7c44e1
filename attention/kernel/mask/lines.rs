//! The tiles of a mask that are computed, listed: where few are, looking at all of them would take as long
//! as computing those.

use super::BlockKind;

/// Numbers of computed tiles, ascending, line by line.
#[derive(Debug)]
pub(super) struct Lines {
    /// Where each line begins, and the last one ends.
    starts: Vec<usize>,
    tiles: Vec<u32>,
}

impl Lines {
    /// Of kinds `[maps, q tile, k tile]`, by tile of queries.
    pub fn by_queries(kinds: &[BlockKind], k_tiles: usize) -> Self {
        let mut lines = Self { starts: vec![0], tiles: Vec::new() };
        for line in kinds.chunks(k_tiles.max(1)) {
            let computed = line.iter().zip(0..).filter(|(kind, _)| **kind != BlockKind::Skip);
            lines.tiles.extend(computed.map(|(_, k)| k));
            lines.starts.push(lines.tiles.len());
        }
        lines
    }

    /// The same of `maps`, each with `q_tiles` lines, by tile of keys.
    pub fn turned(&self, maps: usize, (q_tiles, k_tiles): (usize, usize)) -> Self {
        let mut starts = vec![0; maps * k_tiles + 1];
        let all = || {
            (0..maps * q_tiles).flat_map(|line| {
                let key = move |k: &u32| line / q_tiles * k_tiles + *k as usize;
                self.line(line).iter().map(move |k| (key(k), (line % q_tiles) as u32))
            })
        };
        all().for_each(|(key, _)| starts[key + 1] += 1);
        (1..starts.len()).for_each(|key| starts[key] += starts[key - 1]);
        let (mut next, mut tiles) = (starts.clone(), vec![0; self.tiles.len()]);
        for (key, q) in all() {
            tiles[next[key]] = q;
            next[key] += 1;
        }
        Self { starts, tiles }
    }

    pub fn line(&self, n: usize) -> &[u32] {
        &self.tiles[self.starts[n]..self.starts[n + 1]]
    }
}
