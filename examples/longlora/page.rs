//! The closing table, the plots and `report.html`.

use crate::arms::Arm;
use crate::measure::{Line, Measured, bucket};
use crate::recipe::Recipe;
use crate::text::Text;
use longburn::training::eval::wilson;
use longburn::training::report::{
    Cell, Estimate, EvalRecord, Figure, Finding, Findings, MetricsLog, Plot, Report, Section,
    Series, Table, mean_se, paired_difference, read_metrics,
};
use longburn::{Error, Result};
use std::io::Write;
use std::path::Path;

/// Numbers over seeds, or over windows where there is one seed.
struct Summary<'a>(&'a [Measured]);

impl Summary<'_> {
    /// Mean loss in nats and its standard error.
    fn loss(&self, line: Line) -> Estimate {
        match self.0 {
            [one] => mean_se(&one.curve(line).windows),
            many => mean_se(&many.iter().map(|m| m.curve(line).loss()).collect::<Vec<_>>()),
        }
    }

    fn perplexity(&self, line: Line) -> Estimate {
        let loss = self.loss(line);
        let mean = loss.mean.exp();
        Estimate { mean, se: loss.se.map(|se| se * mean), n: loss.n }
    }

    /// `a` minus `b` in nats, paired by window or seed.
    fn difference(&self, a: Line, b: Line) -> Result<Estimate> {
        match self.0 {
            [one] => paired_difference(&one.curve(a).windows, &one.curve(b).windows),
            many => {
                let losses =
                    |l| many.iter().map(|m: &Measured| m.curve(l).loss()).collect::<Vec<_>>();
                paired_difference(&losses(a), &losses(b))
            }
        }
    }

    /// Share of keys found, and its standard error; none where all tests went the same way, which
    /// says little of how they could have gone.
    fn rate(&self, line: Line, length: usize) -> Option<Estimate> {
        let rates: Vec<f64> = self.0.iter().filter_map(|m| m.curve(line).rate(length)).collect();
        match rates[..] {
            [] => None,
            [p] => {
                let (_, total) = self.0[0].curve(line).keys[&length];
                let se = (p * (1.0 - p) / total as f64).sqrt();
                Some(Estimate { mean: p, se: (se > 0.0).then_some(se), n: total })
            }
            _ => {
                let Estimate { mean, se, n } = mean_se(&rates);
                Some(Estimate { mean, se: se.filter(|_| mean > 0.0 && mean < 1.0), n })
            }
        }
    }

    /// Tests with keys of one length, over all seeds.
    fn tests(&self, length: usize) -> usize {
        let of = |m: &Measured| {
            m.curve(Line::Arm(Arm::LongLora)).keys.get(&length).map_or(0, |(_, n)| *n)
        };
        self.0.iter().map(of).sum()
    }

    /// Perplexity per bucket with its standard error.
    fn by_position(&self, line: Line) -> (Vec<f64>, Vec<f64>) {
        let first = &self.0[0].curve(line).buckets;
        let of = |b: usize| match self.0 {
            [_] => first[b],
            many => {
                let all: Vec<f64> = many.iter().map(|m| m.curve(line).buckets[b].0).collect();
                let of = mean_se(&all);
                (of.mean, of.se.unwrap_or(f64::NAN))
            }
        };
        (0..first.len()).map(of).map(|(m, se)| (m.exp(), m.exp() * se)).unzip()
    }
}

fn lengths(recipe: &Recipe) -> Vec<usize> {
    (1..=recipe.extend.length / recipe.base.length).map(|n| n * recipe.base.length).collect()
}

