//! The seam to burn-train: our loop as its custom training strategy, so that its metrics, its
//! renderers and its interrupter work.
//!
//! burn-train wants everything that its strategy holds to be `'static`, while the loop borrows
//! objective, data and observer. So the loop stays in the caller's thread, burn-train runs in one
//! of its own, and its strategy turns the reports that the loop sends into events.

use super::StepReport;
use crate::{Error, Result};
use burn::backend::ExecutionError;
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::module::{Module, Param};
use burn::optim::SgdConfig;
use burn::tensor::{Device, Tensor};
pub use burn_train::Interrupter;
use burn_train::logger::{EvaluationProgressLogger, MetricLogger, TrainingProgressLogger};
use burn_train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn_train::metric::{
    Adaptor, LearningRateMetric, LossInput, LossMetric, MetricDefinition, NumericEntry,
};
pub use burn_train::renderer::MetricsRenderer;
use burn_train::renderer::{
    EvaluationName, MetricState, MetricsRendererEvaluation, MetricsRendererTraining,
};
use burn_train::{
    EventProcessorTraining, InferenceStep, ItemLazy, Learner, LearnerEvent,
    SupervisedLearningStrategy, SupervisedTraining, SupervisedTrainingEventProcessor, TrainLoader,
    TrainOutput, TrainStep, TrainingComponents, TrainingItem, TrainingStrategy, ValidLoader,
};
use std::io::IsTerminal;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// burn-train's view in the terminal: curves of loss and learning rate, and `q` to stop.
///
/// # Errors
/// When this program was built without feature `tui`, or standard output is no terminal.
pub(super) fn terminal_view(interrupter: &Interrupter) -> Result<Box<dyn MetricsRenderer>> {
    terminal_view_available()?;
    #[cfg(feature = "tui")]
    {
        use burn_train::renderer::tui::TuiMetricsRendererWrapper;
        Ok(Box::new(TuiMetricsRendererWrapper::new(interrupter.clone(), None)))
    }
    #[cfg(not(feature = "tui"))]
    {
        let _ = interrupter;
        Ok(Box::new(Quiet))
    }
}

/// Whether [`Trainer::with_terminal_view`](super::Trainer::with_terminal_view) would work here.
///
/// # Errors
/// When this program was built without feature `tui`, or standard output is no terminal.
pub fn terminal_view_available() -> Result<()> {
    let bad = |value: &str, expected| Error::config("training", "terminal view", value, expected);
    if !cfg!(feature = "tui") {
        let expected = "a build with it: cargo install --path . --features tui";
        return Err(bad("not built in", expected));
    }
    if !std::io::stdout().is_terminal() {
        return Err(bad("asked for", "standard output to be a terminal, not a file or a pipe"));
    }
    Ok(())
}

/// burn-train at work in a thread of its own, for the length of one run.
pub(super) struct Session {
    reports: Sender<StepReport>,
    thread: JoinHandle<Option<String>>,
}

impl Session {
    /// Start it for steps `first ..= steps`. Without a renderer nothing is drawn and no metric is
    /// kept; no file is written and no logger installed either way. Metrics are computed on `device`, the
    /// model's: the default one of a build may not be there.
    pub(super) fn start(
        interrupter: Interrupter,
        renderer: Option<Box<dyn MetricsRenderer>>,
        steps: u64,
        device: Device,
    ) -> Self {
        let (reports, received) = channel();
        let thread = std::thread::spawn(move || {
            let strategy =
                Arc::new(Relay { reports: Mutex::new(received), steps, device: device.clone() });
            let mut training =
                SupervisedTraining::<Absent>::new(".", Arc::new(NoData), Arc::new(NoData))
                    .with_training_strategy(TrainingStrategy::Custom(strategy))
                    .with_interrupter(interrupter)
                    .with_application_logger(None)
                    .with_metric_logger(NoFiles);
            if renderer.is_some() {
                training = training
                    .metric_train_numeric(LossMetric::new())
                    .metric_train_numeric(LearningRateMetric::new());
            }
            let training = training.renderer(renderer.unwrap_or_else(|| Box::new(Quiet)));
            let result =
                training.launch(Learner::new(Absent::new(&device), SgdConfig::new().init(), 0.0));
            result.error.map(|error| error.to_string())
        });
        Self { reports, thread }
    }

    /// Pass a step on; `false` when nobody receives it any more, of which `finish` gives the
    /// reason.
    pub(super) fn report(&self, report: &StepReport) -> bool {
        self.reports.send(report.clone()).is_ok()
    }

    /// End it.
    ///
    /// # Errors
    /// What went wrong in burn-train.
    pub(super) fn finish(self) -> Result<()> {
        drop(self.reports);
        match self.thread.join() {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(Error::Training(error)),
            Err(_) => Err(Error::Training("the thread that shows metrics died".into())),
        }
    }
}

/// The training strategy: every report becomes an event.
struct Relay {
    reports: Mutex<Receiver<StepReport>>,
    steps: u64,
    device: Device,
}

