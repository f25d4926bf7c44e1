//! Drawings of masks: who sees whom.

use super::escape;
use crate::kernel::{BlockKind, Mask};
use serde::Serialize;
use std::fmt::Write;
use std::ops::Range;

/// Up to this length every query-key pair is drawn; above, tiles.
const MOST_CELLS: usize = 96;
/// Tiles along a side, at most.
const MOST_TILES: usize = 64;
/// Smallest side of a tile, tokens.
const LEAST_TILE: usize = 16;
/// Side of a panel.
const SIDE: usize = 320;
const GAP: usize = 28;
const TOP: usize = 64;
const STYLE: &str = "<style>svg:root{color:#1d2125;background:#fff}\
    @media (prefers-color-scheme:dark){svg:root{color:#e3e6ea;background:#16181c}}</style>";

/// Row 0 of a mask, drawn; with its figures over all rows and heads.
///
/// ```
/// use longburn::{kernel::Mask, training::report::MaskDrawing};
/// let drawing = MaskDrawing::new(&Mask::causal(1, 8, 2), 16);
/// assert_eq!(drawing.summary.pairs, 8 * 9 / 2 * 2);
/// assert!(drawing.svg("causal").starts_with("<svg"));
/// ```
#[derive(Clone, Debug)]
pub struct MaskDrawing {
    /// Figures.
    pub summary: MaskSummary,
    queries: usize,
    keys: usize,
    panels: Vec<Panel>,
}

/// What a mask lets through and costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MaskSummary {
    /// Queries per row.
    pub length: usize,
    /// Query heads.
    pub heads: usize,
    /// Visible query-key pairs.
    pub pairs: u64,
    /// Visible pairs over all pairs.
    pub density: f64,
    /// Multiplications and additions of one forward pass over the visible pairs.
    pub operations: f64,
    /// The same of all pairs, or of all causal ones where the mask is causal.
    pub dense_operations: f64,
    /// Side of a tile.
    pub tile: usize,
    /// Tiles that are computed.
    pub visited_tiles: usize,
    /// All tiles.
    pub total_tiles: usize,
}

/// Heads that share a pattern.
#[derive(Clone, Debug)]
struct Panel {
    heads: Range<usize>,
    /// Side of a cell, tokens.
    unit: usize,
    /// (query, key, kind) of every cell that is not empty.
    cells: Vec<(usize, usize, BlockKind)>,
}

impl MaskDrawing {
    /// Look at `mask` for heads of width `head_dim`.
    pub fn new(mask: &Mask, head_dim: usize) -> Self {
        let (queries, keys) = (mask.queries().len(), mask.keys().len());
        let small = queries.max(keys) <= MOST_CELLS;
        let tile = queries.max(keys).div_ceil(MOST_TILES).next_power_of_two().max(LEAST_TILE);
        let blocks = mask.blocks(tile, tile);
        let panels = blocks.classes().iter().enumerate().map(|(class, heads)| {
            let mut cells = Vec::new();
            let (rows, columns) = if small { (queries, keys) } else { blocks.tiles() };
            for q in 0..rows {
                for k in 0..columns {
                    let kind = match small {
                        true if mask.visible(0, heads.start, q, k) => BlockKind::Full,
                        true => BlockKind::Skip,
                        false => blocks.kind(0, class, q, k),
                    };
                    if kind != BlockKind::Skip {
                        cells.push((q, k, kind));
                    }
                }
            }
            Panel { heads: heads.clone(), unit: if small { 1 } else { tile }, cells }
        });
        let rows = (mask.queries().batch() * mask.heads() * queries) as f64;
        let causal = (keys + 1) as f64 / 2.0;
        let seen = if mask.spec().causal { causal } else { keys as f64 };
        let pairs = mask.pairs();
        let of_one_pair = 4.0 * head_dim as f64;
        Self {
            summary: MaskSummary {
                length: queries,
                heads: mask.heads(),
                pairs,
                density: pairs as f64 / (rows * keys as f64).max(1.0),
                operations: of_one_pair * pairs as f64,
                dense_operations: of_one_pair * rows * seen,
                tile,
                visited_tiles: blocks.visited(),
                total_tiles: blocks.total(),
            },
            queries,
            keys,
            panels: panels.collect(),
        }
    }

