//! What was to be reached on a graphics card.

use super::targets::{Bound, Target, dense, figures, of_pairs, ratio, size};
use crate::bench::row::Row;

/// Lengths of attention.
const LENGTHS: [usize; 2] = [16_384, 65_536];

/// Work on a card, of tensors in 16 bits.
fn on_card(row: &Row) -> bool {
    row.device.starts_with("cuda") && ["bf16", "f16"].contains(&row.dtype.as_str())
}

fn is_long(row: &Row) -> bool {
    size(row, 'T').is_some_and(|len| LENGTHS.contains(&len))
}

/// Attention of rows as long as `lengths`, of a mask, forward or both ways.
fn masked(row: &Row, mask: &str, backward: bool) -> bool {
    let passes = if backward { "forward + backward" } else { "forward" };
    on_card(row)
        && row.what == "attention"
        && row.case.starts_with(mask)
        && row.case.ends_with(&format!(", {passes}"))
        && is_long(row)
}

fn sparse(row: &Row, backward: bool) -> bool {
    let masks = ["window", "LongLoRA", "stride", "0.1 of the blocks"];
    masks.iter().any(|mask| masked(row, mask, backward))
}

fn long(row: &Row, backward: bool, width: usize) -> bool {
    on_card(row) && dense(row, backward, width) && is_long(row)
}

/// A dense training step of rows of one of these lengths, with block recompute or without.
fn step(row: &Row, lengths: &[usize]) -> bool {
    let of_all_pairs = ["dense", "dense, recompute"].contains(&row.case.as_str());
    let of_step = on_card(row) && row.what == "train-step" && of_all_pairs;
    of_step && size(row, 'T').is_some_and(|len| lengths.contains(&len))
}

/// A training step of a long row in which layers leave pairs out.
fn sparse_step(row: &Row) -> bool {
    let of_mask = ["LongLoRA", "LongGen"].iter().any(|mask| row.case.starts_with(mask));
    on_card(row) && row.what == "train-step" && of_mask && size(row, 'T') == Some(32_768)
}

/// A share of what bytes over bandwidth allow.
fn scan(rows: &[&Row], kind: &str, figure: fn(&Row) -> Option<f64>) -> Vec<(String, f64)> {
    let wanted = |row: &Row| {
        let whole = row.what == "scan" && row.case == format!("{kind}, forward + backward");
        whole && row.device.starts_with("cuda")
    };
    figures(rows, wanted, figure)
}

