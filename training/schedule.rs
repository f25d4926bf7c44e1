//! Learning rate over the steps of a run: pure functions of the step, so that resuming needs
//! no state.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Steps over which the learning rate rises from near 0 to its full value, or falls from it.
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

impl Warmup {
    /// How many steps that is of `steps`.
    fn steps(&self, steps: u64) -> u64 {
        match *self {
            Self::Steps(n) => n,
            Self::Fraction(share) => (share * steps as f64).round() as u64,
        }
    }

    fn validate(&self, field: &str, steps: u64) -> Result<()> {
        let bad = |value: String, expected: String| {
            Err(Error::config("training", field, value, expected))
        };
        match *self {
            Self::Steps(n) if n > steps => {
                bad(n.to_string(), format!("at most the {steps} steps of the run"))
            }
            Self::Fraction(share) if !(0.0..=1.0).contains(&share) => {
                bad(share.to_string(), "a fraction from 0 to 1".into())
            }
            _ => Ok(()),
        }
    }
}

impl Decay {
    /// What is left of 1 when this share of the way is done.
    fn factor(&self, done: f64) -> f64 {
        match self {
            Self::Linear => 1.0 - done,
            Self::Sqrt => 1.0 - done.sqrt(),
            Self::Cosine => (1.0 + (std::f64::consts::PI * done).cos()) / 2.0,
        }
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
    /// Warm-up, stable, decay: 1 until the last steps, then down to `last`. A run can be taken up
    /// from its stable part and go on, whatever number of steps was planned.
    Wsd {
        /// Rise at the beginning.
        #[serde(default)]
        warmup: Warmup,
        /// Steps of the way down.
        #[serde(default = "tenth")]
        decay: Warmup,
        /// Its form.
        #[serde(default)]
        shape: Decay,
        /// Factor that would be reached after the last step.
        #[serde(default)]
        last: f64,
    },
}

fn tenth() -> Warmup {
    Warmup::Fraction(0.1)
}

/// The way down at the end of [`Schedule::Wsd`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Straight.
    #[default]
    Linear,
    /// 1 − √share: fast at first.
    Sqrt,
    /// Half a cosine.
    Cosine,
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

    /// 1 until the last `decay` steps, then straight down to 0.
    pub fn wsd(decay: Warmup) -> Self {
        Self::Wsd { warmup: Warmup::default(), decay, shape: Decay::default(), last: 0.0 }
    }

    /// Rise at the beginning.
    pub fn with_warmup(mut self, rise: Warmup) -> Self {
        match &mut self {
            Self::Constant { warmup }
            | Self::Linear { warmup, .. }
            | Self::Cosine { warmup, .. }
            | Self::Wsd { warmup, .. } => *warmup = rise,
        }
        self
    }

    /// Factor of the learning rate in `step` (from 1) of `steps`.
    ///
    /// No step is lost at either end: step w of w warm-up steps, and the first after them, have
    /// factor 1; the last step stands one step before `last`.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        let warmup = self.warmup().steps(steps);
        if step <= warmup {
            return step as f64 / warmup as f64;
        }
        let done = (step - 1 - warmup) as f64 / (steps.max(step) - warmup) as f64;
        match *self {
            Self::Constant { .. } => 1.0,
            Self::Linear { last, .. } => 1.0 + (last - 1.0) * done,
            Self::Cosine { last, .. } => last + (1.0 - last) * Decay::Cosine.factor(done),
            Self::Wsd { decay, shape, last, .. } => {
                let decay = decay.steps(steps);
                // Its first step still has factor 1, as the first step of the others has.
                match (step - 1).checked_sub(steps.saturating_sub(decay)) {
                    Some(into) if decay > 0 => {
                        let done = (into as f64 / decay as f64).min(1.0);
                        last + (1.0 - last) * shape.factor(done)
                    }
                    _ => 1.0,
                }
            }
        }
    }

    fn warmup(&self) -> Warmup {
        match *self {
            Self::Constant { warmup }
            | Self::Linear { warmup, .. }
            | Self::Cosine { warmup, .. }
            | Self::Wsd { warmup, .. } => warmup,
        }
    }

    /// # Errors
    /// A warm-up or decay longer than the run, both together longer than it, or a last factor
    /// outside of 0 to 1.
    pub fn validate(&self, steps: u64) -> Result<()> {
        self.warmup().validate("schedule.warmup", steps)?;
        if let Self::Wsd { warmup, decay, .. } = self {
            decay.validate("schedule.decay", steps)?;
            let (rise, fall) = (warmup.steps(steps), decay.steps(steps));
            if rise + fall > steps {
                let expected = format!("at most the {} steps behind the warm-up", steps - rise);
                return Err(Error::config("training", "schedule.decay", fall, expected));
            }
        }
        match *self {
            Self::Linear { last, .. } | Self::Cosine { last, .. } | Self::Wsd { last, .. }
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
    fn wsd_is_stable_and_then_falls() {
        let schedule = Schedule::wsd(Warmup::Steps(4)).with_warmup(Warmup::Steps(2));
        assert_eq!(factors(schedule, 9), [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]);
        // The stable part does not know how long the run is.
        assert_eq!(factors(schedule, 9)[..5], factors(schedule, 40)[..5]);
        let shaped = |shape| Schedule::Wsd {
            warmup: Warmup::Steps(0),
            decay: Warmup::Fraction(0.5),
            shape,
            last: 0.2,
        };
        assert_eq!(factors(shaped(Decay::Sqrt), 8)[..5], [1.0; 5]);
        assert!((shaped(Decay::Sqrt).factor(6, 8) - (0.2 + 0.8 * 0.5)).abs() < 1e-12);
        assert!((shaped(Decay::Cosine).factor(7, 8) - 0.6).abs() < 1e-12);
        assert!((shaped(Decay::Linear).factor(99, 8) - 0.2).abs() < 1e-12);
        assert_eq!(factors(Schedule::wsd(Warmup::Steps(0)), 3), [1.0; 3]);
        assert_eq!(schedule.validate(6).map_err(|e| e.to_string()), Ok(()));
        let error = schedule.validate(5).unwrap_err().to_string();
        assert!(error.contains("schedule.decay") && error.contains("3 steps"), "{error}");
        let read: Schedule = toml::from_str("name = \"wsd\"\nshape = \"sqrt\"").unwrap();
        assert!(matches!(read, Schedule::Wsd { decay: Warmup::Fraction(0.1), .. }));
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
