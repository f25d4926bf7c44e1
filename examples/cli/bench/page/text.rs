//! The page as Markdown.

use super::targets::{Bound, TARGETS, Target, Verdict};
use super::{card, groups, sorted};
use crate::bench::row::{Ceiling, Peer, Row};
use crate::bench::table::time;
use longburn::training::plan::bytes;
use longburn::training::report::{Cell, Table};

const HEAD: &str = "# Performance

<!-- Generated from docs/results/performance by `longburn bench page`. -->

Speed and memory, beside plain Burn, PyTorch and `transformers`. All sides of a row run in turn
in one process run, on the same number of threads, from the same inputs and weights; before that their
results are compared, and a difference beyond rounding ends the measurement. A ratio is the other's time
over Longburn's: **above 1 Longburn is faster.**

```text
longburn bench attention --len 4096 --backward --peer stock --peer torch
longburn bench suite --out results.json --model MODEL --python python3
longburn bench compare before.json after.json
```
";

const METHOD: &str = "
## Method

- *Time.* Every side has run before the first sample. Then Longburn, the first peer, the second peer and
  so on take turns, with a pause of 20 ms between them; a sample repeats short work for at least 50 ms.
  Given is the median of SAMPLES; *range* is from the fastest to the slowest of them, beside
  the median. The files have them all.
- *Operations.* Multiplications and additions of visible query-key pairs only: 4·D per pair and head
  forward, 2.5 times that backward (scores again, and four gradients). Products count 2·m·k·n. A block
  and a training step count products, forward and twice backward, and attention; norms, rotation,
  activation and the update are not counted.
- *Ceiling.* In the same run the machine multiplies two f32 matrices of 2048², by Burn, by Longburn and
  by PyTorch where it takes part (the fastest counts), and sweeps `a = b + s·c` over arrays of 64 MiB. The
  roofline is the smaller of that product's speed and bandwidth times operations per byte, where bytes
  are inputs and outputs, read or written once; *share* is what was reached of it. Where a row is faster
  than that, its ceiling was measured too low, by a machine that did something else as well: no share
  is given, and the row counts for no target of shares.
- *Peak.* Most memory beyond inputs (for a training step: beyond weights and moments), as the system
  counts it for a process of its own per side, after a small warm-up and with an allocator that gives
  back what is freed. On a card, with `--memory`: what the allocator of all tensors holds of it, pages
  that are not full included.
- *Attention* gets the gradient of its output and returns those of q, k and v. Stock Burn is
  `softmax(q·kᵀ + mask)·v` and autodiff. PyTorch is `scaled_dot_product_attention`, causal where the mask
  is dense, with a boolean mask for windows, for strides and lists of blocks as far as one per head
  fits in 4 GiB, and by groups as rows for LongLoRA.
- *Training step.* Longburn's side is the public trainer with all its checks. PyTorch's is a Llama out of
  its own functions with fused AdamW. The losses of three steps agree, and first gradients of values'
  weights in a layer of every kind. In LongGen's schedule PyTorch's full layers are causal SDPA, and the
  others have a boolean mask or, on cards, FlexAttention with kernels that were tried.
- *Scans* have a gate and softplus. Operations are those of the recurrence. Stock Burn holds all states at
  once and doubles (selective) or all chunks at once (SSD), with autodiff; `recurrence` is Burn token by
  token; PyTorch goes token by token over states that it has made at once, or computes all chunks at
  once.
- *Sparse masks.* `dense` is Longburn itself without the gaps; its ratio is what sparsity saves. Choosing
  blocks is no part of it: they are known beforehand, those of lists at random.
- The peers' code is `benches/peers/torch_peer`, which can also be run by hand.
";

const SECTIONS: [(&str, &str); 9] = [
    ("attention", "Attention"),
    ("matmul", "Products of matrices (m x k x n)"),
    ("linear-loss", "Linear layer and cross-entropy"),
    ("scan", "State-space scans"),
    ("block", "One block"),
    ("train-step", "Training step"),
    ("decode", "A token behind a cache"),
    ("generate", "Generation"),
    ("growth", "Growth of memory"),
];

