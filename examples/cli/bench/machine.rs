//! Where a measurement ran.

use super::row::Machine;
use crate::doctor;
use burn::tensor::Device;
use std::time::{SystemTime, UNIX_EPOCH};

/// This machine and this program, computing on `device`.
pub fn machine(device: &Device) -> Machine {
    Machine {
        cpu: cpu().unwrap_or_else(|| "unknown".into()),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        simd: doctor::simd().into_iter().map(Into::into).collect(),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        longburn: env!("CARGO_PKG_VERSION").into(),
        build: if cfg!(debug_assertions) { "dev" } else { "release" }.into(),
        card: longburn::kernel::card_name(device),
    }
}

/// Linux says it.
fn cpu() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// The day in UTC, as 2026-11-26; none where the clock is before 1970.
pub fn today() -> Option<String> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(day(since.as_secs() / 86_400))
}

/// Of a number of days since 1970-01-01: counted in eras of 400 years that begin in March, so that
/// leap days come last.
fn day(days: u64) -> String {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::day;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (days, text) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (20_783, "2026-11-26"),
            (20_818, "2026-12-31"),
        ] {
            assert_eq!(day(days), text);
        }
    }
}
