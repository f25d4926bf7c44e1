//! LongLoRA (arXiv 2309.12307) on real text, from nothing: trains a tokenizer and a small Llama
//! at a short length, extends it four times in four ways, measures all with dense attention and
//! writes a report.
//!
//! `cargo run --example longlora` needs nothing but what Cargo has just unpacked.

mod arms;
mod books;
#[path = "../corpus.rs"]
mod corpus;
mod measure;
mod page;
mod recipe;
mod text;

use arms::Arm;
use clap::{Parser, Subcommand};
use longburn::Result;
use longburn::training::recipe::exit_code;
use longburn::training::report::Progress;
use measure::Measured;
use recipe::Recipe;
use std::path::PathBuf;
use std::time::Instant;

/// Extend a small language model by LongLoRA and by its rivals, and report what was gained.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  cargo run --example longlora\n  cargo run --example longlora -- --data notes/ --out runs/notes"
)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// A folder of text or a .jsonl file instead of the sources of this project's dependencies.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where report, plots, metrics and checkpoints go.
    #[arg(long, default_value = "runs/longlora")]
    out: PathBuf,
    /// A larger model and three seeds; up to half an hour.
    #[arg(long)]
    full: bool,
    /// Another recipe than the one beside this program.
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Seed of the first run.
    #[arg(long)]
    seed: Option<u64>,
    /// No progress bars.
    #[arg(long)]
    quiet: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Extend a real checkpoint on books instead, four arms and three seeds.
    Books(books::BooksArgs),
}

fn main() -> std::process::ExitCode {
    longburn::kernel::keep_freed_memory();
    let args = Args::parse();
    exit_code(match &args.command {
        Some(Command::Books(books)) => books::run(books),
        None => run(&args),
    })
}

fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    let recipe = Recipe::load(args.recipe.as_deref(), args.full, args.seed)?;
    let stages = 1 + recipe.seeds.len() * (1 + Arm::TRAINED.len() + 1);
    let progress = if args.quiet { Progress::quiet() } else { Progress::new(stages) };
    std::fs::create_dir_all(&args.out).map_err(|e| longburn::Error::io(&args.out, e))?;
    let text = text::Text::read(args.data.as_deref(), &recipe, &progress)?;
    let mut all = Vec::new();
    for &seed in &recipe.seeds {
        let folder = match recipe.seeds.len() {
            1 => args.out.clone(),
            _ => args.out.join(format!("seed-{seed}")),
        };
        let models = arms::train(&recipe, &text, seed, &folder, &progress)?;
        all.push(Measured::of(&recipe, &text, seed, &models, &progress)?);
    }
    let seconds = started.elapsed().as_secs_f64();
    page::write(&recipe, &text, &all, &args.out, seconds)
}
