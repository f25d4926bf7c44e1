//! `longburn extend`

use crate::output::Target;
use crate::{Globals, load, output};
use clap::{Args, ValueEnum};
use longburn::attention::Mixer;
use longburn::datasets::{TokenDocument, source, tokenize};
use longburn::models::weights::write_atomic;
use longburn::models::{Decoder, ExtendMethod, ModelConfig};
use longburn::training::eval::{EvalWindow, PositionBucket, by_position};
use longburn::training::recipe::OF_A_RUN;
use longburn::training::report::{Cell, Plot, Progress, Series, Table};
use longburn::{Error, Result};
use serde_json::{Map, Value, json};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Parts of the length for which a perplexity is shown.
const BUCKETS: usize = 16;

/// Stretch a model's positions without training: preview a method, write the checkpoint
///
/// With `--text` it shows the perplexity by position before and after; `--out` writes a copy of the
/// checkpoint with the changed config.json, which `transformers` reads the same way. Compare methods
/// on a text of your own before you trust one.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn extend MODEL --method yarn --to 2048 --text books
  longburn extend MODEL --method linear --to 2048 --out longer")]
pub struct ExtendArgs {
    /// Folder of a checkpoint in Hugging Face form, or a repository of the Hub: org/name
    dir: PathBuf,
    /// How positions are stretched
    #[arg(long, value_enum)]
    method: MethodName,
    /// Length to be reached, tokens
    #[arg(long, value_name = "N")]
    to: usize,
    /// JSON file with `long_factor` and, if wanted, `short_factor`: a divisor per rotary pair
    /// (longrope)
    #[arg(long, value_name = "FILE")]
    factors: Option<PathBuf>,
    /// Text to preview on: a file, a folder of them, a .jsonl file, or a folder of those
    #[arg(long, value_name = "PATH")]
    text: Option<PathBuf>,
    /// At most so many stretches of text of the full length
    #[arg(long, default_value_t = 8, value_name = "N", requires = "text")]
    windows: usize,
    /// Draw the preview
    #[arg(long, value_name = "FILE", requires = "text")]
    svg: Option<PathBuf>,
    /// Folder for a copy of the checkpoint with the new positions
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum MethodName {
    /// Position Interpolation: all positions divided by a whole number
    Linear,
    /// Static NTK: a larger rope_theta, which any program reads
    Ntk,
    /// Dynamic NTK: texts up to the present length are read as before
    Dynamic,
    /// YaRN
    Yarn,
    /// LongRoPE, with the divisors of --factors
    Longrope,
    /// Llama 3.1's blend
    Llama3,
}

impl From<MethodName> for ExtendMethod {
    fn from(name: MethodName) -> Self {
        match name {
            MethodName::Linear => Self::Linear,
            MethodName::Ntk => Self::Ntk,
            MethodName::Dynamic => Self::Dynamic,
            MethodName::Yarn => Self::Yarn,
            MethodName::Longrope => Self::LongRope,
            MethodName::Llama3 => Self::Llama3,
        }
    }
}

impl ExtendArgs {
    pub fn models(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.dir]
    }

