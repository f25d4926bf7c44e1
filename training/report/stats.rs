//! A mean over seeds and how far it can be trusted.

use std::fmt;

use crate::{Error, Result};

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Arithmetic mean; NaN of no values.
    pub mean: f64,
    /// Standard error of the mean; `None` of fewer than two values.
    pub se: Option<f64>,
    /// How many values.
    pub n: usize,
}

/// The mean in as many digits as its standard error supports: `41.5 ± 1.4`.
impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let digits = decimals(&[(self.mean, self.se)]);
        f.write_str(&fixed(self.mean, digits))?;
        self.se.map_or(Ok(()), |se| write!(f, " ± {}", fixed(se, digits)))
    }
}

/// Mean and standard error (sample standard deviation over √n) of `values`.
pub fn mean_se(values: &[f64]) -> Estimate {
    let n = values.len();
    let mean = values.iter().sum::<f64>() / n as f64;
    let se = (n > 1).then(|| {
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        (squares / (n - 1) as f64 / n as f64).sqrt()
    });
    Estimate { mean, se, n }
}

/// Mean and standard error of `a[i] - b[i]`: two arms compared seed by seed.
///
/// # Errors
/// [`Error::Shape`] if the arms differ in length.
pub fn paired_difference(a: &[f64], b: &[f64]) -> Result<Estimate> {
    if a.len() != b.len() {
        let reason = format!("{} values against {}; pairs need as many", a.len(), b.len());
        return Err(Error::shape("paired_difference", reason));
    }
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    Ok(mean_se(&differences))
}

/// Digits after the point that suit all of `values` (with standard errors): the median standard
/// error keeps one significant digit, two if it starts with a 1; without any, every value keeps
/// three significant digits.
pub(super) fn decimals(values: &[(f64, Option<f64>)]) -> usize {
    let usable = |v: f64| v.is_finite() && v != 0.0;
    let mut errors: Vec<f64> =
        values.iter().filter_map(|(_, se)| *se).filter(|se| usable(*se)).collect();
    if !errors.is_empty() {
        errors.sort_by(f64::total_cmp);
        let median = errors[(errors.len() - 1) / 2];
        let exponent = median.abs().log10().floor();
        let starts_with_1 = median.abs() / 10f64.powf(exponent) < 1.95;
        return (f64::from(u8::from(starts_with_1)) - exponent).clamp(0.0, 9.0) as usize;
    }
    let three = |v: f64| match v.fract() == 0.0 {
        true => 0,
        false => (2.0 - v.abs().log10().floor()).clamp(0.0, 6.0) as usize,
    };
    values.iter().map(|(v, _)| *v).filter(|v| usable(*v)).map(three).max().unwrap_or(0)
}

/// `value` with `digits` after the point; thousands grouped from five digits on (so 4096 stays
/// 4096), exponents where plain digits would not do.
pub(super) fn fixed(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    let text = format!("{value:.digits$}");
    let vanished = value != 0.0 && !text.contains(|c: char| ('1'..='9').contains(&c));
    if value.abs() >= 1e12 || (vanished && digits >= 6) {
        return format!("{value:.2e}").replace('-', "−");
    }
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let (sign, whole) = match whole.strip_prefix('-') {
        Some(whole) if vanished || value == 0.0 => ("", whole),
        Some(whole) => ("−", whole),
        None => ("", whole),
    };
    let mut out = String::from(sign);
    for (i, digit) in whole.chars().enumerate() {
        if whole.len() > 4 && i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + fraction
}
