//! Greedy generation with a cache.

use super::Work;
use crate::bench::inputs;
use crate::bench::job::GenerateJob;
use crate::bench::probe::{Found, Probe};
use burn::tensor::Device;
use longburn::Result;
use longburn::attention::MixerConfig;
use longburn::models::generate::Generator;
use longburn::models::{Blocks, Decoder, GenerateConfig, generate};
use std::time::Instant;

struct Texts {
    model: Decoder,
    prompt: Vec<u32>,
    config: GenerateConfig,
}

pub fn ours(job: &GenerateJob, device: &Device) -> Result<Box<dyn Work>> {
    let model = Decoder::load(&job.folder, &MixerConfig::Dense, device)?;
    let prompt = inputs::ids(job.prompt, model.config().vocab_size, 5);
    // No stop id: every text has as many tokens.
    let config = GenerateConfig::new().with_max_new_tokens(job.new);
    Ok(Box::new(Texts { model, prompt, config }))
}

impl Work for Texts {
    fn run(&mut self, times: usize) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..times {
            generate(&self.model, &self.prompt, &self.config, |_| {})?;
        }
        Ok(start.elapsed().as_secs_f64() / times as f64)
    }

    /// Logits behind the prompt: of random weights, later tokens may differ by a rounding.
    fn probe(&mut self) -> Result<Probe> {
        let logits = Generator::new(&self.model).feed(&self.prompt)?;
        Ok(vec![Found::of("logits", &logits)])
    }
}