    pub fn targets(&self) -> Vec<Target<'_>> {
        let out = self.out.iter().map(|out| Target::Folder("out", out));
        out.chain(Target::file("svg", &self.svg)).collect()
    }

    pub fn run(&self, globals: &Globals) -> Result<()> {
        let before = ModelConfig::from_file(&self.dir.join("config.json"))?;
        let method = ExtendMethod::from(self.method).init(&before, self.factors.as_deref())?;
        let after = before.extended(&method, self.to)?;
        let mut result = Map::new();
        result.insert("method".into(), json!(method.name()));
        result.insert("from".into(), json!(before.max_context()));
        result.insert("to".into(), json!(after.max_context()));
        result.insert("changed".into(), changed(&before, &after));
        let mut text = format!(
            "{}: {} -> {} tokens\n",
            method.name(),
            before.max_context(),
            after.max_context()
        );
        for (field, [old, new]) in changes(&before, &after) {
            text += &format!("  {field}: {old} -> {new}\n");
        }
        if let Some(path) = &self.text {
            let preview = self.preview(path, &after, globals)?;
            text += &preview.table(method.name()).to_text();
            text += &preview.remark();
            if let Some(svg) = &self.svg {
                let plot = preview.plot(method.name(), before.max_context());
                write_atomic(svg, plot.render()?.as_bytes())?;
            }
            result.insert("preview".into(), preview.json());
        }
        if let Some(out) = &self.out {
            write_copy(&self.dir, out, &after)?;
            text += &format!("written to {}\n", out.display());
            result.insert("out".into(), json!(out));
        }
        if globals.json { output::json(&Value::Object(result)) } else { output::print(&text) }
    }

    fn preview(&self, path: &Path, after: &ModelConfig, globals: &Globals) -> Result<Preview> {
        let model = load::model(&self.dir, &Default::default(), globals)?;
        let tokenizer = load::needed_tokenizer(&self.dir, &model)?;
        let (documents, account) = tokenize(&source::open(path)?.read_all()?, &tokenizer, true)?;
        let windows = windows(&documents, self.to, self.windows);
        let length = windows.iter().map(|w| w.ids.len()).max().unwrap_or(0);
        if length < 2 {
            return Err(Error::Data(format!("{}: nothing to score: {account}", path.display())));
        }
        let buckets = buckets(length);
        let stretched =
            model.clone().with_rope(after.rope.clone(), after.max_position_embeddings)?;
        let mut stage = Progress::new(0).stage("Preview", None, "tokens");
        let mut score = |model: &Decoder<Mixer>| {
            let report = by_position(model, &windows, &buckets, 1)?;
            stage.advance(windows.iter().map(|w| w.ids.len() as u64).sum());
            Ok::<_, Error>(report.buckets)
        };
        let (before, after) = (score(&model)?, score(&stretched)?);
        stage.finish();
        Ok(Preview { before, after, windows: windows.len(), length, wanted: self.to })
    }
}

/// Stretches of `length` tokens; where no document is as long, the longest start of one.
fn windows(documents: &[TokenDocument], length: usize, most: usize) -> Vec<EvalWindow<'_>> {
    let window = |document, start, ids| EvalWindow { document, start, ids, first: 1 };
    let full = documents.iter().enumerate().flat_map(|(document, d)| {
        let chunks = d.ids.chunks_exact(length).enumerate();
        chunks.map(move |(i, ids)| window(document, i * length, ids))
    });
    let found: Vec<_> = full.take(most.max(1)).collect();
    if !found.is_empty() {
        return found;
    }
    let longest = documents.iter().enumerate().max_by_key(|(_, d)| d.ids.len());
    longest.map(|(document, d)| window(document, 0, &d.ids[..])).into_iter().collect()
}

/// Up to [`BUCKETS`] parts of equal width; the first token has nothing to be predicted from.
fn buckets(length: usize) -> Vec<Range<usize>> {
    let parts = BUCKETS.min(length - 1);
    let edge = |i: usize| (i * length / parts).max(1);
    (0..parts).map(|i| edge(i)..edge(i + 1)).filter(|r| !r.is_empty()).collect()
}

/// Perplexity by position, before and after.
struct Preview {
    before: Vec<PositionBucket>,
    after: Vec<PositionBucket>,
    windows: usize,
    length: usize,
    wanted: usize,
}

/// Perplexity and its standard error.
fn perplexity(bucket: &PositionBucket) -> (f64, Option<f64>) {
    let ppl = bucket.mean_nll.exp();
    (ppl, bucket.se.map(|se| se * ppl))
}

