//! The measurement: all sides in turn, medians, and a check that all compute the same.

use super::args::{MeasureArgs, PeerName};
use super::cost::Cost;
use super::job::{Job, Numbers};
use super::probe::{OF_LAYER, Probe, same};
use super::profile::Profile;
use super::row::{Ceiling, Machine, Peer, Row, median};
use super::torch::{Torch, TorchPeer};
use super::work::{Side, Work, work};
use super::{ceiling, machine, memory};
use crate::Globals;
use crate::device::DeviceName;
use burn::tensor::Device;
use longburn::models::SaveOptions;
use longburn::{Error, Result};
use std::cell::Cell;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// A sample lasts at least so long, seconds: it repeats work that is done sooner.
const SAMPLE: f64 = 0.05;
/// The samples of a row may take so long, seconds, beyond the least number of them.
const BUDGET: f64 = 60.0;
/// Least samples per side, unless fewer are asked for.
const LEAST: usize = 5;
/// Between two turns: threads of the side before go to sleep.
const PAUSE: Duration = Duration::from_millis(20);
/// RMS of a difference over RMS, between two sides in f32: sums of another order.
const SAME: f64 = 1e-3;
/// The same where results are in 16 bits.
const SAME_IN_16_BITS: f64 = 2e-2;
/// The same of gradients that came through the layers of a model in 16 bits: with six layers PyTorch's are
/// 1e-2 from its own in f32, and one block of LongGen's more or less is 1e-1.
const SAME_THROUGH_LAYERS: f64 = 6e-2;

/// A job and who takes part.
pub type Case = (Job, Vec<PeerName>);

/// All that measurements of one run share.
pub struct Bench<'a> {
    args: &'a MeasureArgs,
    globals: &'a Globals,
    device: Device,
    torch: Torch,
    /// A peer in Python that has nothing to do: one takes seconds to start.
    idle: Cell<Option<TorchPeer>>,
    ceiling: Ceiling,
    machine: Machine,
}

enum Runner {
    Here(Box<dyn Work>),
    Python(TorchPeer),
}

impl Runner {
    fn run(&mut self, times: usize) -> Result<f64> {
        match self {
            Self::Here(work) => work.run(times),
            Self::Python(peer) => peer.run(times),
        }
    }
}

/// A peer while it is measured.
struct Rival {
    runner: Runner,
    timed: Timed,
}

/// What is left of it.
struct Timed {
    name: PeerName,
    version: String,
    difference: Option<f64>,
    samples: Vec<f64>,
}

impl<'a> Bench<'a> {
    /// Looks whether all cases are possible, opens the device and measures the ceiling.
    ///
    /// # Errors
    /// A job that cannot be, a peer that does not do it, a device or a Python that is not there,
    /// settings out of range.
    pub fn new(cases: &[Case], args: &'a MeasureArgs, globals: &'a Globals) -> Result<Self> {
        args.check()?;
        for (job, peers) in cases {
            job.check()?;
            for peer in peers {
                peer.check(job, globals.device)?;
            }
        }
        if args.profile.is_some() && !matches!(globals.device, DeviceName::Cuda(_)) {
            return Err(Error::Unsupported {
                what: format!("--profile on {}", globals.device),
                remedy: "only NVIDIA cards name their kernels; add --device cuda".into(),
            });
        }
        let device = globals.device.open()?;
        let torch = args.torch(globals.device);
        let in_python = cases.iter().any(|(_, peers)| peers.iter().any(|peer| peer.in_python()));
        let mut idle = match in_python {
            true => Some(torch.idle(&libraries(cases))?),
            false => None,
        };
        let peer = idle.as_mut().map(|peer| (&torch, peer));
        let ceiling = ceiling::measure((globals.device, &device), args.ceiling_side, peer)?;
        let machine = machine::machine(&device);
        Ok(Self { args, globals, device, torch, idle: Cell::new(idle), ceiling, machine })
    }

