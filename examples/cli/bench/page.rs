//! `longburn bench page`: the page of results, out of files of rows.

mod card;
mod targets;
mod text;

use super::row::{Machine, Results, Row, once};
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
        let mut found = Vec::new();
        for path in &self.from {
            for file in files(path)? {
                let rows = Results::read(&file)?.rows;
                found.extend(rows.into_iter().map(|row| (file.clone(), row)));
            }
        }
        let named: Vec<(&Path, &Row)> = found.iter().map(|(f, row)| (f.as_path(), row)).collect();
        once(&named, |a, b| a.is_same(b) && place(a) == place(b))?;
        let rows: Vec<Row> = found.into_iter().map(|(_, row)| row).collect();
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

/// Where a row was measured, with how many threads; the cores of a card's host are left out.
fn place(row: &Row) -> (Machine, usize, &str) {
    let mut place = (row.machine.clone(), row.threads, row.device.as_str());
    if place.0.card.is_some() {
        (place.0.cores, place.1) = (0, 0);
    }
    place
}

/// Rows of one place and program, in the order in which they came.
fn groups(rows: &[Row]) -> Vec<Vec<&Row>> {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        match groups.iter_mut().find(|group| place(group[0]) == place(row)) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

/// The numbers in a row's sizes, in their order.
fn sizes(row: &Row) -> Vec<usize> {
    let digits = row.shape.split(|c: char| !c.is_ascii_digit());
    digits.filter_map(|part| part.parse().ok()).collect()
}

/// Cases in the order in which they came, each by its sizes.
fn sorted<'a>(rows: &[&'a Row]) -> Vec<&'a Row> {
    let first = |row: &Row| rows.iter().position(|other| other.case == row.case);
    let mut sorted = rows.to_vec();
    sorted.sort_by_key(|row| (first(row), sizes(row)));
    sorted
}

/// Dense causal attention, forward and backward, of heads 64 wide; of the first machine.
fn plot(rows: &[Row]) -> Option<Plot> {
    let group = groups(rows).into_iter().next()?;
    let wanted = |row: &&Row| {
        targets::dense(row, true, 64) && row.dtype == "f32" && row.shape.starts_with("B1 H8 K8 ")
    };
    let shown: Vec<&Row> = group.into_iter().filter(wanted).collect();
    let shown = sorted(&shown);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::cases::attention;
    use crate::bench::job::MaskKind;
    use crate::bench::row::tests::row_of;

    fn dense(len: usize) -> Row {
        row_of(&attention(len, 64, MaskKind::Dense, true), 2.0)
    }

    #[test]
    fn rows_come_by_their_sizes_however_they_were_measured() {
        let window = MaskKind::Window { window: 512, sinks: 4 };
        let other = |len| row_of(&attention(len, 64, window, true), 2.0);
        let rows = [dense(8192), other(4096), dense(16_384), dense(1024), other(512)];
        let order: Vec<&str> = sorted(&rows.each_ref())
            .iter()
            .map(|row| row.shape.rsplit('T').next().unwrap())
            .collect();
        assert_eq!(order, ["1024", "8192", "16384", "512", "4096"]);
        let svg = plot(&rows).unwrap().render().unwrap();
        let at = |len: &str| svg.find(&format!("\n{len}\n")).unwrap();
        assert!(at("1024") < at("8192") && at("8192") < at("16384"), "{svg}");
    }

    #[test]
    fn threads_and_machines_are_never_mixed() {
        let two = dense(1024);
        let four = Row { threads: 4, ..dense(2048) };
        let mut elsewhere = dense(4096);
        elsewhere.machine.cpu = "another".into();
        let more = dense(8192);
        let rows = [two, four, elsewhere, more];
        let groups: Vec<Vec<&Row>> = groups(&rows);
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1]);
        assert!(groups.iter().flatten().all(|row| row.threads == 2 || row.shape.ends_with("2048")));
        let page = text::page(&rows, false);
        assert!(page.contains("a processor, 2 threads") && page.contains("a processor, 4 threads"));
        // A card is the same in hosts with more cores.
        let on_card = |cores| {
            let mut row = dense(cores);
            (row.machine.card, row.machine.cores, row.threads) =
                (Some("a card".into()), cores, cores);
            row
        };
        let cards = [on_card(8), on_card(16)];
        assert_eq!(super::groups(&cards).len(), 1);
        let again = Row { shape: cards[0].shape.clone(), ..cards[1].clone() };
        assert!(again.is_same(&cards[0]) && !cards[1].is_same(&cards[0]));
        assert!(text::page(&cards, false).contains("8 to 16 cores"));
        // One length of each is no drawing.
        assert!(plot(&rows[..2]).is_none());
    }
}
