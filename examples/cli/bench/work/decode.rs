//! A token for every row behind a cache of a length, as decoders ask for it again and again.

use super::Work;
use crate::bench::inputs;
use crate::bench::job::ModelJob;
use crate::bench::probe::{Found, Probe};
use burn::tensor::{Device, Distribution, Tensor};
use longburn::Result;
use longburn::attention::{KvCache, State};
use longburn::kernel::TokenMeta;
use longburn::models::Decoder;
use longburn::models::generate::Generator;
use std::time::Instant;

struct Tokens {
    generator: Generator<Decoder>,
    ids: Vec<u32>,
}

/// A model of random weights, rounded to what passes compute in, and a cache of random keys and values.
pub fn ours(job: &ModelJob, device: &Device) -> Result<Box<dyn Work>> {
    let compute = job.compute()?;
    let model = super::decoder(job, device)?.rounded(compute);
    let tokens = TokenMeta::contiguous(job.batch, job.len, 0);
    let shape = [job.batch, job.kv_heads, job.len, job.width / job.heads];
    // Drawn by the device: no peer needs the same numbers, and a host would draw for minutes.
    let of = || Tensor::random(shape, Distribution::Normal(0.0, 1.0), (device, compute.dtype()));
    let state = || State::Kv(KvCache::new(of(), of(), tokens.clone()));
    let states = (0..job.layers).map(|_| state()).collect();
    let generator = Generator::new(&model).with_compute(compute).with_states(states, job.len)?;
    Ok(Box::new(Tokens { generator, ids: inputs::ids(job.batch, job.vocab, 5) }))
}

impl Tokens {
    fn step(&mut self) -> Result<Vec<Vec<f32>>> {
        let tokens = TokenMeta::contiguous(self.ids.len(), 1, self.generator.len());
        self.generator.feed_rows(&self.ids, &tokens)
    }
}

impl Work for Tokens {
    /// The cache grows by a token a run: by less than what its length is rounded to.
    fn run(&mut self, times: usize) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..times {
            self.step()?;
        }
        Ok(start.elapsed().as_secs_f64() / times as f64)
    }

    fn probe(&mut self) -> Result<Probe> {
        Ok(vec![Found::of("logits", &self.step()?.concat())])
    }
}
