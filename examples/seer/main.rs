//! SeerAttention (arXiv 2410.13276) on real text, from nothing: trains a small Llama, then a gate
//! with everything else frozen, and measures what sparse attention costs when the gate chooses
//! the blocks, and when a window, chance, or the attention weights themselves do.

#[path = "../corpus.rs"]
mod corpus;
mod page;
mod recall;
mod recipe;
mod rules;
mod text;

use burn::module::Module;
use burn::tensor::Device;
use clap::Parser;
use longburn::attention::{MixerConfig, SequenceMixer};
use longburn::models::{Blocks, Decoder, ForwardOptions, SaveOptions, gates};
use longburn::training::recipe::exit_code;
use longburn::training::report::Progress;
use longburn::training::{NextToken, Objective, TrainConfig, Trainer};
use longburn::{Error, Result};
use page::Measured;
use recipe::Recipe;
use rules::{Rule, Ruled};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use text::{Kind, Text};

/// Train a gate on a small language model, and compare what it chooses with windows and chance.
#[derive(Parser, Debug)]
#[command(after_help = "Example:\n  cargo run --example seer -- --page docs/results/seer.md")]
struct Args {
    /// Where models, gates and figures go.
    #[arg(long, default_value = "runs/seer")]
    out: PathBuf,
    /// Another recipe than the one beside this program.
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Only this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Write the figures of all seeds that are done to this page.
    #[arg(long)]
    page: Option<PathBuf>,
    /// No progress bars.
    #[arg(long)]
    quiet: bool,
}

fn main() -> std::process::ExitCode {
    exit_code(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    let recipe = Recipe::load(args.recipe.as_deref())?;
    let seeds: Vec<u64> = args.seed.map_or(recipe.seeds.clone(), |seed| vec![seed]);
    let progress = if args.quiet { Progress::quiet() } else { Progress::new(2 * seeds.len()) };
    let mut text = None;
    for seed in seeds {
        let folder = args.out.join(format!("seed-{seed}"));
        // A run that was cut off goes on behind its last finished seed.
        if Measured::read(&folder)?.is_some() {
            continue;
        }
        let text = match &text {
            Some(text) => text,
            None => text.insert(Text::read(&recipe)?),
        };
        one(&recipe, text, seed, &folder, &progress)?.write(&folder)?;
    }
    let mut all = Vec::new();
    for seed in &recipe.seeds {
        all.extend(Measured::read(&args.out.join(format!("seed-{seed}")))?);
    }
    let page = page::render(&recipe, &all)?;
    println!("{page}");
    match &args.page {
        Some(path) => std::fs::write(path, page).map_err(|e| Error::io(path, e)),
        None => Ok(()),
    }
}

/// Train and measure one seed.
fn one(
    recipe: &Recipe,
    text: &Text,
    seed: u64,
    folder: &Path,
    progress: &Progress,
) -> Result<Measured> {
    let device = Device::flex();
    let config = recipe.model(text.tokenizer.vocab_size());
    let (base, gate) = (folder.join("model"), folder.join("gate"));
    let model = Decoder::new(&config, &MixerConfig::Dense, seed, &device)?;
    let mut rows = text.rows(recipe, recipe.base.batch, seed)?;
    let title = format!("model, seed {seed}");
    let (dense, _) = fit(model, recipe.base_training(seed), &mut rows, &title, progress)?;
    dense.save(&base, &SaveOptions::default())?;
    text.tokenizer.save(&base)?;

    let seer = |sparsity| dense.clone().swap_mixer(MixerConfig::Seer(recipe.seer(sparsity)));
    let mut rows = text.rows(recipe, recipe.gate.batch, seed.wrapping_add(1000))?;
    let title = format!("gate, seed {seed}");
    let learner = gates::prepare(seer(None)?, seed)?;
    let (learner, divergence) =
        fit(learner, recipe.gate_training(seed), &mut rows, &title, progress)?;
    gates::save(&learner, &recipe.seer(None), &gate)?;

    let (mut losses, mut recalls) = (BTreeMap::new(), BTreeMap::new());
    for kind in Kind::ALL {
        let windows = text.windows(recipe, kind)?;
        let mut note = |name: &str, sparsity: f64, loss: f64| {
            losses.insert(page::key(kind, name, sparsity), loss);
        };
        note("dense", 0.0, loss(&dense, &windows)?);
        for &sparsity in &recipe.evaluate.sparsity {
            let sparse = gates::load(seer(Some(sparsity))?, &gate)?;
            note("gate", sparsity, loss(&sparse, &windows)?);
            for (name, recall) in recall::recall(&learner, &windows, recipe, sparsity)? {
                recalls.insert(page::key(kind, name, sparsity), recall);
            }
            for rule in Rule::ALL {
                let ruled = Decoder::load_with(&base, &config, &device, |_, proj| {
                    Ok(Ruled::new(proj, rule, recipe, sparsity))
                })?;
                note(rule.name(), sparsity, loss(&ruled, &windows)?);
            }
        }
    }
    Ok(Measured { seed, crates: text.crates, divergence, losses, recalls })
}

/// The trained model, and the first and last auxiliary loss.
fn fit(
    model: Decoder,
    config: TrainConfig,
    rows: &mut impl FnMut(u64, u32) -> Result<Option<longburn::datasets::TokenBatch>>,
    title: &str,
    progress: &Progress,
) -> Result<(Decoder, Option<[f64; 2]>)> {
    let mut stage = progress.stage(title, Some(config.steps), "steps");
    let mut ends: Option<[f64; 2]> = None;
    let outcome = Trainer::new(config)?.fit(model, &NextToken, rows, &mut |step| {
        let report = step.report;
        if let Some(aux) = report.aux {
            ends = Some([ends.map_or(aux, |[first, _]| first), aux]);
        }
        let aux = report.aux.map_or(String::new(), |aux| format!(", gate {aux:.5}"));
        stage.message(format!("loss {:.3}{aux}", report.loss));
        stage.work(report.tokens, "tokens");
        stage.advance(1);
        Ok(())
    })?;
    stage.finish();
    Ok((outcome.model, ends))
}

/// Mean loss of all targets, nats.
fn loss<M: SequenceMixer>(
    model: &Decoder<M>,
    windows: &[longburn::datasets::TokenBatch],
) -> Result<f64>
where
    Decoder<M>: Blocks,
{
    let (mut sum, mut weight) = (0.0, 0.0);
    for batch in windows {
        let parts = NextToken.loss(&model.clone().valid(), batch, &ForwardOptions::infer())?;
        sum += f64::from(parts.sum.into_scalar::<f32>());
        weight += parts.weight;
    }
    Ok(sum / weight)
}
