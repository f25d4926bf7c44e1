//! A real checkpoint extended on books, four arms and several seeds, into a Markdown page.

use crate::page::print;
use burn::tensor::Device;
use clap::Args;
use longburn::attention::{LongLoraConfig, MixerConfig};
use longburn::datasets::{DataReport, TokenDocument, Tokenizer, WindowSampler, source, tokenize};
use longburn::models::lora::{self, LoraConfig};
use longburn::models::{Blocks, Decoder};
use longburn::positional::RopeConfig;
use longburn::streams::Streams;
use longburn::training::eval::{EvalWindow, by_position};
use longburn::training::recipe::{ExtendSection, settings};
use longburn::training::report::{
    Cell, Estimate, EvalRecord, MetricsLog, Progress, Table, TrainRecord, mean_se,
    paired_difference, read_metrics,
};
use longburn::training::{AdamW, NextToken, Schedule, TrainConfig, Trainer, Warmup};
use longburn::{Error, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Extend a checkpoint on books and compare four ways to do it.
#[derive(Args, Debug)]
pub struct BooksArgs {
    /// A checkpoint in Hugging Face form, with its tokenizer.
    #[arg(long)]
    model: PathBuf,
    /// Folder of texts, or a .jsonl file, to train on.
    #[arg(long)]
    data: PathBuf,
    /// The same for evaluation.
    #[arg(long)]
    held_out: PathBuf,
    /// Another recipe than `books.toml` beside this program.
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Where metrics go; a run that was cut off goes on behind its last finished arm.
    #[arg(long, default_value = "runs/longlora-books")]
    out: PathBuf,
    /// The page to write from the metrics.
    #[arg(long)]
    page: Option<PathBuf>,
    /// No progress bars.
    #[arg(long)]
    quiet: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BooksRecipe {
    seeds: Vec<u64>,
    length: usize,
    batch: usize,
    steps: u64,
    lr: f64,
    warmup_steps: u64,
    rank: usize,
    alpha: f64,
    group_ratio: usize,
    clip: f64,
    windows: usize,
    early: [usize; 2],
    late: [usize; 2],
    expected: Vec<Expected>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    lower: String,
    higher: String,
    margin: f64,
    why: String,
}

impl BooksRecipe {
    fn check(&self, file: &str) -> Result<()> {
        let bad = |field: &str, value: String, expected: &str| {
            Err(Error::config(file, field, value, expected))
        };
        for (field, value) in [
            ("length", self.length),
            ("batch", self.batch),
            ("steps", self.steps as usize),
            ("group_ratio", self.group_ratio),
            ("windows", self.windows),
            ("seeds", self.seeds.len()),
        ] {
            if value == 0 {
                return bad(field, "0".into(), "at least 1");
            }
        }
        for (field, [from, to]) in [("early", self.early), ("late", self.late)] {
            if from == 0 || from >= to || to > self.length {
                let expected = "[from, to] with 0 < from < to <= length";
                return bad(field, format!("{:?}", [from, to]), expected);
            }
        }
        let known = |name: &str| ARMS.iter().any(|(arm, _)| *arm == name);
        let mut names = self.expected.iter().flat_map(|e| [&e.lower, &e.higher]);
        match names.find(|name| !known(name)) {
            Some(name) => bad("expected", name.clone(), "the name of an arm"),
            None => Ok(()),
        }
    }
}

/// (name, what it is)
const ARMS: [(&str, &str); 4] = [
    ("short", "LongLoRA's parameters trained at the checkpoint's own length, then interpolation"),
    ("lora", "plain LoRA, shifted sparse attention in training"),
    ("longlora", "LongLoRA"),
    ("longlora-dense", "LongLoRA's parameters, dense attention in training"),
];

const UNTRAINED: &str = "untrained";
const EARLY: &str = "loss_early";
const LATE: &str = "loss_late";

struct Texts {
    train: Vec<TokenDocument>,
    held_out: Vec<TokenDocument>,
}

pub fn run(args: &BooksArgs) -> Result<()> {
    let (recipe, file): (BooksRecipe, _) =
        settings(args.recipe.as_deref(), ("books.toml", include_str!("books.toml")))?;
    recipe.check(&file)?;
    let base = Decoder::load(&args.model, &MixerConfig::Dense, &Device::flex())?;
    let tokenizer = Tokenizer::from_file(&args.model)?;
    tokenizer.check_model(base.config().vocab_size)?;
    // What a factor already in place reaches counts as the checkpoint's own length.
    let own = base.config().max_context();
    let extended = ExtendSection::new(recipe.length).apply(base.config())?;
    let rope = (extended.max_position_embeddings, extended.rope);
    let progress = if args.quiet { Progress::quiet() } else { Progress::new(0) };
    let read = |path: &Path| -> Result<_> {
        let (documents, account) = read(path, &tokenizer)?;
        progress.println(&format!("{}: {account}", path.display()));
        Ok(documents)
    };
    let texts = Texts { train: read(&args.data)?, held_out: read(&args.held_out)? };
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io(&args.out, e))?;
    let path = args.out.join("metrics.jsonl");
    let mut log = MetricsLog::open(&path)?;
    let done: Vec<String> = read_metrics(&path)?.eval(LATE).map(|e| e.run.clone()).collect();
    let stretched = base.clone().with_rope(rope.1.clone(), rope.0)?;
    if !done.iter().any(|d| d == UNTRAINED) {
        evaluate(&recipe, &stretched, &texts, UNTRAINED, &mut log)?;
    }
    for &seed in &recipe.seeds {
        for (arm, _) in ARMS {
            let run = format!("{arm}/seed{seed}");
            if done.contains(&run) {
                continue;
            }
            let model =
                train(&recipe, &base, (own, &rope), &texts, arm, seed, &mut log, &progress)?;
            evaluate(&recipe, &model, &texts, &run, &mut log)?;
        }
    }
    let page = page(&recipe, own, &path)?;
    print(&page)?;
    match &args.page {
        Some(path) => std::fs::write(path, page).map_err(|e| Error::io(path, e)),
        None => Ok(()),
    }
}

fn read(path: &Path, tokenizer: &Tokenizer) -> Result<(Vec<TokenDocument>, DataReport)> {
    let mut source = source::open(path)?;
    let (documents, account) = tokenize(&source.read_all()?, tokenizer, true)?;
    Ok((documents, source.report().clone().then(&account)))
}

#[allow(clippy::too_many_arguments)]
fn train(
    recipe: &BooksRecipe,
    base: &Decoder,
    (own, (positions, rope)): (usize, &(usize, RopeConfig)),
    texts: &Texts,
    arm: &str,
    seed: u64,
    log: &mut MetricsLog,
    progress: &Progress,
) -> Result<Decoder> {
    let short = arm == "short";
    let sparse = matches!(arm, "lora" | "longlora");
    let mixer = match sparse {
        true => MixerConfig::LongLora(LongLoraConfig::new().with_group_ratio(recipe.group_ratio)),
        false => MixerConfig::Dense,
    };
    let policy = if arm == "lora" { LoraConfig::new() } else { LoraConfig::longlora() };
    let policy = policy.with_rank(recipe.rank).with_alpha(recipe.alpha).with_seed(seed);
    let stretch = |model: Decoder| model.with_rope(rope.clone(), *positions);
    let model = if short { base.clone() } else { stretch(base.clone())? };
    let model = lora::apply(model.swap_mixer(&mixer)?, &policy)?;
    // The short arm sees the same tokens per step, in more rows.
    let len = if short { own } else { recipe.length };
    let rows = recipe.batch * recipe.length / len;
    let mut data =
        WindowSampler::new(texts.train.clone(), len, (rows / 2).max(1), Streams::new(seed))?;
    let config = TrainConfig::new(recipe.steps, recipe.lr)
        .with_schedule(Schedule::Linear { warmup: Warmup::Steps(recipe.warmup_steps), last: 0.0 })
        .with_adamw(AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0 })
        .with_clip(recipe.clip)
        .with_micro_batches(2)
        .with_workers(2)
        .with_seed(seed);
    let run = format!("{arm}/seed{seed}");
    let mut stage = progress.stage(&run, Some(recipe.steps), "steps");
    let outcome = Trainer::new(config)?.fit(model, &NextToken, &mut data, &mut |step| {
        let report = step.report;
        stage.message(format!("loss {:.3}", report.loss));
        stage.work(report.tokens, "tokens");
        stage.advance(1);
        log.train(TrainRecord {
            run: run.clone(),
            step: report.step,
            tokens: report.total_tokens,
            loss: report.loss,
            lr: report.lr,
            grad_norm: Some(report.grad_norm),
            tokens_per_second: Some(report.tokens_per_second),
            ..TrainRecord::default()
        })
    })?;
    stage.finish();
    let merged = lora::merge(outcome.model).swap_mixer(&MixerConfig::Dense)?;
    if short { stretch(merged) } else { Ok(merged) }
}

