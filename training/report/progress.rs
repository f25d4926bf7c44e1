//! Progress of a run's stages: bars on a terminal, a line now and then in a log.

use crate::training::plan::bytes;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a bar is redrawn.
const REDRAW: Duration = Duration::from_millis(100);
/// How often a log gets a line.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// The unit that is shown in sizes that fit the amount, such as 1.2 GiB.
pub(super) const BYTES: &str = "bytes";
/// Time constant of the smoothed rate, in seconds.
const SMOOTHING: f64 = 8.0;

/// Hands out [`Stage`]s and shows them. Clones are one and the same display.
#[derive(Clone)]
pub struct Progress(Arc<Inner>);

struct Inner {
    display: Display,
    stages: usize,
    started: AtomicUsize,
}

enum Display {
    Bars(MultiProgress),
    Log { sink: Mutex<Box<dyn Write + Send>>, every: Duration },
    Quiet,
}

impl Progress {
    /// Progress of `stages` stages on standard error: bars if it is a terminal, else a log line
    /// about every ten seconds. With 0 stages their headers carry no number.
    pub fn new(stages: usize) -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        match bars.is_hidden() {
            true => Self::log(stages, std::io::stderr(), LOG_EVERY),
            false => Self::with(stages, Display::Bars(bars)),
        }
    }

    /// Shows nothing.
    pub fn quiet() -> Self {
        Self::with(0, Display::Quiet)
    }

    /// Writes log lines to `sink`, at most one per stage and `every`.
    pub fn log(stages: usize, sink: impl Write + Send + 'static, every: Duration) -> Self {
        Self::with(stages, Display::Log { sink: Mutex::new(Box::new(sink)), every })
    }

    fn with(stages: usize, display: Display) -> Self {
        Self(Arc::new(Inner { display, stages, started: AtomicUsize::new(0) }))
    }

    /// Starts the next stage. `total` is its length in `unit`s, such as "steps", where known.
    pub fn stage(&self, title: &str, total: Option<u64>, unit: &'static str) -> Stage {
        let number = self.0.started.fetch_add(1, Ordering::Relaxed) + 1;
        let header = match self.0.stages {
            0 => title.to_owned(),
            stages => format!("[{number}/{stages}] {title}"),
        };
        let bar = match &self.0.display {
            Display::Bars(bars) => {
                let bar =
                    bars.add(ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden()));
                bar.set_style(bar_style(total.is_some()));
                bar.set_prefix(header.clone());
                bar.tick();
                bar
            }
            _ => ProgressBar::hidden(),
        };
        if let Display::Log { .. } = self.0.display {
            self.println(&header);
        }
        Stage {
            progress: self.clone(),
            header,
            bar,
            count: Count { total, unit, ..Count::default() },
            started: Instant::now(),
            shown: Duration::ZERO,
            ended: false,
        }
    }

    /// Writes a line to standard error without tearing the bars.
    pub fn println(&self, line: &str) {
        // A display that cannot be written to is no reason to stop a run.
        let _ = match &self.0.display {
            Display::Bars(bars) => bars.println(line),
            Display::Log { sink, .. } => {
                writeln!(sink.lock().unwrap_or_else(PoisonError::into_inner), "{line}")
            }
            Display::Quiet => Ok(()),
        };
    }
}

fn bar_style(known: bool) -> ProgressStyle {
    let template =
        if known { "{prefix}  {bar:10}  {wide_msg}" } else { "{prefix}  {spinner}  {wide_msg}" };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
}

/// One stage of a run. It ends when it is dropped.
pub struct Stage {
    progress: Progress,
    header: String,
    bar: ProgressBar,
    count: Count,
    started: Instant,
    shown: Duration,
    ended: bool,
}

impl Stage {
    /// Text shown beside the counts, such as the loss; takes effect at the next advance.
    pub fn message(&mut self, text: impl Into<String>) {
        self.count.message = text.into();
    }

    /// Counts work other than the stage's own units, such as tokens; the rate is shown in it.
    /// Takes effect at the next advance.
    pub fn work(&mut self, amount: u64, unit: &'static str) {
        self.count.work += amount;
        self.count.work_unit = unit;
    }

    /// Counts `units` more as done.
    pub fn advance(&mut self, units: u64) {
        self.count.done += units;
        let interval = match &self.progress.0.display {
            Display::Bars(_) => REDRAW,
            Display::Log { every, .. } => *every,
            Display::Quiet => return,
        };
        let now = self.started.elapsed();
        if now.saturating_sub(self.shown) < interval {
            return;
        }
        self.shown = now;
        self.count.measure(now.as_secs_f64());
        let line = self.count.running();
        if let Display::Bars(_) = self.progress.0.display {
            self.bar.set_position(self.count.done);
            self.bar.set_message(line);
        } else {
            self.progress.println(&format!("{}: {line}", self.header));
        }
    }

