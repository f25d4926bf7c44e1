//! Parts of a whole as horizontal bars, the names beside them: for names too long for an axis.

use super::style::opened;
use crate::training::report::escape;
use crate::{Error, Result};
use std::fmt::Write;
use std::path::Path;

const ROW: usize = 22;
const LEFT: usize = 300;
const WIDE: usize = 330;
const RIGHT: usize = 150;
const TOP: usize = 36;
/// Letters of a name that find room.
const NAME: usize = 44;

/// Bars, in the order in which they are given.
///
/// ```
/// use longburn::training::report::Bars;
///
/// let svg = Bars::new("Where a step goes").bar("matmul", 2.5, "2.5 ms").bar("norm", 0.5, "0.5 ms").render();
/// assert!(svg.starts_with("<svg") && svg.contains(">2.5 ms<"));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bars {
    title: String,
    /// (name, value, what stands beside the bar)
    bars: Vec<(String, f64, String)>,
}

impl Bars {
    /// No bars yet.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), bars: Vec::new() }
    }

    /// One bar more; a value that is negative or no number has no length.
    pub fn bar(mut self, name: impl Into<String>, value: f64, text: impl Into<String>) -> Self {
        self.bars.push((name.into(), value, text.into()));
        self
    }

    /// The bars as an `<svg>` element, like [`Plot::render`](super::Plot::render).
    pub fn render(&self) -> String {
        let (width, height) = (LEFT + WIDE + RIGHT, TOP + self.bars.len() * ROW + 8);
        let most = self.bars.iter().map(|bar| length(bar.1)).fold(0.0, f64::max);
        let words: Vec<String> =
            self.bars.iter().map(|(name, _, text)| format!("{name}: {text}")).collect();
        let words = format!("{}: {}", self.title, words.join("; "));
        let mut out = opened((width, height), &words, &self.title);
        for (row, (name, value, text)) in self.bars.iter().enumerate() {
            let share = if most > 0.0 { length(*value) / most } else { 0.0 };
            let (y, long) = (TOP + row * ROW, share * WIDE as f64);
            // Writing to a string does not fail.
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\"><title>{}</title>{}</text>\
                 <rect x=\"{LEFT}\" y=\"{}\" width=\"{long:.1}\" height=\"{}\" fill=\"#0072B2\"/>\
                 <text x=\"{:.1}\" y=\"{}\">{}</text>",
                LEFT - 8,
                y + 15,
                escape(name),
                escape(&cut(name)),
                y + 3,
                ROW - 6,
                LEFT as f64 + long + 6.0,
                y + 15,
                escape(text)
            );
        }
        out + "</svg>\n"
    }

    /// Writes [`Bars::render`] to a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        std::fs::write(path, self.render()).map_err(|e| Error::io(path, e))
    }
}

fn length(value: f64) -> f64 {
    if value.is_finite() { value.max(0.0) } else { 0.0 }
}

/// A name that fits; the whole one is shown where the reader points at it.
fn cut(name: &str) -> String {
    if name.chars().count() <= NAME {
        return name.into();
    }
    name.chars().take(NAME - 1).chain(['…']).collect()
}
