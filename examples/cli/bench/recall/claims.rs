//! What was claimed before the grid was run, and whether it holds on the means over seeds.

use super::cell::Cell;
use super::settings::{MixerName, TaskName};
use longburn::training::report::{Estimate, mean_se};
use std::collections::BTreeSet;

/// A task on which dense attention gets less, in distribution, says nothing about the others.
const SOLVED: f64 = 0.95;

/// Share of the dense model's weights that another may have more or fewer.
const SIZES: f64 = 0.05;

/// An evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// As in training.
    Trained,
    /// The longest rows.
    Longer,
    /// Of recall, rows with the fewest pairs.
    Fewest,
    /// Of recall, rows with the most pairs.
    Most,
}

/// What can be claimed of a mixer on a task.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// A share of at least this.
    AtLeast(Ask, f64),
    /// At most this far below dense.
    NearDense(Ask, f64),
    /// From the first to the second it loses at most this.
    Keeps(Ask, Ask, f64),
    /// From the first to the second it loses at least this.
    Loses(Ask, Ask, f64),
    /// From the first to the second it loses less than dense.
    LosesLess(Ask, Ask),
}

type Claim = (TaskName, MixerName, Rule);

/// The claims, but for those about sizes and about dense in distribution.
fn claims() -> Vec<Claim> {
    use Ask::{Fewest, Longer, Most, Trained};
    use MixerName::{Anchor, Dense, Lact, Longgen, Longlora, Mamba1, Mamba2, Seer};
    use Rule::{AtLeast, Keeps, Loses, LosesLess, NearDense};
    use TaskName::{Copying, Mqar, Passkey};
    let mut all = Vec::new();
    for (mixer, below) in [(Longlora, 0.05), (Longgen, 0.05), (Anchor, 0.03), (Seer, 0.05)] {
        all.extend(TaskName::ALL.map(|task| (task, mixer, NearDense(Trained, below))));
    }
    all.extend([
        (Copying, Mamba1, AtLeast(Trained, SOLVED)),
        (Copying, Mamba2, AtLeast(Trained, SOLVED)),
        (Mqar, Lact, NearDense(Trained, 0.1)),
        (Mqar, Dense, Keeps(Fewest, Most, 0.05)),
        (Mqar, Mamba1, Loses(Fewest, Most, 0.1)),
        (Mqar, Mamba2, Loses(Fewest, Most, 0.1)),
        (Mqar, Dense, Loses(Trained, Longer, 0.2)),
        (Passkey, Mamba1, LosesLess(Trained, Longer)),
        (Passkey, Mamba2, LosesLess(Trained, Longer)),
    ]);
    all
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Holds,
    Failed,
    /// Dense fails the task.
    Void,
    /// Some cell is not there.
    Lacking,
}

/// A claim in words, with what was found.
pub struct Judged {
    pub text: String,
    pub found: String,
    pub verdict: Verdict,
}

/// Cells with their means.
pub struct Grid<'a> {
    pub cells: &'a [Cell],
    pub seeds: BTreeSet<u64>,
}

impl<'a> Grid<'a> {
    pub fn new(cells: &'a [Cell]) -> Self {
        Self { cells, seeds: cells.iter().map(|cell| cell.key.seed).collect() }
    }

