//! `longburn bench compare`: two files of results, row by row.

use super::row::{Results, Row, spread};
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

fn is_same(a: &Row, b: &Row) -> bool {
    let key = |row: &Row| (row.what.clone(), row.case.clone(), row.shape.clone());
    key(a) == key(b) && (&a.device, &a.dtype, a.threads) == (&b.device, &b.dtype, b.threads)
}

fn comparison(before: &[Row], after: &[Row]) -> Comparison {
    let lacking = |rows: &[Row], others: &[Row]| -> Vec<String> {
        let lonely = rows.iter().filter(|row| !others.iter().any(|other| is_same(row, other)));
        lonely.map(|row| format!("{}, {}, {}", row.what, row.case, row.shape)).collect()
    };
    let mut other_machine = false;
    let mut changes = Vec::new();
    for a in before {
        let Some(b) = after.iter().find(|b| is_same(a, b)) else { continue };
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
