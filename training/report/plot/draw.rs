//! The drawing itself, with plotters: title, legend, axes, then the series.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::legend::{Entry, legend_rows, text_width};
use super::style::{FONT, INK, Look, SCALE, Shape};
use super::ticks::{Axis, label};
use super::{Plot, Series};
use crate::training::report::unprintable;

type Failure = DrawingAreaErrorKind<std::io::Error>;
type Root<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

// Sizes are in units of the finished drawing, which is small enough to be read on a phone.
pub(super) const WIDTH: i32 = 480;
const PLOT_HEIGHT: i32 = 230;
const RIGHT: i32 = 16;
pub(super) const MARGIN: i32 = 4;
/// Between the plot area and the labels of its ticks.
const LABEL_GAP: i32 = 8;
const BOTTOM: i32 = 46;
const TITLE_ROW: i32 = 30;
const ROW: i32 = 21;
const TEXT: i32 = 14;
pub(super) const TICK_TEXT: i32 = 13;
pub(super) const SAMPLE: i32 = 34;
/// Lines of more points have markers only: dashes on a noisy curve cannot be followed.
const DASHED: usize = 80;
/// Lines of more points have their markers this far apart.
const ALL_MARKED: usize = 18;
const MARKER_SPACING: i32 = 72;

/// Draws `plot`; returns plotters' SVG and the size in units of the finished drawing.
pub(super) fn draw(plot: &Plot, titled: bool) -> Result<(String, (i32, i32)), Failure> {
    let legend = legend_rows(&plot.series);
    let markers: Vec<&(f64, String)> = plot.markers.iter().filter(|m| m.0.is_finite()).collect();
    let legend_height = legend.len() as i32 * ROW;
    let title_row = if titled { TITLE_ROW } else { 4 };
    let top = title_row + legend_height + markers.len() as i32 * ROW + 8;
    let height = top + PLOT_HEIGHT + BOTTOM;
    let size = ((WIDTH * SCALE) as u32, (height * SCALE) as u32);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let sheet = Sheet::new(plot, &root, top)?;
        if titled {
            let bold = TextStyle::from((FONT, font_size(TEXT + 1), FontStyle::Bold).into_font());
            let bold = bold.color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
            sheet.text(&plot.title, (MARGIN, 20), bold)?;
        }
        for (row, entries) in legend.iter().enumerate() {
            sheet.legend_row(entries, title_row + row as i32 * ROW + ROW / 2)?;
        }
        sheet.axes(height)?;
        for (i, (x, label)) in markers.iter().enumerate() {
            sheet.marker(*x, label, title_row + legend_height + i as i32 * ROW + 16)?;
        }
        sheet.bands()?;
        sheet.series()?;
        root.present()?;
    }
    Ok((svg, (WIDTH, height)))
}

/// The drawing under way.
struct Sheet<'a, 'b> {
    plot: &'a Plot,
    root: &'a Root<'b>,
    chart: Chart<'a, 'b>,
    x: Axis,
    y: Axis,
    /// The plot area's left edge.
    left: i32,
    dashed: bool,
}

impl<'a, 'b> Sheet<'a, 'b> {
    fn new(plot: &'a Plot, root: &'a Root<'b>, top: i32) -> Result<Self, Failure> {
        let series = plot.series.iter();
        let y = Axis::over(
            series
                .clone()
                .flat_map(|s| {
                    s.y.iter().enumerate().flat_map(|(i, y)| [*y, y - s.se(i), y + s.se(i)])
                })
                .chain(plot.y_covers.iter().flat_map(|(low, high)| [*low, *high])),
            plot.log_y,
            0.05,
        );
        let x = match &plot.categories {
            Some(names) => Axis::over([0.0, names.len().max(1) as f64].into_iter(), false, 0.0),
            None => {
                let markers = plot.markers.iter().map(|m| m.0);
                let ticks = plot.x_ticks.iter().flatten().copied();
                let points = series.flat_map(|s| s.x.iter().copied());
                Axis::over(points.chain(markers).chain(ticks), false, 0.02)
            }
        };
        let widest = y.ticks().iter().map(|v| text_width(&label(*v), TICK_TEXT)).max().unwrap_or(0);
        let left = 28 + widest + LABEL_GAP;
        let chart = ChartBuilder::on(root)
            .margin_top(top * SCALE)
            .margin_left(left * SCALE)
            .margin_right(RIGHT * SCALE)
            .margin_bottom(BOTTOM * SCALE)
            .build_cartesian_2d(x.low..x.high, y.low..y.high)?;
        let dashed = plot.series.iter().all(|s| s.y.len() <= DASHED);
        Ok(Self { plot, root, chart, x, y, left, dashed })
    }

