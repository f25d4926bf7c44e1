//! Mamba (arXiv 2312.00752): what selection is for, lengths beyond the trained one, and what they
//! cost.
//!
//! `cargo run --example mamba1`

mod fixed;
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
use fixed::Fixed;
use longburn::Result;
use longburn::attention::{DenseConfig, Mamba1Config, MixerConfig};
use longburn::datasets::synthetic::TaskConfig;
use longburn::models::{Decoder, ModelConfig};
use longburn::positional::RopeConfig;
use longburn::streams::Streams;
use longburn::training::recipe::{exit_code, settings};
use longburn::training::report::{Cell, Plot, Series, Table, mean_se};
use options::{Options, Part, Run};
use seeds::{by_seed, each_seed};
use serde::Deserialize;
use std::path::Path;
use timing::{ByLength, shape};
use toys::{Training, share};

/// Train small models with and without selection, and measure what a long row costs.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  cargo run --example mamba1\n  cargo run --example mamba1 -- --seeds 0"
)]
struct Args {
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    seeds: Vec<u64>,
    layer: Mamba1Config,
    copying: ToyPart,
    passkey: ToyPart,
    evaluate: EvaluatePart,
    cost: ByLength,
}

/// Models for a task.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToyPart {
    width: usize,
    layers: usize,
    task: TaskConfig,
    train: Training,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EvaluatePart {
    rows: usize,
    /// Lengths of rows that hide a key.
    lengths: Vec<usize>,
    /// Heads of attention where it is compared with.
    heads: usize,
    rope_theta: f64,
}

impl Recipe {
    fn load(path: Option<&Path>) -> Result<Self> {
        let (recipe, _): (Self, _) = settings(path, ("run.toml", include_str!("run.toml")))?;
        recipe.copying.task.init()?;
        recipe.passkey.task.init()?;
        Ok(recipe)
    }
}

fn main() -> std::process::ExitCode {
    exit_code(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    let recipe = Recipe::load(args.options.recipe.as_deref())?;
    let run = args.options.begin("mamba1", &recipe.seeds, 4)?;
    if run.does(Part::Cost) {
        cost(&recipe, &run.device, &run.out)?;
    }
    if run.does(Part::Recall) {
        copying(&recipe, &run)?;
        passkey(&recipe, &run)?;
    }
    Ok(())
}

/// Selective copying, with the layer and with the layer without its selection.
fn copying(recipe: &Recipe, run: &Run) -> Result<()> {
    let ToyPart { width, layers, ref task, ref train } = recipe.copying;
    let comparison = run.comparison(task, train, recipe.evaluate.rows);
    let mut config = ModelConfig::llama(task.init()?.vocabulary(), width, layers, 1);
    config.initializer_range = train.embedding;
    let (layer, device) = (&recipe.layer, Device::flex());
    let selective = |seed| {
        Decoder::with_mixer(&config, seed, &device, |i, _| {
            layer.init(width, layers, &Streams::new(seed), 1000 + 8 * i as u32, &device)
        })
    };
    let fixed = |seed| {
        Decoder::with_mixer(&config, seed, &device, |i, _| {
            let streams = (&Streams::new(seed), 1000 + 8 * i as u32);
            Fixed::new(layer, (width, layers), streams, &device)
        })
    };
    let mut table = Table::new(["step size, B and C", "values copied, %", "by seed"]);
    table.push(comparison.row("from the token", selective, |_| true)?);
    table.push(comparison.row("the same for all", fixed, |_| true)?);
    table.push(comparison.chance()?);
    let table = table.decimals(1, 1);
    println!("{}", table.to_markdown());
    table.save(run.out.join("copying.md"))
}

/// A hidden key at lengths beyond the trained one, beside attention.
fn passkey(recipe: &Recipe, run: &Run) -> Result<()> {
    let ToyPart { width, layers, ref task, ref train } = recipe.passkey;
    let EvaluatePart { rows, ref lengths, heads, rope_theta } = recipe.evaluate;
    let comparison = run.comparison(task, train, rows);
    let longest = lengths.iter().copied().max().unwrap_or(0).max(task.length());
    let mut llama = ModelConfig::llama(task.init()?.vocabulary(), width, layers, heads)
        .with_rope(RopeConfig::new(rope_theta, width / heads.max(1)))
        .with_max_positions(longest);
    llama.initializer_range = train.embedding;
    let mamba = MixerConfig::Mamba1(recipe.layer.clone());
    let places: Vec<f64> = lengths.iter().map(|n| *n as f64).collect();
    let mut table = Table::new(["layers", "tokens", "digits found, %", "by seed"]).decimals(2, 1);
    let mut plot = Plot::lines("Keys found beyond the trained length")
        .x("length of the row (tokens)")
        .y("% of the digits")
        .y_covers(0.0, 100.0)
        .marker_x(task.length() as f64, "trained length");
    for (name, mixer) in [("Mamba", &mamba), ("attention", &MixerConfig::Dense)] {
        let of_seeds = each_seed(comparison.seeds, comparison.at_once, |seed| {
            let model = Decoder::new(&llama, mixer, seed, &Device::flex())?;
            let model = comparison.train(&format!("pass key, {name}"), seed, model)?;
            let found =
                |n: &usize| share(&task.clone().with_length(*n), &model, (seed, rows), |_| true);
            lengths.iter().map(found).collect::<Result<Vec<f64>>>()
        })?;
        let mut shares = Vec::new();
        for (i, length) in lengths.iter().enumerate() {
            let each: Vec<f64> = of_seeds.iter().map(|of_lengths| of_lengths[i]).collect();
            shares.push(mean_se(&each).mean);
            let (length, mean) = (Cell::from(*length as u64), Cell::from(shares[i]));
            table.push([Cell::from(name), length, mean, Cell::from(by_seed(&each, 1))]);
        }
        plot = plot.series(Series::new(name).points(&places, &shares));
    }
    println!("{}", table.to_markdown());
    table.save(run.out.join("passkey.md"))?;
    plot.save(run.out.join("passkey.svg"))
}

/// Time and memory of one layer by length, beside attention.
fn cost(recipe: &Recipe, device: &Device, out: &Path) -> Result<()> {
    let (width, heads) = (recipe.cost.width, recipe.evaluate.heads);
    let (streams, device) = (Streams::new(0), device.clone().autodiff());
    let mamba = recipe.layer.init(width, 1, &streams, 0, &device)?;
    let dense =
        DenseConfig::new().init(shape(width, heads).init((0.02, 0.02), &streams, 100, &device));
    let rope = RopeConfig::new(recipe.evaluate.rope_theta, width / heads.max(1));
    let measured = [
        recipe.cost.measure("Mamba", &mamba, None, &device)?,
        recipe.cost.measure("attention", &dense, Some(&rope), &device)?,
    ];
    ByLength::report(measured, &format!("one layer of width {width}"), (out, "cost"))
}
