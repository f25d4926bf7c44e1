//! Mamba-2 (arXiv 2405.21060): what a larger state is good for, and what it costs by matrix products.
//!
//! `cargo run --example mamba2`

#[path = "../options.rs"]
mod options;
#[path = "../seeds.rs"]
mod seeds;
#[path = "../timing.rs"]
mod timing;
#[path = "../toys.rs"]
mod toys;

use burn::tensor::Device;
use clap::Parser;
use longburn::attention::{Mamba1Config, Mamba2Config, MixerConfig};
use longburn::datasets::synthetic::TaskConfig;
use longburn::models::{Decoder, ModelConfig};
use longburn::streams::Streams;
use longburn::training::recipe::{exit_code, settings};
use longburn::training::report::{Cell, Plot, Series, Table};
use longburn::{Error, Result};
use options::{Options, Part, Run};
use serde::Deserialize;
use std::path::Path;
use timing::{ByLength, Pass};
use toys::Training;

/// Train small models on recall by the size of their state, and measure what states cost.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  cargo run --example mamba2\n  cargo run --example mamba2 -- --seeds 0"
)]
struct Args {
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    seeds: Vec<u64>,
    model: ModelPart,
    task: TaskConfig,
    train: Training,
    evaluate: EvaluatePart,
    cost: CostPart,
    /// Layers that are compared on the task.
    mixer: Vec<MixerConfig>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelPart {
    width: usize,
    layers: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EvaluatePart {
    rows: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CostPart {
    /// Numbers of state per channel that are compared at `length` tokens.
    states: Vec<usize>,
    length: usize,
    /// What they are where lengths are compared.
    state: usize,
    by_length: ByLength,
}

impl Recipe {
    fn load(path: Option<&Path>) -> Result<Self> {
        let (recipe, file): (Self, _) = settings(path, ("run.toml", include_str!("run.toml")))?;
        recipe.task.init()?;
        let other = |mixer: &&MixerConfig| state(mixer).is_none();
        if let Some(mixer) = recipe.mixer.iter().find(other) {
            return Err(Error::config(file, "mixer.name", mixer.name(), "mamba1 or mamba2"));
        }
        Ok(recipe)
    }
}

/// Name and numbers of state per channel of a state-space layer.
fn state(mixer: &MixerConfig) -> Option<(&'static str, usize)> {
    match mixer {
        MixerConfig::Mamba1(config) => Some(("Mamba", config.d_state)),
        MixerConfig::Mamba2(config) => Some(("Mamba-2", config.d_state)),
        _ => None,
    }
}

fn main() -> std::process::ExitCode {
    exit_code(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    let recipe = Recipe::load(args.options.recipe.as_deref())?;
    let run = args.options.begin("mamba2", &recipe.seeds, recipe.mixer.len())?;
    if run.does(Part::Cost) {
        by_state(&recipe.cost, &run.device, &run.out)?;
        by_length(&recipe.cost, &run.device, &run.out)?;
    }
    if run.does(Part::Recall) {
        recall(&recipe, &run)?;
    }
    Ok(())
}

/// What models answer by the size of their state.
fn recall(recipe: &Recipe, run: &Run) -> Result<()> {
    let Recipe { task, train, evaluate, model, .. } = recipe;
    let comparison = run.comparison(task, train, evaluate.rows);
    let mut table = Table::new(["layers", "answered, %", "by seed", "numbers of state per layer"]);
    for (mixer, (name, n)) in recipe.mixer.iter().filter_map(|mixer| Some((mixer, state(mixer)?))) {
        let ModelPart { width, layers } = *model;
        let mut config =
            ModelConfig::state_space(task.init()?.vocabulary(), width, layers, mixer.clone());
        config.initializer_range = train.embedding;
        let build = |seed| Decoder::new(&config, mixer, seed, &Device::flex());
        let [name, mean, each] = comparison.row(&format!("{name}, N = {n}"), build, |_| true)?;
        let inner = match mixer {
            MixerConfig::Mamba1(config) => config.inner(width),
            MixerConfig::Mamba2(config) => config.inner(width),
            _ => 0,
        };
        table.push([name, mean, each, Cell::from((inner * n) as u64)]);
    }
    table.push(comparison.chance()?);
    let table = table.decimals(1, 1);
    println!("{}", table.to_markdown());
    table.save(run.out.join("recall.md"))
}

/// Seconds of one layer by the numbers of its state.
fn by_state(part: &CostPart, device: &Device, out: &Path) -> Result<()> {
    let (streams, device) = (Streams::new(0), device.clone().autodiff());
    let width = part.by_length.width;
    let pass = Pass::new((part.length, width), None, &device)?;
    let mut table = Table::new(["N", "Mamba, ms", "Mamba-2, ms", "ratio"]);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for &n in &part.states {
        let mamba1 = Mamba1Config::new().with_d_state(n).init(width, 1, &streams, 0, &device)?;
        let mamba2 = Mamba2Config::new().with_d_state(n).init(width, 1, &streams, 0, &device)?;
        let (a, b) = (1e3 * pass.both(&mamba1)?, 1e3 * pass.both(&mamba2)?);
        table.push([Cell::from(n as u64), Cell::from(a), Cell::from(b), Cell::from(a / b)]);
        first.push(a);
        second.push(b);
    }
    let table = table.decimals(1, 0).decimals(2, 0);
    println!("one layer of width {width} over {} tokens\n\n{}", part.length, table.to_markdown());
    table.save(out.join("states.md"))?;
    Plot::categories(
        "Time of a layer by the size of its state",
        part.states.iter().map(usize::to_string),
    )
    .x("numbers of state per channel")
    .y("ms, both passes")
    .y_covers(0.0, 0.0)
    .series(Series::new("Mamba").values(&first))
    .series(Series::new("Mamba-2").values(&second))
    .save(out.join("states.svg"))
}

/// Seconds of one layer by the length of the row.
fn by_length(part: &CostPart, device: &Device, out: &Path) -> Result<()> {
    let (streams, device) = (Streams::new(0), device.clone().autodiff());
    let width = part.by_length.width;
    let mamba1 =
        Mamba1Config::new().with_d_state(part.state).init(width, 1, &streams, 0, &device)?;
    let mamba2 =
        Mamba2Config::new().with_d_state(part.state).init(width, 1, &streams, 0, &device)?;
    let measured = [
        part.by_length.measure("Mamba-2", &mamba2, None, &device)?,
        part.by_length.measure("Mamba", &mamba1, None, &device)?,
    ];
    let title = format!("one layer of width {width}, N = {}", part.state);
    ByLength::report(measured, &title, (out, "length"))
}
