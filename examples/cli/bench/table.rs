//! Rows for people.

use super::args::MeasureArgs;
use super::job::Job;
use super::measure::{Bench, Case};
use super::row::{Results, Row};
use crate::{Globals, output};
use longburn::Result;
use longburn::training::plan::bytes;
use std::path::{Path, PathBuf};

/// Measure jobs one after another with the peers that were asked for, as [`run`] does.
///
/// # Errors
/// As [`run`].
pub fn measure(jobs: &[Job], args: &MeasureArgs, globals: &Globals) -> Result<()> {
    let cases: Vec<Case> = jobs.iter().map(|job| (job.clone(), args.peer.clone())).collect();
    run(&cases, args, globals, |_| {})
}

/// Measure cases one after another, show each as it is done, and keep them where asked for: the file
/// has all rows before an error.
///
/// # Errors
/// What [`Bench`] says.
pub fn run(
    cases: &[Case],
    args: &MeasureArgs,
    globals: &Globals,
    done: impl Fn(usize),
) -> Result<()> {
    let bench = Bench::new(cases, args, globals)?;
    let mut results = Results::default();
    for (i, case) in cases.iter().enumerate() {
        let row = bench.row(case)?;
        if !globals.json {
            output::print(&text(&row))?;
            if let Some(profile) = &row.profile {
                output::print(&profile.text())?;
            }
        }
        if let (Some(profile), Some(file)) = (&row.profile, &args.profile) {
            let title = format!("{}, {}, {}", row.what, row.case, row.shape);
            profile.draw(&title, &numbered(file, i))?;
        }
        results.rows.push(row);
        if let Some(out) = &args.out {
            results.write(out)?;
        }
        done(i + 1);
    }
    if globals.json { output::json(&output::value(&results)) } else { Ok(()) }
}

/// A file of its own for every row: `step.svg`, `step-2.svg`, and so on.
fn numbered(file: &Path, row: usize) -> PathBuf {
    if row == 0 {
        return file.into();
    }
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let name = match file.extension() {
        Some(ending) => format!("{stem}-{}.{}", row + 1, ending.to_string_lossy()),
        None => format!("{stem}-{}", row + 1),
    };
    file.with_file_name(name)
}

/// A row in lines.
pub fn text(row: &Row) -> String {
    let mut text = format!("{}, {}, {}\n", row.what, row.case, row.shape);
    let mut line = |name: &str, seconds: f64, peak: Option<u64>, rest: String| {
        let peak = peak.map_or(String::new(), |peak| format!(", {}", bytes(peak)));
        text += &format!("  {name:<13} {}{peak}{rest}\n", time(seconds));
    };
    let mut rest = String::new();
    if row.flops > 0.0 {
        rest += &format!(", {:.1} GFLOP/s", row.flops_per_second / 1e9);
    }
    if row.what == "decode" {
        rest += &format!(", {:.1} GB/s", row.bytes / row.seconds / 1e9);
    }
    if let Some(share) = row.share {
        rest += &match row.known_share() {
            Some(share) => format!(", {:.0} % of the ceiling", 100.0 * share),
            None => format!(", {share:.2} times the ceiling, which was measured too low"),
        };
    }
    if let Some(speed) = row.tokens_per_second {
        rest += &format!(", {speed:.1} tokens/s");
    }
    if let Some(growth) = row.growth {
        rest += &format!(", peak grows {growth:.3} times");
    }
    line("longburn", row.seconds, row.peak_bytes, rest);
    for peer in &row.peers {
        let memory = peer.memory_ratio.map_or(String::new(), |r| format!(", memory ratio {r:.2}"));
        let same = peer.difference.map_or(String::new(), |d| format!(", differs by {d:.0e}"));
        let rest = format!(", ratio {:.2}{memory}{same} ({})", peer.ratio, peer.version);
        line(&peer.name, peer.seconds, peer.peak_bytes, rest);
    }
    text
}

/// Seconds, or parts of them.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} µs", s * 1e6),
    }
}