/// Loss over early and late positions of windows from the held-out texts, dense attention.
fn evaluate(
    recipe: &BooksRecipe,
    model: &Decoder,
    texts: &Texts,
    run: &str,
    log: &mut MetricsLog,
) -> Result<()> {
    let long: Vec<_> = texts.held_out.iter().filter(|d| d.ids.len() > recipe.length).collect();
    if long.is_empty() {
        return Err(Error::Data(format!("no held-out text has {} tokens", recipe.length)));
    }
    let each = recipe.windows.div_ceil(long.len());
    let window = |i: usize| {
        let ids = &long[i % long.len()].ids;
        let start = (ids.len() - recipe.length) * (i / long.len()) / each;
        let ids = &ids[start..start + recipe.length];
        EvalWindow { document: i % long.len(), start, ids, first: 1 }
    };
    let windows: Vec<_> = (0..recipe.windows).map(window).collect();
    let buckets = [recipe.early, recipe.late].map(|[from, to]| from..to);
    let report = by_position(model, &windows, &buckets, 4)?;
    for (index, name) in [(0, EARLY), (1, LATE)] {
        let y = report.window_means(index);
        let x = (0..y.len()).map(|i| i as f64).collect();
        log.eval(EvalRecord { run: run.into(), name: name.into(), x, y, se: Vec::new() })?;
    }
    Ok(())
}