    /// Those of a task and a mixer, one per seed.
    pub fn of(&self, task: TaskName, mixer: MixerName) -> Vec<&'a Cell> {
        let is = |cell: &&Cell| cell.key.task == task && cell.key.mixer == mixer;
        self.cells.iter().filter(is).collect()
    }

    /// Mean share of right answers; none unless all seeds have it.
    pub fn mean(&self, task: TaskName, mixer: MixerName, ask: Ask) -> Option<Estimate> {
        let share = |cell: &&Cell| {
            let evaluate = &cell.settings.evaluate;
            let (first, last) = (*evaluate.lengths.first()?, *evaluate.lengths.last()?);
            match ask {
                Ask::Trained => cell.share(first, None),
                Ask::Longer => cell.share(last, None),
                Ask::Fewest => cell.share(first, evaluate.pairs.first().copied()),
                Ask::Most => cell.share(first, evaluate.pairs.last().copied()),
            }
        };
        let shares: Vec<f64> = self.of(task, mixer).iter().filter_map(share).collect();
        (!shares.is_empty() && shares.len() == self.seeds.len()).then(|| mean_se(&shares))
    }

    /// Whether dense attention solves a task in distribution; none where that is not measured.
    pub fn counts(&self, task: TaskName) -> Option<bool> {
        let dense = self.mean(task, MixerName::Dense, Ask::Trained)?;
        Some(dense.mean >= SOLVED)
    }

    fn words(&self, ask: Ask) -> String {
        let Some(first) = self.cells.first() else { return String::new() };
        let evaluate = &first.settings.evaluate;
        let number = |list: &[usize], last: bool| {
            let found = if last { list.last() } else { list.first() };
            found.map_or_else(|| "?".into(), usize::to_string)
        };
        match ask {
            Ask::Trained => format!("{} tokens", number(&evaluate.lengths, false)),
            Ask::Longer => format!("{} tokens", number(&evaluate.lengths, true)),
            Ask::Fewest => format!("{} pairs", number(&evaluate.pairs, false)),
            Ask::Most => format!("{} pairs", number(&evaluate.pairs, true)),
        }
    }

    /// The title of an evaluation's column.
    pub fn column(&self, task: TaskName, ask: Ask) -> String {
        format!("{}, {}", task.title(), self.words(ask))
    }

    /// All claims with their verdicts.
    pub fn judge(&self) -> Vec<Judged> {
        let mut all = vec![self.sizes()];
        for task in TaskName::ALL {
            let rule = Rule::AtLeast(Ask::Trained, SOLVED);
            all.push(self.judged((task, MixerName::Dense, rule), false));
        }
        all.extend(claims().into_iter().map(|claim| self.judged(claim, true)));
        all
    }

    fn sizes(&self) -> Judged {
        let mut worst: Option<(f64, MixerName)> = None;
        for cell in self.cells {
            let dense = self.of(cell.key.task, MixerName::Dense);
            let Some(dense) = dense.first() else { continue };
            let off = (cell.parameters as f64 / dense.parameters as f64 - 1.0).abs();
            if worst.is_none_or(|(most, _)| off > most) {
                worst = Some((off, cell.key.mixer));
            }
        }
        let found = |(off, mixer): (f64, MixerName)| {
            format!("{:.1} % at most, {}", 100.0 * off, mixer.title())
        };
        Judged {
            text: format!(
                "The models differ from the dense one by at most {:.0} % of its weights",
                100.0 * SIZES
            ),
            found: worst.map_or_else(String::new, found),
            verdict: match worst {
                None => Verdict::Lacking,
                Some((off, _)) if off <= SIZES => Verdict::Holds,
                Some(_) => Verdict::Failed,
            },
        }
    }

    /// `counted`: whether it stands and falls with dense attention solving the task.
    fn judged(&self, (task, mixer, rule): Claim, counted: bool) -> Judged {
        let points = |share: f64| format!("{:.0} points", 100.0 * share);
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let (who, of) = (mixer.title(), task.title());
        let share = |mixer, ask| self.mean(task, mixer, ask).map(|mean| mean.mean);
        let pair = |a: Option<f64>, b: Option<f64>| a.zip(b);
        let (text, found) = match rule {
            Rule::AtLeast(ask, bound) => (
                format!(
                    "{who} answers at least {:.0} % of {of} at {}",
                    100.0 * bound,
                    self.words(ask)
                ),
                share(mixer, ask).map(|x| (x >= bound, percent(x))),
            ),
            Rule::NearDense(ask, below) => (
                format!(
                    "{who} is at most {} below dense in {of} at {}",
                    points(below),
                    self.words(ask)
                ),
                pair(share(mixer, ask), share(MixerName::Dense, ask)).map(|(x, dense)| {
                    (x >= dense - below, format!("{} of {}", percent(x), percent(dense)))
                }),
            ),
            Rule::Keeps(from, to, most) => (
                format!(
                    "{who} loses at most {} in {of} from {} to {}",
                    points(most),
                    self.words(from),
                    self.words(to)
                ),
                pair(share(mixer, from), share(mixer, to))
                    .map(|(a, b)| (a - b <= most, format!("{} to {}", percent(a), percent(b)))),
            ),
            Rule::Loses(from, to, least) => (
                format!(
                    "{who} loses at least {} in {of} from {} to {}",
                    points(least),
                    self.words(from),
                    self.words(to)
                ),
                pair(share(mixer, from), share(mixer, to))
                    .map(|(a, b)| (a - b >= least, format!("{} to {}", percent(a), percent(b)))),
            ),
            Rule::LosesLess(from, to) => {
                let lost = |mixer| pair(share(mixer, from), share(mixer, to)).map(|(a, b)| a - b);
                let text = format!(
                    "{who} loses less than dense in {of} from {} to {}",
                    self.words(from),
                    self.words(to)
                );
                let found = pair(lost(mixer), lost(MixerName::Dense)).map(|(x, dense)| {
                    let points = |lost: f64| format!("{:.1} points", 100.0 * lost);
                    (x < dense, format!("{} of {}", points(x), points(dense)))
                });
                (text, found)
            }
        };
        let verdict = match (&found, self.counts(task)) {
            (None, _) => Verdict::Lacking,
            (Some(_), Some(false)) if counted => Verdict::Void,
            (Some((true, _)), _) => Verdict::Holds,
            (Some((false, _)), _) => Verdict::Failed,
        };
        Judged { text, found: found.map_or_else(String::new, |(_, found)| found), verdict }
    }
}
