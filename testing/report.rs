//! What the conformance suite found.

use std::fmt;

/// A property of every mixer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Awkward lengths run and give finite numbers.
    Lengths,
    /// The same input gives the same bits.
    Determinism,
    /// A later token changes nothing before it.
    Causality,
    /// Gradients of the input and of every parameter equal finite differences.
    Gradients,
    /// Packed documents equal separate ones; another document changes no bit.
    Segments,
    /// Padded rows equal unpadded ones, values and gradients.
    Padding,
    /// One token at a time with a state equals the whole.
    Cache,
    /// Uneven chunks with a state equal the whole.
    Chunks,
    /// Input in bf16 gives output, and gradients of the input and of every parameter, within rounding of
    /// those of f32, and gradients of parameters in f32.
    Bf16,
    /// Twice the length takes at most 2.2 times the memory.
    Memory,
}

/// How a check ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Holds; the worst deviation seen.
    Passed(f64),
    /// The mixer refused the input with this error, which is its right.
    Refused(String),
    /// Not run, and why.
    Skipped(&'static str),
    /// Does not hold.
    Failed(String),
}

/// All checks of one mixer.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// In the order they ran.
    pub outcomes: Vec<(Check, Outcome)>,
}

impl CheckReport {
    pub(super) fn add(&mut self, check: Check, outcome: Outcome) {
        self.outcomes.push((check, outcome));
    }

    /// Whether nothing failed.
    pub fn passed(&self) -> bool {
        !self.outcomes.iter().any(|(_, o)| matches!(o, Outcome::Failed(_)))
    }

    /// How one check ended.
    pub fn of(&self, check: Check) -> Option<&Outcome> {
        self.outcomes.iter().find(|(c, _)| *c == check).map(|(_, o)| o)
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (check, outcome) in &self.outcomes {
            let name = format!("{check:?}");
            match outcome {
                Outcome::Passed(worst) => writeln!(f, "{name:<12} ok      worst {worst:.1e}")?,
                Outcome::Refused(why) => writeln!(f, "{name:<12} refused {why}")?,
                Outcome::Skipped(why) => writeln!(f, "{name:<12} skipped {why}")?,
                Outcome::Failed(why) => writeln!(f, "{name:<12} FAILED  {why}")?,
            }
        }
        Ok(())
    }
}