    /// One row; every side starts from the same inputs and weights.
    ///
    /// # Errors
    /// What the code under measurement refuses, and [`Error::Evaluation`] where two sides do not
    /// compute the same.
    pub fn row(&self, (job, peers): &Case) -> Result<Row> {
        let cost = Cost::of(job)?;
        if let Job::Growth(_) = job {
            return self.growth(job);
        }
        let saved = self.weights(job)?;
        let folder = saved.as_ref().map(TempDir::path);
        let mut ours = work(job, Side::Longburn, &self.device)?;
        let found = ours.probe()?;
        // It holds memory that the row may need.
        if !peers.iter().any(|peer| peer.in_python()) {
            drop(self.idle.take());
        }
        let mut rivals = Vec::new();
        for name in peers {
            rivals.push(self.rival(*name, job, folder, &found)?);
        }
        let samples = take_turns(&mut *ours, &mut rivals, self.args.repeats)?;
        let profile = match self.args.profile {
            Some(_) => Some(Profile::of(&mut *ours, &self.device)?),
            None => None,
        };
        // What all hold is not needed while other processes are measured.
        drop(ours);
        let timed: Vec<Timed> = rivals.into_iter().map(|rival| rival.timed).collect();
        self.device.memory_cleanup();
        let peak = self.peak(job, None, folder)?;
        let mut row = self.summary(job, &cost, samples, peak);
        row.profile = profile;
        for peer in timed {
            let peak = self.peak(job, Some(peer.name), folder)?;
            row.peers.push(peer.summary(row.seconds, row.peak_bytes, peak));
        }
        Ok(row)
    }

    /// The weights that all sides start from, for those in other processes.
    fn weights(&self, job: &Job) -> Result<Option<TempDir>> {
        let (Job::Block(model) | Job::TrainStep(model)) = job else { return Ok(None) };
        let dir = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?;
        let decoder = super::work::decoder(model, &self.device)?;
        decoder.save(dir.path(), &SaveOptions::default())?;
        Ok(Some(dir))
    }

    fn rival(
        &self,
        name: PeerName,
        job: &Job,
        folder: Option<&Path>,
        found: &Probe,
    ) -> Result<Rival> {
        let job = &of_peer(job, Some(name));
        let (runner, version, theirs) = if let Some(side) = name.side() {
            let version = match side {
                Side::Longburn => format!("longburn {}", env!("CARGO_PKG_VERSION")),
                Side::Stock | Side::Recurrence => format!("burn {}", crate::doctor::BURN),
            };
            let mut work = work(job, side, &self.device)?;
            let probe = work.probe()?;
            (Runner::Here(work), version, probe)
        } else {
            let mut peer = match self.idle.take() {
                Some(mut peer) => {
                    self.torch.again(&mut peer, job, code(name), folder)?;
                    peer
                }
                None => self.torch.start(job, code(name), folder)?,
            };
            let (version, probe) = (peer.version.clone(), std::mem::take(&mut peer.probe));
            (Runner::Python(peer), version, probe)
        };
        let difference = match name.is_dense() {
            true => None,
            false => {
                let (most, through_layers) = match job.numbers() {
                    Numbers::F32 => (SAME, SAME),
                    _ => (SAME_IN_16_BITS, SAME_THROUGH_LAYERS),
                };
                let (deep, rest): (Probe, Probe) =
                    found.iter().cloned().partition(|found| found.name.starts_with(OF_LAYER));
                let deep = same(&name.name(), &deep, &theirs, through_layers)?;
                Some(deep.max(same(&name.name(), &rest, &theirs, most)?))
            }
        };
        Ok(Rival { runner, timed: Timed { name, version, difference, samples: Vec::new() } })
    }

    fn peak(
        &self,
        job: &Job,
        peer: Option<PeerName>,
        folder: Option<&Path>,
    ) -> Result<Option<u64>> {
        let on_card = self.globals.device != DeviceName::Flex;
        if self.args.no_memory || (on_card && !self.args.memory) || !job.has_memory() {
            return Ok(None);
        }
        let job = &of_peer(job, peer);
        match peer.map_or(Some(Side::Longburn), PeerName::side) {
            Some(side) => memory::peak(job, side, self.globals),
            // What a card holds, the system does not count, and the script asks the system.
            None if on_card => Ok(None),
            None => self.torch.memory(job, peer.map_or("sdpa", code), folder),
        }
    }

