//! How a series looks, and how plotters' SVG becomes one that follows the theme.

use crate::training::report::escape;
use plotters::style::RGBColor;

/// Pixels of the canvas per unit of the finished drawing: plotters draws at whole pixels, which
/// would make curves jagged.
pub(super) const SCALE: i32 = 10;

/// Stands for the page's text colour on the canvas; no series has it.
pub(super) const INK: RGBColor = RGBColor(1, 0, 0);

/// Whatever the reader's system uses; nothing is embedded.
pub(super) const FONT: &str = "system-ui, sans-serif";

/// Colours that keep 3:1 against both a white and a near-black page, and apart from each other
/// under protanopia, deuteranopia and tritanopia. The first four are Okabe and Ito's, the sixth
/// is the colour of the text.
const PALETTE: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0x85, 0x67, 0xFA),
    INK,
    RGBColor(0xB9, 0x3A, 0x13),
];

/// Dash patterns in units of the finished drawing. There are six against seven colours, so that
/// a pair repeats after 42 series only.
const DASHES: [&[i32]; 6] = [&[], &[8, 4], &[2, 3], &[10, 3, 2, 3], &[14, 5], &[5, 2]];

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shape {
    Circle,
    Square,
    Triangle,
    Diamond,
    Down,
    Cross,
}

const SHAPES: [Shape; 6] =
    [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Diamond, Shape::Down, Shape::Cross];

/// Colour, dashes and marker of a series.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) color: RGBColor,
    pub(super) shape: Shape,
    index: usize,
}

impl Look {
    pub(super) fn of(index: usize) -> Self {
        Self { color: PALETTE[index % 7], shape: SHAPES[index % 6], index: index % 42 }
    }

    /// The colour for the series' line on the canvas: plotters knows no dashed strokes, so
    /// [`finish`] turns this stand-in into the colour and its dashes.
    pub(super) fn line(&self, dashed: bool) -> RGBColor {
        if dashed { RGBColor(2, 0, self.index as u8) } else { self.color }
    }
}

fn hex(color: RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", color.0, color.1, color.2)
}

/// A standalone file brings its own colours; embedded in a page the `<svg>` is not the root, and
/// the page's colours hold.
const STANDALONE: &str = "<style>svg:root{color:#1d2125;background:#fff}\
    @media (prefers-color-scheme:dark){svg:root{color:#e3e6ea;background:#16181c}}</style>";

/// The beginning of a drawing that is written here: its size, what it shows in words, and its title.
pub(super) fn opened((width, height): (usize, usize), words: &str, title: &str) -> String {
    let (words, title) = (escape(words), escape(title));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" style=\"max-width:100%;height:auto\" \
         role=\"img\" aria-label=\"{words}\" font-family=\"system-ui, sans-serif\" \
         font-size=\"13\" fill=\"currentColor\">\n{STANDALONE}\
         <text x=\"4\" y=\"20\" font-size=\"15\" font-weight=\"600\">{title}</text>\n"
    )
}

/// Puts the real colours into plotters' SVG and a responsive, labelled root around it.
/// `alt` is escaped already.
pub(super) fn finish(canvas: &str, (width, height): (i32, i32), alt: &str) -> String {
    // Quotes are escaped in text, so that a quoted colour can only be an attribute.
    let mut body = canvas
        .split_once('>')
        .map_or("", |(_, body)| body)
        .replace(" opacity=\"1\"", "")
        .replace(&format!(" font-family=\"{FONT}\""), "");
    for index in 0..42 {
        let stand_in = format!("stroke=\"{}\"", hex(Look::of(index).line(true)));
        if body.contains(&stand_in) {
            let mut stroke = format!("stroke=\"{}\"", hex(PALETTE[index % 7]));
            let dashes: Vec<String> =
                DASHES[index % 6].iter().map(|d| (d * SCALE).to_string()).collect();
            if !dashes.is_empty() {
                stroke += &format!(" stroke-dasharray=\"{}\"", dashes.join(" "));
            }
            body = body.replace(&stand_in, &stroke);
        }
    }
    body = body.replace(&format!("\"{}\"", hex(INK)), "\"currentColor\"");
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" width=\"{width}\" \
         height=\"{height}\" style=\"max-width:100%;height:auto\" role=\"img\" \
         aria-label=\"{alt}\" font-family=\"{FONT}\" stroke-linejoin=\"round\">\n\
         {STANDALONE}{body}",
        width * SCALE,
        height * SCALE,
    )
}
