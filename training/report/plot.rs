//! Plots as SVG that follow the reader's light or dark theme and can be read without colour.

mod bars;
mod draw;
mod heatmap;
mod legend;
mod style;
mod ticks;

pub use bars::Bars;
pub use heatmap::Heatmap;

use std::path::Path;

use super::escape;
use crate::{Error, Result};

/// A line plot, or grouped points over categories.
///
/// ```
/// use longburn::training::report::{Plot, Series};
///
/// let svg = Plot::lines("Perplexity by position")
///     .x("position (tokens)")
///     .y("perplexity")
///     .log_y()
///     .series(Series::new("LongLoRA").points(&[64.0, 192.0], &[41.0, 39.5]).band(&[1.4, 1.2]))
///     .marker_x(128.0, "trained length")
///     .render()?;
/// assert!(svg.starts_with("<svg"));
/// # Ok::<(), longburn::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Plot {
    pub(super) title: String,
    x: String,
    y: String,
    log_y: bool,
    categories: Option<Vec<String>>,
    series: Vec<Series>,
    markers: Vec<(f64, String)>,
    x_ticks: Option<Vec<f64>>,
    y_covers: Option<(f64, f64)>,
    alt: Option<String>,
}

impl Plot {
    /// A line plot.
    pub fn lines(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    /// One point per series and category, side by side; series hold [`Series::values`].
    pub fn categories<S: Into<String>>(
        title: impl Into<String>,
        categories: impl IntoIterator<Item = S>,
    ) -> Self {
        let categories = categories.into_iter().map(Into::into).collect();
        Self { categories: Some(categories), ..Self::lines(title) }
    }

    /// The x axis' label, with its unit.
    pub fn x(mut self, label: impl Into<String>) -> Self {
        self.x = label.into();
        self
    }

    /// The y axis' label, with its unit.
    pub fn y(mut self, label: impl Into<String>) -> Self {
        self.y = label.into();
        self
    }

    /// Makes the y axis logarithmic; values that are not positive become gaps.
    pub fn log_y(mut self) -> Self {
        self.log_y = true;
        self
    }

    /// Adds a series.
    pub fn series(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// A vertical reference line; its label stands above the plot area.
    pub fn marker_x(mut self, x: f64, label: impl Into<String>) -> Self {
        self.markers.push((x, label.into()));
        self
    }

    /// Where the x axis has its ticks, instead of at round decimal numbers.
    pub fn x_ticks(mut self, ticks: &[f64]) -> Self {
        self.x_ticks = Some(ticks.to_vec());
        self
    }

    /// The y axis spans at least `low..=high`.
    pub fn y_covers(mut self, low: f64, high: f64) -> Self {
        self.y_covers = Some((low, high));
        self
    }

    /// What the plot shows, in words, for those who cannot see it.
    pub fn alt(mut self, text: impl Into<String>) -> Self {
        self.alt = Some(text.into());
        self
    }

    /// The plot as an `<svg>` element: to embed in a page, where it takes the page's text colour,
    /// or to save as a file, where it brings its own background, light or dark.
    ///
    /// # Errors
    /// [`Error::Shape`] if the x, y and band of a series differ in length.
    pub fn render(&self) -> Result<String> {
        self.svg(true)
    }

    /// The drawing, with its title or, where a caption holds that, without.
    pub(super) fn svg(&self, titled: bool) -> Result<String> {
        self.check()?;
        let (canvas, size) = draw::draw(self, titled)
            .map_err(|e| Error::Data(format!("plot `{}` could not be drawn: {e}", self.title)))?;
        Ok(style::finish(&canvas, size, &self.alt_text()))
    }

    /// Writes [`Plot::render`] to a file.
    ///
    /// # Errors
    /// Those of [`Plot::render`], and [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        std::fs::write(path, self.render()?).map_err(|e| Error::io(path, e))
    }

    fn alt_text(&self) -> String {
        let text = self.alt.clone().unwrap_or_else(|| {
            let names: Vec<&str> = self.series.iter().map(|s| s.name.as_str()).collect();
            format!("{}: {} over {}, for {}", self.title, self.y, self.x, names.join(", "))
        });
        escape(&text)
    }

    fn check(&self) -> Result<()> {
        for series in &self.series {
            let (x, y, band) = (series.x.len(), series.y.len(), series.band.len());
            let expected = self.categories.as_ref().map_or(x, Vec::len);
            if y != expected || (band != 0 && band != y) {
                let what = format!("plot `{}`, series `{}`", self.title, series.name);
                let reason = format!("{expected} x values, {y} y values, {band} band values");
                return Err(Error::shape(what, reason));
            }
        }
        Ok(())
    }
}

/// One named line, or one point per category. A value that is not finite leaves a gap.
#[derive(Clone, Debug, Default)]
pub struct Series {
    name: String,
    x: Vec<f64>,
    y: Vec<f64>,
    band: Vec<f64>,
    style: Option<usize>,
}

impl Series {
    /// An empty series.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// The points of a line.
    pub fn points(mut self, x: &[f64], y: &[f64]) -> Self {
        (self.x, self.y) = (x.to_vec(), y.to_vec());
        self
    }

    /// One value per category.
    pub fn values(mut self, y: &[f64]) -> Self {
        self.y = y.to_vec();
        self
    }

    /// Standard errors, drawn as a band (lines) or whiskers (categories) of ± that much.
    pub fn band(mut self, se: &[f64]) -> Self {
        self.band = se.to_vec();
        self
    }

    /// Fixes colour, dashes and marker, which otherwise follow the order of the series. An arm
    /// keeps its look over several plots that way.
    pub fn style(mut self, index: usize) -> Self {
        self.style = Some(index);
        self
    }

    /// Replaces runs of neighbouring points by their means so that at most `bins` remain: a loss
    /// curve of thousands of steps becomes readable. A run without a finite value stays a gap.
    pub fn binned(mut self, bins: usize) -> Self {
        let size = self.y.len().div_ceil(bins.max(1)).max(1);
        let means = |values: &[f64]| values.chunks(size).map(finite_mean).collect::<Vec<f64>>();
        (self.x, self.y, self.band) = (means(&self.x), means(&self.y), means(&self.band));
        self
    }
}

fn finite_mean(values: &[f64]) -> f64 {
    let finite: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    finite.iter().sum::<f64>() / finite.len() as f64
}
