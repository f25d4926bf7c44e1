//! The conformance suite: what holds for every mixer, checked in one place; and the list of
//! papers that the zoo is held to.
//!
//! ```
//! use longburn::attention::{AttnShape, DenseConfig};
//! use longburn::positional::RopeConfig;
//! use longburn::streams::Streams;
//! use longburn::testing::{CheckOptions, check_mixer};
//!
//! let options = CheckOptions::new(16).with_rope(RopeConfig::new(10_000.0, 4));
//! let report = check_mixer(&options, |device| {
//!     let shape = AttnShape {
//!         hidden: 16, heads: 4, kv_heads: 2, head_dim: 4, qkv_bias: false, o_bias: false, qk_norm: None,
//!     };
//!     Ok(DenseConfig::new().init(shape.init((0.3, 0.3), &Streams::new(0), 0, device)))
//! })?;
//! assert!(report.passed(), "{report}");
//! # Ok::<(), longburn::Error>(())
//! ```

mod checks;
mod numeric;
pub mod papers;
mod report;

pub use numeric::ratio;
pub use report::{Check, CheckReport, Outcome};

use crate::Result;
use crate::attention::SequenceMixer;
use crate::positional::RopeConfig;
use burn::tensor::Device;

/// Measures the peak of allocated bytes while the closure runs.
pub type PeakBytes = fn(&mut (dyn FnMut() + Send)) -> usize;

/// What [`check_mixer`] feeds the mixer, and what it leaves out.
#[derive(Clone)]
pub struct CheckOptions {
    /// Model width.
    pub hidden: usize,
    /// Rotary tables to hand to the mixer.
    pub rope: Option<RopeConfig>,
    /// Lengths to run, awkward on purpose.
    pub lengths: Vec<usize>,
    /// Whether a token may not see later ones.
    pub causal: bool,
    /// Relative error allowed between runs that must agree.
    pub tolerance: f64,
    /// How much more a run in bf16 may be off than a few roundings, for mixers that enlarge what is wrong
    /// with their input; 1 by default.
    pub bf16_tolerance: f64,
    /// How to measure memory; without it that check is skipped, and said so.
    pub peak_bytes: Option<PeakBytes>,
    /// Device, without autodiff.
    pub device: Device,
}

impl CheckOptions {
    /// A causal mixer of this width on the default device.
    pub fn new(hidden: usize) -> Self {
        Self {
            hidden,
            rope: None,
            lengths: vec![1, 2, 63, 100, 257],
            causal: true,
            tolerance: 1e-5,
            bf16_tolerance: 1.0,
            peak_bytes: None,
            device: Device::default(),
        }
    }

    /// Hand rotary tables to the mixer.
    pub fn with_rope(mut self, rope: RopeConfig) -> Self {
        self.rope = Some(rope);
        self
    }

    /// Choose the lengths.
    pub fn with_lengths(mut self, lengths: Vec<usize>) -> Self {
        self.lengths = lengths;
        self
    }

    /// The mixer sees both ways.
    pub fn bidirectional(mut self) -> Self {
        self.causal = false;
        self
    }

    /// Allow a run in bf16 to be off by so many times a few roundings.
    pub fn with_bf16_tolerance(mut self, times: f64) -> Self {
        self.bf16_tolerance = times;
        self
    }

    /// Measure memory with this function.
    pub fn with_peak_bytes(mut self, peak_bytes: PeakBytes) -> Self {
        self.peak_bytes = Some(peak_bytes);
        self
    }

    /// Choose the device and the tolerance that fits it.
    pub fn with_device(mut self, device: Device, tolerance: f64) -> Self {
        (self.device, self.tolerance) = (device, tolerance);
        self
    }
}

/// Run every check on the mixer that `build` makes (always with the same weights).
///
/// A mixer may *refuse* packed documents, padding or a state with an error; that is reported as
/// refused. What it accepts must be right.
///
/// # Errors
/// When `build` fails or the rotary settings are invalid.
pub fn check_mixer<M: SequenceMixer>(
    options: &CheckOptions,
    build: impl Fn(&Device) -> Result<M>,
) -> Result<CheckReport> {
    let runner = checks::Runner::new(options, &build)?;
    let mut report = CheckReport::default();
    report.add(Check::Lengths, runner.lengths());
    report.add(Check::Determinism, runner.determinism());
    report.add(Check::Causality, runner.causality());
    report.add(Check::Gradients, runner.gradients());
    report.add(Check::Segments, runner.segments());
    report.add(Check::Padding, runner.padding());
    report.add(Check::Cache, runner.cache());
    report.add(Check::Chunks, runner.chunks());
    report.add(Check::Bf16, runner.bf16());
    report.add(Check::Memory, runner.memory());
    Ok(report)
}
