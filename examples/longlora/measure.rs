//! What is measured of each model: loss by position on held-out text, and pass keys by length.
//! Attention is dense in all of it.

use crate::arms::{Arm, Models};
use crate::recipe::Recipe;
use crate::text::Text;
use longburn::Result;
use longburn::models::Decoder;
use longburn::training::eval::{EvalWindow, PasskeyEval, PasskeyItem, by_position};
use longburn::training::report::{Progress, mean_se};
use std::collections::BTreeMap;
use std::ops::Range;

/// A row of the closing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// The base model within its length.
    Short,
    /// The base model beyond its length, as it is.
    Beyond,
    /// The base model, given its last short context only.
    Sliding,
    /// An extension.
    Arm(Arm),
}

impl Line {
    pub const ALL: [Self; 7] = [
        Self::Short,
        Self::Beyond,
        Self::Sliding,
        Self::Arm(Arm::Interpolation),
        Self::Arm(Arm::Lora),
        Self::Arm(Arm::LongLora),
        Self::Arm(Arm::LongLoraDense),
    ];

    pub fn title(self) -> &'static str {
        match self {
            Self::Short => "base, within its length",
            Self::Beyond => "base, beyond its length",
            Self::Sliding => "base, last short context only",
            Self::Arm(arm) => arm.title(),
        }
    }
}

/// Measurements of one model.
#[derive(Clone, Debug, Default)]
pub struct Curve {
    /// Per window: mean loss in nats over all its positions.
    pub windows: Vec<f64>,
    /// Per bucket of positions: mean loss over windows and its standard error.
    pub buckets: Vec<(f64, f64)>,
    /// Per length: keys found, keys asked for.
    pub keys: BTreeMap<usize, (usize, usize)>,
}

/// Everything measured for one seed.
pub struct Measured {
    pub curves: Vec<(Line, Curve)>,
    pub parameters: usize,
    pub trainable: Vec<(Arm, usize)>,
}

/// Positions per bucket: a quarter of the short length.
pub fn bucket(recipe: &Recipe) -> usize {
    (recipe.base.length / 4).max(1)
}

impl Measured {
    pub fn of(
        recipe: &Recipe,
        text: &Text,
        seed: u64,
        models: &Models,
        progress: &Progress,
    ) -> Result<Self> {
        let (short, long) = (recipe.base.length, recipe.extend.length);
        let windows = text.windows(long, recipe.evaluate.windows);
        let lengths: Vec<usize> = (1..=long / short).map(|n| n * short).collect();
        let tests = recipe.evaluate.passkey_tests;
        let keys: Vec<_> = lengths.iter().map(|l| text.keys(*l, tests)).collect::<Result<_>>()?;
        let title = format!("evaluation, seed {seed}");
        let mut stage = progress.stage(&title, Some(Line::ALL.len() as u64), "models");
        let mut curves = Vec::new();
        for line in Line::ALL {
            let curve = match line {
                Line::Short => {
                    let cut: Vec<_> = windows.iter().map(|w| w[..short].to_vec()).collect();
                    whole(&models.base, &cut, recipe)?.with_keys(&models.base, &keys[..1])?
                }
                Line::Beyond => {
                    whole(&models.base, &windows, recipe)?.with_keys(&models.base, &keys[1..])?
                }
                Line::Sliding => {
                    let cut: Vec<Vec<PasskeyItem>> = keys[1..]
                        .iter()
                        .map(|items| items.iter().map(|i| last(i, short)).collect())
                        .collect();
                    sliding(&models.base, &windows, recipe)?.with_keys(&models.base, &cut)?
                }
                Line::Arm(arm) => {
                    let (_, model) =
                        models.arms.iter().find(|(a, _)| *a == arm).ok_or_else(|| {
                            longburn::Error::Training(format!("no {}", arm.name()))
                        })?;
                    whole(model, &windows, recipe)?.with_keys(model, &keys)?
                }
            };
            curves.push((line, curve));
            stage.advance(1);
        }
        stage.finish();
        Ok(Self { curves, parameters: models.parameters, trainable: models.trainable.clone() })
    }