/// Write everything and print the closing table.
pub fn write(
    recipe: &Recipe,
    text: &Text,
    all: &[Measured],
    out: &Path,
    seconds: f64,
) -> Result<()> {
    let summary = Summary(all);
    let table = table(recipe, &summary);
    let findings = findings(recipe, &summary)?;
    let plots = [
        ("loss", losses(recipe, out)?),
        ("perplexity-by-position", positions(recipe, &summary)),
        ("passkey-by-length", keys(recipe, &summary)),
    ];
    for (name, plot) in &plots {
        plot.save(out.join(format!("{name}.svg")))?;
    }
    let log = out.join("metrics.jsonl");
    if all.len() > 1 {
        // The steps of several seeds are in folders of their own, written anew as this is.
        std::fs::write(&log, "").map_err(|e| Error::io(&log, e))?;
    }
    let mut log = MetricsLog::open(log)?;
    for line in Line::ALL {
        let (y, se) = summary.by_position(line);
        let size = bucket(recipe) as f64;
        let x = (1..=y.len()).map(|b| b as f64 * size).collect();
        log.eval(EvalRecord {
            run: line.title().into(),
            name: "perplexity_by_position".into(),
            x,
            y,
            se,
        })?;
        let rates: Vec<(f64, Estimate)> = lengths(recipe)
            .into_iter()
            .filter_map(|l| Some((l as f64, summary.rate(line, l)?)))
            .collect();
        log.eval(EvalRecord {
            run: line.title().into(),
            name: "passkey_by_length".into(),
            x: rates.iter().map(|(x, _)| *x).collect(),
            y: rates.iter().map(|(_, e)| e.mean).collect(),
            se: rates.iter().map(|(_, e)| e.se.unwrap_or(f64::NAN)).collect(),
        })?;
    }
    page(recipe, text, all, &summary, &table, &findings, &plots, seconds)
        .and_then(|report| report.save(out.join("report.html")))?;

    let place = out.join("report.html");
    print(&format!(
        "\n{}\n{findings}\n{} s; report: {}",
        table.to_text(),
        seconds.round(),
        place.display()
    ))
}

/// Print a text and a line end; who has closed the output has seen enough.
pub fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("standard output", e))
        }
        _ => Ok(()),
    }
}

fn table(recipe: &Recipe, summary: &Summary<'_>) -> Table {
    let long = recipe.extend.length;
    let mut columns = vec!["model".to_string(), format!("perplexity to {long}")];
    columns.extend(lengths(recipe).iter().map(|l| format!("keys at {l}")));
    let mut table = Table::new(columns).decimals(1, 1);
    for column in 0..lengths(recipe).len() {
        table = table.decimals(2 + column, 2);
    }
    for line in Line::ALL {
        let mut row: Vec<Cell> = vec![line.title().into(), summary.perplexity(line).into()];
        row.extend(lengths(recipe).into_iter().map(|l| summary.rate(line, l).into()));
        table.push(row);
    }
    table
}

fn findings(recipe: &Recipe, summary: &Summary<'_>) -> Result<Findings> {
    let arm = Line::Arm;
    let (short, long) = (recipe.base.length, recipe.extend.length);
    let gap = |a: Line, b: Line| summary.difference(a, b);
    // Two standard errors away from zero.
    let above = |e: &Estimate| e.mean > 2.0 * e.se.unwrap_or(f64::INFINITY);
    let mut shows = Vec::new();

    let lora = gap(arm(Arm::Lora), arm(Arm::LongLora))?;
    shows.push(Finding::check(
        above(&lora),
        format!(
            "LongLoRA has a lower loss than plain LoRA beyond the trained length: by {lora} nats \
             per token to {long} tokens, paired."
        ),
    ));
    let untrained = gap(arm(Arm::Interpolation), arm(Arm::LongLora))?;
    let beyond = gap(Line::Beyond, arm(Arm::LongLora))?;
    shows.push(Finding::check(
        above(&untrained) && above(&beyond),
        format!(
            "Training is needed: LongLoRA lies {untrained} nats below interpolation without \
             training and {beyond} nats below the base model beyond its length."
        ),
    ));
    for times in [2, 3] {
        let at = times * short;
        if let (Some(own), Some(last)) =
            (summary.rate(arm(Arm::LongLora), at), summary.rate(Line::Sliding, at))
        {
            let se = own.se.unwrap_or(0.0).hypot(last.se.unwrap_or(0.0));
            shows.push(Finding::check(
                own.mean - last.mean > 2.0 * se,
                format!(
                    "Context beyond {short} tokens is used: at {at} tokens LongLoRA finds {own} \
                     of the keys, the base model with its last {short} tokens {last}."
                ),
            ));
        }
    }

    let mut does_not = Vec::new();
    let sliding = gap(arm(Arm::LongLora), Line::Sliding)?;
    let below = sliding.mean < 0.0;
    does_not.push(Finding::limit(format!(
        "LongLoRA's perplexity {} that of the base model given only its last {short} tokens \
         (difference {sliding} nats): for text like this and a model of this size, most of what \
         helps lies close by.",
        if below { "falls below" } else { "does not fall below" }
    )));
    let dense = gap(arm(Arm::LongLora), arm(Arm::LongLoraDense))?;
    does_not.push(Finding::limit(format!(
        "Shifted sparse attention in training costs {dense} nats against dense training of the \
         same parameters, most of it in the last quarter: distances beyond three quarters of the \
         length never occur under it. The paper reports no such gap for models of 7 B parameters."
    )));
    does_not.push(Finding::limit(
        "The learning rates were chosen beforehand on text of the same kind, held-out documents \
         included; they are the same for all arms.",
    ));
    does_not.push(Finding::limit(
        "Which of the two LoRA arms finds more keys depends on the learning rate; only the order \
         of their losses was the same in all recipes tried.",
    ));
    if summary.0.len() == 1 {
        does_not.push(Finding::limit(
            "One seed: the standard errors are over windows of held-out text, not over training \
             runs; `--full` trains three seeds.",
        ));
    }
    Ok(Findings { shows, does_not })
}

