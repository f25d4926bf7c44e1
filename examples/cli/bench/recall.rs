//! `longburn bench recall`: what small models of every mixer remember.

mod cell;
mod claims;
mod jobs;
mod page;
mod settings;
mod train;

pub use page::RecallPageArgs;

use crate::{Globals, output};
use cell::{Cell, Key};
use clap::Args;
use longburn::models::weights::obstacle;
use longburn::training::report::Progress;
use longburn::{Error, Result};
use serde_json::json;
use settings::{CellSettings, MixerName, Settings, TaskName};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Train small models of every mixer on tasks of recall
///
/// Multi-query associative recall, selective copying and pass keys; every mixer in a model of the same
/// size, trained for the same number of steps at 128 tokens, asked at 128 and 512. Each task, mixer and
/// seed is a cell with a file of its own in the folder of results; cells that are there are not computed
/// again, so that the same command goes on after an interruption. The whole grid takes a little more than
/// two hours of one core.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn bench recall --jobs 2
  longburn bench recall --task mqar --mixer dense,mamba2 --seed 0 --steps 200 --out runs/trial
  longburn bench recall-page --from runs/recall --out recall.md")]
pub struct RecallArgs {
    /// Tasks; all of them where not given
    #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
    task: Vec<TaskName>,
    /// Mixers; all of them where not given
    #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
    mixer: Vec<MixerName>,
    /// Other steps than the settings'
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Other settings than those of this program, TOML
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Cells at the same time, each in a process of its own on one thread
    #[arg(long, default_value_t = 1, value_name = "N")]
    jobs: usize,
    /// Folder of results
    #[arg(long, default_value = "runs/recall", value_name = "DIR")]
    out: PathBuf,
}

/// Above any machine.
const MOST_JOBS: usize = 1024;

impl RecallArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        if self.jobs == 0 || self.jobs > MOST_JOBS {
            let expected = format!("from 1 to {MOST_JOBS}");
            return Err(Error::config("command line", "jobs", self.jobs, expected));
        }
        if let Some(found) = obstacle(&self.out) {
            let value = format!("{} ({found})", self.out.display());
            let expected = "a folder that can be written in";
            return Err(Error::config("command line", "out", value, expected));
        }
        let settings = Settings::load(self.settings.as_deref(), self.steps)?;
        let (mut done, mut left) = (Vec::new(), Vec::new());
        for key in self.keys(&settings, globals) {
            let of_cell = settings.cell(key.task, key.mixer);
            match Cell::finished(&self.out, key, &of_cell)? {
                Some(cell) => done.push(cell),
                None => left.push((key, of_cell)),
            }
        }
        let skipped = done.len();
        if skipped > 0 && !globals.json {
            output::note(format_args!("{skipped} cells are there already"));
        }
        done.extend(self.compute(&left, globals)?);
        if globals.json {
            let line = json!({ "skipped": skipped, "computed": left.len(), "cells": done });
            return output::json(&line);
        }
        Ok(())
    }

    /// What was asked for; seed by seed, so that the first of all are there early.
    fn keys(&self, settings: &Settings, globals: &Globals) -> Vec<Key> {
        let seeds = globals.seed.map_or(settings.seeds.clone(), |seed| vec![seed]);
        let mut keys = Vec::new();
        for seed in seeds {
            for task in TaskName::ALL {
                for mixer in MixerName::ALL {
                    let wanted = (self.task.is_empty() || self.task.contains(&task))
                        && (self.mixer.is_empty() || self.mixer.contains(&mixer));
                    if wanted {
                        keys.push(Key { task, mixer, seed });
                    }
                }
            }
        }
        keys
    }

    fn compute(&self, left: &[(Key, CellSettings)], globals: &Globals) -> Result<Vec<Cell>> {
        let show = |cell: &Cell| match globals.json {
            true => Ok(()),
            false => output::print(&line(cell)),
        };
        let progress = if globals.json { Progress::quiet() } else { Progress::new(0) };
        if self.jobs == 1 {
            let device = globals.device.open()?;
            let one = |(key, settings): &(Key, CellSettings)| {
                let cell = train::run(*key, settings, &device, &progress)?;
                cell.write(&self.out)?;
                show(&cell)?;
                Ok(cell)
            };
            return left.iter().map(one).collect();
        }
        let keys: Vec<Key> = left.iter().map(|(key, _)| *key).collect();
        let stage = Mutex::new(progress.stage("recall", Some(keys.len() as u64), "cells"));
        jobs::run(&keys, self.jobs, self, globals, &|key| {
            let cell = Cell::read(&key.file(&self.out))?;
            let mut stage = stage.lock().unwrap_or_else(PoisonError::into_inner);
            stage.message(key.to_string());
            stage.advance(1);
            show(&cell)
        })?;
        keys.iter().map(|key| Cell::read(&key.file(&self.out))).collect()
    }
}

/// A cell for people.
fn line(cell: &Cell) -> String {
    let score = |score: &cell::Score| {
        let pairs = score.pairs.map_or(String::new(), |pairs| format!(", {pairs} pairs"));
        format!("{} tokens{pairs} {:.1} %", score.length, 100.0 * score.share())
    };
    let scores: Vec<String> = cell.scores.iter().map(score).collect();
    format!("{}: {} ({:.0} s)\n", cell.key, scores.join("; "), cell.seconds)
}
