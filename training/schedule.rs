//! Learning rate over the steps of a run: pure functions of the step, so that resuming needs
//! no state.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Steps over which the learning rate rises from near 0 to its full value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Warmup {
    /// So many steps.
    Steps(u64),
    /// A share of all steps, rounded.
    Fraction(f64),
}

impl Default for Warmup {
    fn default() -> Self {
        Self::Steps(0)
    }
}

/// The learning rate as a factor of its full value, after a linear warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
pub enum Schedule {
    /// 1 to the end.
    Constant {
        /// Rise at the beginning.
        #[serde(default)]
        warmup: Warmup,
    },
    /// Straight down to `last`.
    Linear {
        /// Rise at the beginning.
        #[serde(default)]
        warmup: Warmup,
        /// Factor that would be reached after the last step.
        #[serde(default)]
        last: f64,
    },
    /// Half a cosine down to `last`.
    Cosine {
        /// Rise at the beginning.
        #[serde(default)]
        warmup: Warmup,
        /// Factor that would be reached after the last step.
        #[serde(default)]
        last: f64,
    },
}

impl Default for Schedule {
    fn default() -> Self {
        Self::Constant { warmup: Warmup::default() }
    }
}

impl Schedule {
    /// 1 throughout.
    pub fn constant() -> Self {
        Self::default()
    }

    /// Straight down to 0.
    pub fn linear() -> Self {
        Self::Linear { warmup: Warmup::default(), last: 0.0 }
    }

    /// Half a cosine down to 0.
    pub fn cosine() -> Self {
        Self::Cosine { warmup: Warmup::default(), last: 0.0 }
    }

    /// Rise at the beginning.
    pub fn with_warmup(mut self, rise: Warmup) -> Self {
        match &mut self {
            Self::Constant { warmup }
            | Self::Linear { warmup, .. }
            | Self::Cosine { warmup, .. } => *warmup = rise,
        }
        self
    }

    /// Factor of the learning rate in `step` (from 1) of `steps`.
    ///
    /// No step is lost at either end: step w of w warm-up steps, and the first after them, have
    /// factor 1; the last step stands one step before `last`.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        let warmup = self.warmup_steps(steps);
        if step <= warmup {
            return step as f64 / warmup as f64;
        }
        let done = (step - 1 - warmup) as f64 / (steps.max(step) - warmup) as f64;
        match *self {
            Self::Constant { .. } => 1.0,
            Self::Linear { last, .. } => 1.0 + (last - 1.0) * done,
            Self::Cosine { last, .. } => {
                last + (1.0 - last) * (1.0 + (std::f64::consts::PI * done).cos()) / 2.0
            }
        }
    }

    fn warmup(&self) -> Warmup {
        match *self {
            Self::Constant { warmup }
            | Self::Linear { warmup, .. }
            | Self::Cosine { warmup, .. } => warmup,
        }
    }

    fn warmup_steps(&self, steps: u64) -> u64 {
        match self.warmup() {
            Warmup::Steps(n) => n,
            Warmup::Fraction(share) => (share * steps as f64).round() as u64,
        }
    }

    /// # Errors
    /// A warm-up longer than the run, or a last factor outside of 0 to 1.
    pub fn validate(&self, steps: u64) -> Result<()> {
        let bad = |value: String, expected: String| {
            Err(Error::config("training", "schedule.warmup", value, expected))
        };
        match self.warmup() {
            Warmup::Steps(n) if n > steps => {
                return bad(n.to_string(), format!("at most the {steps} steps of the run"));
            }
            Warmup::Fraction(share) if !(0.0..=1.0).contains(&share) => {
                return bad(share.to_string(), "a fraction from 0 to 1".into());
            }
            _ => {}
        }
        match *self {
            Self::Linear { last, .. } | Self::Cosine { last, .. }
                if !(0.0..=1.0).contains(&last) =>
            {
                Err(Error::config("training", "schedule.last", last, "a factor from 0 to 1"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(schedule: Schedule, steps: u64) -> Vec<f64> {
        (1..=steps).map(|step| schedule.factor(step, steps)).collect()
    }

    #[test]
    fn linear_rises_and_falls_without_losing_a_step() {
        let schedule = Schedule::linear().with_warmup(Warmup::Steps(2));
        assert_eq!(factors(schedule, 6), [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]);
        let schedule = Schedule::linear().with_warmup(Warmup::Fraction(0.34));
        assert_eq!(factors(schedule, 6), [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]);
    }

    #[test]
    fn cosine_ends_at_its_last_factor() {
        let schedule = Schedule::Cosine { warmup: Warmup::Steps(0), last: 0.1 };
        assert_eq!(schedule.factor(1, 100), 1.0);
        assert!((schedule.factor(51, 100) - 0.55).abs() < 1e-12);
        assert!((schedule.factor(100, 100) - 0.1).abs() < 1e-3);
        assert_eq!(factors(Schedule::constant(), 3), [1.0; 3]);
    }

    #[test]
    fn recipes_name_schedules() {
        let text = "name = \"linear\"\nwarmup = { fraction = 0.05 }";
        let read: Schedule = toml::from_str(text).unwrap();
        assert_eq!(read, Schedule::linear().with_warmup(Warmup::Fraction(0.05)));
        assert!(toml::from_str::<Schedule>("name = \"linear\"\nwarm = 3").is_err());
        assert!(read.validate(10).is_ok());
        assert!(Schedule::linear().with_warmup(Warmup::Steps(11)).validate(10).is_err());
        assert!(Schedule::linear().with_warmup(Warmup::Fraction(f64::NAN)).validate(10).is_err());
    }
}
