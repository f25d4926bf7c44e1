//! LaCT (arXiv 2505.23884): what large chunks are good for, and what fast weights add to a window.
//!
//! `cargo run --example lact`

mod cost;
mod length;
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
use cost::CostPart;
use length::LengthPart;
use longburn::Result;
use longburn::attention::{LactConfig, MixerConfig};
use longburn::datasets::synthetic::{Question, TaskConfig};
use longburn::models::{Architecture, Decoder, ModelConfig};
use longburn::positional::RopeConfig;
use longburn::training::recipe::{exit_code, settings};
use longburn::training::report::Table;
use options::{Options, Part, Run};
use serde::Deserialize;
use std::path::Path;
use toys::Training;

/// Measure fast weights by the size of their chunk, and train models that need what they recall.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  cargo run --example lact\n  cargo run --example lact -- --seeds 0\n  \
    cargo run --features cuda --example lact -- --only cost --device cuda"
)]
struct Args {
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    seeds: Vec<u64>,
    cost: CostPart,
    length: LengthParts,
    model: ModelPart,
    fast: LactConfig,
    task: TaskConfig,
    train: Training,
    evaluate: EvaluatePart,
}

/// What is measured beside dense attention, by where that is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LengthParts {
    on_cpu: LengthPart,
    on_card: LengthPart,
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
        let mut config = ModelConfig::llama(self.task.init()?.vocabulary(), width, layers, heads)
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
    let recipe = Recipe::load(args.options.recipe.as_deref())?;
    let run = args.options.begin("lact", &recipe.seeds, recipe.arms().len())?;
    if run.does(Part::Cost) {
        cost::report(&recipe.cost, &run.device, &run.out)?;
        let LengthParts { on_cpu, on_card } = &recipe.length;
        let part = if length::is_card(&run.device) { on_card } else { on_cpu };
        length::report(part, &run.device, &run.out)?;
    }
    if run.does(Part::Recall) {
        recall(&recipe, &run)?;
    }
    Ok(())
}

/// What models answer of what lies beyond their windows.
fn recall(recipe: &Recipe, run: &Run) -> Result<()> {
    let comparison = run.comparison(&recipe.task, &recipe.train, recipe.evaluate.rows);
    let mut table = Table::new(["layers", "answered beyond the window, %", "by seed"]);
    for (name, arm) in &recipe.arms() {
        let model = |seed| recipe.model(arm.as_ref(), seed);
        table.push(comparison.row(name, model, |question| recipe.beyond(question))?);
    }
    table.push(comparison.chance()?);
    let table = table.decimals(1, 1);
    println!("{}", table.to_markdown());
    table.save(run.out.join("recall.md"))
}
