//! `longburn bench page`: the page of results, out of files of rows.

mod card;
mod targets;
mod text;

use super::row::{Results, Row};
use crate::output;
use clap::Args;
use longburn::models::weights::write_atomic;
use longburn::training::report::{Plot, Series};
use longburn::{Error, Result};
use std::path::{Path, PathBuf};

/// Write the page of results
///
/// From files that `longburn bench` wrote; nothing is measured. A folder stands for all files in it
/// whose names end in .json. Without --out the page goes to standard output.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn bench page --from docs/results/performance --out docs/performance.md")]
pub struct PageArgs {
    /// A file of rows, or a folder of them; may be given several times
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    from: Vec<PathBuf>,
    /// Markdown file to write
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// SVG file to write: speed of attention over lengths
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
}

impl PageArgs {
    pub fn run(&self, _: &crate::Globals) -> Result<()> {
        let mut rows = Vec::new();
        for path in &self.from {
            for file in files(path)? {
                rows.extend(Results::read(&file)?.rows);
            }
        }
        if let (Some(image), Some(plot)) = (&self.image, plot(&rows)) {
            write_atomic(image, plot.render()?.as_bytes())?;
        }
        let page = text::page(&rows, plot(&rows).is_some());
        match &self.out {
            Some(out) => write_atomic(out, page.as_bytes()),
            None => output::print(&page),
        }
    }
}

pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| Error::io(path, e))? {
        let file = entry.map_err(|e| Error::io(path, e))?.path();
        if file.extension().is_some_and(|e| e == "json") {
            found.push(file);
        }
    }
    found.sort();
    Ok(found)
}

/// Rows of one machine, program and number of threads, in the order in which they came.
fn groups(rows: &[Row]) -> Vec<Vec<&Row>> {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        let alike = |group: &&mut Vec<&Row>| {
            let first = group[0];
            (&first.machine, first.threads, &first.device)
                == (&row.machine, row.threads, &row.device)
        };
        match groups.iter_mut().find(alike) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

/// Dense causal attention, forward and backward, of heads 64 wide; of the first machine.
fn plot(rows: &[Row]) -> Option<Plot> {
    let group = groups(rows).into_iter().next()?;
    let shown: Vec<&Row> = group.into_iter().filter(|row| targets::dense(row, true, 64)).collect();
    if shown.len() < 2 {
        return None;
    }
    let lengths = shown.iter().map(|row| row.shape.rsplit('T').next().unwrap_or("").to_string());
    let of_peer = |name: &str| -> Vec<f64> {
        let speed = |row: &&Row| row.peer(name).map_or(f64::NAN, |peer| row.flops / peer.seconds);
        shown.iter().map(|row| speed(row) / 1e9).collect()
    };
    let ours: Vec<f64> = shown.iter().map(|row| row.flops_per_second / 1e9).collect();
    let ceiling = |row: &&Row| row.ceiling.as_ref().map_or(f64::NAN, |c| c.gemm_flops_per_second);
    let roof: Vec<f64> = shown.iter().map(|row| ceiling(row) / 1e9).collect();
    let highest = roof.iter().copied().fold(0.0, f64::max);
    Some(
        Plot::categories("Causal attention, forward and backward, on the CPU", lengths)
            .x("tokens (one row, 8 heads of width 64)")
            .y("GFLOP/s")
            .y_covers(0.0, 1.05 * highest)
            .series(Series::new("Longburn").values(&ours))
            .series(Series::new("PyTorch SDPA").values(&of_peer("torch")))
            .series(Series::new("stock Burn").values(&of_peer("stock")))
            .series(Series::new("largest product").values(&roof)),
    )
}
