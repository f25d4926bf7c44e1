//! Jobs as code that runs here: Longburn's way, and that of a plain Burn program.

mod attention;
mod decode;
mod generate;
mod handed;
mod loss;
mod matmul;
mod model;
mod scan;

pub use model::decoder;

use super::job::Job;
use super::probe::{Found, Probe};
use burn::tensor::{Device, Tensor};
use longburn::{Error, Result};
use std::time::Instant;

/// Whose code runs in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Side {
    Longburn,
    /// Tensor operations and autodiff of Burn alone.
    Stock,
    /// The same, one token after another.
    Recurrence,
}

/// One side of a comparison.
pub trait Work {
    /// Seconds per run, over so many runs.
    ///
    /// # Errors
    /// What the code under measurement refuses.
    fn run(&mut self, times: usize) -> Result<f64>;

    /// Runs once; what came out.
    ///
    /// # Errors
    /// As [`run`](Work::run).
    fn probe(&mut self) -> Result<Probe>;
}

/// A result that nobody has looked at yet: looking costs time that is not the work's.
type Lazy = Box<dyn FnOnce() -> Found>;

fn lazy<const D: usize>(name: &'static str, x: Tensor<D>) -> Lazy {
    Box::new(move || Found::of_tensor(name, x))
}

/// Work that is one call after another of the same function.
struct Calls<F> {
    device: Device,
    call: F,
}

impl<F: FnMut() -> Result<Vec<Lazy>>> Work for Calls<F> {
    fn run(&mut self, times: usize) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..times {
            drop((self.call)()?);
        }
        self.device.sync().map_err(|e| Error::Unsupported {
            what: format!("the device failed: {e:?}"),
            remedy: "see `longburn doctor`".into(),
        })?;
        Ok(start.elapsed().as_secs_f64() / times as f64)
    }

    fn probe(&mut self) -> Result<Probe> {
        Ok((self.call)()?.into_iter().map(|look| look()).collect())
    }
}

fn calls<'a>(device: &Device, call: impl FnMut() -> Result<Vec<Lazy>> + 'a) -> Box<dyn Work + 'a> {
    Box::new(Calls { device: device.clone(), call })
}

/// Make the inputs of a job, ready to run.
///
/// # Errors
/// [`Error::Unsupported`] where a side does not do the job; what shapes and checkpoints are
/// refused for.
pub fn work(job: &Job, side: Side, device: &Device) -> Result<Box<dyn Work>> {
    match (job, side) {
        (Job::Attention(job), Side::Longburn) => attention::ours(job, device),
        (Job::Attention(job), Side::Stock) => attention::stock(job, device),
        (Job::Matmul(job), Side::Longburn) => Ok(matmul::ours(job, device)),
        (Job::LinearLoss(job), Side::Longburn) => Ok(loss::ours(job, device)),
        (Job::LinearLoss(job), Side::Stock) => Ok(loss::stock(job, device)),
        (Job::Scan(job), Side::Longburn) => Ok(scan::ours(*job, device)),
        (Job::Scan(job), Side::Stock) => Ok(scan::stock(*job, device)),
        (Job::Scan(job), Side::Recurrence) => Ok(scan::recurrence(*job, device)),
        (Job::Block(job), Side::Longburn) => model::block(job, device),
        (Job::TrainStep(job), Side::Longburn) => model::train_step(job, device),
        (Job::Decode(job), Side::Longburn) => decode::ours(job, device),
        (Job::Generate(job), Side::Longburn) => generate::ours(job, device),
        (job, side) => Err(Error::Unsupported {
            what: format!("{} by {side:?}", job.what()),
            remedy: "`longburn bench --help` says which peer does what".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::cases;
    use crate::bench::job::{MaskKind, ModelJob};
    use crate::bench::probe::same;
    use std::time::Duration;

    #[test]
    fn a_time_is_that_of_one_run() {
        const RUN: Duration = Duration::from_millis(2);
        let mut work = calls(&Device::flex(), || {
            std::thread::sleep(RUN);
            Ok(vec![])
        });
        let start = Instant::now();
        let seconds = work.run(10).unwrap();
        assert!(seconds >= RUN.as_secs_f64());
        assert!(10.0 * seconds <= start.elapsed().as_secs_f64());
    }

    /// One block more or less is seen in the gradients, not in the losses.
    #[test]
    fn a_step_with_another_mask_is_found_out() {
        let probe = |local, full: &[usize]| {
            let mask = MaskKind::Longgen { block: 16, local, sinks: 1, stride: None };
            let sizes = cases::model(mask, &|n| n / 16);
            let full_layers = full.to_vec();
            let job = ModelJob { vocab: 64, layers: 3, width: 64, full_layers, ..sizes };
            model::train_step(&job, &Device::flex()).unwrap().probe().unwrap()
        };
        let right = probe(3, &[1]);
        let names: Vec<&str> = right.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["losses", "dv of layer 0", "dv of layer 1"]);
        assert_eq!(same("x", &right, &probe(3, &[1]), 0.0).unwrap(), 0.0);
        for (local, full) in [(4, &[1][..]), (2, &[1]), (3, &[1, 2])] {
            let wrong = probe(local, full);
            same("x", &right[..1].to_vec(), &wrong, 1e-2).unwrap();
            assert!(same("x", &right, &wrong, 6e-2).is_err(), "{local}, {full:?}");
        }
    }

    #[test]
    fn a_step_takes_the_time_until_it_is_reported() {
        let job = cases::model(MaskKind::Dense, &|n| n / 16);
        let mut work = model::train_step(&ModelJob { vocab: 64, ..job }, &Device::flex()).unwrap();
        work.run(1).unwrap();
        // Of what passes here nearly all is the step, unless the machine does something else.
        let share = |_| {
            let start = Instant::now();
            let seconds = work.run(2).unwrap();
            2.0 * seconds / start.elapsed().as_secs_f64()
        };
        let most = (0..5).map(share).fold(0.0, f64::max);
        assert!((0.7..=1.0).contains(&most), "{most}");
    }
}
