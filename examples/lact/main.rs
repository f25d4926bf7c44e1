//! LaCT (arXiv 2505.23884): what large chunks are good for, and what fast weights add to a window.
//!
//! `cargo run --example lact` measures the fast-weight branch by the size of its chunk, trains small
//! models on associative recall with and without fast weights, and writes a report.

mod cost;
mod recall;
mod settings;

use clap::Parser;
use cost::Cost;
use longburn::attention::lact::FastOptimizer;
use longburn::training::report::{
    Cell, Figure, Finding, Findings, Plot, Report, Section, Series, Table, mean_se,
};
use longburn::{Error, Result};
use recall::Learned;
use settings::Settings;
use std::path::PathBuf;

/// Measure fast weights by the size of their chunk, and what they recall.
#[derive(Parser, Debug)]
struct Args {
    /// Where report and plots go.
    #[arg(long, default_value = "runs/lact")]
    out: PathBuf,
    /// Other settings than those beside this program.
    #[arg(long)]
    recipe: Option<PathBuf>,
}

fn main() -> std::process::ExitCode {
    match run(&Args::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let settings = Settings::read(args.recipe.as_deref())?;
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io(&args.out, e))?;
    let ceiling = cost::ceiling();
    let costs = cost::measure(&settings.cost)?;
    let speed = speed_table(&settings, &costs, ceiling);
    println!("{}", speed.to_text());

    let mut learned = Vec::new();
    for &seed in &settings.seeds {
        for arm in settings.recall.arms() {
            let one = recall::run(&settings.recall, &arm, seed, &mut |step, loss| {
                if step % 100 == 0 {
                    eprintln!("{}, seed {seed}: step {step}, loss {loss:.3}", arm.name);
                }
            })?;
            learned.push(one);
        }
    }
    let (found, table) = recall_table(&settings, &learned);
    println!("{}", table.to_text());

    let findings = Findings {
        shows: findings(&settings, &costs, &found),
        does_not: vec![
            Finding::limit("A CPU is kept busy by much smaller chunks than a GPU."),
            Finding::limit("Models of this size say nothing of language."),
        ],
    };
    let plot = speed_plot(&settings, &costs, ceiling);
    plot.save(args.out.join("speed.svg"))?;
    Report::new("LaCT", "Fast weights by the size of their chunk, and what they add to a window.")
        .section(Section::new("What the run shows").findings(findings))
        .section(
            Section::new("Speed")
                .figure(Figure::new(&plot, "Share of a large matrix product's speed.")?)
                .table("Forward and backward pass of the fast-weight branch.", speed),
        )
        .section(Section::new("Recall").table("Share of the questions answered.", table))
        .save(args.out.join("report.html"))?;
    println!("{}", args.out.join("report.html").display());
    Ok(())
}

fn name(optimizer: FastOptimizer) -> &'static str {
    match optimizer {
        FastOptimizer::Sgd => "gradient",
        FastOptimizer::Muon => "Muon",
    }
}

fn speed_table(settings: &Settings, costs: &[Cost], ceiling: f64) -> Table {
    let mut table = Table::new([
        "Step",
        "Chunk",
        "GFLOP forward",
        "Forward, ms",
        "Both, ms",
        "Tokens/s",
        "Share of a matrix product, %",
    ]);
    for cost in costs {
        table.push([
            Cell::from(name(cost.optimizer)),
            Cell::from(cost.chunk as u64),
            Cell::from(cost.operations as f64 / 1e9),
            Cell::from(1e3 * cost.forward),
            Cell::from(1e3 * cost.both),
            Cell::from(cost.tokens_per_second(settings.cost.length)),
            Cell::from(100.0 * cost.operations_per_second() / ceiling),
        ]);
    }
    table
}

fn speed_plot(settings: &Settings, costs: &[Cost], ceiling: f64) -> Plot {
    let chunks: Vec<String> = settings.cost.chunks.iter().map(usize::to_string).collect();
    let mut plot = Plot::categories("Speed by the size of the chunk", chunks)
        .x("tokens per chunk")
        .y("% of a matrix product")
        .y_covers(0.0, 100.0);
    for optimizer in [FastOptimizer::Sgd, FastOptimizer::Muon] {
        let of = costs.iter().filter(|c| c.optimizer == optimizer);
        let shares: Vec<f64> = of.map(|c| 100.0 * c.operations_per_second() / ceiling).collect();
        plot = plot.series(Series::new(name(optimizer)).values(&shares));
    }
    plot
}

/// Share found by each arm, averaged over the seeds, and the table.
fn recall_table(settings: &Settings, learned: &[Learned]) -> (Vec<f64>, Table) {
    let mut table = Table::new(["Layers", "Answered, %"]);
    let mut means = Vec::new();
    for arm in settings.recall.arms() {
        let of = learned.iter().filter(|l| l.arm == arm.name);
        let estimate = mean_se(&of.map(|l| 100.0 * l.found).collect::<Vec<_>>());
        means.push(estimate.mean);
        table.push([Cell::from(arm.name), Cell::from(estimate)]);
    }
    (means, table)
}

fn findings(settings: &Settings, costs: &[Cost], found: &[f64]) -> Vec<Finding> {
    let mut all = Vec::new();
    for optimizer in [FastOptimizer::Sgd, FastOptimizer::Muon] {
        let of: Vec<&Cost> = costs.iter().filter(|c| c.optimizer == optimizer).collect();
        if let (Some(first), Some(last)) = (of.first(), of.last()) {
            let speed = |cost: &Cost| cost.tokens_per_second(settings.cost.length);
            let text = format!(
                "{}: {:.0} tokens/s with chunks of {}, {:.0} with chunks of {}.",
                name(optimizer),
                speed(first),
                first.chunk,
                speed(last),
                last.chunk
            );
            all.push(Finding::check(speed(last) > speed(first), text));
        }
    }
    if let [window, one, two] = found {
        let chance = 100.0 / settings.recall.values as f64;
        let text = format!(
            "Beyond the window, {window:.0} % of the questions are answered without fast weights \
             (chance: {chance:.0} %), {one:.0} % with them."
        );
        all.push(Finding::check(*one > window + 20.0, text));
        let text = format!("Twice the inner width answers {two:.0} %, not fewer.");
        all.push(Finding::check(*two >= one - 2.0, text));
    }
    all
}
