//! The range of an axis, its ticks and their labels.

/// An axis in drawing space: linear, or natural logarithms.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    log: bool,
    /// Ends of the axis, in drawing space.
    pub(super) low: f64,
    pub(super) high: f64,
}

/// Beyond this, sums and differences of the axis' ends may overflow.
const LARGEST: f64 = 1e150;

impl Axis {
    /// An axis over all `values` that can be shown, with a little room on both sides.
    pub(super) fn over(values: impl Iterator<Item = f64>, log: bool, room: f64) -> Self {
        let mut axis = Self { log, low: f64::INFINITY, high: f64::NEG_INFINITY };
        for v in values.filter_map(|v| axis.place(v)).collect::<Vec<_>>() {
            axis.low = axis.low.min(v);
            axis.high = axis.high.max(v);
        }
        if axis.low > axis.high {
            (axis.low, axis.high) = if log { (0.0, 10f64.ln()) } else { (0.0, 1.0) };
        }
        let largest = axis.low.abs().max(axis.high.abs());
        if axis.high - axis.low <= 1e-9 * largest {
            let half = if log { 0.5 } else { (0.1 * largest).max(0.5e-9) };
            (axis.low, axis.high) = (axis.low - half, axis.high + half);
        } else {
            let room = room * (axis.high - axis.low);
            (axis.low, axis.high) = (axis.low - room, axis.high + room);
        }
        axis
    }

    /// Where `value` lies in drawing space; `None` if it cannot be shown.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        match self.log {
            _ if value.is_nan() || value.abs() > LARGEST => None,
            true => (value > 0.0).then(|| value.ln()),
            false => Some(value),
        }
    }

    /// Like [`Axis::place`], but what lies below or above the axis is put onto its end.
    pub(super) fn clamp(&self, value: f64) -> f64 {
        let place = if value <= 0.0 && self.log {
            self.low
        } else {
            self.place(value).unwrap_or(self.high)
        };
        place.clamp(self.low, self.high)
    }

    /// Round values on the axis, at least two, at most about eight.
    pub(super) fn ticks(&self) -> Vec<f64> {
        if !self.log {
            return linear_ticks(self.low, self.high);
        }
        let (low, high) = (self.low.exp(), self.high.exp());
        let decades =
            (self.low / 10f64.ln()).floor() as i32..=(self.high / 10f64.ln()).ceil() as i32;
        let stride = (decades.clone().count() / 8 + 1) as i32;
        for steps in [&[1.0][..], &[1.0, 3.0], &[1.0, 2.0, 5.0], &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0]] {
            let ticks: Vec<f64> = decades
                .clone()
                .filter(|d| d.rem_euclid(stride) == 0)
                .flat_map(|d| steps.iter().map(move |s| s * 10f64.powi(d)))
                .filter(|v| (low..=high).contains(v))
                .collect();
            if ticks.len() >= 4 {
                return ticks;
            }
        }
        linear_ticks(low, high).into_iter().filter(|v| *v > 0.0).collect()
    }
}

/// Multiples of 1, 2 or 5 times a power of ten within `low..=high`.
fn linear_ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = match rough / power {
        r if r < 1.5 => power,
        r if r < 3.5 => 2.0 * power,
        r if r < 7.5 => 5.0 * power,
        _ => 10.0 * power,
    };
    let first = (low / step).ceil();
    (0..12).map(|i| (first + i as f64) * step).take_while(|v| *v <= high + 1e-9 * step).collect()
}

/// A tick's value in the fewest digits.
pub(super) fn label(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        a if (1e-4..1e7).contains(&a) => {
            // Ten significant digits hide the rounding of sums such as 0.1 + 0.2.
            let decimals = (9.0 - a.log10().floor()).clamp(0.0, 14.0) as usize;
            let text = format!("{value:.decimals$}");
            let short = match text.contains('.') {
                true => text.trim_end_matches('0').trim_end_matches('.'),
                false => &text,
            };
            short.replace('-', "−")
        }
        _ => {
            let text = format!("{value:.6e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let digits = digits.trim_end_matches('0').trim_end_matches('.');
            format!("{digits}e{exponent}").replace('-', "−")
        }
    }
}