/// All of them.
pub const TARGETS: [Target; 16] = [
    Target {
        text: "dense causal attention forward against PyTorch's fastest backend, T 16 k and 64 k, D 128",
        bound: Bound::AtLeast(0.97),
        cases: 2,
        found: |rows| figures(rows, |row| long(row, false, 128), ratio("torch")),
    },
    Target {
        text: "the same, forward + backward",
        bound: Bound::AtLeast(0.97),
        cases: 2,
        found: |rows| figures(rows, |row| long(row, true, 128), ratio("torch")),
    },
    Target {
        text: "the same with D 64, forward",
        bound: Bound::AtLeast(0.9),
        cases: 2,
        found: |rows| figures(rows, |row| long(row, false, 64), ratio("torch")),
    },
    Target {
        text: "the same with D 64, forward + backward",
        bound: Bound::AtLeast(0.9),
        cases: 2,
        found: |rows| figures(rows, |row| long(row, true, 64), ratio("torch")),
    },
    Target {
        text: "window, LongLoRA groups, stride and a tenth of the blocks against FlexAttention, T 16 k and 64 k, forward",
        bound: Bound::AtLeast(1.5),
        cases: 8,
        found: |rows| figures(rows, |row| sparse(row, false), ratio("torch-flex")),
    },
    Target {
        text: "the same, forward + backward",
        bound: Bound::AtLeast(1.5),
        cases: 8,
        found: |rows| figures(rows, |row| sparse(row, true), ratio("torch-flex")),
    },
    Target {
        text: "documents of 2048 against FlexAttention, T 16 k and 64 k, forward",
        bound: Bound::AtLeast(1.5),
        cases: 2,
        found: |rows| figures(rows, |row| masked(row, "documents", false), ratio("torch-flex")),
    },
    Target {
        text: "the same, forward + backward",
        bound: Bound::AtLeast(1.3),
        cases: 2,
        found: |rows| figures(rows, |row| masked(row, "documents", true), ratio("torch-flex")),
    },
    Target {
        text: "block-sparse attention over dense, times its share d of the causal pairs, d ≥ 0.05",
        bound: Bound::AtLeast(0.8),
        cases: 4,
        found: |rows| {
            let wanted = |row: &Row| {
                [false, true].into_iter().any(|backward| masked(row, "", backward))
                    && !row.case.starts_with("dense")
            };
            figures(rows, wanted, of_pairs)
        },
    },
    Target {
        text: "products in bf16, 8192³ and those of a Llama of 1 B, against PyTorch",
        bound: Bound::AtLeast(0.97),
        cases: 8,
        found: |rows| figures(rows, |row| on_card(row) && row.what == "matmul", ratio("torch")),
    },
    Target {
        text: "training step in bf16, Llamas of 130 M and 1 B, T 2 k, against compiled PyTorch",
        bound: Bound::AtLeast(0.9),
        cases: 2,
        found: |rows| figures(rows, |row| step(row, &[2048]), ratio("torch")),
    },
    Target {
        text: "the same, T 8 k and 32 k",
        bound: Bound::AtLeast(1.0),
        cases: 4,
        found: |rows| figures(rows, |row| step(row, &[8192, 32_768]), ratio("torch")),
    },
    Target {
        text: "the same with LongLoRA groups and LongGen's schedule, T 32 k, against FlexAttention",
        bound: Bound::AtLeast(1.0),
        cases: 4,
        found: |rows| figures(rows, sparse_step, ratio("torch-flex")),
    },
    Target {
        text: "a token of a Llama of 1 B behind 32 k others, 1 row and 16, share of what bytes over bandwidth allow",
        bound: Bound::AtLeast(0.7),
        cases: 2,
        found: |rows| {
            let wanted =
                |row: &Row| on_card(row) && row.what == "decode" && size(row, 'T') == Some(32_768);
            figures(rows, wanted, Row::known_share)
        },
    },
    Target {
        text: "selective scan forward + backward, share of what bytes over bandwidth allow",
        bound: Bound::AtLeast(0.5),
        cases: 1,
        found: |rows| scan(rows, "selective", Row::known_share),
    },
    Target {
        text: "SSD forward + backward against a compiled PyTorch formulation",
        bound: Bound::AtLeast(1.0),
        cases: 1,
        found: |rows| scan(rows, "SSD", |row| Some(row.peer("torch")?.ratio)),
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::cases;
    use crate::bench::job::{Job, MaskKind, ModelJob, Numbers};
    use crate::bench::row::tests::row_of;

    #[test]
    fn long_steps_with_masks_are_those_that_were_asked_for() {
        let counts = |mask, len, device: &str| {
            let job = ModelJob { len, dtype: Numbers::Bf16, ..cases::model(mask, &|n| n) };
            let mut row = row_of(&Job::TrainStep(job), 2.0);
            row.device = device.into();
            sparse_step(&row)
        };
        let longgen = MaskKind::Longgen { block: 64, local: 31, sinks: 1, stride: None };
        assert!(counts(longgen, 32_768, "cuda") && counts(cases::LONGLORA, 32_768, "cuda:0"));
        assert!(!counts(MaskKind::Dense, 32_768, "cuda"));
        assert!(!counts(longgen, 8192, "cuda"));
        assert!(!counts(longgen, 32_768, "flex"));
    }
}
