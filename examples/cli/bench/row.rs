//! The one form of a result, in files and on standard output.

use super::profile::Profile;
use longburn::models::weights::write_atomic;
use longburn::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a file of results holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// One per measurement.
    pub rows: Vec<Row>,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `attention`, `matmul`, `linear-loss`, `block`, `train-step`, `generate` or `growth`.
    pub what: String,
    /// What is computed, apart from sizes.
    pub case: String,
    /// Sizes, a letter and a number each.
    pub shape: String,
    /// Number format.
    pub dtype: String,
    /// As `--device` names it.
    pub device: String,
    /// Threads, the same for all sides.
    pub threads: usize,
    /// Where it ran.
    pub machine: Machine,
    /// Of Longburn: the median of `samples`, seconds per run (of `growth`: per step).
    pub seconds: f64,
    /// Seconds per run, in the order of measurement.
    pub samples: Vec<f64>,
    /// Multiplications and additions, of visible pairs only.
    pub flops: f64,
    /// `flops / seconds`
    pub flops_per_second: f64,
    /// Bytes of inputs and outputs, which must be read or written at least.
    pub bytes: f64,
    /// Most memory beyond the inputs, bytes, in a process of its own (on a card: in pages of its
    /// allocator); none where not measured.
    pub peak_bytes: Option<u64>,
    /// Visible query-key pairs, all rows and heads of a layer.
    pub pairs: Option<u64>,
    /// Those over all pairs.
    pub density: Option<f64>,
    /// Those over the pairs of the dense causal mask.
    pub causal_share: Option<f64>,
    /// Day of the measurement in UTC, as 2026-11-26; none in files of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// Commit that the program was built from, where LONGBURN_COMMIT named it to the compiler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// What the machine could do, measured in the same run; none where nothing is computed.
    pub ceiling: Option<Ceiling>,
    /// `flops_per_second` over what the roofline allows: the smaller of the product's speed and
    /// bandwidth times `flops / bytes`.
    pub share: Option<f64>,
    /// New tokens per second, of `generate`; tokens per second, of `train-step`.
    pub tokens_per_second: Option<f64>,
    /// Of `growth`: peak at the end over the peak early in the run.
    pub growth: Option<f64>,
    /// Where the time of one run on a card goes, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
    /// Who else did the same, in turn with Longburn.
    pub peers: Vec<Peer>,
}

/// Another program, or another way, in the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// As `--peer` names it.
    pub name: String,
    /// Of the library behind it.
    pub version: String,
    /// Median of `samples`.
    pub seconds: f64,
    /// Seconds per run.
    pub samples: Vec<f64>,
    /// As of the row.
    pub peak_bytes: Option<u64>,
    /// The peer's seconds over Longburn's: above 1 where Longburn is faster.
    pub ratio: f64,
    /// The peer's peak over Longburn's: above 1 where Longburn takes less.
    pub memory_ratio: Option<f64>,
    /// Largest RMS of a difference over the RMS of the peer's result, over all results; none where
    /// the peer computes something else on purpose (`dense`, `torch-dense`).
    pub difference: Option<f64>,
}

/// Speed of a large product and of memory, in the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// Of a large square f32 product, the fastest that any side has.
    pub gemm_flops_per_second: f64,
    /// Whose product that is.
    pub gemm_by: String,
    /// Whose products were tried; empty in files of before: those of `burn`, and of `torch` where it
    /// took part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gemm_tried: Vec<String>,
    /// Of `a = b + s·c` over arrays that no cache holds.
    pub bytes_per_second: f64,
}

/// Processor and program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the processor.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Vector instructions that are there.
    pub simd: Vec<String>,
    /// System and architecture.
    pub system: String,
    /// Of this program.
    pub longburn: String,
    /// `release` or `dev`.
    pub build: String,
    /// The graphics card, where it computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<String>,
}