    /// Ends the stage; what it did stays on the screen as one line.
    pub fn finish(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.bar.finish_and_clear();
        let line = self.count.finished(self.started.elapsed().as_secs_f64());
        self.progress.println(&format!("{}: {line}", self.header));
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a stage has counted, and how fast.
#[derive(Default)]
struct Count {
    total: Option<u64>,
    unit: &'static str,
    done: u64,
    work: u64,
    work_unit: &'static str,
    message: String,
    /// Units per second, smoothed.
    rate: Option<f64>,
    /// Time and `done` of the last measurement.
    last: (f64, u64),
}

impl Count {
    /// Updates the rate; `now` is in seconds since the start.
    fn measure(&mut self, now: f64) {
        let (seconds, units) = (now - self.last.0, self.done - self.last.1);
        if seconds <= 0.0 {
            return;
        }
        let measured = units as f64 / seconds;
        let weight = 1.0 - (-seconds / SMOOTHING).exp();
        self.rate = Some(self.rate.map_or(measured, |rate| rate + weight * (measured - rate)));
        self.last = (now, self.done);
    }

    fn running(&self) -> String {
        let mut parts = vec![match self.total {
            Some(total) if self.unit == BYTES => format!("{}/{}", bytes(self.done), bytes(total)),
            Some(total) => format!("{}/{total} {}", self.done, self.unit),
            None => self.amount(),
        }];
        if let Some(rate) = self.rate.filter(|rate| *rate > 0.0) {
            parts.push(self.speed(rate));
            if let Some(total) = self.total {
                let left = total.saturating_sub(self.done) as f64 / rate;
                parts.push(format!("{} left", clock(left)));
            }
        }
        self.with_message(parts)
    }

    fn finished(&self, seconds: f64) -> String {
        let mut parts = vec![format!("{} in {}", self.amount(), clock(seconds))];
        if seconds > 0.0 && self.done > 0 {
            parts.push(self.speed(self.done as f64 / seconds));
        }
        self.with_message(parts)
    }

    fn amount(&self) -> String {
        match self.unit {
            BYTES => bytes(self.done),
            unit => format!("{} {unit}", self.done),
        }
    }

    fn with_message(&self, mut parts: Vec<String>) -> String {
        if !self.message.is_empty() {
            parts.push(self.message.clone());
        }
        parts.join(", ")
    }

    /// `rate` units a second, in units of work where that was counted.
    fn speed(&self, rate: f64) -> String {
        match self.work {
            0 if self.unit == BYTES => format!("{}/s", bytes(rate as u64)),
            0 => format!("{} {}/s", short(rate), self.unit),
            work => {
                let per_unit = work as f64 / self.done.max(1) as f64;
                format!("{} {}/s", short(rate * per_unit), self.work_unit)
            }
        }
    }
}

/// A figure in about three digits: 4.35, 950, 8.5k, 1.2M.
fn short(value: f64) -> String {
    match value {
        v if v >= 999_500.0 => format!("{:.1}M", v / 1e6),
        v if v >= 999.5 => format!("{:.1}k", v / 1e3),
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// Seconds as 0:42 or 1:02:03.
fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_and_rate_follow_the_latest_speed() {
        let mut count = Count { total: Some(1000), unit: "steps", ..Count::default() };
        for second in 1..=60 {
            // Ten steps a second at first, then five.
            count.done += if second <= 20 { 10 } else { 5 };
            count.measure(f64::from(second));
        }
        assert_eq!(count.running(), "400/1000 steps, 5.03 steps/s, 1:59 left");
        (count.work, count.work_unit) = (400 * 2048, "tokens");
        assert!(count.running().contains(", 10.3k tokens/s, "), "{}", count.running());
        let download = Count {
            total: Some(3 << 30),
            unit: BYTES,
            done: 3 << 29,
            rate: Some(1e6),
            ..Count::default()
        };
        assert_eq!(download.running(), "1.50 GiB/3.00 GiB, 976.6 KiB/s, 26:51 left");
        count.total = None;
        assert!(!count.running().contains("left"));
        assert_eq!(count.finished(3723.0), "400 steps in 1:02:03, 220 tokens/s");
    }
}
