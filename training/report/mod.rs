//! Metrics on disk, plots, tables, progress, and the report page.

mod append;
mod download;
mod html;
mod live;
mod mask;
mod metrics;
mod number;
mod plot;
mod progress;
mod stats;
mod table;
mod tensorboard;

pub(crate) use append::Outage;
pub use html::{Figure, Finding, Findings, Report, Section, Status};
pub use live::LivePage;
pub use mask::{MaskDrawing, MaskSummary};
pub use metrics::{
    EvalRecord, Metrics, MetricsLog, NoteRecord, Record, TornLine, TrainRecord, read_metrics,
};
pub use plot::{Bars, Heatmap, Plot, Series};
pub use progress::{Progress, Stage};
pub use stats::{Estimate, mean_se, paired_difference};
pub use table::{Cell, Table};
pub use tensorboard::EventWriter;

/// Escapes text for HTML and SVG, in content and in quoted attributes.
///
/// Characters that no XML document may hold (controls other than tab and line ends) are dropped.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => out.push(c),
            c if unprintable(c) => {}
            c => out.push(c),
        }
    }
    out
}

/// Characters that XML forbids, and line ends and tabs.
fn unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}')
}