    /// One panel per class of heads, queries downwards, keys to the right. Filled: seen; pale:
    /// seen in part.
    pub fn svg(&self, title: &str) -> String {
        let width = GAP + self.panels.len().max(1) * (SIDE + GAP);
        let height = TOP + SIDE + GAP;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" style=\"max-width:100%;height:auto\" \
             role=\"img\" aria-label=\"{}\" font-family=\"system-ui, sans-serif\">\n{STYLE}\
             <text x=\"{GAP}\" y=\"24\" font-size=\"15\" font-weight=\"600\" \
             fill=\"currentColor\">{}</text>\n",
            escape(&self.words(title)),
            escape(title),
        );
        for (i, panel) in self.panels.iter().enumerate() {
            self.panel(&mut out, panel, GAP + i * (SIDE + GAP));
        }
        out + "</svg>\n"
    }

    /// The drawing in words, for those who cannot see it.
    fn words(&self, title: &str) -> String {
        format!("{title}: {:.2} % of the query-key pairs are visible", 100.0 * self.summary.density)
    }

    fn panel(&self, out: &mut String, panel: &Panel, left: usize) {
        let scale = SIDE as f64 / self.queries.max(self.keys).max(1) as f64;
        let (rows, columns) = (self.queries as f64 * scale, self.keys as f64 * scale);
        let heads = match panel.heads.len() {
            1 => format!("head {}", panel.heads.start),
            _ => format!("heads {} – {}", panel.heads.start, panel.heads.end - 1),
        };
        // Writing to a string does not fail.
        let _ = write!(
            out,
            "<g transform=\"translate({left} {TOP})\">\n<text y=\"-10\" font-size=\"12\" \
             fill=\"currentColor\">{heads}</text>\n"
        );
        for (kind, opacity) in [(BlockKind::Full, "1"), (BlockKind::Partial, ".45")] {
            let mut path = String::new();
            // Neighbours of one kind in a row become one rectangle.
            let mut cells = panel.cells.iter().filter(|cell| cell.2 == kind).peekable();
            while let Some(&(q, first, _)) = cells.next() {
                let mut end = first + 1;
                while cells.next_if(|cell| cell.0 == q && cell.1 == end).is_some() {
                    end += 1;
                }
                let at = |i: usize, limit: usize| (i * panel.unit).min(limit) as f64 * scale;
                let (top, bottom) = (at(q, self.queries), at(q + 1, self.queries));
                let (from, to) = (at(first, self.keys), at(end, self.keys));
                let _ = write!(path, "M{from:.2} {top:.2}H{to:.2}V{bottom:.2}H{from:.2}z");
            }
            if !path.is_empty() {
                let _ =
                    writeln!(out, "<path d=\"{path}\" fill=\"#0072B2\" opacity=\"{opacity}\"/>");
            }
        }
        let _ = write!(
            out,
            "<rect width=\"{columns:.2}\" height=\"{rows:.2}\" fill=\"none\" \
             stroke=\"currentColor\" stroke-width=\"1\" opacity=\".6\"/>\n</g>\n"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{GroupSize, Groups, MaskSpec, TokenMeta};

    fn mask(len: usize) -> Mask {
        let groups = Groups { size: GroupSize::Ratio(4), shift: true, ragged: false };
        let tokens = TokenMeta::contiguous(1, len, 0);
        let spec = MaskSpec::causal().with_groups(groups);
        Mask::new(spec, tokens.clone(), tokens, 4).unwrap()
    }

    fn drawing(len: usize) -> MaskDrawing {
        MaskDrawing::new(&mask(len), 8)
    }

    #[test]
    fn small_masks_are_drawn_pair_by_pair() {
        let small = drawing(16);
        assert_eq!(small.panels.len(), 2);
        // Four groups of four: 4·(4·5/2); shifted: halves of two at both ends.
        assert_eq!(small.panels[0].cells.len(), 40);
        assert_eq!(small.panels[1].cells.len(), 3 + 30 + 3);
        assert_eq!(small.summary.pairs, 2 * 40 + 2 * 36);
        let svg = small.svg("a < b");
        assert!(svg.contains("heads 0 – 1") && svg.contains("heads 2 – 3"));
        assert!(svg.contains("a &lt; b") && !svg.contains("a < b"));
    }

    #[test]
    fn long_masks_are_drawn_by_tile() {
        let long = drawing(2048);
        assert_eq!(long.summary.tile, 32);
        // A group is 512 tokens, 16 tiles: 4·(16·17/2) tiles of 64².
        assert_eq!(long.panels[0].cells.len(), 4 * 136);
        let full = long.panels[0].cells.iter().filter(|cell| cell.2 == BlockKind::Full).count();
        assert_eq!(full, 4 * 120);
        assert!(long.summary.visited_tiles < long.summary.total_tiles / 4);
        assert_eq!(long.summary.dense_operations, 4.0 * 4.0 * 2048.0 * 2049.0 / 2.0 * 8.0);
    }
}
