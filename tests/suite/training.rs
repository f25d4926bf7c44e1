//! The trainer: gradients, accumulation, optimizer, faults, resuming.

mod accumulation;
mod checkpoint;
mod faults;
mod growth;
mod muon;
mod optimizer;
mod resume;
mod session;
mod strategies;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor};
use longburn::Result;
use longburn::attention::MixerConfig;
use longburn::datasets::{Side, TokenBatch};
use longburn::models::keymap::{params, read_params};
use longburn::models::{Decoder, ForwardOptions, ModelConfig};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::training::{GradientSum, Objective, Step, TrainStrategy};
use std::collections::BTreeMap;

const VOCAB: usize = 40;

fn config(tied: bool) -> ModelConfig {
    let mut config = ModelConfig::llama(VOCAB, 16, 2, 2);
    config.tie_word_embeddings = tied;
    config.num_key_value_heads = 1;
    config
}

fn decoder(tied: bool) -> Decoder {
    Decoder::new(&config(tied), &MixerConfig::Dense, 3, &Device::flex()).unwrap()
}

/// Rows of random tokens of these lengths, padded to the longest.
fn batch(seed: u64, lengths: &[usize]) -> TokenBatch {
    let mut rng = Streams::new(seed).rng(Purpose::Synthetic, 0, 0, 0);
    let row = |n: &usize| (0..*n).map(|_| rng.below(VOCAB) as u32).collect();
    TokenBatch::from_rows(lengths.iter().map(row).collect(), Side::Right, 0).unwrap()
}

/// Values of all parameters, trainable or not.
fn weights<M: Module>(model: &M) -> BTreeMap<String, Vec<f32>> {
    read_params(model, |_| true).into_iter().map(|(path, _, data)| (path, data)).collect()
}

fn bits(values: &BTreeMap<String, Vec<f32>>) -> BTreeMap<&str, Vec<u32>> {
    let of = |(name, v): (_, &Vec<f32>)| {
        let name: &String = name;
        (name.as_str(), v.iter().map(|x| x.to_bits()).collect())
    };
    values.iter().map(of).collect()
}

/// Gradients of one micro-batch by path.
fn gradients<M, O>(
    model: &M,
    objective: &O,
    strategy: &impl TrainStrategy<M, O>,
    batch: &O::Batch,
) -> Result<BTreeMap<String, Vec<f32>>>
where
    M: Module,
    O: Objective<M>,
{
    struct Walk<'a>(&'a GradientSum, Vec<(ParamId, Vec<f32>)>);
    impl ModuleVisitor for Walk<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.0.get::<D>(param.id) {
                self.1.push((param.id, grad.into_data().iter::<f32>().collect()));
            }
        }
    }
    let mut sum = GradientSum::new();
    strategy.accumulate(model, objective, batch, &ForwardOptions::train(), &mut sum)?;
    let mut walk = Walk(&sum, Vec::new());
    model.visit(&mut walk);
    let paths: BTreeMap<_, _> = params(model).into_iter().map(|p| (p.id, p.path)).collect();
    Ok(walk.1.into_iter().map(|(id, grad)| (paths[&id].clone(), grad)).collect())
}

/// RMS(a - b) / RMS(b)
fn ratio(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let off: f64 = a.iter().zip(b).map(|(a, b)| square((a - b).into())).sum();
    let size: f64 = b.iter().map(|b| square((*b).into())).sum();
    (off / size.max(1e-30)).sqrt()
}

/// An observer that does nothing.
fn silent<M>(_: &Step<'_, M>) -> Result<()> {
    Ok(())
}