impl Results {
    /// # Errors
    /// [`Error::Io`]; [`Error::Parse`] for anything but such results; [`Error::Data`] for rows that
    /// contradict themselves, or that are there twice.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let results: Self = serde_json::from_str(&text).map_err(|e| Error::Parse {
            file: path.display().to_string(),
            message: format!("no results of `longburn bench`: {e}"),
            text: None,
            span: None,
        })?;
        for row in &results.rows {
            row.check().map_err(|reason| {
                let place = format!("{}: {}", path.display(), row.line());
                Error::Data(format!("{place}: {reason} (remedy: measure it again)"))
            })?;
        }
        once(&results.rows.iter().map(|row| (path, row)).collect::<Vec<_>>(), |a, b| {
            a.is_same(b) && a.machine == b.machine
        })?;
        Ok(results)
    }

    /// # Errors
    /// [`Error::Io`]
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        write_atomic(path, text.as_bytes())
    }
}

/// # Errors
/// [`Error::Data`] where `same` holds for two rows, with the files of both.
pub fn once(rows: &[(&Path, &Row)], same: impl Fn(&Row, &Row) -> bool) -> Result<()> {
    for (i, (file, row)) in rows.iter().enumerate() {
        if let Some((earlier, _)) = rows[..i].iter().find(|(_, other)| same(row, other)) {
            let line = row.line();
            return Err(Error::Data(format!(
                "{line}: measured twice, in {} and in {} (remedy: keep one of the two)",
                earlier.display(),
                file.display()
            )));
        }
    }
    Ok(())
}

impl Row {
    /// What was measured.
    pub fn line(&self) -> String {
        format!("{}, {}, {}", self.what, self.case, self.shape)
    }

    /// Whether both measured the same work on devices of one kind with as many threads, which on a card do not count.
    pub fn is_same(&self, other: &Self) -> bool {
        let work = |row: &Self| (row.what.clone(), row.case.clone(), row.shape.clone());
        let threads = |row: &Self| row.machine.card.is_none().then_some(row.threads);
        let place = |row: &Self| (row.device.clone(), row.dtype.clone(), threads(row));
        work(self) == work(other) && place(self) == place(other)
    }

    /// The share of the ceiling, where the ceiling was one.
    pub fn known_share(&self) -> Option<f64> {
        self.share.filter(|share| *share <= 1.0)
    }

    /// Whether figures are possible and follow from each other; if not, which.
    fn check(&self) -> std::result::Result<(), String> {
        times("", self.seconds, &self.samples)?;
        follows("flops_per_second", self.flops_per_second, self.flops / self.seconds)?;
        for peer in &self.peers {
            let of = format!(" of peer {}", peer.name);
            times(&of, peer.seconds, &peer.samples)?;
            follows(&format!("ratio{of}"), peer.ratio, peer.seconds / self.seconds)?;
            if let (Some(ratio), Some(theirs), Some(ours)) =
                (peer.memory_ratio, peer.peak_bytes, self.peak_bytes.filter(|peak| *peak > 0))
            {
                follows(&format!("memory_ratio{of}"), ratio, theirs as f64 / ours as f64)?;
            }
        }
        Ok(())
    }

    /// The peer of a name.
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }
}

fn times(of: &str, seconds: f64, samples: &[f64]) -> std::result::Result<(), String> {
    let possible = |x: f64| x.is_finite() && x > 0.0;
    if samples.is_empty() || !samples.iter().all(|x| possible(*x)) {
        return Err(format!("samples{of} are {samples:?}; expected: seconds above 0"));
    }
    if !possible(seconds) {
        return Err(format!("seconds{of} are {seconds}; expected: above 0"));
    }
    follows(&format!("seconds{of}"), seconds, median(samples))
}

/// Up to rounding in a text.
fn follows(field: &str, value: f64, expected: f64) -> std::result::Result<(), String> {
    if (value - expected).abs() <= 1e-6 * expected.abs() {
        return Ok(());
    }
    Err(format!("{field} is {value}, which does not follow from the rest: {expected}"))
}

/// The middle one; the mean of the middle two.
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// Distance of the quartiles over the median: how much samples scatter.
pub fn spread(samples: &[f64]) -> f64 {
    (quantile(samples, 0.75) - quantile(samples, 0.25)) / median(samples)
}

fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = share * last as f64;
    let (low, part) = (place.floor() as usize, place.fract());
    sorted[low] + part * (sorted[(low + 1).min(last)] - sorted[low])
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::bench::job::Job;

    /// A row of 0.1 s on a CPU; every peer takes `ratio` times as long and as much memory.
    pub fn row_of(job: &Job, ratio: f64) -> Row {
        let peers = ["stock", "dense", "torch", "torch-dense", "transformers"].map(|name| Peer {
            name: name.into(),
            version: "1".into(),
            seconds: 0.1 * ratio,
            samples: vec![0.1 * ratio],
            peak_bytes: Some(2000),
            ratio,
            memory_ratio: Some(20.0),
            difference: Some(1e-6),
        });
        Row {
            what: job.what().into(),
            case: job.case(),
            shape: job.shape(),
            dtype: job.numbers().name().into(),
            device: "flex".into(),
            threads: 2,
            machine: Machine {
                cpu: "a processor".into(),
                cores: 2,
                simd: vec![],
                system: "linux".into(),
                longburn: "0.1.0".into(),
                build: "release".into(),
                card: None,
            },
            seconds: 0.1,
            samples: vec![0.1],
            flops: 1e9,
            flops_per_second: 1e10,
            bytes: 1e6,
            peak_bytes: Some(100),
            pairs: None,
            density: None,
            causal_share: Some(0.1),
            date: None,
            commit: None,
            ceiling: None,
            share: Some(0.9),
            tokens_per_second: None,
            growth: Some(1.0),
            profile: None,
            peers: peers.into(),
        }
    }

    fn row() -> Row {
        row_of(&crate::bench::cases::growth(false), 2.0)
    }

    #[test]
    fn rows_that_contradict_themselves_are_found_out() {
        row().check().unwrap();
        let refused = |change: fn(&mut Row)| {
            let mut row = row();
            change(&mut row);
            row.check().unwrap_err()
        };
        for (says, found) in [
            ("samples are []", refused(|row| row.samples.clear())),
            ("samples are", refused(|row| row.samples = vec![0.1, -1.0, 0.2])),
            ("seconds are 0", refused(|row| row.seconds = 0.0)),
            ("seconds are inf", refused(|row| row.seconds = f64::INFINITY)),
            ("seconds is 0.1", refused(|row| row.samples = vec![0.1, 0.2])),
            ("flops_per_second is", refused(|row| row.flops *= 2.0)),
            ("ratio of peer stock is 3", refused(|row| row.peers[0].ratio = 3.0)),
            ("samples of peer dense", refused(|row| row.peers[1].samples.clear())),
            ("seconds of peer torch", refused(|row| row.peers[2].samples = vec![0.1])),
            ("memory_ratio of peer", refused(|row| row.peers[3].memory_ratio = Some(2.0))),
        ] {
            assert!(found.contains(says), "{says}: {found}");
        }
    }

    #[test]
    fn rows_that_are_there_twice_are_named_with_their_files() {
        let (a, b) = (Path::new("a.json"), Path::new("b.json"));
        let other = Row { threads: 4, ..row() };
        let (row, same) = (row(), Row::is_same);
        once(&[(a, &row), (b, &other)], same).unwrap();
        let error = once(&[(a, &row), (a, &other), (b, &row)], same).unwrap_err().to_string();
        assert!(error.contains("in a.json and in b.json"), "{error}");
    }

    #[test]
    fn medians_and_spreads_are_those_of_sorted_samples() {
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 9.0, 2.0]), 3.0);
        assert_eq!(median(&[5.0]), 5.0);
        assert!(median(&[]).is_nan());
        assert_eq!(quantile(&[4.0, 0.0, 3.0, 1.0, 2.0], 0.25), 1.0);
        assert_eq!(quantile(&[4.0, 0.0, 3.0, 1.0, 2.0], 0.75), 3.0);
        assert_eq!(quantile(&[0.0, 10.0], 0.3), 3.0);
        assert_eq!(quantile(&[1.0, 2.0], 1.0), 2.0);
        assert_eq!(spread(&[8.0, 10.0, 12.0, 6.0, 14.0]), 0.4);
        assert_eq!(spread(&[8.0]), 0.0);
    }
}