    /// Writes text with its vertical centre at `at`, in units of the drawing.
    fn text(&self, text: &str, at: (i32, i32), style: TextStyle) -> Result<(), Failure> {
        // plotters escapes everything else.
        let text: String = text.chars().map(|c| if unprintable(c) { ' ' } else { c }).collect();
        self.root.draw_text(&text, &style, (at.0 * SCALE, at.1 * SCALE))
    }

    fn legend_row(&self, entries: &[Entry], y: i32) -> Result<(), Failure> {
        for Entry { name, look, x } in entries {
            let (left, right) = (x * SCALE, (x + SAMPLE - 8) * SCALE);
            if self.plot.categories.is_none() {
                let line = vec![(left, y * SCALE), (right, y * SCALE)];
                self.root.draw(&PathElement::new(
                    line,
                    look.line(self.dashed).stroke_width(2 * SCALE as u32),
                ))?;
            }
            self.symbol(((left + right) / 2, y * SCALE), look)?;
            self.text(name, (x + SAMPLE, y), text_style(TICK_TEXT, HPos::Left))?;
        }
        Ok(())
    }

    /// Grid, tick labels and axis labels.
    fn axes(&self, height: i32) -> Result<(), Failure> {
        let grid = INK.mix(0.15).stroke_width(SCALE as u32);
        let (left, bottom) = self.chart.backend_coord(&(self.x.low, self.y.low));
        let (right, top) = self.chart.backend_coord(&(self.x.high, self.y.high));
        let below = bottom / SCALE + 14;
        for value in self.y.ticks() {
            let Some(place) = self.y.place(value) else { continue };
            let (_, y) = self.chart.backend_coord(&(self.x.low, place));
            self.root.draw(&PathElement::new(vec![(left, y), (right, y)], grid))?;
            self.text(
                &label(value),
                (self.left - LABEL_GAP, y / SCALE),
                text_style(TICK_TEXT, HPos::Right),
            )?;
        }
        let axis = INK.mix(0.6).stroke_width(SCALE as u32);
        self.root.draw(&PathElement::new(vec![(left, bottom), (right, bottom)], axis))?;
        if let Some(names) = &self.plot.categories {
            for (i, name) in names.iter().enumerate() {
                let (x, _) = self.chart.backend_coord(&(i as f64 + 0.5, self.y.low));
                self.text(name, (x / SCALE, below), text_style(TICK_TEXT, HPos::Center))?;
                if i > 0 {
                    let (x, _) = self.chart.backend_coord(&(i as f64, self.y.low));
                    self.root.draw(&PathElement::new(vec![(x, bottom), (x, top)], grid))?;
                }
            }
        } else {
            let round = self.x.ticks();
            let mut free = i32::MIN;
            for value in self.plot.x_ticks.as_ref().unwrap_or(&round) {
                let Some(place) = self.x.place(*value) else { continue };
                let (x, _) = self.chart.backend_coord(&(place, self.y.low));
                let tick = vec![(x, bottom), (x, bottom + 5 * SCALE)];
                self.root.draw(&PathElement::new(tick, axis))?;
                let (label, x) = (label(*value), x / SCALE);
                let half = text_width(&label, TICK_TEXT) / 2;
                // Labels that would run into each other are left out.
                if x - half >= free {
                    self.text(&label, (x, below), text_style(TICK_TEXT, HPos::Center))?;
                    free = x + half;
                }
            }
        }
        let centre = (left + right) / 2 / SCALE;
        self.text(&self.plot.x, (centre, height - 12), text_style(TEXT, HPos::Center))?;
        let style = text_style(TEXT, HPos::Center).transform(FontTransform::Rotate270);
        let log = if self.plot.log_y { " (log scale)" } else { "" };
        let middle = (top + bottom) / 2 / SCALE;
        self.text(&format!("{}{log}", self.plot.y), (14, middle), style)
    }

