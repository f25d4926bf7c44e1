//! Shares by two categories, as a table whose cells are coloured and can be read without colour.

use super::style::opened;
use crate::training::report::escape;
use crate::{Error, Result};
use std::fmt::Write;
use std::path::Path;

const CELL: usize = 34;
const WIDE: usize = 52;
const LEFT: usize = 92;
const TOP: usize = 44;
const BOTTOM: usize = 46;
const RIGHT: usize = 16;
/// From here on the text of a cell is white, whatever the page's colour.
const DARK: f64 = 0.85;

/// A heat map of shares from 0 to 1.
///
/// ```
/// use longburn::training::report::Heatmap;
///
/// let svg = Heatmap::new("Needles found")
///     .x("length (tokens)", ["512", "1024"])
///     .y("depth (%)", ["0", "50", "100"])
///     .cell(1, 2, 0.75)
///     .render();
/// assert!(svg.starts_with("<svg") && svg.contains(">75<"));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heatmap {
    title: String,
    x: (String, Vec<String>),
    y: (String, Vec<String>),
    /// (column, row, share)
    cells: Vec<(usize, usize, f64)>,
}

impl Heatmap {
    /// A map without cells.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    /// Label and names of the columns.
    pub fn x<S: Into<String>>(
        mut self,
        label: impl Into<String>,
        names: impl IntoIterator<Item = S>,
    ) -> Self {
        self.x = (label.into(), names.into_iter().map(Into::into).collect());
        self
    }

    /// Label and names of the rows, the first at the top.
    pub fn y<S: Into<String>>(
        mut self,
        label: impl Into<String>,
        names: impl IntoIterator<Item = S>,
    ) -> Self {
        self.y = (label.into(), names.into_iter().map(Into::into).collect());
        self
    }

    /// The share of one cell; cells without one stay empty, as do those whose share is no number.
    pub fn cell(mut self, column: usize, row: usize, share: f64) -> Self {
        self.cells.push((column, row, share));
        self
    }

    /// The map as an `<svg>` element, like [`Plot::render`](super::Plot::render): percentages in
    /// cells, the darker the higher.
    pub fn render(&self) -> String {
        let (columns, rows) = (self.x.1.len(), self.y.1.len());
        let (width, height) = (LEFT + columns * WIDE + RIGHT, TOP + rows * CELL + BOTTOM);
        let mut out = opened((width, height), &self.words(), &self.title);
        // Writing to a string does not fail.
        let mut text = |x: usize, y: usize, more: &str, text: &str| {
            let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\" {more}>{}</text>", escape(text));
        };
        let middle = "text-anchor=\"middle\"";
        for (column, name) in self.x.1.iter().enumerate() {
            text(LEFT + column * WIDE + WIDE / 2, TOP + rows * CELL + 17, middle, name);
        }
        let centre = LEFT + columns * WIDE / 2;
        text(centre, height - 8, "text-anchor=\"middle\" font-size=\"14\"", &self.x.0);
        for (row, name) in self.y.1.iter().enumerate() {
            text(LEFT - 8, TOP + row * CELL + CELL / 2 + 5, "text-anchor=\"end\"", name);
        }
        text(4, TOP - 8, "font-size=\"14\"", &self.y.0);
        for (column, row, share) in &self.cells {
            if *column >= columns || *row >= rows || !share.is_finite() {
                continue;
            }
            let share = share.clamp(0.0, 1.0);
            let (x, y) = (LEFT + column * WIDE, TOP + row * CELL);
            let ink = if share > DARK { "#fff" } else { "currentColor" };
            let _ = writeln!(
                out,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{WIDE}\" height=\"{CELL}\" fill=\"#0072B2\" \
                 fill-opacity=\"{share:.2}\" stroke=\"currentColor\" stroke-opacity=\".3\"/>\
                 <text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"{ink}\">{:.0}</text>",
                x + WIDE / 2,
                y + CELL / 2 + 5,
                100.0 * share
            );
        }
        out + "</svg>\n"
    }

    /// Writes [`Heatmap::render`] to a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        std::fs::write(path, self.render()).map_err(|e| Error::io(path, e))
    }

    /// The map in words, for those who cannot see it.
    fn words(&self) -> String {
        let mut words = format!("{}: percent by {} and {}", self.title, self.x.0, self.y.0);
        for (column, row, share) in &self.cells {
            if let (Some(x), Some(y)) = (self.x.1.get(*column), self.y.1.get(*row)) {
                let _ = write!(words, "; {x}, {y}: {:.0}", 100.0 * share);
            }
        }
        words
    }
}
