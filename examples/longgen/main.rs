//! LongGen (arXiv 2410.01485) on a task of retrieval: a dense model is converted to sparse layers
//! around full ones in the middle, with and without light training, and to sparse layers alone.
//!
//! `cargo run --example longgen`

#[path = "../seeds.rs"]
mod seeds;
mod task;

use burn::tensor::Device;
use clap::Parser;
use longburn::attention::{LayerSchedule, LongGenConfig, MixerConfig, MixerSchedule};
use longburn::datasets::synthetic::{QuestionBatch, QuestionTask};
use longburn::models::{Decoder, ModelConfig};
use longburn::positional::RopeConfig;
use longburn::training::eval::answered;
use longburn::training::recipe::{exit_code, settings};
use longburn::training::report::{Cell, Plot, Series, Table, mean_se};
use longburn::training::{NextToken, Schedule, TrainConfig, Trainer, Warmup};
use longburn::{Error, Result};
use seeds::{by_seed, each_seed};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use task::Task;

/// Convert a small dense model to LongGen's layers, and measure what it still finds.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  cargo run --example longgen\n  cargo run --example longgen -- --seeds 0 --out runs/one"
)]
struct Args {
    /// Another recipe than the one beside this program.
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Other seeds than the recipe's.
    #[arg(long, value_delimiter = ',')]
    seeds: Vec<u64>,
    /// Train the models of all seeds at the same time, for machines with many cores.
    #[arg(long)]
    at_once: bool,
    /// Where the figure and the numbers go.
    #[arg(long, default_value = "runs/longgen")]
    out: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    seeds: Vec<u64>,
    model: ModelPart,
    sparse: LongGenConfig,
    task: Task,
    base: Stage,
    light: Stage,
    train: TrainPart,
    evaluate: EvaluatePart,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelPart {
    width: usize,
    layers: usize,
    full: usize,
    heads: usize,
    kv_heads: usize,
    rope_theta: f64,
    /// Standard deviation of the initial embedding.
    embedding: f64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stage {
    steps: u64,
    lr: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrainPart {
    batch: usize,
    micro_batches: u32,
    warmup: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EvaluatePart {
    rows: usize,
}

impl Recipe {
    fn load(path: Option<&Path>) -> Result<Self> {
        let (recipe, _): (Self, _) = settings(path, ("run.toml", include_str!("run.toml")))?;
        recipe.task.check()?;
        Ok(recipe)
    }

    fn schedule(&self, full: usize) -> Result<LayerSchedule> {
        LayerSchedule::middle_full(self.model.layers, full)
    }
}

/// Models that are measured.
const ARMS: [&str; 5] =
    ["dense", "hybrid, trained", "hybrid, untrained", "sparse, trained", "sparse, untrained"];

/// Share of queries answered right, by distance between needle and query.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    seed: u64,
    arm: &'static str,
    /// Lower ends of the distances.
    distance: Vec<usize>,
    accuracy: Vec<f64>,
    /// Of all queries whose needle lies outside of what a sparse layer sees.
    beyond: f64,
}

fn main() -> std::process::ExitCode {
    exit_code(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    let recipe = Recipe::load(args.recipe.as_deref())?;
    let seeds = if args.seeds.is_empty() { &recipe.seeds } else { &args.seeds };
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io(&args.out, e))?;
    memory(&recipe)?;
    let all = each_seed(seeds, args.at_once, |seed| arms(&recipe, seed))?;
    report(&recipe, &all.concat(), &args.out)
}

/// What the caches hold, by the formula: at the published sizes, and here.
fn memory(recipe: &Recipe) -> Result<()> {
    let ModelPart { layers, full, heads, kv_heads, .. } = recipe.model;
    let length = recipe.task.length;
    for (name, schedule, sparse, length, heads, kv_heads) in [
        (
            "Llama 2 7B at 131072 tokens",
            LayerSchedule::middle_full(32, 12)?,
            LongGenConfig::new(),
            131_072,
            32,
            32,
        ),
        (
            "this model",
            LayerSchedule::middle_full(layers, full)?,
            recipe.sparse.clone(),
            length,
            heads,
            kv_heads,
        ),
    ] {
        let held = schedule.cached_keys(&sparse, length, heads, kv_heads) as f64;
        let dense = (schedule.layers() * kv_heads * length) as f64;
        println!("{name}: keys and values {:.1} % of the dense model's", 100.0 * held / dense);
    }
    Ok(())
}

/// A dense model, and what becomes of it.
fn arms(recipe: &Recipe, seed: u64) -> Result<Vec<Measured>> {
    let ModelPart { width, layers, full, heads, kv_heads, rope_theta, embedding } = recipe.model;
    let mut config = ModelConfig::llama(recipe.task.vocabulary(), width, layers, heads)
        .with_kv_heads(kv_heads)
        .with_rope(RopeConfig::new(rope_theta, width / heads))
        .with_max_positions(recipe.task.length);
    config.initializer_range = embedding;
    let measured = |arm, model: &Decoder| -> Result<Measured> {
        let measured = measure(recipe, seed, arm, model)?;
        println!("seed {seed}, {arm}: {:.1} % beyond the window", 100.0 * measured.beyond);
        Ok(measured)
    };
    let dense = Decoder::new(&config, &MixerConfig::Dense, seed, &Device::default())?;
    let dense = train(recipe, dense, recipe.base, seed)?;
    let mut all = vec![measured(ARMS[0], &dense)?];
    for (full, [trained, untrained]) in [(full, [ARMS[1], ARMS[2]]), (0, [ARMS[3], ARMS[4]])] {
        let mixers = recipe.schedule(full)?.mixers(&MixerConfig::LongGen(recipe.sparse.clone()));
        let converted = dense.clone().swap_mixer(MixerSchedule::of(&mixers))?;
        all.push(measured(untrained, &converted)?);
        all.push(measured(trained, &train(recipe, converted, recipe.light, seed + 1000)?)?);
    }
    Ok(all)
}

fn train(recipe: &Recipe, model: Decoder, stage: Stage, seed: u64) -> Result<Decoder> {
    let TrainPart { batch, micro_batches, warmup } = recipe.train;
    let config = TrainConfig::new(stage.steps, stage.lr)
        .with_schedule(Schedule::Linear { warmup: Warmup::Fraction(warmup), last: 0.0 })
        .with_clip(1.0)
        .with_micro_batches(micro_batches)
        .with_workers(micro_batches);
    let mut data = |step: u64, micro: u32| {
        let n = step * u64::from(micro_batches) + u64::from(micro);
        QuestionBatch::stack(&recipe.task.rows(seed, n, batch)).map(|made| Some(made.batch))
    };
    Ok(Trainer::new(config)?.fit(model, &NextToken, &mut data, &mut |_| Ok(()))?.model)
}

fn measure(recipe: &Recipe, seed: u64, arm: &'static str, model: &Decoder) -> Result<Measured> {
    let bin = recipe.task.length / 8;
    let near = recipe.sparse.local_blocks * recipe.sparse.block;
    let sinks = recipe.sparse.sink_blocks.unwrap_or(1) * recipe.sparse.block;
    let (mut right, mut all) = (vec![0.0; 8], vec![0.0; 8]);
    let (mut right_beyond, mut all_beyond) = (0.0, 0.0);
    for n in 0..recipe.evaluate.rows.div_ceil(16) as u64 {
        let batch = QuestionBatch::stack(&recipe.task.rows(seed + (1 << 32), n, 16))?;
        let said = answered(model, &batch, recipe.task.answers())?;
        for ((_, question), is_right) in batch.questions.iter().zip(said) {
            let (distance, needle) = (question.at - question.evidence, question.evidence);
            let answered = f64::from(u8::from(is_right));
            right[distance / bin] += answered;
            all[distance / bin] += 1.0;
            if distance >= near && needle >= sinks {
                right_beyond += answered;
                all_beyond += 1.0;
            }
        }
    }
    Ok(Measured {
        seed,
        arm,
        distance: (0..8).map(|n| n * bin).collect(),
        accuracy: right.iter().zip(&all).map(|(right, all)| right / all).collect(),
        beyond: right_beyond / all_beyond,
    })
}

fn report(recipe: &Recipe, all: &[Measured], out: &Path) -> Result<()> {
    let mut plot = Plot::lines("Needles found by distance")
        .x("distance from needle to query (tokens)")
        .y("share of answers that are right")
        .y_covers(0.0, 1.0)
        .marker_x((recipe.sparse.local_blocks * recipe.sparse.block) as f64, "near blocks");
    let mut table = Table::new(["model", "found beyond the window, %", "by seed"]);
    for arm in ARMS {
        let of: Vec<&Measured> = all.iter().filter(|m| m.arm == arm).collect();
        let mean = |of: &dyn Fn(&Measured) -> f64, list: &[&Measured]| {
            list.iter().map(|m| of(m)).sum::<f64>() / list.len() as f64
        };
        let each: Vec<f64> = of.iter().map(|m| 100.0 * m.beyond).collect();
        table.push([
            Cell::from(arm),
            Cell::from(mean_se(&each).mean),
            Cell::from(by_seed(&each, 1)),
        ]);
        let Some(first) = of.first() else { continue };
        let half = recipe.task.length as f64 / 16.0;
        let x: Vec<f64> = first.distance.iter().map(|d| *d as f64 + half).collect();
        let y: Vec<f64> = (0..x.len()).map(|i| mean(&|m| m.accuracy[i], &of)).collect();
        plot = plot.series(Series::new(arm).points(&x, &y));
    }
    table.push([Cell::from("chance"), Cell::from(100.0 * recipe.task.chance())]);
    let table = table.decimals(1, 1);
    println!("\n{}", table.to_markdown());
    table.save(out.join("accuracy.md"))?;
    plot.save(out.join("accuracy.svg"))?;
    let lines: Vec<String> = all.iter().filter_map(|m| serde_json::to_string(m).ok()).collect();
    let path = out.join("metrics.jsonl");
    std::fs::write(&path, lines.join("\n") + "\n").map_err(|e| Error::io(&path, e))
}
