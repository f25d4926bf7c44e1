//! A run under way as others see it: its memory, TensorBoard, the page that reloads itself, and
//! the line on the terminal.

use super::sections::Recipe;
use crate::Result;
use crate::training::StepReport;
use crate::training::plan::{RecipePlan, Resident, bytes};
use crate::training::report::{
    EventWriter, Figure, LivePage, MetricsLog, Plot, Progress, Report, Section,
};
use serde::Serialize;
use std::path::Path;
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
    events: Option<EventWriter>,
    page: LivePage,
    title: String,
    steps: u64,
    first: Option<(Instant, u64)>,
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
    ) -> Result<Self> {
        let before = before.map(|memory| memory.now);
        let predicted = plan.as_ref().map(|plan| plan.plan.peak + before.unwrap_or(0));
        if let Some(RecipePlan { plan, .. }) = &plan {
            let (peak, moment) = (bytes(plan.peak), &plan.moment);
            progress.println(&format!("memory planned for training: {peak} (at: {moment})"));
        }
        let output = &recipe.output;
        let events = match output.tensorboard {
            true => Some(EventWriter::create(&dir.join("tensorboard"))?),
            false => None,
        };
        Ok(Self {
            plan,
            memory: MemoryReport { predicted, measured: None, before },
            events,
            page: LivePage::new(
                dir.join("report.html"),
                Duration::from_secs(output.refresh_seconds),
            ),
            title: match recipe.title.as_str() {
                "" => "Training run".into(),
                title => title.into(),
            },
            steps: recipe.train.steps,
            first: None,
        })
    }

    /// Training begins: from here on, the peak is that of training.
    pub fn training(&mut self) {
        Resident::reset_peak();
    }

    /// After every step; `plot` draws what was measured so far. Returns the line that stands
    /// beside the counts.
    pub fn step(&mut self, report: &StepReport, plot: impl FnOnce() -> Plot) -> Result<String> {
        self.measure();
        if let Some(events) = &mut self.events {
            let mut values = vec![
                ("train/loss", report.loss),
                ("train/lr", report.lr),
                ("train/grad_norm", report.grad_norm),
                ("train/tokens_per_second", report.tokens_per_second),
            ];
            values.extend(self.memory.measured.map(|peak| ("train/peak_memory", peak as f64)));
            values.extend(report.metrics.iter().map(|(name, value)| (name.as_str(), *value)));
            events.scalars(report.step, &values)?;
        }
        let (began, first) = *self.first.get_or_insert((Instant::now(), report.step));
        let (title, steps, memory) = (&self.title, self.steps, self.memory.measured);
        self.page.update(|| {
            let done = (report.step - first) as f64;
            let left = steps.saturating_sub(report.step) as f64;
            let seconds = began.elapsed().as_secs_f64() / done * left;
            let lead = match done > 0.0 {
                true => format!("Under way; about {} left.", in_words(seconds)),
                false => "Under way.".into(),
            };
            let mut page = Report::new(title.clone(), lead)
                .fact(format!("{} of {steps}", report.step), "steps")
                .fact(format!("{:.4}", report.loss), "loss of the last step, nats per token")
                .fact(format!("{:.0}", report.tokens_per_second), "tokens per second")
                .fact(format!("{:.3}", report.grad_norm), "norm of the gradients");
            if let Some(peak) = memory {
                page = page.fact(bytes(peak), "peak memory");
            }
            let figure = Figure::new(&plot(), "Mean loss of the tokens of each step.")?;
            Ok(page.section(Section::new("Training").figure(figure)))
        })?;
        let memory = memory.map_or(String::new(), |peak| format!(", peak {}", bytes(peak)));
        Ok(format!("loss {:.4}, |grad| {:.3}{memory}", report.loss, report.grad_norm))
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

/// Seconds as "40 s", "12 min" or "3.5 h".
fn in_words(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
