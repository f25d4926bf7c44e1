//! What runs beside the loop: observers, the interrupter, burn-train's renderers.

use super::{batch, decoder, silent};
use burn_train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn_train::metric::MetricDefinition;
use burn_train::renderer::{
    EvaluationName, MetricState, MetricsRendererEvaluation, MetricsRendererTraining,
};
use longburn::training::{Interrupter, MetricsRenderer, NextToken, Stop, TrainConfig, Trainer};
use longburn::{Error, Result};
use std::sync::{Arc, Mutex};

fn data(step: u64, _: u32) -> Result<Option<longburn::datasets::TokenBatch>> {
    Ok(Some(batch(step, &[10, 8])))
}

#[test]
fn an_interrupted_run_stops_after_a_step() {
    let interrupter = Interrupter::new();
    let handle = interrupter.clone();
    let trainer = Trainer::new(TrainConfig::new(50, 1e-3)).unwrap().with_interrupter(interrupter);
    let outcome = trainer
        .fit(decoder(true), &NextToken, &mut data, &mut |step| {
            if step.report.step == 3 {
                handle.stop(Some("enough"));
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(outcome.stop, Stop::Interrupted(Some("enough".into())));
    assert_eq!(outcome.counters().step, 3);
    assert_eq!(outcome.counters().tokens, 60);
}

#[test]
fn an_error_of_the_observer_ends_the_run() {
    let trainer = Trainer::new(TrainConfig::new(50, 1e-3)).unwrap();
    let mut seen = 0;
    let fit = trainer.fit(decoder(true), &NextToken, &mut data, &mut |_| {
        seen += 1;
        Err(Error::Data("the log is full".into()))
    });
    assert!(matches!(fit.err(), Some(Error::Data(_))));
    assert_eq!(seen, 1);
}

#[test]
fn reports_say_what_happened() {
    let config = TrainConfig::new(3, 2e-3).with_micro_batches(2);
    let trainer = Trainer::new(config).unwrap();
    let mut reports = Vec::new();
    let outcome = trainer
        .fit(decoder(true), &NextToken, &mut data, &mut |step| {
            reports.push(step.report.clone());
            Ok(())
        })
        .unwrap();
    assert_eq!(outcome.stop, Stop::Finished);
    for (i, report) in reports.iter().enumerate() {
        assert_eq!(report.step, i as u64 + 1);
        // Two rows of 10 per micro-batch, padding included; 9 and 7 targets.
        assert_eq!((report.tokens, report.weight), (40, 32.0));
        assert_eq!(report.total_tokens, 40 * report.step);
        assert_eq!((report.lr, report.aux, report.skipped), (2e-3, None, false));
        // Around the entropy of 40 equally likely tokens.
        assert!((report.loss - 40f64.ln()).abs() < 1.0 && report.grad_norm > 0.0);
        let rate = report.tokens as f64 / report.seconds;
        assert!((report.tokens_per_second - rate).abs() < 1e-6 * rate);
    }
}

/// What a renderer was told.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<String>>>);

impl Recorder {
    fn note(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }
}

impl MetricsRendererTraining for Recorder {
    fn update_train(&mut self, state: MetricState) {
        if let MetricState::Numeric(_, Some(entry)) = state {
            self.note(format!("value {:.4}", entry.current()));
        }
    }
    fn update_valid(&mut self, _: MetricState) {}
}

impl MetricsRendererEvaluation for Recorder {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
}

impl TrainingProgressLogger for Recorder {
    fn start(&mut self, _: usize, _: usize, _: Option<usize>, _: Option<&str>) {
        self.note("start".into());
    }
    fn update_epoch(&mut self, _: usize) {}
    fn start_split(&mut self, _: &str, total: usize) {
        self.note(format!("of {total}"));
    }
    fn update_split(&mut self, done: usize) {
        self.note(format!("done {done}"));
    }
    fn end_split(&mut self) {}
    fn end(&mut self) {
        self.note("end".into());
    }
    fn log_event_training(&mut self, _: String) {}
}

impl EvaluationProgressLogger for Recorder {
    fn start_global_progress(&mut self, _: usize) {}
    fn start_test(&mut self, _: &str, _: usize) {}
    fn update_test_progress(&mut self, _: usize) {}
    fn end_test(&mut self) {}
    fn end_global_progress(&mut self) {}
    fn log_event_evaluation(&mut self, _: String) {}
}

impl MetricsRenderer for Recorder {
    fn manual_close(&mut self) {}
    fn register_metric(&mut self, definition: MetricDefinition) {
        self.note(format!("metric {}", definition.name));
    }
}

#[test]
fn renderers_of_burn_train_see_every_step() {
    let recorder = Recorder::default();
    let config = TrainConfig::new(2, 0.5);
    let trainer = Trainer::new(config).unwrap().with_renderer(Box::new(recorder.clone()));
    let mut losses = Vec::new();
    trainer
        .fit(decoder(true), &NextToken, &mut data, &mut |step| {
            losses.push(format!("value {:.4}", step.report.loss));
            Ok(())
        })
        .unwrap();
    let seen = recorder.0.lock().unwrap().clone();
    for line in ["start", "metric Loss", "metric Learning Rate", "of 2", "done 1", "value 0.5000"] {
        assert!(seen.iter().any(|l| l == line), "{line}: {seen:?}");
    }
    assert!(losses.iter().all(|loss| seen.contains(loss)), "{losses:?} {seen:?}");
    assert_eq!(seen.last().map(String::as_str), Some("end"));
}

#[test]
fn a_run_of_no_steps_returns_the_model() {
    let trainer = Trainer::new(TrainConfig::new(0, 1e-3)).unwrap();
    let outcome = trainer.fit(decoder(true), &NextToken, &mut data, &mut silent).unwrap();
    assert_eq!((outcome.stop, outcome.model.layers.len()), (Stop::Finished, 2));
}
