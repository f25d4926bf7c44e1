//! The `longburn` command: one file per verb.

mod arguments;
mod bench;
mod completions;
mod device;
mod doctor;
mod eval;
mod extend;
mod fault;
mod fetch;
mod generate;
mod inspect;
mod load;
mod logits;
mod mask;
mod merge;
mod output;
mod papers;
mod plan;
mod reference;
mod train;
mod usable;
mod verify;

use clap::{Args, Parser, Subcommand};
use device::DeviceName;
use longburn::{Error, Result};
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit status after SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

/// Long-context techniques for language models: train, measure, generate.
#[derive(Parser)]
#[command(
    name = "longburn",
    version,
    long_version = doctor::LONG_VERSION.as_str(),
    after_help = "\
Examples:
  longburn doctor
  longburn inspect MODEL
  longburn train recipe.toml --out runs/first

Exit status: 0 done, 1 failed (the message says why), 2 the command line was not
understood, 130 interrupted (a training run has saved itself then)."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    globals: Globals,
}

/// Options of all verbs.
#[derive(Args)]
struct Globals {
    /// Where to compute: `flex` (CPU), `wgpu[:N]` or `cuda[:N]` with N the number of the card
    #[arg(long, global = true, default_value = "flex", value_name = "DEVICE")]
    device: DeviceName,
    /// Threads on the CPU; all cores where not given
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// Seed of everything random; a recipe's own, or 0, where not given
    #[arg(long, global = true, value_name = "N")]
    seed: Option<u64>,
    /// Say which code runs in every layer, and why
    #[arg(long, global = true)]
    explain: bool,
    /// Print one JSON object on standard output, for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Verb {
    Train(train::TrainArgs),
    Plan(plan::PlanArgs),
    Eval(eval::EvalArgs),
    Extend(extend::ExtendArgs),
    Generate(generate::GenerateArgs),
    Fetch(fetch::FetchArgs),
    Inspect(inspect::InspectArgs),
    Merge(merge::MergeArgs),
    Logits(logits::LogitsArgs),
    #[command(subcommand)]
    Mask(mask::MaskVerb),
    #[command(subcommand)]
    Bench(bench::BenchVerb),
    Papers(papers::PapersArgs),
    Doctor(doctor::DoctorArgs),
    Completions(completions::CompletionsArgs),
    #[command(hide = true)]
    Reference(reference::ReferenceArgs),
}

impl Verb {
    /// Models and adapters that the command line names, by folder or by repository.
    fn models(&mut self) -> Vec<&mut PathBuf> {
        match self {
            Self::Eval(args) => args.models(),
            Self::Extend(args) => args.models(),
            Self::Generate(args) => args.models(),
            Self::Merge(args) => args.models(),
            Self::Logits(args) => args.models(),
            // The others read a recipe, look only, or need no model.
            _ => Vec::new(),
        }
    }

    /// What the verb is going to write.
    fn targets(&self) -> Vec<output::Target<'_>> {
        match self {
            Self::Eval(args) => args.targets(),
            Self::Extend(args) => args.targets(),
            Self::Merge(args) => args.targets(),
            Self::Logits(args) => args.targets(),
            Self::Mask(verb) => verb.targets(),
            // A recipe names the folder of a run; the others write nothing, or look for themselves.
            _ => Vec::new(),
        }
    }
}

fn main() -> ExitCode {
    longburn::kernel::keep_freed_memory();
    let filter = tracing_subscriber::EnvFilter::try_from_env("LONGBURN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,hf_hub=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // They would go to standard error, too, and panic where that is closed.
        .log_internal_errors(false)
        .init();
    let mut cli = arguments::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let globals = &cli.globals;
    let ready = set_threads(globals.threads)
        .and_then(|()| cli.verb.targets().iter().try_for_each(output::Target::check))
        .and_then(|()| cli.verb.models().into_iter().try_for_each(load::locate));
    let done = ready.and_then(|()| match &cli.verb {
        Verb::Train(args) => args.run(globals),
        Verb::Plan(args) => args.run(globals),
        Verb::Eval(args) => args.run(globals),
        Verb::Extend(args) => args.run(globals),
        Verb::Generate(args) => args.run(globals),
        Verb::Fetch(args) => args.run(globals),
        Verb::Inspect(args) => args.run(globals),
        Verb::Merge(args) => args.run(globals),
        Verb::Logits(args) => args.run(globals),
        Verb::Mask(verb) => verb.run(globals),
        Verb::Bench(verb) => verb.run(globals),
        Verb::Papers(args) => args.run(globals),
        Verb::Doctor(args) => args.run(globals),
        Verb::Completions(args) => args.run(),
        Verb::Reference(args) => args.run(),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads the output has seen enough, as `head` has.
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            let interrupted = matches!(error, Error::Interrupted { .. });
            fault::show(error, globals.json);
            if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::FAILURE }
        }
    }
}

/// Above any machine; far more would take minutes to start.
const MOST_THREADS: usize = 1024;

fn set_threads(threads: Option<usize>) -> Result<()> {
    match threads {
        None => Ok(()),
        Some(n) if n == 0 || n > MOST_THREADS => {
            let expected = format!("from 1 to {MOST_THREADS}");
            Err(Error::config("command line", "threads", n, expected))
        }
        Some(n) => rayon::ThreadPoolBuilder::new().num_threads(n).build_global().map_err(|e| {
            Error::config("command line", "threads", n, format!("a pool that can be made: {e}"))
        }),
    }
}
