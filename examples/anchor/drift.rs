//! How much attention weights change when all positions move, by precision: of models that this program
//! trains, and of a checkpoint.

use longburn::Result;
use longburn::models::Decoder;
use longburn::training::eval::{RopePrecision, rope_shift_probe};
use longburn::training::report::{Cell, Plot, Series, Table, mean_se};
use serde::Deserialize;
use std::path::Path;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriftPart {
    /// Tokens from the beginning of the text.
    lengths: Vec<usize>,
    /// Places by which all positions move.
    shift: usize,
}

/// Keys that are one point of a curve.
const GROUP: usize = 8;

const PRECISIONS: [(RopePrecision, &str); 3] = [
    (RopePrecision::F32, "f32"),
    (RopePrecision::Bf16Dot, "bf16 product"),
    (RopePrecision::Bf16Rotation, "bf16 rotation"),
];

/// The change of a model's attention weights at one precision.
pub struct Drift {
    of: &'static str,
    precision: &'static str,
    /// Per key, the sum over all queries, mean of layers and heads: the paper's measure.
    sums: Vec<f64>,
    /// Per key, the mean of the queries that see it, of layers and heads.
    means: Vec<f64>,
    /// By length, the sum over the keys, mean of queries, layers and heads.
    by_length: Vec<f64>,
}

/// 1 for the key that changes most.
fn rank_of_first(keys: &[f64]) -> usize {
    1 + keys.iter().filter(|change| **change > keys[0]).count()
}

/// Mean of key 0, in means of all others.
fn first_to_others(keys: &[f64]) -> f64 {
    keys[0] / mean_se(&keys[1..]).mean
}

/// Where key 0 stands, in one line.
pub fn summary(drifts: &[Drift]) -> String {
    let one = |drift: &Drift| {
        let (sum, mean) = (rank_of_first(&drift.sums), rank_of_first(&drift.means));
        format!("{} in {}: key 0 has rank {sum} by sum, {mean} by mean", drift.of, drift.precision)
    };
    drifts.iter().map(one).collect::<Vec<_>>().join("; ")
}

impl DriftPart {
    /// For each model and precision.
    ///
    /// # Errors
    /// As [`rope_shift_probe`].
    pub fn measure(&self, ids: &[u32], models: &[(&Decoder, &'static str)]) -> Result<Vec<Drift>> {
        let mut all = Vec::new();
        for (model, of) in models {
            for (precision, name) in PRECISIONS {
                let probe = |ids: &[u32]| rope_shift_probe(model, ids, (0, self.shift), precision);
                let whole = probe(ids)?;
                let of_length = |n: &usize| -> Result<f64> {
                    let part = &ids[..(*n).clamp(2, ids.len())];
                    let shift = probe(part)?;
                    Ok(shift.total() / (shift.heads * part.len()) as f64)
                };
                all.push(Drift {
                    of,
                    precision: name,
                    sums: whole.per_key.iter().map(|sum| sum / whole.heads as f64).collect(),
                    means: whole.mean_per_key(),
                    by_length: self.lengths.iter().map(of_length).collect::<Result<_>>()?,
                });
            }
        }
        Ok(all)
    }

    /// Prints `drift.md` and draws `drift-per-key.svg` and `drift-by-length.svg`: means of the seeds,
    /// each of which gives the same models at the same precisions.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn report(&self, seeds: &[Vec<Drift>], out: &Path) -> Result<()> {
        let title =
            format!("Change of attention weights when all positions move by {}", self.shift);
        let mut per_key = Plot::lines(title)
            .x("key (token)")
            .y("sum over the queries of |A1 - A2|, per head")
            .log_y();
        let mut by_length = Plot::lines("The same by length, all keys together")
            .x("length (tokens)")
            .y("sum of |A1 - A2| per head and query")
            .log_y();
        let mut table = Table::new([
            "model",
            "precision",
            "all keys, per query",
            "sum of key 0 / of others",
            "its rank",
            "mean of key 0 / of others",
            "its rank",
        ]);
        let lengths: Vec<f64> = self.lengths.iter().map(|n| *n as f64).collect();
        for i in 0..seeds.first().map_or(0, Vec::len) {
            let of_seeds: Vec<&Drift> = seeds.iter().map(|drifts| &drifts[i]).collect();
            let Drift { of, precision, .. } = of_seeds[0];
            let mean = |value: &dyn Fn(&Drift) -> f64| {
                mean_se(&of_seeds.iter().map(|drift| value(drift)).collect::<Vec<_>>()).mean
            };
            let ranks = |keys: &dyn Fn(&Drift) -> usize| {
                let each: Vec<String> =
                    of_seeds.iter().map(|drift| keys(drift).to_string()).collect();
                each.join(", ")
            };
            let keys = of_seeds[0].sums.len();
            let total = |drift: &Drift| drift.sums.iter().sum::<f64>() / keys as f64;
            table.push([
                Cell::from(*of),
                Cell::from(*precision),
                Cell::from(format!("{:.2e}", mean(&total))),
                Cell::from(mean(&|drift| first_to_others(&drift.sums))),
                Cell::from(ranks(&|drift| rank_of_first(&drift.sums))),
                Cell::from(mean(&|drift| first_to_others(&drift.means))),
                Cell::from(ranks(&|drift| rank_of_first(&drift.means))),
            ]);
            let label = format!("{of}, {precision}");
            // Key 0 by itself, the others in groups.
            let (mut x, mut y) = (Vec::new(), Vec::new());
            for group in std::iter::once(0..1)
                .chain((1..keys).step_by(GROUP).map(|first| first..keys.min(first + GROUP)))
            {
                x.push((group.start + group.end - 1) as f64 / 2.0);
                y.push(mean(&|drift| mean_se(&drift.sums[group.clone()]).mean));
            }
            per_key = per_key.series(Series::new(&label).points(&x, &y));
            let y: Vec<f64> =
                (0..lengths.len()).map(|n| mean(&|drift| drift.by_length[n])).collect();
            by_length = by_length.series(Series::new(&label).points(&lengths, &y));
        }
        let table = table.decimals(3, 1).decimals(5, 1);
        println!("\n{}", table.to_markdown());
        table.save(out.join("drift.md"))?;
        per_key.save(out.join("drift-per-key.svg"))?;
        by_length.save(out.join("drift-by-length.svg"))
    }
}
