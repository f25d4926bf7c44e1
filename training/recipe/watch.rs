//! A run under way as others see it: its memory, TensorBoard, the page that reloads itself, and
//! the line on the terminal.

use super::sections::Recipe;
use crate::training::StepReport;
use crate::training::plan::{RecipePlan, Resident, bytes};
use crate::training::report::{
    EventWriter, Figure, LivePage, MetricsLog, Outage, Plot, Progress, Report, Section,
};
use crate::{Error, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Memory of a run, predicted and measured, bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MemoryReport {
    /// Peak of the plan, with what was resident before the model; `None` without a plan.
    pub predicted: Option<u64>,
    /// Most that was resident in training, from the system: `VmHWM` of `/proc/self/status`.
    pub measured: Option<u64>,
    /// Resident before the model was made: the program and the text.
    pub before: Option<u64>,
}

/// Shows a run.
pub(super) struct Watch {
    plan: Option<RecipePlan>,
    memory: MemoryReport,
    curves: Option<Curves>,
    page: LivePage,
    /// Where `page` writes.
    path: PathBuf,
    outage: Outage,
    title: String,
    steps: u64,
    first: Option<(Instant, u64)>,
    last: Option<StepReport>,
}

/// Training curves for TensorBoard. What cannot be written is left out.
struct Curves {
    dir: PathBuf,
    /// Begun with the first step for which there is room.
    events: Option<EventWriter>,
    outage: Outage,
}

impl Curves {
    fn step(&mut self, step: u64, values: &[(&str, f64)]) {
        let done = (|| {
            let events = match self.events.take() {
                Some(events) => events,
                None => EventWriter::create(&self.dir)?,
            };
            self.events.insert(events).scalars(step, values)
        })();
        self.outage.tell(&self.dir.display().to_string(), done);
    }
}

impl Watch {
    /// Whatever is to be watched; `plan` is none for a mixer that cannot be planned, `before`
    /// was read before the model was made.
    pub fn start(
        recipe: &Recipe,
        plan: Option<RecipePlan>,
        before: Option<Resident>,
        dir: &Path,
        progress: &Progress,
    ) -> Self {
        let before = before.map(|memory| memory.now);
        let predicted = plan.as_ref().map(|plan| plan.plan.peak + before.unwrap_or(0));
        if let Some(RecipePlan { plan, .. }) = &plan {
            let (peak, moment) = (bytes(plan.peak), &plan.moment);
            progress.println(&format!("memory planned for training: {peak} (at: {moment})"));
        }
        let output = &recipe.output;
        let curves =
            || Curves { dir: dir.join("tensorboard"), events: None, outage: Outage::default() };
        let path = dir.join("report.html");
        Self {
            plan,
            memory: MemoryReport { predicted, measured: None, before },
            curves: output.tensorboard.then(curves),
            page: LivePage::new(&path, Duration::from_secs(output.refresh_seconds)),
            path,
            outage: Outage::default(),
            title: match recipe.title.as_str() {
                "" => "Training run".into(),
                title => title.into(),
            },
            steps: recipe.train.steps,
            first: None,
            last: None,
        }
    }

    /// Training begins: from here on, the peak is that of training.
    pub fn training(&mut self) {
        Resident::reset_peak();
    }

    /// After every step; `plot` draws what was measured so far. Returns the line that stands
    /// beside the counts.
    pub fn step(&mut self, report: &StepReport, plot: impl FnOnce() -> Plot) -> String {
        self.measure();
        self.last = Some(report.clone());
        if let Some(curves) = &mut self.curves {
            let mut values = vec![
                ("train/loss", report.loss),
                ("train/lr", report.lr),
                ("train/grad_norm", report.grad_norm),
                ("train/tokens_per_second", report.tokens_per_second),
            ];
            values.extend(self.memory.measured.map(|peak| ("train/peak_memory", peak as f64)));
            values.extend(report.metrics.iter().map(|(name, value)| (name.as_str(), *value)));
            curves.step(report.step, &values);
        }
        let (began, first) = *self.first.get_or_insert((Instant::now(), report.step));
        let (title, steps, memory) = (&self.title, self.steps, self.memory.measured);
        let written = self.page.update(|| {
            let done = (report.step - first) as f64;
            let left = steps.saturating_sub(report.step) as f64;
            let seconds = began.elapsed().as_secs_f64() / done * left;
            let lead = match done > 0.0 {
                true => format!("Under way; about {} left.", in_words(seconds)),
                false => "Under way.".into(),
            };
            let page = Report::new(title, lead);
            with_progress(page, Some(report), steps, memory, &plot())
        });
        if written.as_ref().map_or(true, |written| *written) {
            self.outage.tell(&self.path.display().to_string(), written.map(drop));
        }
        let memory = memory.map_or(String::new(), |peak| format!(", peak {}", bytes(peak)));
        format!("loss {:.4}, |grad| {:.3}{memory}", report.loss, report.grad_norm)
    }

    /// The run ends before its time, for the reason `why`: the page, which would say that it is
    /// under way, says so. `newest` is the step of the newest checkpoint, `again` the command that
    /// goes on.
    pub fn stopped(&mut self, why: &Error, newest: Option<u64>, again: &str, plot: &Plot) {
        let at = match (&self.last, why) {
            (_, Error::Interrupted { step, .. }) if *step > 0 => format!("after step {step}"),
            (Some(report), _) => format!("after step {}", report.step),
            (None, _) => "before the first step of this process".into(),
        };
        let lead = match why {
            Error::Interrupted { .. } => format!("Stopped {at}, as asked."),
            error => format!("Stopped {at} by an error: {error}"),
        };
        let how = match newest {
            Some(step) => format!("This goes on after step {step}, which is saved."),
            None => "There is no checkpoint yet: this begins again.".into(),
        };
        let page = Report::new(&self.title, lead);
        let (last, memory) = (self.last.as_ref(), self.memory.measured);
        let written = with_progress(page, last, self.steps, memory, plot).and_then(|page| {
            page.section(Section::new("Going on").text(how).command(again)).save(&self.path)
        });
        self.outage.tell(&self.path.display().to_string(), written);
    }

    /// Training is done: predicted beside measured.
    pub fn finish(&mut self, log: &mut MetricsLog, progress: &Progress) -> Result<MemoryReport> {
        self.measure();
        let memory = self.memory.clone();
        let json = serde_json::json!({ "plan": &self.plan, "memory": &memory });
        log.note("memory", json)?;
        if let (Some(predicted), Some(measured)) = (memory.predicted, memory.measured) {
            let (predicted, measured) = (bytes(predicted), bytes(measured));
            progress.println(&format!("peak memory: predicted {predicted}, measured {measured}"));
        }
        Ok(memory)
    }

    fn measure(&mut self) {
        let peak = Resident::read().map(|memory| memory.peak);
        self.memory.measured = self.memory.measured.max(peak);
    }
}

impl MemoryReport {
    /// For the closing report: names and values.
    pub(super) fn rows(&self) -> Vec<(&'static str, String)> {
        [
            ("peak memory, predicted", self.predicted),
            ("peak memory, measured (VmHWM)", self.measured),
            ("of that, before the model", self.before),
        ]
        .into_iter()
        .filter_map(|(name, count)| Some((name, bytes(count?))))
        .collect()
    }
}

/// The page with the figures of the last step, where one was done, and the curve.
fn with_progress(
    mut page: Report,
    last: Option<&StepReport>,
    steps: u64,
    memory: Option<u64>,
    plot: &Plot,
) -> Result<Report> {
    let Some(report) = last else { return Ok(page) };
    page = page
        .fact(format!("{} of {steps}", report.step), "steps")
        .fact(format!("{:.4}", report.loss), "loss of the last step, nats per token")
        .fact(format!("{:.0}", report.tokens_per_second), "tokens per second")
        .fact(format!("{:.3}", report.grad_norm), "norm of the gradients");
    if let Some(peak) = memory {
        page = page.fact(bytes(peak), "peak memory");
    }
    let figure = Figure::new(plot, "Mean loss of the tokens of each step.")?;
    Ok(page.section(Section::new("Training").figure(figure)))
}

/// Seconds as "40 s", "12 min" or "3.5 h".
fn in_words(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