impl Preview {
    fn table(&self, method: &str) -> Table {
        let columns = ["positions", "perplexity as it is", method, "tokens"];
        let mut table = Table::new(columns).decimals(3, 0);
        for (before, after) in self.before.iter().zip(&self.after) {
            let cell = |bucket| {
                let (ppl, se) = perplexity(bucket);
                Cell::Number(ppl, se)
            };
            table.push([
                format!("{} – {}", before.start, before.end - 1).into(),
                cell(before),
                cell(after),
                (before.count as u64).into(),
            ]);
        }
        table
    }

    fn remark(&self) -> String {
        let mut text = format!("{} stretches of {} tokens\n", self.windows, self.length);
        if self.length < self.wanted {
            let (length, wanted) = (self.length, self.wanted);
            text += &format!("no document has {wanted} tokens: beyond {length} nothing is known\n");
        }
        text
    }

    fn plot(&self, method: &str, reach: usize) -> Plot {
        let series = |name: &str, buckets: &[PositionBucket]| {
            let x: Vec<f64> = buckets.iter().map(|b| (b.start + b.end) as f64 / 2.0).collect();
            let y: Vec<f64> = buckets.iter().map(|b| perplexity(b).0).collect();
            let se: Vec<f64> = buckets.iter().map(|b| perplexity(b).1.unwrap_or(0.0)).collect();
            Series::new(name).points(&x, &y).band(&se)
        };
        Plot::lines("Perplexity by position")
            .x("position (tokens)")
            .y("perplexity")
            .log_y()
            .series(series("as it is", &self.before))
            .series(series(method, &self.after))
            .marker_x(reach as f64, "present reach")
    }

    fn json(&self) -> Value {
        let side = |bucket: &PositionBucket| {
            let (ppl, se) = perplexity(bucket);
            json!({ "ppl": ppl, "se": se, "mean_nll": bucket.mean_nll })
        };
        let rows = self.before.iter().zip(&self.after).map(|(before, after)| {
            json!({
                "start": before.start,
                "end": before.end,
                "tokens": before.count,
                "before": side(before),
                "after": side(after),
            })
        });
        json!({
            "windows": self.windows,
            "length": self.length,
            "by_position": rows.collect::<Vec<_>>(),
        })
    }
}

/// Fields of config.json that differ, with what they were and are.
fn changes(before: &ModelConfig, after: &ModelConfig) -> Vec<(String, [Value; 2])> {
    let (old, new) = (before.to_json_of_same_weights(), after.to_json_of_same_weights());
    let fields = new.as_object().into_iter().flatten();
    fields
        .filter(|(field, value)| old.get(field) != Some(value))
        .map(|(field, value)| {
            (field.clone(), [old.get(field).cloned().unwrap_or(Value::Null), value.clone()])
        })
        .collect()
}

fn changed(before: &ModelConfig, after: &ModelConfig) -> Value {
    let new = |(field, [_, new]): (String, [Value; 2])| (field, new);
    Value::Object(changes(before, after).into_iter().map(new).collect())
}

/// All files of `dir` that belong to the model, and `config` as config.json. That comes last:
/// without it, a copy that was cut short is no checkpoint.
fn write_copy(dir: &Path, out: &Path, config: &ModelConfig) -> Result<()> {
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let entry = entry.map_err(|e| Error::io(dir, e))?;
        let (from, name) = (entry.path(), entry.file_name());
        let hidden = name.to_string_lossy().starts_with('.');
        if hidden || name == "config.json" || OF_A_RUN.iter().any(|n| name == *n) || !from.is_file()
        {
            continue;
        }
        let to = out.join(&name);
        let copied = std::fs::File::open(&from)
            .and_then(|mut source| std::io::copy(&mut source, &mut std::fs::File::create(&to)?));
        copied.map_err(|e| Error::io(to, e))?;
    }
    let json = format!("{:#}\n", config.to_json_of_same_weights());
    write_atomic(&out.join("config.json"), json.as_bytes())
}