    pub fn curve(&self, line: Line) -> &Curve {
        let found = self.curves.iter().find(|(l, _)| *l == line);
        &found.expect("every line is measured").1
    }
}

/// The prompt's last tokens, so that prompt and answer fill the short length.
fn last(item: &PasskeyItem, short: usize) -> PasskeyItem {
    let keep = short - item.answer.len();
    let from = item.prompt.len() - keep;
    PasskeyItem::new(item.prompt[from..].to_vec(), item.answer.clone(), item.depth)
        .with_length(item.length)
}

fn ranges(len: usize, size: usize) -> Vec<Range<usize>> {
    (0..len / size).map(|i| (i * size).max(1)..(i + 1) * size).collect()
}

/// Whole windows through the model.
fn whole(model: &Decoder, windows: &[Vec<u32>], recipe: &Recipe) -> Result<Curve> {
    let eval: Vec<_> = windows
        .iter()
        .enumerate()
        .map(|(i, ids)| EvalWindow { document: i, start: 0, ids, first: 1 })
        .collect();
    let ranges = ranges(windows[0].len(), bucket(recipe));
    let report = by_position(model, &eval, &ranges, 8)?;
    let buckets = (0..ranges.len()).map(|i| {
        let of = mean_se(&report.window_means(i));
        (of.mean, of.se.unwrap_or(f64::NAN))
    });
    Ok(Curve {
        windows: report.windows.iter().map(|w| w.mean_nll).collect(),
        buckets: buckets.collect(),
        ..Curve::default()
    })
}

/// Each position with the last short context only: windows of the short length that move on by a
/// bucket, of which the last bucket counts.
fn sliding(model: &Decoder, windows: &[Vec<u32>], recipe: &Recipe) -> Result<Curve> {
    let (short, size) = (recipe.base.length, bucket(recipe));
    let mut eval = Vec::new();
    for (i, ids) in windows.iter().enumerate() {
        for start in (0..=ids.len() - short).step_by(size) {
            let first = if start == 0 { 1 } else { short - size };
            eval.push(EvalWindow { document: i, start, ids: &ids[start..start + short], first });
        }
    }
    let report = by_position(model, &eval, &ranges(short, size), 32)?;
    let per_window = (windows[0].len() - short) / size + 1;
    let local = short / size;
    let (mut means, mut columns) = (Vec::new(), vec![Vec::new(); windows[0].len() / size]);
    for group in report.windows.chunks(per_window) {
        let (nll, tokens) =
            group.iter().fold((0.0, 0), |(nll, n), w| (nll + w.sum(), n + w.tokens));
        means.push(nll / tokens as f64);
        for (step, window) in group.iter().enumerate() {
            for (b, sum) in window.by_position.iter().enumerate().filter(|(_, s)| s.count > 0) {
                debug_assert!(step == 0 || b == local - 1);
                columns[step + b].push(sum.nll / sum.count as f64);
            }
        }
    }
    let buckets = columns.iter().map(|column| {
        let of = mean_se(column);
        (of.mean, of.se.unwrap_or(f64::NAN))
    });
    Ok(Curve { windows: means, buckets: buckets.collect(), ..Curve::default() })
}

impl Curve {
    fn with_keys(mut self, model: &Decoder, keys: &[Vec<PasskeyItem>]) -> Result<Self> {
        for items in keys {
            let report = PasskeyEval::new().with_batch_size(8).eval(model, items)?;
            for cell in report.by_length {
                self.keys.insert(cell.length, (cell.exact, cell.total));
            }
        }
        Ok(self)
    }

    /// Mean loss over the windows.
    pub fn loss(&self) -> f64 {
        self.windows.iter().sum::<f64>() / self.windows.len() as f64
    }

    pub fn rate(&self, length: usize) -> Option<f64> {
        self.keys.get(&length).map(|(hits, total)| *hits as f64 / *total as f64)
    }
}