    fn growth(&self, job: &Job) -> Result<Row> {
        let said = memory::other_process(job, Side::Longburn, self.globals)?;
        let peak = |i: usize| said["peaks"][i].as_f64();
        let seconds = said["seconds"].as_f64().unwrap_or(f64::NAN);
        let mut row = self.summary(job, &Cost::default(), vec![seconds], said["peaks"][1].as_u64());
        row.growth = peak(0).zip(peak(1)).map(|(early, end)| growth(early, end));
        Ok(row)
    }

    fn summary(&self, job: &Job, cost: &Cost, samples: Vec<f64>, peak: Option<u64>) -> Row {
        let seconds = median(&samples);
        let speed = cost.flops / seconds;
        let by_memory = self.ceiling.bytes_per_second * cost.flops / cost.bytes;
        let roof = match job {
            // Next to nothing but reading, whatever the numbers.
            Job::Decode(_) => Some(by_memory),
            // The ceiling is one of products in f32.
            _ if job.numbers() == Numbers::F32 => {
                Some(self.ceiling.gemm_flops_per_second.min(by_memory))
            }
            _ => None,
        };
        let roof = roof.filter(|_| cost.flops > 0.0);
        let tokens = match job {
            Job::TrainStep(job) => Some(job.batch * job.len),
            Job::Decode(job) => Some(job.batch),
            Job::Generate(job) => Some(job.new),
            _ => None,
        };
        Row {
            what: job.what().into(),
            case: job.case(),
            shape: job.shape(),
            dtype: job.numbers().name().into(),
            device: self.globals.device.to_string(),
            threads: rayon::current_num_threads(),
            machine: self.machine.clone(),
            seconds,
            samples,
            flops: cost.flops,
            flops_per_second: speed,
            bytes: cost.bytes,
            peak_bytes: peak,
            pairs: cost.pairs,
            density: cost.density,
            causal_share: cost.causal_share,
            date: machine::today(),
            commit: option_env!("LONGBURN_COMMIT").map(Into::into),
            ceiling: roof.map(|_| self.ceiling.clone()),
            share: roof.map(|roof| speed / roof),
            tokens_per_second: tokens.map(|tokens| tokens as f64 / seconds),
            growth: None,
            profile: None,
            peers: Vec::new(),
        }
    }
}

/// Peak at the end over the peak early in the run.
fn growth(early: f64, end: f64) -> f64 {
    end / early
}

impl Timed {
    fn summary(self, ours: f64, our_peak: Option<u64>, peak: Option<u64>) -> Peer {
        let seconds = median(&self.samples);
        Peer {
            name: self.name.name(),
            version: self.version,
            seconds,
            samples: self.samples,
            peak_bytes: peak,
            ratio: seconds / ours,
            memory_ratio: peak.zip(our_peak).map(|(theirs, ours)| theirs as f64 / ours as f64),
            difference: self.difference,
        }
    }
}

/// What a side computes.
fn of_peer(job: &Job, peer: Option<PeerName>) -> Job {
    let dense = if peer.is_some_and(PeerName::is_dense) { job.dense() } else { None };
    dense.unwrap_or_else(|| job.clone())
}

/// What Python must have beside torch.
fn libraries(cases: &[Case]) -> Vec<&'static str> {
    let any = |wanted: fn(&Job, PeerName) -> bool| {
        cases.iter().any(|(job, peers)| peers.iter().any(|peer| wanted(job, *peer)))
    };
    let mut libraries = Vec::new();
    if any(|_, peer| peer == PeerName::Transformers) {
        libraries.push("transformers");
    }
    // Weights come in a file.
    if any(|job, peer| matches!(job, Job::Block(_) | Job::TrainStep(_)) && peer.in_python()) {
        libraries.push("safetensors.torch");
    }
    libraries
}

/// Which code the script is to use.
fn code(name: PeerName) -> &'static str {
    if name == PeerName::TorchFlex { "flex" } else { "sdpa" }
}

/// Runs that make up a sample.
fn runs(seconds: f64) -> usize {
    (SAMPLE / seconds.max(1e-9)).ceil().clamp(1.0, 1e4) as usize
}