/// `image` says whether the drawing was made.
pub fn page(rows: &[Row], image: bool) -> String {
    let mut page = HEAD.to_string();
    if rows.is_empty() {
        page += "\nNothing has been measured yet.\n\n";
        page += &format!("## Targets\n\n{}", targets(&[]));
    }
    for (i, group) in groups(rows).iter().enumerate() {
        page += &machine(group);
        page += &format!("### Targets\n\n{}", targets(group));
        if image && i == 0 {
            page += "\n![Causal attention, forward and backward: GFLOP/s by length]\
                     (images/performance.svg)\n";
        }
        for (what, title) in SECTIONS {
            let rows: Vec<&Row> = group.iter().copied().filter(|row| row.what == what).collect();
            if !rows.is_empty() {
                page += &format!("\n### {title}\n\n{}", table(&sorted(&rows)));
            }
        }
    }
    page + &METHOD.replace("SAMPLES", &samples(rows))
}

fn machine(rows: &[&Row]) -> String {
    let first = rows[0];
    let m = &first.machine;
    let title = match &m.card {
        Some(card) => card.clone(),
        None => format!("{}, {} threads", m.cpu, first.threads),
    };
    let mut numbers: Vec<&str> = rows.iter().map(|row| row.dtype.as_str()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let cores = range(rows.iter().map(|row| row.machine.cores as f64), 0);
    let mut text = format!(
        "\n## {title}\n\n{}, {} cores, {}, {}; longburn {} ({} build), device {}, {}.\n",
        m.cpu,
        cores,
        m.simd.join(", "),
        m.system,
        m.longburn,
        m.build,
        first.device,
        numbers.join(" and "),
    );
    let mut versions: Vec<&str> =
        rows.iter().flat_map(|row| &row.peers).map(|peer| peer.version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    versions.retain(|version| !version.starts_with("longburn"));
    if !versions.is_empty() {
        text += &format!("Peers: {}.\n", versions.join("; "));
    }
    text += &ceilings(rows);
    text += &origin(rows);
    text + "\n"
}

/// How many samples rows have.
fn samples(rows: &[Row]) -> String {
    // A growing run is one sample by its nature.
    let counts = rows.iter().filter(|row| row.what != "growth").map(|row| row.samples.len());
    match (counts.clone().min(), counts.max()) {
        (Some(least), Some(most)) if least < most => format!("{least} to {most} samples"),
        (Some(1), _) => "one sample".into(),
        (Some(count), _) => format!("{count} samples"),
        _ => "all samples".into(),
    }
}

/// From the least to the most, or the one that there is.
fn range(values: impl Iterator<Item = f64>, digits: usize) -> String {
    let [low, high] = values.fold([f64::INFINITY, 0.0], |[low, high], x| [low.min(x), high.max(x)]);
    let [low, high] = [low, high].map(|x| format!("{x:.digits$}"));
    if low == high { low } else { format!("{low} to {high}") }
}

fn ceilings(rows: &[&Row]) -> String {
    let all: Vec<&Ceiling> = rows.iter().filter_map(|row| row.ceiling.as_ref()).collect();
    if all.is_empty() {
        return String::new();
    }
    let mut by: Vec<&str> = all.iter().map(|c| c.gemm_by.as_str()).collect();
    by.sort_unstable();
    by.dedup();
    let mut text = format!(
        "Ceiling: {} GFLOP/s (largest product, by {}), {} GB/s",
        range(all.iter().map(|c| c.gemm_flops_per_second / 1e9), 0),
        by.join(" or "),
        range(all.iter().map(|c| c.bytes_per_second / 1e9), 1),
    );
    let without =
        all.iter().filter(|c| !c.gemm_tried.iter().any(|name| name == "longburn")).count();
    if without > 0 {
        text +=
            &format!("; in {without} of {} rows without a product of Longburn's own", all.len());
    }
    text + ".\n"
}

/// When rows were measured, and of which commits.
fn origin(rows: &[&Row]) -> String {
    let mut days: Vec<&str> = rows.iter().filter_map(|row| row.date.as_deref()).collect();
    days.sort_unstable();
    let mut commits: Vec<&str> = rows.iter().filter_map(|row| row.commit.as_deref()).collect();
    commits.sort_unstable();
    commits.dedup();
    let mut text = match days.as_slice() {
        [] => return String::new(),
        [first, .., last] if first != last => format!("Measured from {first} to {last}"),
        [day, ..] => format!("Measured on {day}"),
    };
    if !commits.is_empty() {
        text += &format!(", commit {}", commits.join(", "));
    }
    text + ".\n"
}

fn targets(rows: &[&Row]) -> String {
    let mut table = Table::new(["Target", "Needed", "Found", "Verdict"]);
    let on_card = rows.first().is_some_and(|row| row.machine.card.is_some());
    let all: &[Target] = if on_card { &card::TARGETS } else { &TARGETS };
    for target in all {
        let (verdict, ends) = target.judge(rows);
        let needed = match target.bound {
            Bound::AtLeast(x) => format!("≥ {x}"),
            Bound::AtMost(x) => format!("≤ {x}"),
        };
        let found = match ends {
            None => "–".to_string(),
            Some([worst, best]) if worst.0 == best.0 => format!("{:.2}", worst.1),
            Some([worst, best]) => format!("{:.2} ({}) to {:.2}", worst.1, worst.0, best.1),
        };
        let verdict = match verdict {
            Verdict::Met => "met".to_string(),
            Verdict::NotMet => "**not met**".to_string(),
            Verdict::Lacking(cases) if cases == target.cases => "not measured".to_string(),
            Verdict::Lacking(cases) => format!("{cases} of {} cases not measured", target.cases),
        };
        table.push([Cell::from(target.text), needed.into(), found.into(), verdict.into()]);
    }
    table.to_markdown()
}

/// What a row has in a column.
type Column = fn(&Row) -> Option<String>;

fn table(rows: &[&Row]) -> String {
    let mut titles = vec!["Case", "Sizes", "Time"];
    let has = |of: fn(&Row) -> bool| rows.iter().any(|row| of(row));
    let columns: [(&str, bool, Column); 7] = [
        ("Range", has(|row| row.samples.len() > 1), scatter),
        ("GFLOP/s", has(|row| row.flops > 0.0), |row| {
            (row.flops > 0.0).then(|| format!("{:.1}", row.flops_per_second / 1e9))
        }),
        ("Share", has(|row| row.share.is_some()), |row| {
            let percent = |share| format!("{:.0} %", 100.0 * share);
            row.share.map(|_| row.known_share().map_or("–".into(), percent))
        }),
        ("Tokens/s", has(|row| row.tokens_per_second.is_some()), |row| {
            row.tokens_per_second.map(|speed| format!("{speed:.1}"))
        }),
        ("Of causal", has(|row| row.causal_share.is_some_and(|share| share < 0.999)), |row| {
            row.causal_share.map(|share| format!("{:.1} %", 100.0 * share))
        }),
        ("Peak", has(|row| row.peak_bytes.is_some()), |row| row.peak_bytes.map(bytes)),
        ("Growth", has(|row| row.growth.is_some()), |row| {
            row.growth.map(|growth| format!("{growth:.3}"))
        }),
    ];
    let shown: Vec<_> = columns.into_iter().filter(|(_, there, _)| *there).collect();
    titles.extend(shown.iter().map(|(title, ..)| *title));
    let any_peer = has(|row| !row.peers.is_empty());
    if any_peer {
        titles.push("Ratios");
    }
    let mut table = Table::new(titles);
    for row in rows {
        let mut cells: Vec<Cell> =
            vec![row.case.as_str().into(), row.shape.as_str().into(), time(row.seconds).into()];
        cells.extend(shown.iter().map(|(.., text)| Cell::from(text(row))));
        if any_peer {
            let peers: Vec<String> = row.peers.iter().map(peer).collect();
            cells.push(peers.join("; ").into());
        }
        table.push(cells);
    }
    table.to_markdown()
}

/// The fastest and the slowest sample beside the median.
fn scatter(row: &Row) -> Option<String> {
    let apart = |x: f64| 100.0 * (x / row.seconds - 1.0);
    let most = row.samples.iter().copied().fold(0.0, f64::max);
    let least = row.samples.iter().copied().fold(f64::INFINITY, f64::min);
    let several = row.samples.len() > 1;
    several.then(|| format!("−{:.0} / +{:.0} %", -apart(least), apart(most)))
}

fn peer(peer: &Peer) -> String {
    let memory = peer.memory_ratio.map_or(String::new(), |ratio| format!(" (memory {ratio:.1})"));
    format!("{} {:.2}{memory}", peer.name, peer.ratio)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::cases;
    use crate::bench::row::tests::row_of;

    fn row(samples: &[f64]) -> Row {
        Row { samples: samples.to_vec(), ..row_of(&cases::squares(&|n| n)[0], 2.0) }
    }

    fn with_ceiling(flops: f64, by: &str, tried: &[&str], share: f64) -> Row {
        let ceiling = Ceiling {
            gemm_flops_per_second: flops,
            gemm_by: by.into(),
            gemm_tried: tried.iter().map(ToString::to_string).collect(),
            bytes_per_second: flops / 10.0,
        };
        Row { ceiling: Some(ceiling), share: Some(share), ..row(&[0.1]) }
    }

    #[test]
    fn the_number_of_samples_is_that_of_the_rows() {
        let rows = [row(&[0.1; 3]), row(&[0.1; 11]), row(&[0.1; 5])];
        assert!(page(&rows, false).contains("the median of 3 to 11 samples;"));
        assert!(page(&rows[..1], false).contains("the median of 3 samples;"));
        assert!(page(&[row(&[0.1])], false).contains("the median of one sample;"));
    }

    #[test]
    fn ceilings_are_given_from_the_lowest_to_the_highest() {
        let all = [
            with_ceiling(1e11, "burn", &[], 0.9),
            with_ceiling(2e11, "torch", &["burn", "longburn", "torch"], 0.9),
        ];
        let said = ceilings(&all.each_ref());
        assert!(said.contains("100 to 200 GFLOP/s (largest product, by burn or torch)"), "{said}");
        assert!(said.contains("10.0 to 20.0 GB/s; in 1 of 2 rows without"), "{said}");
        assert!(
            ceilings(&[&all[1]]).contains("200 GFLOP/s (largest product, by torch), 20.0 GB/s.\n")
        );
    }

    #[test]
    fn a_share_above_one_is_not_printed() {
        let said = table(&[&with_ceiling(1e11, "burn", &[], 1.35)]);
        assert!(said.contains("| – ") && !said.contains("135"), "{said}");
        assert!(table(&[&with_ceiling(1e11, "burn", &[], 0.35)]).contains("35 %"));
    }

    #[test]
    fn samples_scatter_visibly() {
        assert_eq!(scatter(&row(&[0.1, 0.09, 0.125])).unwrap(), "−10 / +25 %");
        assert_eq!(scatter(&row(&[0.1])), None);
    }

    #[test]
    fn days_and_commits_are_told() {
        let on = |day: &str, commit: Option<&str>| Row {
            date: Some(day.into()),
            commit: commit.map(Into::into),
            ..row(&[0.1])
        };
        let rows = [on("2026-11-27", Some("abc")), on("2026-11-26", None), row(&[0.1])];
        assert_eq!(
            origin(&rows.each_ref()),
            "Measured from 2026-11-26 to 2026-11-27, commit abc.\n"
        );
        assert_eq!(origin(&[&rows[1]]), "Measured on 2026-11-26.\n");
        assert_eq!(origin(&[&rows[2]]), "");
    }
}