    /// A vertical reference line whose label stands above the plot area, at height `y`.
    fn marker(&self, x: f64, label: &str, y: i32) -> Result<(), Failure> {
        let Some(place) = self.x.place(x) else { return Ok(()) };
        let (px, bottom) = self.chart.backend_coord(&(place, self.y.low));
        let line = vec![(px, (y + 8) * SCALE), (px, bottom)];
        self.root.draw(&PathElement::new(line, INK.mix(0.6).stroke_width(SCALE as u32)))?;
        let (px, half) = (px / SCALE, text_width(label, TICK_TEXT) / 2);
        let (at, anchor) = match px {
            _ if px - half < MARGIN => (MARGIN, HPos::Left),
            _ if px + half > WIDTH - MARGIN => (WIDTH - MARGIN, HPos::Right),
            _ => (px, HPos::Center),
        };
        self.text(label, (at, y), text_style(TICK_TEXT, anchor))
    }

    /// Error bands, below all lines.
    fn bands(&self) -> Result<(), Failure> {
        if self.plot.categories.is_some() {
            return Ok(());
        }
        for (i, series) in self.plot.series.iter().enumerate() {
            let color = Look::of(series.style.unwrap_or(i)).color;
            for run in self.runs(series).into_iter().filter(|_| !series.band.is_empty()) {
                let edge = |i: usize, sign: f64| {
                    let y = self.y.clamp(series.y[i] + sign * series.se(i));
                    self.chart.backend_coord(&(series.x[i], y))
                };
                if let [i] = run[..] {
                    self.whisker(edge(i, -1.0), edge(i, 1.0), color)?;
                    continue;
                }
                let upper = run.iter().map(|i| edge(*i, 1.0));
                let outline: Vec<_> =
                    upper.chain(run.iter().rev().map(|i| edge(*i, -1.0))).collect();
                self.root.draw(&Polygon::new(outline, color.mix(0.16)))?;
            }
        }
        Ok(())
    }

    fn series(&self) -> Result<(), Failure> {
        let shown = |s: &Series| s.y.iter().any(|y| self.y.place(*y).is_some());
        if !self.plot.series.iter().any(shown) {
            let at = (self.x.low + self.x.high, self.y.low + self.y.high);
            let (x, y) = self.chart.backend_coord(&(at.0 / 2.0, at.1 / 2.0));
            self.text("no data", (x / SCALE, y / SCALE), text_style(TEXT, HPos::Center))?;
        }
        for (i, series) in self.plot.series.iter().enumerate() {
            let look = Look::of(series.style.unwrap_or(i));
            match self.plot.categories {
                Some(_) => self.points(series, &look, i)?,
                None => self.line(series, &look, i)?,
            }
        }
        Ok(())
    }

    fn line(&self, series: &Series, look: &Look, index: usize) -> Result<(), Failure> {
        let runs = self.runs(series);
        let at = |i: &usize| self.chart.backend_coord(&(series.x[*i], self.y.clamp(series.y[*i])));
        let paths: Vec<Vec<(i32, i32)>> =
            runs.iter().map(|run| run.iter().map(at).collect()).collect();
        let points = paths.iter().map(Vec::len).sum::<usize>();
        // A crowded line is marked rarely, and starting elsewhere than its neighbours.
        let spacing = if points > ALL_MARKED { MARKER_SPACING * SCALE } else { 0 };
        let mut next = i32::MIN;
        for path in paths {
            if path.len() > 1 {
                let style = look.line(self.dashed).stroke_width(2 * SCALE as u32);
                self.root.draw(&PathElement::new(path.clone(), style))?;
            }
            for (x, y) in path {
                if next == i32::MIN {
                    next = x + spacing * (index as i32 % 3) / 3;
                }
                if x >= next {
                    self.symbol((x, y), look)?;
                    next = x + spacing;
                }
            }
        }
        Ok(())
    }

