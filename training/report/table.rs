//! Tables of results, for the terminal, for Markdown and for the report page.

use super::stats::{decimals, fixed};
use super::{Estimate, escape};
use crate::{Error, Result};
use std::path::Path;

/// One cell of a [`Table`].
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Words, left aligned.
    Text(String),
    /// A figure and its standard error, where known. The digits shown follow from the whole
    /// column.
    Number(f64, Option<f64>),
    /// Nothing was measured; shown as `–`.
    Missing,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        Self::Number(value, None)
    }
}

impl From<u64> for Cell {
    fn from(value: u64) -> Self {
        Self::Number(value as f64, None)
    }
}

impl From<Estimate> for Cell {
    fn from(estimate: Estimate) -> Self {
        match estimate.n {
            0 => Self::Missing,
            _ => Self::Number(estimate.mean, estimate.se),
        }
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Missing, Into::into)
    }
}

/// Rows under column titles. Short rows end in missing cells.
///
/// All figures of a column have as many digits after the point as its standard errors support
/// (or three significant ones, where there are none), and line up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    columns: Vec<String>,
    decimals: Vec<(usize, usize)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table with these column titles.
    pub fn new<S: Into<String>>(columns: impl IntoIterator<Item = S>) -> Self {
        Self { columns: columns.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Fixes the digits after the point in a column, counted from 0.
    pub fn decimals(mut self, column: usize, digits: usize) -> Self {
        self.decimals.push((column, digits));
        self
    }

    /// Adds a row.
    pub fn row(mut self, cells: impl IntoIterator<Item = Cell>) -> Self {
        self.push(cells);
        self
    }

    /// Adds a row in place.
    pub fn push(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Plain text: columns two spaces apart, a line of dashes under the titles.
    pub fn to_text(&self) -> String {
        let columns: Vec<Vec<String>> = self.layout().iter().map(Layout::lines).collect();
        let line = |i: usize| {
            let cells: Vec<&str> = columns.iter().map(|column| column[i].as_str()).collect();
            format!("{}\n", cells.join("  ").trim_end())
        };
        (0..self.rows.len() + 2).map(line).collect()
    }

    /// A Markdown table, numeric columns aligned to the right.
    pub fn to_markdown(&self) -> String {
        let safe =
            |text: &str| text.replace('\\', "\\\\").replace('|', "\\|").replace(['\n', '\r'], " ");
        let layout = self.layout();
        let line = |cell: &dyn Fn(&Layout) -> String| {
            let cells: Vec<String> = layout.iter().map(cell).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let mut out = line(&|c| safe(&c.title));
        out += &line(&|c| if c.numeric { "---:" } else { "---" }.to_owned());
        for row in 0..self.rows.len() {
            out += &line(&|c| match &c.cells[row] {
                (value, se) if se.is_empty() => safe(value),
                (value, se) => format!("{value} ± {se}"),
            });
        }
        out
    }

    /// Writes [`Table::to_markdown`] to a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        std::fs::write(path, self.to_markdown()).map_err(|e| Error::io(path, e))
    }

    /// An HTML `<table>` (no surrounding container). The first column holds row headings.
    pub fn to_html(&self, caption: &str) -> String {
        let layout = self.layout();
        let class = |numeric| if numeric { " class=\"num\"" } else { "" };
        let mut out = String::from("<table>\n");
        if !caption.is_empty() {
            out += &format!("<caption>{}</caption>\n", escape(caption));
        }
        out += "<thead><tr>";
        for c in &layout {
            out += &format!("<th scope=\"col\"{}>{}</th>", class(c.numeric), escape(&c.title));
        }
        out += "</tr></thead>\n<tbody>\n";
        for row in 0..self.rows.len() {
            out += "<tr>";
            for (i, c) in layout.iter().enumerate() {
                let (open, close) = if i == 0 { ("th scope=\"row\"", "th") } else { ("td", "td") };
                let (value, se) = &c.cells[row];
                let mut text = escape(value);
                if !se.is_empty() {
                    text += &format!("\u{a0}±\u{a0}{se}");
                } else if c.numeric && !c.errors.is_empty() {
                    // An unseen error of the same width, so that the figures line up.
                    let unseen = "<span style=\"visibility:hidden\" aria-hidden=\"true\">";
                    text += &format!("{unseen}\u{a0}±\u{a0}{}</span>", c.errors);
                }
                out += &format!("<{open}{}>{text}</{close}>", class(c.numeric));
            }
            out += "</tr>\n";
        }
        out + "</tbody>\n</table>\n"
    }

    /// Every column with its cells as text.
    fn layout(&self) -> Vec<Layout> {
        let count = self.rows.iter().map(Vec::len).max().unwrap_or(0).max(self.columns.len());
        let column = |i: usize| {
            let title = self.columns.get(i).cloned().unwrap_or_default();
            let cells: Vec<&Cell> =
                self.rows.iter().map(|row| row.get(i).unwrap_or(&Cell::Missing)).collect();
            let numbers: Vec<(f64, Option<f64>)> = cells
                .iter()
                .filter_map(|c| if let Cell::Number(v, se) = c { Some((*v, *se)) } else { None })
                .collect();
            let set = self.decimals.iter().rfind(|(column, _)| *column == i);
            let digits = set.map_or_else(|| decimals(&numbers), |(_, digits)| *digits);
            let error = |se: &Option<f64>| se.map_or(String::new(), |se| fixed(se, digits));
            let errors = numbers.iter().map(|(_, se)| error(se)).max_by_key(String::len);
            let errors = errors.unwrap_or_default();
            let text = |cell: &Cell| match cell {
                Cell::Text(text) => (text.clone(), String::new()),
                Cell::Number(value, se) => (fixed(*value, digits), error(se)),
                Cell::Missing => ("–".to_owned(), String::new()),
            };
            let numeric = !numbers.is_empty() && !cells.iter().any(|c| matches!(c, Cell::Text(_)));
            Layout { title, numeric, cells: cells.into_iter().map(text).collect(), errors }
        };
        (0..count).map(column).collect()
    }
}

struct Layout {
    title: String,
    numeric: bool,
    /// Value and standard error, the latter empty where there is none.
    cells: Vec<(String, String)>,
    /// The longest standard error of the column; empty if it has none.
    errors: String,
}

impl Layout {
    /// The title, then the cells, all equally wide.
    fn lines(&self) -> Vec<String> {
        let width = self.errors.chars().count();
        let cell = |(value, se): &(String, String)| match se.as_str() {
            "" if width > 0 => format!("{value}{:width$}", "", width = width + 3),
            "" => value.clone(),
            se => format!("{value} ± {se:>width$}"),
        };
        let mut lines = vec![self.title.clone()];
        lines.extend(self.cells.iter().map(cell));
        let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
        for line in &mut lines {
            *line =
                if self.numeric { format!("{line:>width$}") } else { format!("{line:<width$}") };
        }
        lines.insert(1, "-".repeat(width));
        lines
    }
}
