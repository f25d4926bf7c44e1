//! `longburn bench recall-page`: the page of results, out of a folder of cells.

use super::cell::{Cell, same};
use super::claims::{Ask, Grid, Judged, Verdict};
use super::settings::{MixerName, TaskName};
use crate::bench::page::files;
use crate::{Globals, output};
use clap::Args;
use longburn::models::weights::write_atomic;
use longburn::training::report::{Cell as Entry, Plot, Series, Table};
use longburn::{Error, Result};
use std::path::PathBuf;

/// Write the page of recall
///
/// From a folder of results of `longburn bench recall`; nothing is computed. Without --out the page goes
/// to standard output. Cells that are lacking are said to be, and so are claims that fail.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn bench recall-page --from runs/recall --out recall.md --image recall.svg")]
pub struct RecallPageArgs {
    /// Folder of results
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// Markdown file to write
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// SVG file to write: right answers by mixer, task and length
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
}

/// Columns of the table and of the drawing.
const COLUMNS: [(TaskName, Ask); 8] = [
    (TaskName::Mqar, Ask::Trained),
    (TaskName::Mqar, Ask::Fewest),
    (TaskName::Mqar, Ask::Most),
    (TaskName::Mqar, Ask::Longer),
    (TaskName::Copying, Ask::Trained),
    (TaskName::Copying, Ask::Longer),
    (TaskName::Passkey, Ask::Trained),
    (TaskName::Passkey, Ask::Longer),
];

impl RecallPageArgs {
    pub fn run(&self, _: &Globals) -> Result<()> {
        let cells = self.cells()?;
        let grid = Grid::new(&cells);
        if let Some(image) = &self.image {
            write_atomic(image, plot(&grid).render()?.as_bytes())?;
        }
        let page = page(&grid);
        match &self.out {
            Some(out) => write_atomic(out, page.as_bytes()),
            None => output::print(&page),
        }
    }

    /// In the order of the grid; all made with the same settings.
    fn cells(&self) -> Result<Vec<Cell>> {
        let mut read = Vec::new();
        for path in files(&self.from)? {
            read.push((Cell::read(&path)?, path));
        }
        read.sort_by_key(|(cell, _)| cell.key);
        for (i, (cell, path)) in read.iter().enumerate() {
            for (other, other_path) in &read[..i] {
                let (task, mixer) =
                    (cell.key.task == other.key.task, cell.key.mixer == other.key.mixer);
                let whose = other_path.display().to_string();
                for (part, wanted) in [
                    ("model", true),
                    ("train", true),
                    ("evaluate", true),
                    ("task", task),
                    ("mixer", mixer),
                ] {
                    let said = |cell: &Cell| output::value(&cell.settings)[part].clone();
                    let field = format!("settings.{part}");
                    if wanted {
                        same(path, &field, &said(cell), &said(other), &whose)?;
                    }
                }
                if cell.key == other.key {
                    return Err(Error::Data(format!(
                        "{} and {whose} are the same cell",
                        path.display()
                    )));
                }
            }
        }
        match read.is_empty() {
            true => Err(Error::Data(format!(
                "{} holds no results (remedy: `longburn bench recall --out` writes some)",
                self.from.display()
            ))),
            false => Ok(read.into_iter().map(|(cell, _)| cell).collect()),
        }
    }
}

