//! Bytes in words, and a plan as a table.

use super::{MemoryPlan, Part, PartBytes};
use std::fmt;

/// 1536 -> "1.5 KiB"
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    match unit {
        0 => format!("{count} B"),
        _ if value < 9.995 => format!("{value:.2} {}", UNITS[unit]),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// "8 GiB", "8G", "512MB" or a plain number of bytes; `G` and `GiB` are 2³⁰, `GB` is 10⁹.
///
/// # Errors
/// What would be accepted.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let expected = || format!("`{text}` is no size; expected bytes or such as 8GiB, 512M, 16GB");
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = (text[..split].trim(), text[split..].trim().to_ascii_lowercase());
    let power = |base: u64, power: u32| Some(base.pow(power));
    let unit = match &*unit {
        "" | "b" => Some(1),
        "k" | "kib" => power(1024, 1),
        "m" | "mib" => power(1024, 2),
        "g" | "gib" => power(1024, 3),
        "t" | "tib" => power(1024, 4),
        "kb" => power(1000, 1),
        "mb" => power(1000, 2),
        "gb" => power(1000, 3),
        "tb" => power(1000, 4),
        _ => None,
    };
    let unit = unit.ok_or_else(expected)?;
    let value = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(unit),
        Err(_) => number
            .parse::<f64>()
            .ok()
            .map(|value| value * unit as f64)
            .filter(|value| (0.0..9e18).contains(value))
            .map(|value| value as u64),
    };
    value.filter(|value| *value > 0).ok_or_else(expected)
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = if self.batch == 1 { "row" } else { "rows" };
        writeln!(
            f,
            "peak {} with {} {rows} of {} tokens, strategy {}, at: {}",
            bytes(self.peak),
            self.batch,
            self.length,
            self.strategy.name(),
            self.moment
        )?;
        let columns = ["", "parameters", "gradients", "optimizer", "activations", "all"];
        let line = |cells: [String; 6]| {
            let [name, rest @ ..] = cells;
            let rest: String = rest.iter().map(|cell| format!("{cell:>12}")).collect();
            format!("  {name:<10}{rest}")
        };
        writeln!(f, "{}", line(columns.map(String::from)))?;
        let row = |name: &str, part: &PartBytes| {
            line([
                name.into(),
                bytes(part.parameters),
                bytes(part.gradients),
                bytes(part.optimizer),
                bytes(part.activations),
                bytes(part.total()),
            ])
        };
        for (part, held) in &self.parts {
            writeln!(f, "{}", row(part.name(), held))?;
        }
        writeln!(f, "{}", row("all", &self.total()))?;
        writeln!(f, "  working space of the matrix products: {}", bytes(self.working))?;
        let of = |(part, count): (&Part, &u64)| format!("{} {}", part.name(), bytes(*count));
        let block: Vec<String> = self.block.iter().map(of).collect();
        writeln!(f, "  kept by the graph of one block: {}", block.join(", "))?;
        write!(
            f,
            "  keys, values and states of one row of {} tokens in generation: {}",
            self.length,
            bytes(self.kv_cache)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        assert_eq!(parse_bytes("8GiB"), Ok(8 << 30));
        assert_eq!(parse_bytes(" 8 g "), Ok(8 << 30));
        assert_eq!(parse_bytes("1.5k"), Ok(1536));
        assert_eq!(parse_bytes("16GB"), Ok(16_000_000_000));
        assert_eq!(parse_bytes("12345"), Ok(12345));
        for wrong in ["", "G", "-1", "0", "8 apples", "1e30G", "99999999999T", "NaN", "8Gi B"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.00 MiB");
        assert_eq!(bytes(20 << 30), "20.0 GiB");
    }
}
