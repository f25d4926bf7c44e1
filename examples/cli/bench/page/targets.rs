//! What was to be reached, and whether it was.

use crate::bench::row::Row;

/// A bound that the worst case of some rows has to keep.
pub struct Target {
    /// In words.
    pub text: &'static str,
    /// The bound.
    pub bound: Bound,
    /// Cases that have to be there before it can be called met.
    pub cases: usize,
    /// Cases with the figure of each.
    pub found: fn(&[&Row]) -> Vec<(String, f64)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// Whether a target was reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Met,
    NotMet,
    /// So many cases are lacking.
    Lacking(usize),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

impl Target {
    /// Verdict, the worst case and the best.
    pub fn judge(&self, rows: &[&Row]) -> (Verdict, Option<[(String, f64); 2]>) {
        let mut found = (self.found)(rows);
        found.sort_by(|a, b| match self.bound {
            Bound::AtLeast(_) => a.1.total_cmp(&b.1),
            Bound::AtMost(_) => b.1.total_cmp(&a.1),
        });
        let ends = found.first().cloned().zip(found.last().cloned()).map(<[_; 2]>::from);
        let verdict = match &ends {
            // One case that fails is enough; one that holds is not.
            Some([worst, _]) if !self.bound.holds(worst.1) => Verdict::NotMet,
            _ if found.len() < self.cases => Verdict::Lacking(self.cases - found.len()),
            _ => Verdict::Met,
        };
        (verdict, ends)
    }
}

/// Figures of rows that `wanted` holds for.
pub fn figures(
    rows: &[&Row],
    wanted: impl Fn(&Row) -> bool,
    figure: impl Fn(&Row) -> Option<f64>,
) -> Vec<(String, f64)> {
    let chosen = rows.iter().filter(|row| wanted(row));
    chosen.filter_map(|row| Some((format!("{}, {}", row.case, row.shape), figure(row)?))).collect()
}

pub fn ratio(name: &'static str) -> impl Fn(&Row) -> Option<f64> {
    move |row| row.peer(name).map(|peer| peer.ratio)
}

/// The number behind a letter of a row's sizes.
pub fn size(row: &Row, letter: char) -> Option<usize> {
    row.shape.split_whitespace().find_map(|part| part.strip_prefix(letter)?.parse().ok())
}

/// Dense causal attention with heads of a width.
pub fn dense(row: &Row, backward: bool, width: usize) -> bool {
    let passes = if backward { "dense, forward + backward" } else { "dense, forward" };
    row.what == "attention" && row.case == passes && size(row, 'D') == Some(width)
}

fn long_dense(row: &Row, backward: bool) -> bool {
    let wide = [64, 128].into_iter().any(|width| dense(row, backward, width));
    wide && size(row, 'T').is_some_and(|t| (1024..=16_384).contains(&t))
}

/// B1 H8 D64 T4096, forward and backward.
fn classic(row: &Row) -> bool {
    dense(row, true, 64) && row.shape == "B1 H8 K8 D64 T4096"
}

fn sparse(row: &Row) -> bool {
    row.what == "attention"
        && !row.case.starts_with("dense")
        && size(row, 'T').is_some_and(|t| t >= 8192)
        && row.causal_share.is_some_and(|share| share >= 0.05)
}

fn step(row: &Row, mask: &str) -> bool {
    row.what == "train-step" && row.case.starts_with(mask) && size(row, 'T') == Some(4096)
}

/// Those of a CPU.
pub const TARGETS: [Target; 13] = [
    Target {
        text: "attention forward + backward against stock Burn with autodiff, B1 H8 D64 T4096",
        bound: Bound::AtLeast(10.0),
        cases: 1,
        found: |rows| figures(rows, classic, ratio("stock")),
    },
    Target {
        text: "the same, peak of memory of stock Burn over Longburn's",
        bound: Bound::AtLeast(20.0),
        cases: 1,
        found: |rows| figures(rows, classic, |row| row.peer("stock")?.memory_ratio),
    },
    Target {
        text: "dense causal attention forward + backward against PyTorch SDPA, T 1 k to 16 k, D 64 and 128",
        bound: Bound::AtLeast(1.0),
        cases: 10,
        found: |rows| figures(rows, |row| long_dense(row, true), ratio("torch")),
    },
    Target {
        text: "share of the machine's measured f32 product, dense causal forward",
        bound: Bound::AtLeast(0.6),
        cases: 10,
        found: |rows| figures(rows, |row| long_dense(row, false), |row| row.share),
    },
    Target {
        text: "block-sparse attention over dense, times its share d of the causal pairs, d ≥ 0.05, T ≥ 8 k",
        bound: Bound::AtLeast(0.8),
        cases: 4,
        found: |rows| {
            let of_pairs = |row: &Row| Some(row.peer("dense")?.ratio * row.causal_share?);
            figures(rows, sparse, of_pairs)
        },
    },
    Target {
        text: "training step, 2 layers, width 256, T 4096, dense, against PyTorch",
        bound: Bound::AtLeast(1.0),
        cases: 1,
        found: |rows| figures(rows, |row| step(row, "dense"), ratio("torch")),
    },
    Target {
        text: "the same step with LongLoRA groups against PyTorch's dense step",
        bound: Bound::AtLeast(1.5),
        cases: 1,
        found: |rows| figures(rows, |row| step(row, "LongLoRA"), ratio("torch-dense")),
    },
    Target {
        text: "the same step with LongLoRA groups against PyTorch with the same groups",
        bound: Bound::AtLeast(1.0),
        cases: 1,
        found: |rows| figures(rows, |row| step(row, "LongLoRA"), ratio("torch")),
    },
    Target {
        text: "f32 products 512³ to 2048³ against PyTorch",
        bound: Bound::AtLeast(0.95),
        cases: 3,
        found: |rows| figures(rows, |row| row.what == "matmul" && square(row), ratio("torch")),
    },
    Target {
        text: "f32 products of the 2-layer model against PyTorch",
        bound: Bound::AtLeast(0.95),
        cases: 10,
        found: |rows| figures(rows, |row| row.what == "matmul" && !square(row), ratio("torch")),
    },
    Target {
        text: "generation with a cache against transformers, stories260k",
        bound: Bound::AtLeast(2.0),
        cases: 1,
        found: |rows| generation(rows, "stories260k"),
    },
    Target {
        text: "generation with a cache against transformers, random Llama of 100 M",
        bound: Bound::AtLeast(1.0),
        cases: 1,
        found: |rows| generation(rows, "random Llama 100m"),
    },
    Target {
        text: "memory growth over 300 steps of varying lengths",
        bound: Bound::AtMost(1.1),
        cases: 1,
        found: |rows| figures(rows, |row| row.case == "300 steps over 30", |row| row.growth),
    },
];

fn square(row: &Row) -> bool {
    let mut sides = row.shape.split(" x ");
    let first = sides.next();
    first.is_some_and(|side| side.parse::<usize>().is_ok()) && sides.all(|side| Some(side) == first)
}

fn generation(rows: &[&Row], name: &str) -> Vec<(String, f64)> {
    let wanted = |row: &Row| row.what == "generate" && row.case.starts_with(name);
    figures(rows, wanted, ratio("transformers"))
}
