//! The legend: which series stands in which row, above the plot area, where it covers no data.

use super::Series;
use super::draw::{MARGIN, SAMPLE, TICK_TEXT, WIDTH};
use super::style::Look;

/// Between entries.
const GAP: i32 = 16;

/// Text width in units of the drawing; no font is at hand, so that this follows a wide one.
pub(super) fn text_width(text: &str, size: i32) -> i32 {
    let em = |c| match c {
        ' ' | '.' | ',' | ':' | '(' | ')' | '\'' | 'i' | 'j' | 'l' | 'f' | 'r' | 't' => 0.38,
        'm' | 'w' | 'M' | 'W' => 0.95,
        c if c.is_uppercase() => 0.7,
        c if c.is_ascii() => 0.62,
        _ => 1.0,
    };
    (text.chars().map(em).sum::<f64>() * f64::from(size)).ceil() as i32
}

/// A series in the legend, its left edge at `x`.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) look: Look,
    pub(super) x: i32,
}

/// The legend, broken into rows as wide as the drawing.
pub(super) fn legend_rows(series: &[Series]) -> Vec<Vec<Entry>> {
    let mut rows: Vec<Vec<Entry>> = Vec::new();
    let mut x = i32::MAX;
    for (i, series) in series.iter().enumerate() {
        let name = shortened(&series.name, WIDTH - 2 * MARGIN - SAMPLE);
        let width = SAMPLE + text_width(&name, TICK_TEXT) + GAP;
        if x.saturating_add(width) > WIDTH - MARGIN + GAP {
            rows.push(Vec::new());
            x = MARGIN;
        }
        let look = Look::of(series.style.unwrap_or(i));
        if let Some(row) = rows.last_mut() {
            row.push(Entry { name, look, x });
        }
        x += width;
    }
    rows
}

/// `name`, cut with an ellipsis if it is wider than `width`.
fn shortened(name: &str, width: i32) -> String {
    if text_width(name, TICK_TEXT) <= width {
        return name.to_owned();
    }
    let mut kept: String = name.to_owned();
    while text_width(&kept, TICK_TEXT) + TICK_TEXT > width && kept.pop().is_some() {}
    kept + "…"
}
