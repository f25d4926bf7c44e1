//! LaCT (arXiv 2505.23884): what large chunks are good for, and what fast weights add to a window.
//!
//! `cargo run --example lact`

mod cost;
#[path = "../seeds.rs"]
mod seeds;
#[path = "../timing.rs"]
mod timing;
#[path = "../toys.rs"]
mod toys;

use burn::tensor::Device;
use clap::Parser;
use cost::CostPart;
use longburn::attention::{LactConfig, MixerConfig};
use longburn::datasets::synthetic::Question;
use longburn::models::{Architecture, Decoder, ModelConfig};
use longburn::positional::RopeConfig;
use longburn::training::recipe::{exit_code, settings};
use longburn::training::report::{Progress, Table};
use longburn::{Error, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use toys::{Comparison, Part, Task, Training};

/// Measure fast weights by the size of their chunk, and train models that need what they recall.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  cargo run --example lact\n  cargo run --example lact -- --seeds 0"
)]
struct Args {
    /// Another recipe than the one beside this program.
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Other seeds than the recipe's.
    #[arg(long, value_delimiter = ',')]
    seeds: Vec<u64>,
    /// Where the figures go.
    #[arg(long, default_value = "runs/lact")]
    out: PathBuf,
    /// One of the parts only.
    #[arg(long)]
    only: Option<Part>,
    /// Train the models of all seeds at the same time, for machines with many cores.
    #[arg(long)]
    at_once: bool,
    /// No progress bars.
    #[arg(long)]
    quiet: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    seeds: Vec<u64>,
    cost: CostPart,
    model: ModelPart,
    fast: LactConfig,
    task: Task,
    train: Training,
    evaluate: EvaluatePart,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelPart {
    width: usize,
    layers: usize,
    heads: usize,
    rope_theta: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EvaluatePart {
    rows: usize,
    /// Inner widths of the fast weights, in widths of a head.
    inter_multi: Vec<f64>,
}

impl Recipe {
    fn load(path: Option<&Path>) -> Result<Self> {
        let (recipe, _): (Self, _) = settings(path, ("run.toml", include_str!("run.toml")))?;
        recipe.task.init()?;
        Ok(recipe)
    }

    /// Window attention alone, and beside fast weights of several widths.
    fn arms(&self) -> Vec<(String, Option<LactConfig>)> {
        let fast = |times: &f64| {
            let config = LactConfig { inter_multi: *times, ..self.fast.clone() };
            (format!("window and fast weights, inner width x {times}"), Some(config))
        };
        let window = ("window alone".to_string(), None);
        std::iter::once(window).chain(self.evaluate.inter_multi.iter().map(fast)).collect()
    }

    /// Whether the evidence lies farther back than all windows together reach.
    fn beyond(&self, question: &Question) -> bool {
        question.at - question.evidence > self.model.layers * (self.fast.window - 1)
    }

    fn model(&self, arm: Option<&LactConfig>, seed: u64) -> Result<Decoder> {
        let ModelPart { width, layers, heads, rope_theta } = self.model;
        let mut config = ModelConfig::llama(self.task.vocabulary()?, width, layers, heads)
            .with_rope(RopeConfig::new(rope_theta, width / heads))
            .with_max_positions(self.task.length());
        config.initializer_range = self.train.embedding;
        let mixer = match arm {
            Some(config) => MixerConfig::Lact(config.clone()),
            None => {
                // The family that may have windows.
                config.architecture = Architecture::Mistral;
                config.windows = vec![Some(self.fast.window); layers];
                MixerConfig::Dense
            }
        };
        Decoder::new(&config, &mixer, seed, &Device::flex())
    }
}

fn main() -> std::process::ExitCode {
    exit_code(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    longburn::kernel::keep_freed_memory();
    let recipe = Recipe::load(args.recipe.as_deref())?;
    let seeds = if args.seeds.is_empty() { &recipe.seeds } else { &args.seeds };
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io(&args.out, e))?;
    if args.only != Some(Part::Recall) {
        cost::report(&recipe.cost, &args.out)?;
    }
    if args.only != Some(Part::Cost) {
        recall(&recipe, seeds, args)?;
    }
    Ok(())
}

/// What models answer of what lies beyond their windows.
fn recall(recipe: &Recipe, seeds: &[u64], args: &Args) -> Result<()> {
    let arms = recipe.arms();
    let progress =
        if args.quiet { Progress::quiet() } else { Progress::new(arms.len() * seeds.len()) };
    let comparison = Comparison {
        task: &recipe.task,
        training: &recipe.train,
        seeds,
        at_once: args.at_once,
        rows: recipe.evaluate.rows,
        progress: &progress,
    };
    let mut table = Table::new(["layers", "answered beyond the window, %", "by seed"]);
    for (name, arm) in &arms {
        let model = |seed| recipe.model(arm.as_ref(), seed);
        table.push(comparison.row(name, model, |question| recipe.beyond(question))?);
    }
    table.push(comparison.chance()?);
    let table = table.decimals(1, 1);
    println!("{}", table.to_markdown());
    table.save(args.out.join("recall.md"))
}