    /// The points of a series over categories, beside those of the others.
    fn points(&self, series: &Series, look: &Look, index: usize) -> Result<(), Failure> {
        let count = self.plot.series.len() as f64;
        let offset = (index as f64 + 0.5 - count / 2.0) * 0.76 / count;
        for (i, y) in series.y.iter().enumerate() {
            if self.y.place(*y).is_none() {
                continue;
            }
            let at = |y| self.chart.backend_coord(&(i as f64 + 0.5 + offset, self.y.clamp(y)));
            if series.se(i) > 0.0 {
                self.whisker(at(y - series.se(i)), at(y + series.se(i)), look.color)?;
            }
            self.symbol(at(*y), look)?;
        }
        Ok(())
    }

    /// Indices of points, cut where one cannot be shown.
    fn runs(&self, series: &Series) -> Vec<Vec<usize>> {
        let shown = |i: &usize| {
            self.x.place(series.x[*i]).is_some() && self.y.place(series.y[*i]).is_some()
        };
        let indices: Vec<usize> = (0..series.y.len()).collect();
        indices.split(|i| !shown(i)).filter(|run| !run.is_empty()).map(<[usize]>::to_vec).collect()
    }

    fn whisker(&self, a: (i32, i32), b: (i32, i32), color: RGBColor) -> Result<(), Failure> {
        let style = color.stroke_width(3 * SCALE as u32 / 2);
        self.root.draw(&PathElement::new(vec![a, b], style))?;
        for (x, y) in [a, b] {
            let cap = vec![(x - 3 * SCALE, y), (x + 3 * SCALE, y)];
            self.root.draw(&PathElement::new(cap, style))?;
        }
        Ok(())
    }

    /// A series' marker, centred at canvas pixel `at`.
    fn symbol(&self, (x, y): (i32, i32), look: &Look) -> Result<(), Failure> {
        let fill = look.color.filled();
        let r = 4 * SCALE;
        let polygon = |corners: &[(i32, i32)]| {
            let points: Vec<_> = corners.iter().map(|(dx, dy)| (x + dx, y + dy)).collect();
            self.root.draw(&Polygon::new(points, fill))
        };
        match look.shape {
            Shape::Circle => self.root.draw(&Circle::new((x, y), r, fill)),
            Shape::Square => {
                polygon(&[(-r, -r), (r, -r), (r, r), (-r, r)].map(|(x, y)| (x * 7 / 8, y * 7 / 8)))
            }
            Shape::Triangle => polygon(&[(-r, r * 3 / 4), (0, -r), (r, r * 3 / 4)]),
            Shape::Down => polygon(&[(-r, -r * 3 / 4), (0, r), (r, -r * 3 / 4)]),
            Shape::Diamond => {
                polygon(&[(0, -r * 5 / 4), (r * 5 / 4, 0), (0, r * 5 / 4), (-r * 5 / 4, 0)])
            }
            Shape::Cross => {
                let style = look.color.stroke_width(2 * SCALE as u32);
                let r = r * 7 / 8;
                self.root.draw(&PathElement::new(vec![(x - r, y - r), (x + r, y + r)], style))?;
                self.root.draw(&PathElement::new(vec![(x - r, y + r), (x + r, y - r)], style))
            }
        }
    }
}

impl Series {
    /// Half the height of the band at point `i`; 0 where there is none.
    fn se(&self, i: usize) -> f64 {
        self.band.get(i).copied().filter(|se| se.is_finite()).map_or(0.0, f64::abs)
    }
}

fn text_style(size: i32, anchor: HPos) -> TextStyle<'static> {
    TextStyle::from((FONT, font_size(size)).into_font())
        .color(&INK)
        .pos(Pos::new(anchor, VPos::Center))
}

/// plotters divides font sizes by 1.24 on their way into SVG.
fn font_size(size: i32) -> f64 {
    f64::from(size * SCALE) * 1.24
}
