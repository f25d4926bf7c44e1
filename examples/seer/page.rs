//! Figures of a seed as a file, and the page made of them.

use crate::recipe::Recipe;
use crate::rules::Rule;
use crate::text::Kind;
use longburn::training::report::mean_se;
use longburn::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// What was measured of one seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub seed: u64,
    /// Crates that the text is made of.
    pub crates: usize,
    /// First and last loss of the gate.
    pub divergence: Option<[f64; 2]>,
    /// Nats per token, by [`key`].
    pub losses: BTreeMap<String, f64>,
    /// Shares of the attention that learning aims at in the chosen blocks, by [`key`].
    pub recalls: BTreeMap<String, f64>,
}

/// Name of a figure.
pub fn key(kind: Kind, chooser: &str, sparsity: f64) -> String {
    format!("{}/{chooser}/{sparsity}", kind.title())
}

impl Measured {
    const FILE: &str = "measured.json";

    /// The figures in a folder, where there are some.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(Self::FILE);
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|e| Error::io(path, e.into()))
    }

    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(Self::FILE);
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::io(&path, e.into()))?;
        longburn::models::weights::write_atomic(&path, text.as_bytes())
    }

    fn loss(&self, kind: Kind, chooser: &str, sparsity: f64) -> f64 {
        self.losses.get(&key(kind, chooser, sparsity)).copied().unwrap_or(f64::NAN)
    }

    /// What choosing costs against dense attention, nats.
    fn gap(&self, kind: Kind, chooser: &str, sparsity: f64) -> f64 {
        self.loss(kind, chooser, sparsity) - self.loss(kind, "dense", 0.0)
    }
}

/// The page.
pub fn render(recipe: &Recipe, all: &[Measured]) -> Result<String> {
    let mut page = String::new();
    text(&mut page, recipe, all).map_err(|e| Error::Training(e.to_string()))?;
    Ok(page)
}

fn text(page: &mut String, recipe: &Recipe, all: &[Measured]) -> std::fmt::Result {
    writeln!(page, "# SeerAttention on a small model\n")?;
    writeln!(page, "<!-- Generated from the run's figures by the command below. -->\n")?;
    let crates = all.first().map_or(0, |one| one.crates);
    writeln!(
        page,
        "A Llama of {} layers and width {} trained from nothing on the Rust sources of {crates} \
         crates, {} steps at {} tokens; then a gate for blocks of {} tokens, {} steps, everything \
         else frozen. {} seeds. Figures are the loss on held-out text above that of dense \
         attention, nats per token, mean over seeds ± standard error; every choice computes \
         equally many blocks. In *repeated text* the first half of a row comes twice and the \
         second one counts.\n",
        recipe.model.layers,
        recipe.model.width,
        recipe.base.steps,
        recipe.base.length,
        recipe.gate.block,
        recipe.gate.steps,
        all.len()
    )?;
    let choosers: Vec<(&str, &str)> =
        [("gate", "gate")].into_iter().chain(Rule::ALL.map(|r| (r.name(), r.title()))).collect();
    for kind in Kind::ALL {
        let dense: Vec<f64> = all.iter().map(|one| one.loss(kind, "dense", 0.0)).collect();
        writeln!(page, "## {}, dense {}\n", capital(kind.title()), estimate(&dense))?;
        let heads: Vec<String> =
            recipe.evaluate.sparsity.iter().map(|s| format!("{:.0} % sparse", 100.0 * s)).collect();
        writeln!(page, "| blocks chosen by | {} |", heads.join(" | "))?;
        writeln!(page, "| --- |{}", " ---: |".repeat(heads.len()))?;
        for (name, title) in &choosers {
            let cells: Vec<String> = recipe
                .evaluate
                .sparsity
                .iter()
                .map(|s| estimate(&all.iter().map(|m| m.gap(kind, name, *s)).collect::<Vec<_>>()))
                .collect();
            writeln!(page, "| {title} | {} |", cells.join(" | "))?;
        }
        writeln!(
            page,
            "\nShare of the largest weights, as the gate learns them, in the blocks:\n"
        )?;
        writeln!(page, "| blocks chosen by | {} |", heads.join(" | "))?;
        writeln!(page, "| --- |{}", " ---: |".repeat(heads.len()))?;
        for (name, title) in
            [("gate", "gate"), ("means", "pooled means, nothing learned"), ("random", "chance")]
        {
            let of = |s: &f64| {
                let one = |m: &Measured| m.recalls.get(&key(kind, name, *s)).copied();
                estimate(&all.iter().filter_map(one).collect::<Vec<_>>())
            };
            let cells: Vec<String> = recipe.evaluate.sparsity.iter().map(of).collect();
            writeln!(page, "| {title} | {} |", cells.join(" | "))?;
        }
        writeln!(page)?;
    }
    writeln!(page, "```sh\ncargo run --example seer -- --page docs/results/seer.md\n```\n")?;
    writeln!(page, "## What was expected, and what came out\n")?;
    let share = recipe.expected_share;
    writeln!(
        page,
        "The expectation stands in `examples/seer/run.toml` and was written before the run: on \
         both kinds of text and in every seed, the gate's choice costs at most {share} of what an \
         equally dense window costs, and of what equally many random blocks cost. Where a window \
         costs nothing, nothing can cost half of that, which counts as failed. Below: nats that \
         the gate costs of those that the other costs, by seed.\n"
    )?;
    for kind in Kind::ALL {
        for s in &recipe.evaluate.sparsity {
            for rival in [Rule::Window, Rule::Random] {
                let pairs =
                    all.iter().map(|m| (m.gap(kind, "gate", *s), m.gap(kind, rival.name(), *s)));
                let pairs: Vec<(f64, f64)> = pairs.collect();
                let held = pairs
                    .iter()
                    .filter(|(gate, rival)| *rival > 0.0 && *gate <= share * rival)
                    .count();
                let verdict = if held == pairs.len() { "holds" } else { "failed" };
                let shown: Vec<String> =
                    pairs.iter().map(|(gate, rival)| format!("{gate:.3} of {rival:.3}")).collect();
                writeln!(
                    page,
                    "- **{verdict}**: {}, {:.0} % sparse, against {}: {} ({held} of {} seeds)",
                    kind.title(),
                    100.0 * s,
                    rival.title(),
                    shown.join(", "),
                    pairs.len()
                )?;
            }
        }
    }
    Ok(())
}

fn estimate(values: &[f64]) -> String {
    let all = mean_se(values);
    match all.se {
        Some(se) => format!("{:.3} ± {se:.3}", all.mean),
        None => format!("{:.3}", all.mean),
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map_or(String::new(), |first| first.to_uppercase().collect::<String>() + letters.as_str())
}