fn page(grid: &Grid<'_>) -> String {
    let first = &grid.cells[0].settings;
    let (model, train, evaluate) = (&first.model, &first.train, &first.evaluate);
    let lengths: Vec<String> = evaluate.lengths.iter().map(usize::to_string).collect();
    let seconds: f64 = grid.cells.iter().map(|cell| cell.seconds).sum();
    let chances: Vec<String> = TaskName::ALL
        .iter()
        .filter_map(|task| {
            let cell = grid.cells.iter().find(|cell| cell.key.task == *task)?;
            Some(format!("{} {:.1} %", task.title(), 100.0 * cell.chance))
        })
        .collect();
    let mut page = format!(
        "# Recall by small models\n\n\
         <!-- Generated from docs/results/recall by `longburn bench recall-page`. -->\n\n\
         Every mixer in a model of the same size, on three tasks whose answers stand in the row itself: \
         *recall* (pairs of keys and values, then the keys again), *copying* (scattered tokens, to be said \
         in their order) and *pass key* (one key between words that repeat). Models have {} layers of width \
         {} with {} heads and are trained from nothing for {} steps of {} rows at {} tokens; they are asked at {} \
         tokens, by {} rows. Given are right answers in percent, means over {} seeds ± standard error. \
         Chance: {}.\n\n\
         Rotary positions are not scaled for the longer rows. LongLoRA is dense in the first steps, as it \
         adapts dense models, and in evaluation. LongGen's first layer is sparse and its last one full: of two \
         layers none is the middle third. Anchor's rows are packed, with the same number of tokens per step. \
         Seer is the dense model with a gate, trained for some steps more with everything else frozen, and \
         asked with the blocks that the gate chooses. Every mixer has one learning rate and one \
         spread of the first embeddings, chosen beforehand by a few trials, most of them of dense attention and \
         of seed 0; steps were raised from 2000, at which dense attention had not learned recall with one of \
         these seeds and copying with the other. All settings are in \
         `examples/cli/bench/recall/settings.toml`.\n\n\
         ```sh\nlongburn bench recall --jobs 2 --out docs/results/recall\n\
         longburn bench recall-page --from docs/results/recall --out docs/results/recall.md --image \
         docs/images/recall.svg\n```\n\n",
        model.layers,
        model.width,
        model.heads,
        train.steps,
        train.rows,
        lengths[0],
        lengths.join(" and "),
        evaluate.rows,
        grid.seeds.len(),
        chances.join(", "),
    );
    page += &format!("{} cells, {:.0} minutes of one core.\n\n", grid.cells.len(), seconds / 60.0);
    page += &table(grid).to_markdown();
    let lacking = lacking(grid);
    if !lacking.is_empty() {
        page += &format!("\nNot measured: {}.\n", lacking.join("; "));
    }
    for task in TaskName::ALL.into_iter().filter(|task| grid.counts(*task) == Some(false)) {
        let title = task.title();
        page += &format!(
            "\n**The figures of {title} do not count**: dense attention fails it in distribution.\n"
        );
    }
    page += "\n![Right answers of every mixer by task and length](../images/recall.svg)\n";
    page += "\n## What was claimed, and what came out\n\n\
             The claims stand in `examples/cli/bench/recall/claims.rs` and were written before the grid was run. They are \
             held to the means over seeds.\n\n";
    for Judged { text, found, verdict } in grid.judge() {
        let verdict = match verdict {
            Verdict::Holds => "holds",
            Verdict::Failed => "**failed**",
            Verdict::Void => "**does not count**",
            Verdict::Lacking => "not measured",
        };
        let found = if found.is_empty() { found } else { format!(": {found}") };
        page += &format!("- {verdict}: {text}{found}\n");
    }
    page
}

fn table(grid: &Grid<'_>) -> Table {
    let mut titles = vec!["Mixer".to_string(), "Weights".into(), "Rate".into()];
    titles.extend(COLUMNS.map(|(task, ask)| grid.column(task, ask)));
    let mut table = Table::new(titles);
    for column in 3..3 + COLUMNS.len() {
        table = table.decimals(column, 1);
    }
    for mixer in MixerName::ALL {
        let cells: Vec<&Cell> =
            TaskName::ALL.iter().flat_map(|task| grid.of(*task, mixer)).collect();
        let Some(first) = cells.first() else { continue };
        let mut weights = cells.iter().map(|cell| cell.parameters).collect::<Vec<_>>();
        weights.sort_unstable();
        weights.dedup();
        let (least, most) = (weights[0], weights[weights.len() - 1]);
        let mut text = if least == most { least.to_string() } else { format!("{least} to {most}") };
        if first.gate_parameters > 0 {
            text += &format!(" and {} of gates", first.gate_parameters);
        }
        let mut row = vec![
            Entry::from(mixer.title()),
            text.into(),
            format!("{}", first.settings.mixer.lr).into(),
        ];
        row.extend(COLUMNS.map(|(task, ask)| match grid.mean(task, mixer, ask) {
            Some(mean) => Entry::Number(100.0 * mean.mean, mean.se.map(|se| 100.0 * se)),
            None => Entry::Missing,
        }));
        table.push(row);
    }
    table
}

/// Cells of the grid that are not there.
fn lacking(grid: &Grid<'_>) -> Vec<String> {
    let mut all = Vec::new();
    for task in TaskName::ALL {
        for mixer in MixerName::ALL {
            let there = grid.of(task, mixer);
            for seed in grid.seeds.iter().filter(|s| !there.iter().any(|c| c.key.seed == **s)) {
                all.push(format!("{}, {}, seed {seed}", task.title(), mixer.title()));
            }
        }
    }
    all
}

fn plot(grid: &Grid<'_>) -> Plot {
    let titles = COLUMNS.map(|(task, ask)| grid.column(task, ask));
    let mut plot = Plot::categories("Right answers by mixer", titles)
        .y("right answers (%)")
        .y_covers(0.0, 100.0);
    for mixer in MixerName::ALL.into_iter().filter(|m| grid.cells.iter().any(|c| c.key.mixer == *m))
    {
        let means = COLUMNS.map(|(task, ask)| grid.mean(task, mixer, ask));
        let values = means.map(|mean| mean.map_or(f64::NAN, |mean| 100.0 * mean.mean));
        let errors = means.map(|mean| mean.and_then(|mean| mean.se).map_or(0.0, |se| 100.0 * se));
        plot = plot.series(Series::new(mixer.title()).values(&values).band(&errors));
    }
    plot
}