/// (early, late) mean losses of a run.
fn losses(path: &Path, run: &str) -> Result<(f64, f64)> {
    let metrics = read_metrics(path)?;
    let mean = |name: &str| {
        let found = metrics.eval(name).filter(|e| e.run == run).last();
        found.map(|e| mean_se(&e.y).mean)
    };
    mean(EARLY)
        .zip(mean(LATE))
        .ok_or_else(|| Error::Data(format!("{}: no evaluation of {run}", path.display())))
}

fn page(recipe: &BooksRecipe, own: usize, path: &Path) -> Result<String> {
    let ([e0, e1], [l0, l1]) = (recipe.early, recipe.late);
    let tokens = recipe.steps * (recipe.batch * recipe.length) as u64;
    let of_arm = |arm: &str| -> Result<(Vec<f64>, Vec<f64>)> {
        let seeds = recipe.seeds.iter().map(|seed| losses(path, &format!("{arm}/seed{seed}")));
        Ok(seeds.collect::<Result<Vec<_>>>()?.into_iter().unzip())
    };
    let figure = |arm: &str| -> Result<Vec<f64>> {
        let (early, late) = of_arm(arm)?;
        Ok(late.iter().zip(&early).map(|(l, e)| l - e).collect())
    };
    let mut table = Table::new([
        "arm".to_string(),
        format!("loss at {e0}-{e1}"),
        format!("loss at {l0}-{l1}"),
        "late − early".into(),
    ]);
    let (early, late) = losses(path, UNTRAINED)?;
    let title = "interpolation, untrained";
    table.push([Cell::from(title), early.into(), late.into(), (late - early).into()]);
    for (arm, what) in ARMS {
        let (early, late) = of_arm(arm)?;
        let figure = mean_se(&figure(arm)?);
        let title = format!("`{arm}`: {what}");
        table.push([
            Cell::from(title),
            mean_se(&early).into(),
            mean_se(&late).into(),
            figure.into(),
        ]);
    }
    for column in 1..4 {
        table = table.decimals(column, 3);
    }
    let mut text = format!(
        "# LongLoRA on a real checkpoint\n\n\
         <!-- Generated from the run's metrics by the command below. -->\n\n\
         A checkpoint of {own} positions extended to {} on books: four arms on the same books, \
         {} steps of {} tokens each ({tokens} tokens), {} seeds, learning rate {} for all. Losses \
         are nats per token over {} windows of held-out books, dense attention, positions \
         interpolated; ± is a standard error over seeds. The figure is the last column: below \
         zero where far context helps.\n\n{}\n\
         ```sh\ncargo run --example longlora -- books --model DIR --data BOOKS --held-out BOOKS \
         --page docs/results/longlora.md\n```\n\n\
         ## What was expected, and what came out\n\n\
         The expectations stand in `examples/longlora/books.toml` and were written before the \
         run. Differences are those of the figure, paired by seed.\n\n",
        recipe.length,
        recipe.steps,
        recipe.batch * recipe.length,
        recipe.seeds.len(),
        recipe.lr,
        recipe.windows,
        table.to_markdown(),
    );
    for Expected { lower, higher, margin, why } in &recipe.expected {
        let found: Estimate = paired_difference(&figure(higher)?, &figure(lower)?)?;
        let verdict = match (found.mean >= *margin, found.se) {
            (true, Some(se)) if found.mean - margin > 2.0 * se => "**holds**",
            (true, _) => "**holds, within the noise**",
            (false, _) => "**failed**",
        };
        let at_late = paired_difference(&of_arm(higher)?.1, &of_arm(lower)?.1)?;
        text.push_str(&format!(
            "- {verdict}: `{lower}` below `{higher}` by at least {margin} ({why}). Found: {found}. \
             (Of the loss at {l0}-{l1} itself: {at_late}.)\n"
        ));
    }
    Ok(text)
}
