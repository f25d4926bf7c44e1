//! A decoder's block, and a whole training step.

use super::{Work, calls, lazy};
use crate::bench::inputs;
use crate::bench::job::ModelJob;
use crate::bench::probe::{Found, OF_LAYER, Probe};
use burn::module::Module;
use burn::tensor::{DType, Device};
use longburn::datasets::Side as Pad;
use longburn::datasets::{Row, TokenBatch};
use longburn::kernel::TokenMeta;
use longburn::models::{Blocks, Decoder, ForwardOptions};
use longburn::training::{
    GradientSum, LossParts, NextToken, Objective, Strategy, TrainConfig, TrainStrategy, Trainer,
};
use longburn::{Error, Result};
use std::cell::Cell;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Learning rate of the measured steps; the script of the peer has the same.
const RATE: f64 = 1e-3;

/// The model that all sides start from.
///
/// # Errors
/// What configurations and mixers refuse.
pub fn decoder(job: &ModelJob, device: &Device) -> Result<Decoder> {
    Decoder::new(&job.config(), job.mixers()?, 0, device)
}

pub fn block(job: &ModelJob, device: &Device) -> Result<Box<dyn Work>> {
    let model = decoder(&job.one_layer(), device)?.train();
    let shape = [job.batch, job.len, job.width];
    let x = inputs::tensor::<3>(shape, 1, 1.0, device);
    let dout = inputs::tensor::<3>(shape, 2, 1.0, device);
    let tokens = TokenMeta::contiguous(job.batch, job.len, 0);
    let options =
        ForwardOptions::train().with_compute(job.compute()?).with_deterministic(job.deterministic);
    Ok(calls(device, move || {
        let x = x.clone().autodiff().require_grad();
        let place = model.place(&tokens, &x.device());
        let y = model.block(0, x.clone(), &place, &options, None)?.y.cast(DType::F32);
        let out = y.clone().inner();
        let grads = (y * dout.clone().autodiff()).sum().backward();
        let mut found = vec![lazy("out", out)];
        found.extend(x.grad(&grads).map(|grad| lazy("dx", grad)));
        let gate = model.layers[0].mlp.as_ref().and_then(|mlp| mlp.gate_proj.as_ref());
        let gate = gate.and_then(|gate| gate.weight.val().grad(&grads));
        found.extend(gate.map(|grad| lazy("dgate", grad)));
        Ok(found)
    }))
}

/// Steps of the public trainer, one at a time: it runs on a thread of its own and waits for leave.
struct Steps {
    go: SyncSender<()>,
    done: Receiver<Result<Done>>,
}

/// A step that was made.
struct Done {
    seconds: f64,
    loss: f64,
    /// Of the first step.
    grads: Probe,
}

/// The job's strategy, which keeps what is compared of the first gradients: losses at the start hardly
/// depend on which pairs count, the gradients of the values' weights do.
struct Watched {
    strategy: Strategy,
    /// A layer of each kind.
    layers: Vec<usize>,
    grads: Mutex<Option<Probe>>,
}

impl<O: Objective<Decoder>> TrainStrategy<Decoder, O> for Watched {
    fn accumulate(
        &self,
        model: &Decoder,
        objective: &O,
        batch: &O::Batch,
        options: &ForwardOptions,
        gradients: &mut GradientSum,
    ) -> Result<LossParts> {
        let parts = self.strategy.accumulate(model, objective, batch, options, gradients)?;
        let mut grads = self.grads.lock().unwrap_or_else(PoisonError::into_inner);
        grads.get_or_insert_with(|| {
            let of_layer = |layer: &usize| {
                let proj = model.layers[*layer].self_attn.projections()?;
                let grad = gradients.get::<2>(proj.v_proj.weight.id)?;
                Some(Found::of_tensor(&format!("{OF_LAYER} {layer}"), grad / parts.weight))
            };
            self.layers.iter().filter_map(of_layer).collect()
        });
        Ok(parts)
    }
}

pub fn train_step(job: &ModelJob, device: &Device) -> Result<Box<dyn Work>> {
    let (go, leave) = sync_channel(0);
    let (tell, done) = sync_channel(1);
    let (job, device) = (job.clone(), device.clone());
    // Errors in the configuration come at once, not with the first step.
    drop(decoder(&ModelJob { len: 1, ..job.clone() }, &device)?);
    let started = std::thread::Builder::new().spawn(move || {
        if let Err(error) = train(&job, &device, &leave, &tell) {
            // Nobody listens where the measurement has ended.
            let _ = tell.send(Err(error));
        }
    });
    started.map_err(|e| Error::io("a thread", e))?;
    Ok(Box::new(Steps { go, done }))
}

fn train(
    job: &ModelJob,
    device: &Device,
    leave: &Receiver<()>,
    tell: &SyncSender<Result<Done>>,
) -> Result<()> {
    let model = decoder(job, device)?;
    let batch = batch(job)?;
    let started = Cell::new(Instant::now());
    let mut data = |_: u64, _: u32| -> Result<Option<TokenBatch>> {
        // Whoever measures has had enough once the channel is closed.
        if leave.recv().is_err() {
            return Ok(None);
        }
        started.set(Instant::now());
        Ok(Some(batch.clone()))
    };
    let config = TrainConfig::new(1_000_000_000, RATE)
        .with_compute(job.compute()?)
        .with_deterministic(job.deterministic);
    let watched =
        Watched { strategy: job.strategy, layers: job.kinds_of_layers(), grads: Mutex::new(None) };
    let trainer = Trainer::new(config.with_strategy(job.strategy))?;
    trainer.fit_with(model, &NextToken, &watched, &mut data, &mut |step| {
        let seconds = started.get().elapsed().as_secs_f64();
        let mut grads = watched.grads.lock().unwrap_or_else(PoisonError::into_inner);
        let grads = grads.as_mut().map(std::mem::take).unwrap_or_default();
        let _ = tell.send(Ok(Done { seconds, loss: step.report.loss, grads }));
        Ok(())
    })?;
    Ok(())
}

fn batch(job: &ModelJob) -> Result<TokenBatch> {
    let ids = inputs::ids(job.batch * job.len, job.vocab, 5);
    let rows = ids.chunks(job.len).map(|row| Row::single(row.to_vec(), None, "bench"));
    TokenBatch::stack(rows.collect(), Pad::Right, 0)
}

impl Steps {
    fn step(&mut self) -> Result<Done> {
        let gone = || Error::Training("the trainer ended before its time".into());
        let heard = self.go.send(());
        match self.done.recv() {
            Ok(done) => done,
            Err(_) => {
                debug_assert!(heard.is_err());
                Err(gone())
            }
        }
    }
}

impl Work for Steps {
    fn run(&mut self, times: usize) -> Result<f64> {
        let mut seconds = 0.0;
        for _ in 0..times {
            seconds += self.step()?.seconds;
        }
        Ok(seconds / times as f64)
    }

    /// Gradients of the first step, and losses of the first three: the third depends on both updates
    /// before it.
    fn probe(&mut self) -> Result<Probe> {
        let steps = (0..3).map(|_| self.step()).collect::<Result<Vec<Done>>>()?;
        let losses: Vec<f32> = steps.iter().map(|done| done.loss as f32).collect();
        let grads = steps.into_iter().flat_map(|done| done.grads);
        Ok(std::iter::once(Found::of("losses", &losses)).chain(grads).collect())
    }
}