fn style(line: Line) -> usize {
    Line::ALL.iter().position(|l| *l == line).unwrap_or(0)
}

fn losses(recipe: &Recipe, out: &Path) -> Result<Plot> {
    let folder = match recipe.seeds[..] {
        [_] => out.to_path_buf(),
        _ => out.join(format!("seed-{}", recipe.seeds[0])),
    };
    let metrics = read_metrics(folder.join("metrics.jsonl"))?;
    let mut plot = Plot::lines("Training loss")
        .x("tokens seen in the arm")
        .y("loss (nats per token)")
        .alt("Loss over training tokens: the base model, then the three trained extensions.");
    let arms = Arm::TRAINED.map(|arm| (arm.name(), arm.title(), style(Line::Arm(arm))));
    for (run, title, style) in [("base", "base model", 0)].into_iter().chain(arms) {
        let records = metrics.train(run);
        let x: Vec<f64> = records.iter().map(|r| r.tokens as f64).collect();
        let y: Vec<f64> = records.iter().map(|r| r.loss).collect();
        plot = plot.series(Series::new(title).points(&x, &y).binned(60).style(style));
    }
    Ok(plot)
}

fn positions(recipe: &Recipe, summary: &Summary<'_>) -> Plot {
    let size = bucket(recipe) as f64;
    let mut plot = Plot::lines("Perplexity by position")
        .x("position (tokens)")
        .y("perplexity")
        .log_y()
        .marker_x(recipe.base.length as f64, "trained length")
        .alt("Perplexity on held-out text by position in the window, one line per model.");
    for line in Line::ALL.into_iter().filter(|l| *l != Line::Short) {
        let (y, se) = summary.by_position(line);
        let x: Vec<f64> = (1..=y.len()).map(|b| (b as f64 - 0.5) * size).collect();
        plot = plot.series(Series::new(line.title()).points(&x, &y).band(&se).style(style(line)));
    }
    plot
}

fn keys(recipe: &Recipe, summary: &Summary<'_>) -> Plot {
    let names = lengths(recipe).into_iter().map(|l| format!("{l} tokens"));
    let mut plot = Plot::categories("Pass keys found", names.collect::<Vec<_>>())
        .x("length of the text")
        .y("share of keys found")
        .y_covers(0.0, 1.0)
        .alt("Share of pass keys found, by length of the text, one point per model.");
    for line in Line::ALL.into_iter().filter(|l| *l != Line::Beyond) {
        let of: Vec<_> = lengths(recipe).into_iter().map(|l| summary.rate(line, l)).collect();
        let y: Vec<f64> = of.iter().map(|e| e.as_ref().map_or(f64::NAN, |e| e.mean)).collect();
        let se: Vec<f64> =
            of.iter().map(|e| e.as_ref().and_then(|e| e.se).unwrap_or(f64::NAN)).collect();
        plot = plot.series(Series::new(line.title()).values(&y).band(&se).style(style(line)));
    }
    plot
}

