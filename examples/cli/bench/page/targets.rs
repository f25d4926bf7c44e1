//! What was to be reached, and whether it was.

use crate::bench::cases::{self, LONGLORA};
use crate::bench::job::{GenerateJob, Job, MaskKind};
use crate::bench::row::Row;
use std::collections::HashSet;

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
        // A case that is there several times is one case, and its worst figure counts.
        let mut names = HashSet::new();
        found.retain(|(name, _)| names.insert(name.clone()));
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

/// What gaps save, times the share of pairs that is left, from a twentieth on.
pub fn of_pairs(row: &Row) -> Option<f64> {
    let share = row.causal_share.filter(|share| *share >= 0.05)?;
    Some(row.peer("dense")?.ratio * share)
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

/// Figures of rows that measured one of `jobs` on a CPU in f32.
fn of_jobs(
    rows: &[&Row],
    jobs: &[Job],
    figure: impl Fn(&Row) -> Option<f64>,
) -> Vec<(String, f64)> {
    let wanted: HashSet<String> = jobs.iter().map(Job::line).collect();
    let on_cpu = |row: &Row| row.device == "flex" && row.dtype == "f32";
    figures(rows, |row| on_cpu(row) && wanted.contains(&row.line()), figure)
}

fn whole(len: usize) -> usize {
    len
}

/// B1 H8 D64 T4096, forward and backward.
fn classic() -> [Job; 1] {
    [cases::attention(4096, 64, MaskKind::Dense, true)]
}

fn dense_of(backward: bool) -> Vec<Job> {
    let of_width =
        |width| cases::LENGTHS.map(|len| cases::attention(len, width, MaskKind::Dense, backward));
    cases::HEAD_DIMS.map(of_width).concat()
}

fn sparse() -> Vec<Job> {
    cases::SPARSE_LENGTHS.map(|len| cases::sparse(len, &whole)).concat()
}

fn step(mask: MaskKind) -> [Job; 1] {
    [Job::TrainStep(cases::model(mask, &whole))]
}

/// Of checkpoints in folders of these names.
fn texts(names: &[&str]) -> Vec<Job> {
    let [prompt, new] = cases::TEXT;
    let job = |name: &&str| {
        Job::Generate(GenerateJob { name: name.to_string(), folder: "".into(), prompt, new })
    };
    names.iter().map(job).collect()
}

/// Those of a CPU.
pub const TARGETS: [Target; 13] = [
    Target {
        text: "attention forward + backward against stock Burn with autodiff, B1 H8 D64 T4096",
        bound: Bound::AtLeast(10.0),
        cases: 1,
        found: |rows| of_jobs(rows, &classic(), ratio("stock")),
    },
    Target {
        text: "the same, peak of memory of stock Burn over Longburn's",
        bound: Bound::AtLeast(20.0),
        cases: 1,
        found: |rows| of_jobs(rows, &classic(), |row| row.peer("stock")?.memory_ratio),
    },
    Target {
        text: "dense causal attention forward + backward against PyTorch SDPA, T 1 k to 16 k, D 64 and 128",
        bound: Bound::AtLeast(1.0),
        cases: 10,
        found: |rows| of_jobs(rows, &dense_of(true), ratio("torch")),
    },
    Target {
        text: "share of the machine's measured f32 product, dense causal forward",
        bound: Bound::AtLeast(0.6),
        cases: 10,
        found: |rows| of_jobs(rows, &dense_of(false), Row::known_share),
    },
    Target {
        text: "block-sparse attention over dense, times its share d of the causal pairs, d ≥ 0.05, T ≥ 8 k",
        bound: Bound::AtLeast(0.8),
        cases: 32,
        found: |rows| of_jobs(rows, &sparse(), of_pairs),
    },
    Target {
        text: "training step, 2 layers, width 256, T 4096, dense, against PyTorch",
        bound: Bound::AtLeast(1.0),
        cases: 1,
        found: |rows| of_jobs(rows, &step(MaskKind::Dense), ratio("torch")),
    },
    Target {
        text: "the same step with LongLoRA groups against PyTorch's dense step",
        bound: Bound::AtLeast(1.5),
        cases: 1,
        found: |rows| of_jobs(rows, &step(LONGLORA), ratio("torch-dense")),
    },
    Target {
        text: "the same step with LongLoRA groups against PyTorch with the same groups",
        bound: Bound::AtLeast(1.0),
        cases: 1,
        found: |rows| of_jobs(rows, &step(LONGLORA), ratio("torch")),
    },
    Target {
        text: "f32 products 512³ to 2048³ against PyTorch",
        bound: Bound::AtLeast(0.95),
        cases: 3,
        found: |rows| of_jobs(rows, &cases::squares(&whole), ratio("torch")),
    },
    Target {
        text: "f32 products of the 2-layer model against PyTorch",
        bound: Bound::AtLeast(0.95),
        cases: 10,
        found: |rows| of_jobs(rows, &cases::products(&whole), ratio("torch")),
    },
    Target {
        text: "generation with a cache against transformers, stories260k",
        bound: Bound::AtLeast(2.0),
        cases: 1,
        found: |rows| {
            of_jobs(rows, &texts(&["stories260k", "stories260k-hf"]), ratio("transformers"))
        },
    },
    Target {
        text: "generation with a cache against transformers, random Llama of 100 M",
        bound: Bound::AtLeast(1.0),
        cases: 1,
        found: |rows| of_jobs(rows, &texts(&["random Llama 100m"]), ratio("transformers")),
    },
    Target {
        text: "memory growth over 300 steps of varying lengths",
        bound: Bound::AtMost(1.1),
        cases: 1,
        found: |rows| of_jobs(rows, &[cases::growth(false)], |row| row.growth),
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row::tests::row_of;

    /// All rows of the standard cases, with every peer a target asks for, twice as fast as needed.
    fn rows() -> Vec<Row> {
        let jobs = [
            dense_of(true),
            dense_of(false),
            sparse(),
            step(MaskKind::Dense).into(),
            step(LONGLORA).into(),
            cases::squares(&whole),
            cases::products(&whole),
            texts(&["stories260k-hf", "random Llama 100m"]),
            vec![cases::growth(false)],
        ]
        .concat();
        let mut rows: Vec<Row> = jobs.iter().map(|job| row_of(job, 2.0)).collect();
        for row in &mut rows {
            row.peers.iter_mut().for_each(|peer| peer.ratio = 20.0);
        }
        rows
    }

    fn verdicts(rows: &[Row]) -> Vec<Verdict> {
        let rows: Vec<&Row> = rows.iter().collect();
        TARGETS.iter().map(|target| target.judge(&rows).0).collect()
    }

    #[test]
    fn all_standard_cases_together_meet_all_targets_and_not_one_is_superfluous() {
        let all = rows();
        assert_eq!(verdicts(&all), [Verdict::Met; TARGETS.len()]);
        for i in 0..all.len() {
            let mut less = all.clone();
            let gone = less.remove(i);
            let lacking = verdicts(&less).contains(&Verdict::Lacking(1));
            assert!(lacking, "{} counts for no target", gone.line());
        }
    }

    #[test]
    fn other_work_and_other_places_do_not_count() {
        let none = |change: fn(&mut Row)| {
            let mut rows = rows();
            rows.iter_mut().for_each(change);
            let all = verdicts(&rows);
            all.iter().zip(&TARGETS).all(|(v, target)| *v == Verdict::Lacking(target.cases))
        };
        assert!(!none(|_| ()));
        assert!(none(|row| row.dtype = "bf16".into()));
        assert!(none(|row| row.device = "wgpu".into()));
        assert!(none(|row| row.what += "s"));
        assert!(none(|row| row.shape += "0"));
        // One layer, sixteen wide.
        assert!(none(|row| row.shape = "L1 W16 H2 K2 V64 B1 T4096".into()));
        assert!(none(|row| row.shape = "8 x 8 x 8".into()));
        assert!(none(|row| row.case += ", Tiled"));
    }

    #[test]
    fn a_case_counts_once_by_its_worst_figure() {
        let five = vec![row_of(&cases::squares(&whole)[0], 2.0); 5];
        let of = |rows: &[Row]| TARGETS[8].judge(&rows.iter().collect::<Vec<_>>());
        assert_eq!(of(&five).0, Verdict::Lacking(2));
        let mut mixed = five.clone();
        mixed[3].peers[2].ratio = 0.5;
        let (verdict, ends) = of(&mixed);
        assert_eq!((verdict, ends.unwrap()[1].1), (Verdict::NotMet, 0.5));
    }

    #[test]
    fn a_share_above_one_is_no_share() {
        let mut rows = rows();
        rows.iter_mut().for_each(|row| row.share = Some(1.35));
        assert_eq!(verdicts(&rows)[3], Verdict::Lacking(10));
    }
}
