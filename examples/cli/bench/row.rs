//! The one form of a result, in files and on standard output.

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
    /// Most memory beyond the inputs, bytes, in a process of its own; none where not measured.
    pub peak_bytes: Option<u64>,
    /// Visible query-key pairs, all rows and heads of a layer.
    pub pairs: Option<u64>,
    /// Those over all pairs.
    pub density: Option<f64>,
    /// Those over the pairs of the dense causal mask.
    pub causal_share: Option<f64>,
    /// What the machine could do, measured in the same run; none where nothing is computed.
    pub ceiling: Option<Ceiling>,
    /// `flops_per_second` over what the roofline allows: the smaller of the product's speed and
    /// bandwidth times `flops / bytes`.
    pub share: Option<f64>,
    /// New tokens per second, of `generate`; tokens per second, of `train-step`.
    pub tokens_per_second: Option<f64>,
    /// Of `growth`: peak at the end over the peak early in the run.
    pub growth: Option<f64>,
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
    /// [`Error::Io`]; [`Error::Parse`] for anything but such results.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        serde_json::from_str(&text).map_err(|e| Error::Parse {
            file: path.display().to_string(),
            message: format!("no results of `longburn bench`: {e}"),
            text: None,
            span: None,
        })
    }

    /// # Errors
    /// [`Error::Io`]
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        write_atomic(path, text.as_bytes())
    }
}

impl Row {
    /// The peer of a name.
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }
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