#[allow(clippy::too_many_arguments)]
fn page(
    recipe: &Recipe,
    text: &Text,
    all: &[Measured],
    summary: &Summary<'_>,
    table: &Table,
    findings: &Findings,
    plots: &[(&str, Plot)],
    seconds: f64,
) -> Result<Report> {
    let (short, long) = (recipe.base.length, recipe.extend.length);
    let lead = format!(
        "A Llama of {} parameters is trained on {short} tokens at a time and then extended to \
         {long} tokens by LongLoRA (arXiv 2309.12307) and by its rivals. All models are evaluated \
         with dense attention on documents that none of them has seen.",
        all[0].parameters
    );
    let figure = |name: &str, caption: &str| -> Result<Figure> {
        let found = plots.iter().find(|(n, _)| *n == name);
        let (_, plot) = found.ok_or_else(|| Error::Training(format!("no plot {name}")))?;
        Figure::new(plot, caption)
    };
    let trainable = |arm: Arm| {
        let of = &all[0].trainable;
        of.iter().find(|(a, _)| *a == arm).map_or(0, |(_, n)| *n)
    };
    let seeds = recipe.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let errors = match all.len() {
        1 => "± is a standard error over windows (perplexity) or tests (keys).",
        _ => "± is a standard error over seeds.",
    };
    let tests = summary.tests(2 * short);
    let errors = format!(
        "{errors} Where no key, or every key, of the {tests} of a length was found, there is none: \
         the true share may be {:.0} % away (Wilson, 95 %).",
        100.0 * wilson(0, tests).1
    );
    let shown = match recipe.seeds[..] {
        [_] => String::new(),
        _ => format!(" The runs shown are those of seed {}.", recipe.seeds[0]),
    };
    let long_lora = Line::Arm(Arm::LongLora);
    let mut command = "cargo run --example longlora".to_string();
    for (i, argument) in std::env::args().skip(1).enumerate() {
        command += if i == 0 { " -- " } else { " " };
        command += &argument;
    }
    let mut report = Report::new("LongLoRA on real text", lead)
        .fact(summary.perplexity(long_lora).to_string(), format!("LongLoRA's perplexity to {long}"))
        .fact(
            summary.perplexity(Line::Arm(Arm::Lora)).to_string(),
            format!("plain LoRA's perplexity to {long}"),
        );
    if let Some(rate) = summary.rate(long_lora, 2 * short) {
        report = report.fact(rate.to_string(), format!("keys LongLoRA finds at {}", 2 * short));
    }
    Ok(report
        .section(
            Section::new("What this run shows, and what it does not").findings(findings.clone()),
        )
        .section(
            Section::new("Results")
                .table(format!("Held-out text. {errors}"), table.clone())
                .figure(figure(
                    "perplexity-by-position",
                    "Loss by position tells whether far context is used: a model that uses it \
                     gets better along the window.",
                )?)
                .figure(figure(
                    "passkey-by-length",
                    "Four words stand somewhere in the text, and its end asks for them; guessing \
                     finds none.",
                )?),
        )
        .section(
            Section::new("Training")
                .text(format!(
                    "The base model trains for {} steps of {} tokens, every extension for {} \
                     steps of {} tokens, at the same learning rate and on the same rows. Of {} \
                     parameters, plain LoRA trains {}, LongLoRA {}: updates of rank {} on the four \
                     attention projections, and the embedding and all norms.",
                    recipe.base.steps,
                    recipe.base.batch * short,
                    recipe.extend.steps,
                    recipe.extend.batch * long,
                    all[0].parameters,
                    trainable(Arm::Lora),
                    trainable(Arm::LongLora),
                    recipe.extend.rank
                ))
                .figure(figure(
                    "loss",
                    &format!(
                        "Training loss, averaged over neighbouring steps. Rows with pass keys are \
                         easier than text alone, so these are no perplexities.{shown}"
                    ),
                )?),
        )
        .section(Section::new("The run").command(command).pairs([
            ("text", text.origin.clone()),
            ("sha256 of the text", text.sha256.clone()),
            (
                "documents",
                format!("{} to train on, {} held out", text.train.len(), text.held_out.len()),
            ),
            ("left out", text.report.to_string()),
            ("tokenizer", format!("BPE of {} tokens", text.tokenizer.vocab_size())),
            ("seeds", seeds),
            ("device", "CPU (Burn flex)".into()),
            ("Longburn", env!("CARGO_PKG_VERSION").into()),
            ("time", format!("{:.0} s", seconds)),
        ])))
}
