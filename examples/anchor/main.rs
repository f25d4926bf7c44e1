//! AnchorAttention (arXiv 2411.13476): what bf16 does to rotary positions, measured on a model that
//! this program trains, ways of packing short documents into long rows, and needles that lie farther
//! away than such documents are long.
//!
//! `cargo run --example anchor`

#[path = "../corpus.rs"]
mod corpus;
mod coverage;
mod drift;
mod needle;
mod packing;
mod parts;
#[path = "../seeds.rs"]
mod seeds;

use burn::tensor::Device;
use clap::Parser;
use drift::{Drift, DriftPart};
use longburn::attention::MixerConfig;
use longburn::datasets::{TokenDocument, Tokenizer, split};
use longburn::models::{Blocks, Decoder};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::training::eval::{by_position, document_starts};
use longburn::training::recipe::{exit_code, settings};
use longburn::training::report::{Cell, Table, mean_se};
use longburn::training::{NextToken, Trainer};
use longburn::{Error, Result};
use needle::NeedlePart;
use packing::Arm;
use parts::{ModelPart, TrainPart};
use seeds::{by_seed, each_seed};
use serde::Deserialize;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Behind the 256 bytes.
const BOS: u32 = 256;

/// Pack short documents in several ways, train on each, and measure what bf16 does to rotation.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  cargo run --example anchor\n  cargo run --example anchor -- --seeds 0,1,2"
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
    /// Needles alone, without the packings of text.
    #[arg(long, conflicts_with = "model")]
    needle: bool,
    /// Measure the drift of a checkpoint instead, on `--text`.
    #[arg(long, requires = "text")]
    model: Option<PathBuf>,
    /// A file whose beginning the checkpoint reads.
    #[arg(long, requires = "model")]
    text: Option<PathBuf>,
    /// Where the figures go.
    #[arg(long, default_value = "runs/anchor")]
    out: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    seeds: Vec<u64>,
    text: TextPart,
    model: ModelPart,
    train: TrainPart,
    evaluate: EvaluatePart,
    drift: DriftPart,
    needle: NeedlePart,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TextPart {
    shortest: usize,
    longest: usize,
    crates: usize,
    hold_out: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EvaluatePart {
    windows: usize,
}

impl Recipe {
    fn load(path: Option<&Path>) -> Result<Self> {
        let (recipe, _): (Self, _) = settings(path, ("run.toml", include_str!("run.toml")))?;
        let TextPart { shortest, longest, .. } = recipe.text;
        if shortest < 2 || longest < shortest {
            let expected = "at least `shortest`, which is at least 2";
            return Err(Error::config("run.toml", "text.longest", longest, expected));
        }
        recipe.needle.check()?;
        Ok(recipe)
    }

    /// Parts of a document: shorter than any that is trained on, as long as they are, longer than all.
    fn buckets(&self) -> [Range<usize>; 3] {
        let TextPart { shortest, longest, .. } = self.text;
        [1..shortest, shortest..longest, longest..self.train.length]
    }
}

/// Training documents, short, and held-out ones, of a row's length; all begin with BOS.
struct Text {
    train: Vec<TokenDocument>,
    held_out: Vec<Vec<u32>>,
}

impl Text {
    fn read(recipe: &Recipe) -> Result<Self> {
        let mut documents = corpus::crates()?.documents;
        documents.truncate(recipe.text.crates);
        let (train, held_out) = split(documents, recipe.text.hold_out)?;
        let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<u32>>();
        let mut rng = Streams::new(0).rng(Purpose::Synthetic, 0, 0, 0);
        let mut short = Vec::new();
        let TextPart { shortest, longest, .. } = recipe.text;
        for document in &train {
            let ids = bytes(&document.text);
            let mut start = 0;
            while start < ids.len() {
                let end = (start + shortest + rng.below(longest - shortest + 1)).min(ids.len());
                let ids: Vec<u32> = [&[BOS], &ids[start..end]].concat();
                short.push(TokenDocument {
                    id: format!("{}[{start}..]", document.id),
                    ids: ids.into(),
                });
                start = end;
            }
        }
        let length = recipe.train.length;
        let windows = held_out.iter().flat_map(|document| {
            let ids = bytes(&document.text);
            let window = |part: &[u32]| [&[BOS], part].concat();
            ids.chunks_exact(length).step_by(16).map(window).collect::<Vec<_>>()
        });
        let held_out: Vec<Vec<u32>> = windows.take(recipe.evaluate.windows).collect();
        if held_out.is_empty() {
            return Err(Error::Data("no held-out text (remedy: more crates in run.toml)".into()));
        }
        Ok(Self { train: short, held_out })
    }
}

fn main() -> std::process::ExitCode {
    exit_code(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    let recipe = Recipe::load(args.recipe.as_deref())?;
    let seeds = if args.seeds.is_empty() { &recipe.seeds } else { &args.seeds };
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io(&args.out, e))?;
    if let (Some(dir), Some(text)) = (&args.model, &args.text) {
        return checkpoint(&recipe, dir, text, &args.out);
    }
    recipe.needle.run(seeds, args.at_once, &args.out)?;
    if args.needle {
        return Ok(());
    }
    let text = Text::read(&recipe)?;
    let of_seeds = each_seed(seeds, args.at_once, |seed| arms(&recipe, &text, seed))?;
    let head = recipe.buckets().map(|part| format!("{} to {}", part.start, part.end));
    let columns = ["packing".to_string()].into_iter().chain(head).chain(["last by seed".into()]);
    let mut table = Table::new(columns);
    for (i, arm) in Arm::ALL.into_iter().enumerate() {
        let each = |part: usize| -> Vec<f64> {
            of_seeds.iter().map(|(losses, _)| losses[i][part]).collect()
        };
        let means = (0..3).map(|part| Cell::from(mean_se(&each(part)).mean));
        let last = Cell::from(by_seed(&each(2), 3));
        table.push([Cell::from(arm.name())].into_iter().chain(means).chain([last]));
    }
    let table = table.decimals(1, 3).decimals(2, 3).decimals(3, 3);
    println!("\nmean loss (nats per byte) of single documents of {} bytes\n", recipe.train.length);
    println!("{}", table.to_markdown());
    table.save(args.out.join("loss.md"))?;
    let drifts: Vec<Vec<Drift>> = of_seeds.into_iter().map(|(_, drift)| drift).collect();
    recipe.drift.report(&drifts, &args.out)
}

/// Losses of every packing in the parts of a document, and the drift of the model with an anchor.
fn arms(recipe: &Recipe, text: &Text, seed: u64) -> Result<(Vec<Vec<f64>>, Vec<Drift>)> {
    let (mut all, mut drift) = (Vec::new(), Vec::new());
    for arm in Arm::ALL {
        let model = train(recipe, text, arm, seed)?;
        let losses = losses(&model, text, &recipe.buckets())?;
        let each: Vec<String> = losses.iter().map(|loss| format!("{loss:.3}")).collect();
        println!("seed {seed}, {}: {} nats", arm.name(), each.join(", "));
        all.push(losses);
        if arm == Arm::Anchor {
            let untrained = new(recipe, seed)?;
            let models = [(&model, "trained"), (&untrained, "untrained")];
            drift = recipe.drift.measure(&text.held_out[0][..recipe.train.length], &models)?;
            println!("seed {seed}, {}", drift::summary(&drift));
        }
    }
    Ok((all, drift))
}

fn new(recipe: &Recipe, seed: u64) -> Result<Decoder> {
    let config = recipe.model.config(BOS as usize + 1, recipe.train.length);
    Decoder::new(&config, &MixerConfig::Dense, seed, &Device::default())
}

fn train(recipe: &Recipe, text: &Text, arm: Arm, seed: u64) -> Result<Decoder> {
    let TrainPart { length, .. } = recipe.train;
    let packing = arm.packing(length, BOS).with_shuffle(true);
    let mut rows = packing.init(text.train.clone(), recipe.train.rows(), Streams::new(seed))?;
    let model = new(recipe, seed)?.swap_mixer(arm.mixer())?;
    Ok(Trainer::new(recipe.train.config())?
        .fit(model, &NextToken, &mut rows, &mut |_| Ok(()))?
        .model)
}

/// Mean loss by position, of the model as it is used: dense.
fn losses(model: &Decoder, text: &Text, buckets: &[Range<usize>]) -> Result<Vec<f64>> {
    let model = model.clone().swap_mixer(&MixerConfig::Dense)?;
    let len = text.held_out[0].len();
    let windows = document_starts(&text.held_out, len);
    let report = by_position(&model, &windows, buckets, 4)?;
    Ok(report.buckets.iter().map(|bucket| bucket.mean_nll).collect())
}

/// The drift of a checkpoint, and of a model of its shape with random weights.
fn checkpoint(recipe: &Recipe, dir: &Path, text: &Path, out: &Path) -> Result<()> {
    let model = Decoder::load(dir, &MixerConfig::Dense, &Device::default())?;
    let tokenizer = Tokenizer::from_file(dir)?;
    let text = std::fs::read_to_string(text).map_err(|e| Error::io(text, e))?;
    let mut ids = tokenizer.encode(&text, false)?;
    let named = model.config().raw().get("bos_token_id").and_then(|id| id.as_u64());
    let bos = tokenizer.special_ids().bos.or(named.map(|id| id as u32));
    if let Some(bos) = bos.filter(|bos| ids.first() != Some(bos)) {
        ids.insert(0, bos);
    }
    ids.truncate(recipe.train.length.min(model.config().max_context()));
    let untrained = Decoder::new(model.config(), &MixerConfig::Dense, 0, &Device::default())?;
    let models = [(&model, "checkpoint"), (&untrained, "random weights")];
    recipe.drift.report(&[recipe.drift.measure(&ids, &models)?], out)
}