/// Samples, of as many as are wanted, where a round of all sides takes so many seconds.
fn affordable(wanted: usize, round: f64) -> usize {
    wanted.min(((BUDGET / round) as usize).max(LEAST))
}

/// Ours, each peer, ours, each peer ...; samples of ours.
fn take_turns(ours: &mut dyn Work, rivals: &mut [Rival], repeats: usize) -> Result<Vec<f64>> {
    // All have run once for their results; this run tells how long they take.
    let mut round = 0.0;
    let mut times = |seconds: f64| {
        let times = runs(seconds);
        round += seconds * times as f64;
        times
    };
    let of_ours = times(ours.run(1)?);
    let mut of_rivals = Vec::new();
    for rival in rivals.iter_mut() {
        of_rivals.push(times(rival.runner.run(1)?));
    }
    let repeats = affordable(repeats, round);
    let mut samples = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        std::thread::sleep(PAUSE);
        samples.push(ours.run(of_ours)?);
        for (rival, times) in rivals.iter_mut().zip(&of_rivals) {
            std::thread::sleep(PAUSE);
            rival.timed.samples.push(rival.runner.run(*times)?);
        }
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::cases;
    use crate::bench::job::{MaskKind, ModelJob};

    #[test]
    fn short_work_is_repeated_and_long_work_has_fewer_samples() {
        assert_eq!((runs(0.01), runs(0.03), runs(7.0), runs(0.0)), (5, 2, 1, 10_000));
        assert_eq!((affordable(11, 1.0), affordable(11, 6.0), affordable(11, 100.0)), (11, 10, 5));
        assert_eq!((affordable(3, 100.0), affordable(70, 1.0)), (3, 60));
    }

    #[test]
    fn dense_peers_compute_what_the_mask_leaves_out() {
        let window = MaskKind::Window { window: 512, sinks: 4 };
        let of = |mask| cases::attention(4096, 64, mask, true);
        for peer in [PeerName::Dense, PeerName::TorchDense] {
            assert_eq!(of_peer(&of(window), Some(peer)), of(MaskKind::Dense));
        }
        let longgen = MaskKind::Longgen { block: 64, local: 8, sinks: 1, stride: None };
        let of_step = |mask, full_layers: &[usize]| {
            let job = cases::model(mask, &|n| n);
            Job::TrainStep(ModelJob { full_layers: full_layers.into(), ..job })
        };
        let scheduled = of_step(longgen, &[1]);
        assert_eq!(of_peer(&scheduled, Some(PeerName::Dense)), of_step(MaskKind::Dense, &[]));
        for peer in [None, Some(PeerName::Stock), Some(PeerName::Torch), Some(PeerName::TorchFlex)]
        {
            assert_eq!(of_peer(&of(window), peer), of(window));
        }
    }

    #[test]
    fn what_grows_is_above_one() {
        assert_eq!(growth(100.0, 150.0), 1.5);
    }

    #[test]
    fn a_peers_ratios_are_its_figures_over_ours() {
        let samples = vec![4.0, 1.0, 3.0];
        let (name, version) = (PeerName::Torch, "1".to_string());
        let timed = Timed { name, version, difference: None, samples };
        let peer = timed.summary(2.0, Some(100), Some(400));
        assert_eq!((peer.seconds, peer.ratio, peer.memory_ratio), (3.0, 1.5, Some(4.0)));
    }

    #[test]
    fn python_is_asked_for_what_the_cases_need() {
        let attention = (cases::attention(8, 8, MaskKind::Dense, false), vec![PeerName::Torch]);
        let step = Job::TrainStep(cases::model(MaskKind::Dense, &|n| n));
        assert!(libraries(std::slice::from_ref(&attention)).is_empty());
        let all = [attention, (step.clone(), vec![PeerName::Torch])];
        assert_eq!(libraries(&all), ["safetensors.torch"]);
        assert!(libraries(&[(step, vec![PeerName::Dense])]).is_empty());
        let text = (cases::growth(true), vec![PeerName::Transformers]);
        assert_eq!(libraries(&[text]), ["transformers"]);
    }
}
