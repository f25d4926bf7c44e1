//! `longburn bench compare`: two files of results, row by row.

use super::row::{Results, Row, once, spread};
use super::table::time;
use crate::{Globals, output};
use clap::Args;
use longburn::training::report::{Cell, Table};
use longburn::{Error, Result};
use serde::Serialize;
use std::path::PathBuf;

/// Compare two files of results
///
/// Rows of the same work, sizes, device and threads are matched. The ratio is the second file's time
/// over the first's: below 1 where the second is faster. A change that is smaller than what the
/// samples of both scatter is marked as noise.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn bench compare before.json after.json
  longburn bench compare before.json after.json --json")]
pub struct CompareArgs {
    /// Results, JSON
    before: PathBuf,
    /// Results to compare with them
    after: PathBuf,
}

/// Smaller changes are noise, whatever the samples say.
const LEAST: f64 = 0.02;

/// A row of both files.
#[derive(Debug, Serialize)]
struct Change {
    what: String,
    case: String,
    shape: String,
    /// Seconds in the first file.
    before: f64,
    /// Seconds in the second.
    after: f64,
    /// `after / before`
    ratio: f64,
    /// How far a ratio may be off 1 by chance: both spreads together.
    noise: f64,
    /// Whether the ratio is no further off.
    is_noise: bool,
}

#[derive(Serialize)]
struct Comparison {
    changes: Vec<Change>,
    /// Rows of the first file that the second lacks.
    only_before: Vec<String>,
    /// Rows of the second file that the first lacks.
    only_after: Vec<String>,
    /// Whether processors or builds differ, so that times say little.
    other_machine: bool,
}

impl CompareArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let (before, after) = (Results::read(&self.before)?, Results::read(&self.after)?);
        for (file, results) in [(&self.before, &before), (&self.after, &after)] {
            // Which of the two would be compared?
            let rows: Vec<_> = results.rows.iter().map(|row| (file.as_path(), row)).collect();
            once(&rows, Row::is_same)?;
        }
        let found = comparison(&before.rows, &after.rows);
        if found.changes.is_empty() {
            return Err(Error::Data(format!(
                "{} and {} have no row in common (remedy: measure the same cases with the same \
                 --threads and --device)",
                self.before.display(),
                self.after.display()
            )));
        }
        if globals.json {
            return output::json(&output::value(&found));
        }
        output::print(&text(&found))
    }
}

fn comparison(before: &[Row], after: &[Row]) -> Comparison {
    let lacking = |rows: &[Row], others: &[Row]| -> Vec<String> {
        let lonely = rows.iter().filter(|row| !others.iter().any(|other| row.is_same(other)));
        lonely.map(Row::line).collect()
    };
    let mut other_machine = false;
    let mut changes = Vec::new();
    for a in before {
        let Some(b) = after.iter().find(|b| a.is_same(b)) else { continue };
        other_machine |= (&a.machine.cpu, &a.machine.build) != (&b.machine.cpu, &b.machine.build);
        let ratio = b.seconds / a.seconds;
        let noise = (spread(&a.samples) + spread(&b.samples)).max(LEAST);
        changes.push(Change {
            what: a.what.clone(),
            case: a.case.clone(),
            shape: a.shape.clone(),
            before: a.seconds,
            after: b.seconds,
            ratio,
            noise,
            is_noise: (ratio - 1.0).abs() <= noise,
        });
    }
    Comparison {
        changes,
        only_before: lacking(before, after),
        only_after: lacking(after, before),
        other_machine,
    }
}

fn text(found: &Comparison) -> String {
    let mut table =
        Table::new(["what", "case", "shape", "before", "after", "ratio", ""]).decimals(5, 3);
    for change in &found.changes {
        let mark = if change.is_noise { "noise" } else { "" };
        table.push([
            Cell::from(change.what.as_str()),
            change.case.as_str().into(),
            change.shape.as_str().into(),
            time(change.before).into(),
            time(change.after).into(),
            change.ratio.into(),
            mark.into(),
        ]);
    }
    let mut text = table.to_text();
    for (which, rows) in [("first", &found.only_before), ("second", &found.only_after)] {
        for row in rows {
            text += &format!("only in the {which}: {row}\n");
        }
    }
    if found.other_machine {
        text += "processors or builds differ: times say little about the program\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::cases;
    use crate::bench::row::tests::row_of;

    fn row(samples: &[f64]) -> Row {
        let row = row_of(&cases::squares(&|n| n)[0], 2.0);
        Row { seconds: crate::bench::row::median(samples), samples: samples.to_vec(), ..row }
    }

    fn change(before: &[f64], after: &[f64]) -> Change {
        comparison(&[row(before)], &[row(after)]).changes.remove(0)
    }

    #[test]
    fn slower_is_a_change_as_faster_is() {
        let slower = change(&[1.0; 3], &[1.5; 3]);
        assert!(slower.ratio == 1.5 && !slower.is_noise);
        let faster = change(&[1.5; 3], &[1.0; 3]);
        assert!(faster.ratio < 0.7 && !faster.is_noise);
        // Whatever samples say, a hundredth is noise.
        assert!(change(&[1.0; 3], &[1.01; 3]).is_noise);
    }

    #[test]
    fn samples_of_both_files_make_noise() {
        let (calm, wild) = ([1.0; 3], [0.8, 1.0, 1.2]);
        let of = |before: &[f64], after: &[f64]| change(before, after).noise;
        assert!((of(&calm, &wild) - 0.2).abs() < 1e-12);
        assert!((of(&wild, &calm) - 0.2).abs() < 1e-12);
        assert!((of(&wild, &wild) - 0.4).abs() < 1e-12);
        assert_eq!(of(&calm, &calm), LEAST);
    }

    #[test]
    fn other_work_and_other_threads_are_not_compared() {
        let a = row(&[1.0]);
        let found = comparison(std::slice::from_ref(&a), &[Row { threads: 4, ..a.clone() }]);
        assert!(found.changes.is_empty());
        assert_eq!((found.only_before.len(), found.only_after.len()), (1, 1));
        for other in [
            Row { dtype: "bf16".into(), ..a.clone() },
            Row { device: "cuda".into(), ..a.clone() },
            Row { shape: "1 x 1 x 1".into(), ..a.clone() },
        ] {
            assert!(comparison(std::slice::from_ref(&a), &[other]).changes.is_empty());
        }
    }

    #[test]
    fn another_machine_is_told() {
        let a = row(&[1.0]);
        let told = |b: Row| {
            let found = comparison(std::slice::from_ref(&a), &[b]);
            assert_eq!(found.other_machine, text(&found).contains("processors or builds differ"));
            found.other_machine
        };
        assert!(!told(a.clone()));
        let mut b = a.clone();
        b.machine.cpu = "another".into();
        assert!(told(b));
        let mut b = a.clone();
        b.machine.build = "dev".into();
        assert!(told(b));
    }
}