impl SupervisedLearningStrategy<Absent> for Relay {
    fn fit(
        &self,
        components: TrainingComponents<Absent>,
        learner: Learner<Absent>,
        _: TrainLoader<Absent>,
        _: ValidLoader<Absent>,
        epoch: usize,
    ) -> (Absent, SupervisedTrainingEventProcessor<Absent>) {
        let TrainingComponents { interrupter, event_processor: mut events, .. } = components;
        let mut emit = |event| interrupter.fail_on_error(events.process_train(event));
        let total_items = self.steps as usize;
        emit(LearnerEvent::StartSplit { epoch_number: epoch, total_items });
        if let Ok(reports) = self.reports.lock() {
            for report in reports.iter() {
                let (step, lr) = (report.step as usize, report.lr);
                let progress = Progress::new(step, total_items, Some("steps".into()));
                let item = TrainingItem::new(
                    Item(report, self.device.clone()),
                    progress,
                    Some(step),
                    Some(lr.into()),
                );
                emit(LearnerEvent::ProcessedItem(item));
            }
        }
        emit(LearnerEvent::EndSplit(epoch));
        emit(LearnerEvent::EndEpoch(epoch));
        (learner.model(), events)
    }
}

/// A step, as burn-train's metrics see it, and where they are computed.
struct Item(StepReport, Device);

impl ItemLazy for Item {
    fn sync(self) -> std::result::Result<Self, ExecutionError> {
        Ok(self)
    }
}

impl Adaptor<LossInput> for Item {
    fn adapt(&self) -> LossInput {
        LossInput::new(Tensor::from_floats([self.0.loss as f32], &self.1))
    }
}

/// Stands where burn-train wants a model; ours stays with the loop.
#[derive(Module, Debug)]
struct Absent {
    /// burn-train asks for the device of a model's first parameter.
    device: Param<Tensor<1>>,
}

impl Absent {
    fn new(device: &Device) -> Self {
        Self { device: Param::from_tensor(Tensor::zeros([1], device)) }
    }
}

impl TrainStep for Absent {
    type Input = ();
    type Output = Item;

    fn step(&self, (): ()) -> TrainOutput<Item> {
        let item = Item(StepReport::default(), self.device.val().device());
        TrainOutput { grads: Default::default(), item }
    }
}

impl InferenceStep for Absent {
    type Input = ();
    type Output = ();

    fn step(&self, (): ()) {}
}

/// Stands where burn-train wants data.
struct NoData;

impl DataLoader<()> for NoData {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<()> + 'a> {
        Box::new(NoBatches)
    }

    fn num_items(&self) -> usize {
        0
    }

    fn to_device(&self, _: &Device) -> Arc<dyn DataLoader<()>> {
        Arc::new(NoData)
    }

    fn slice(&self, _: usize, _: usize) -> Arc<dyn DataLoader<()>> {
        Arc::new(NoData)
    }
}

struct NoBatches;

impl Iterator for NoBatches {
    type Item = std::result::Result<(), DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        None
    }
}

impl DataLoaderIterator<()> for NoBatches {
    fn progress(&self) -> Progress {
        Progress::new(0, 0, None)
    }
}

/// A metric logger in place of burn-train's, which writes files.
struct NoFiles;

impl MetricLogger for NoFiles {
    fn log(&mut self, _: MetricsUpdate, _: usize, _: &Split) {}

    fn read_numeric(
        &mut self,
        _: &str,
        _: usize,
        _: &Split,
    ) -> std::result::Result<Vec<NumericEntry>, String> {
        Ok(Vec::new())
    }

    fn log_metric_definition(&mut self, _: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _: EpochSummary) {}
}

/// A renderer that draws nothing.
struct Quiet;

impl MetricsRendererTraining for Quiet {
    fn update_train(&mut self, _: MetricState) {}
    fn update_valid(&mut self, _: MetricState) {}
}

impl MetricsRendererEvaluation for Quiet {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
}

impl TrainingProgressLogger for Quiet {
    fn start(&mut self, _: usize, _: usize, _: Option<usize>, _: Option<&str>) {}
    fn update_epoch(&mut self, _: usize) {}
    fn start_split(&mut self, _: &str, _: usize) {}
    fn update_split(&mut self, _: usize) {}
    fn end_split(&mut self) {}
    fn end(&mut self) {}
    fn log_event_training(&mut self, _: String) {}
}

impl EvaluationProgressLogger for Quiet {
    fn start_global_progress(&mut self, _: usize) {}
    fn start_test(&mut self, _: &str, _: usize) {}
    fn update_test_progress(&mut self, _: usize) {}
    fn end_test(&mut self) {}
    fn end_global_progress(&mut self) {}
    fn log_event_evaluation(&mut self, _: String) {}
}

impl MetricsRenderer for Quiet {
    fn manual_close(&mut self) {}
    fn register_metric(&mut self, _: MetricDefinition) {}
}
