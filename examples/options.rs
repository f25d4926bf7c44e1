//! The command line of examples that measure what a layer costs and train models that use it.

use burn::tensor::Device;
use clap::{Args, ValueEnum};
use device::DeviceName;
use longburn::datasets::synthetic::TaskConfig;
use longburn::training::report::Progress;
use longburn::{Error, Result};
use std::path::PathBuf;

use crate::toys::{Comparison, Training};

#[path = "cli/device.rs"]
mod device;

/// Options that these examples have in common.
#[derive(Args, Debug)]
pub struct Options {
    /// Another recipe than the one beside this program.
    #[arg(long)]
    pub recipe: Option<PathBuf>,
    /// Other seeds than the recipe's.
    #[arg(long, value_delimiter = ',')]
    seeds: Vec<u64>,
    /// Where the figures go; a folder of the example's name in `runs` where it is not said.
    #[arg(long)]
    out: Option<PathBuf>,
    /// One of the parts only.
    #[arg(long)]
    only: Option<Part>,
    /// Where layers are measured: flex, wgpu[:n] or cuda[:n]. Models train on the CPU.
    #[arg(long, default_value = "flex", value_name = "NAME")]
    device: DeviceName,
    /// Train the models of all seeds at the same time, for machines with many cores.
    #[arg(long)]
    at_once: bool,
    /// No progress bars.
    #[arg(long)]
    quiet: bool,
}

/// What a program with a part that takes time and one that measures it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// What a layer costs.
    Cost,
    /// What trained models can do.
    Recall,
}

/// What the options and a recipe say together.
pub struct Run {
    pub seeds: Vec<u64>,
    /// Where figures go; it is there.
    pub out: PathBuf,
    pub progress: Progress,
    /// Where layers are measured.
    pub device: Device,
    only: Option<Part>,
    at_once: bool,
}

impl Options {
    /// A run of the example `name` that trains so many models for each seed.
    ///
    /// # Errors
    /// [`Error::Io`] for the folder of figures, [`Error::Unsupported`] for a device that is not there.
    pub fn begin(&self, name: &str, seeds: &[u64], models: usize) -> Result<Run> {
        longburn::kernel::keep_freed_memory();
        let device = self.device.open()?;
        let seeds = if self.seeds.is_empty() { seeds } else { &self.seeds }.to_vec();
        let out = self.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(name));
        std::fs::create_dir_all(&out).map_err(|e| Error::io(&out, e))?;
        let progress = match self.quiet {
            true => Progress::quiet(),
            false => Progress::new(models * seeds.len()),
        };
        Ok(Run { seeds, out, progress, device, only: self.only, at_once: self.at_once })
    }
}

impl Run {
    /// Whether this part is wanted.
    pub fn does(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }

    /// Models of all seeds on a task, each asked about so many rows.
    pub fn comparison<'a>(
        &'a self,
        task: &'a TaskConfig,
        training: &'a Training,
        rows: usize,
    ) -> Comparison<'a> {
        let Self { seeds, progress, at_once, .. } = self;
        Comparison { task, training, seeds, at_once: *at_once, rows, progress }
    }
}
