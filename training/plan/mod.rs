//! What a training run will hold in memory, computed before it runs and without a device.
//!
//! The plan walks through one step of the trainer in the order in which it allocates and frees
//! (`step`, `block`), and takes the fullest moment. It counts tensors of f32, as the CPU computes, and
//! refuses to plan a run in bf16;
//! not counted are the program itself, the text, token attributes and masks (some 20 bytes per
//! token and block), and what the system's allocator keeps of freed memory.

mod block;
mod fast_weights;
mod gate;
mod layout;
mod ledger;
mod memory;
mod own;
mod recipe;
mod remedy;
mod resident;
mod state_space;
mod step;
mod tape;
mod text;

pub use ledger::{Part, PartBytes};
pub use recipe::RecipePlan;
pub use remedy::Remedy;
pub use resident::Resident;
pub use text::{bytes, parse_bytes};

use crate::attention::{Compute, MixerConfig, MixerSchedule};
use crate::error::check_sizes;
use crate::models::ModelConfig;
use crate::models::lora::LoraConfig;
use crate::training::Strategy;
use crate::{Error, Result};
use layout::Layout;
use serde::Serialize;
use std::collections::BTreeMap;

/// Working space of our matrix products, bytes per thread: packed parts of both sides.
const SLAB: u64 = (512 + 64) << 10;
/// The same of the library that multiplies for Burn, on each thread that it once ran on: as much as
/// the second-level cache has, as the library finds it, commonly 512 KiB to 2 MiB.
fn library_slab() -> u64 {
    gemm_common::cache::CACHE_INFO[1].cache_bytes as u64
}
/// Numbers of a matrix up to which Muon's products are small enough for one thread.
const ON_ONE_THREAD: u64 = 192 * 192;

/// What is planned: a model and the shape of a training step.
///
/// ```
/// use longburn::models::ModelConfig;
/// use longburn::training::plan::PlanConfig;
/// use longburn::training::Strategy;
/// let model = ModelConfig::llama(32_000, 512, 8, 8);
/// let plain = PlanConfig::new(model, 8192);
/// let recompute = plain.clone().with_strategy(Strategy::Recompute);
/// assert!(recompute.init()?.peak < plain.init()?.peak / 2);
/// # Ok::<(), longburn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct PlanConfig {
    /// The model.
    pub model: ModelConfig,
    /// The mixers of its blocks.
    pub mixer: MixerSchedule,
    /// Low-rank adaptation; without it all parameters train.
    pub lora: Option<LoraConfig>,
    /// Whether Muon updates the matrices inside the blocks.
    pub muon: bool,
    /// Tokens per row.
    pub length: usize,
    /// Rows per micro-batch.
    pub batch: usize,
    /// Micro-batches per step.
    pub micro_batches: u32,
    /// Micro-batches computed at the same time.
    pub workers: u32,
    /// How gradients come about.
    pub strategy: Strategy,
    /// What matrix products and attention compute in.
    pub compute: Compute,
    /// Threads of the CPU, each of which has working space of its own.
    pub threads: usize,
}

impl PlanConfig {
    /// One row of `length` tokens at a time, all parameters, one graph.
    pub fn new(model: ModelConfig, length: usize) -> Self {
        Self {
            model,
            mixer: MixerSchedule::Own,
            lora: None,
            muon: false,
            length,
            batch: 1,
            micro_batches: 1,
            workers: 1,
            strategy: Strategy::Plain,
            compute: Compute::F32,
            threads: rayon::current_num_threads(),
        }
    }

    /// The mixers.
    pub fn with_mixer(mut self, mixer: impl Into<MixerSchedule>) -> Self {
        self.mixer = mixer.into();
        self
    }

    /// Low-rank adaptation, or none.
    pub fn with_lora(mut self, lora: Option<LoraConfig>) -> Self {
        self.lora = lora;
        self
    }

    /// Muon for the matrices inside the blocks.
    pub fn with_muon(mut self, muon: bool) -> Self {
        self.muon = muon;
        self
    }

    /// Tokens per row.
    pub fn with_length(mut self, length: usize) -> Self {
        self.length = length;
        self
    }

    /// Rows per micro-batch.
    pub fn with_batch(mut self, batch: usize) -> Self {
        self.batch = batch;
        self
    }

    /// Micro-batches per step, and how many of them at the same time.
    pub fn with_micro_batches(mut self, micro_batches: u32, workers: u32) -> Self {
        (self.micro_batches, self.workers) = (micro_batches, workers);
        self
    }

    /// How gradients come about.
    pub fn with_strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// What matrix products and attention compute in.
    pub fn with_compute(mut self, compute: Compute) -> Self {
        self.compute = compute;
        self
    }

    /// Threads of the CPU.
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Compute the plan.
    ///
    /// # Errors
    /// [`Error::Config`] for a size of 0 or mixers that do not fit the layers;
    /// [`Error::Unsupported`] for a mixer whose memory is not known here (LongLoRA's rolled form), and
    /// for a run in bf16.
    pub fn init(&self) -> Result<MemoryPlan> {
        if self.compute != Compute::F32 {
            return Err(Error::Unsupported {
                what: format!(
                    "a memory plan of a run that computes in {}, whose activations are not those that \
                     are counted here",
                    self.compute.name()
                ),
                remedy:
                    "plan it with train.compute = \"f32\", or train without train.device_memory \
                         and --device-memory"
                        .into(),
            });
        }
        let sizes = &[
            ("length", self.length),
            ("batch", self.batch),
            ("micro_batches", self.micro_batches as usize),
            ("workers", self.workers as usize),
        ];
        check_sizes("plan", sizes)?;
        let mixers = self.mixer.resolve(&self.model.mixers)?;
        let (model, tokens) = (&self.model, self.length as f64 * self.batch as f64);
        mixers.iter().try_for_each(|mixer| mixer.check_sizes(model.hidden_size))?;
        let own = |mixer: &MixerConfig| {
            let all = mixer.own_weights(model.hidden_size);
            let floats = |shape: &[usize]| shape.iter().map(|side| *side as f64).product::<f64>();
            all.iter().map(|(_, shape)| floats(shape)).sum::<f64>()
        };
        let own = mixers.iter().map(own).fold(0.0, f64::max);
        let widths = [model.hidden_size, model.intermediate_size, model.vocab_size]
            .into_iter()
            .chain([model.num_attention_heads.saturating_mul(model.head_dim)]);
        let widest = widths.max().unwrap_or(0) as f64;
        // Sums of bytes stay far below the largest number. What a mixer with weights of its own keeps of
        // a token is less than these.
        let of_layer = (64.0 * tokens + 8.0 * widest) * widest + (16.0 * tokens + 8.0) * own;
        if of_layer * model.num_hidden_layers as f64 > 1e18 {
            let value = format!("{} × {} tokens", self.batch, self.length);
            let expected = "rows of which this model's numbers can be counted";
            return Err(Error::config("plan", "batch and length", value, expected));
        }
        let layout = Layout::new(self, &mixers)?;
        let ledger = step::step(self, &layout);
        let working = SLAB * self.threads as u64 + library_slab() * self.library_threads(&layout);
        let remembered: u64 = mixers.iter().map(|mixer| memory::of_row(self, mixer)).sum();
        Ok(MemoryPlan {
            peak: ledger::sum(&ledger.at_peak) + working,
            moment: ledger.moment,
            parts: BTreeMap::from(Part::ALL.map(|part| (part, ledger.at_peak[part as usize]))),
            working,
            block: step::kept_by_block(self, &layout),
            kv_cache: 4 * remembered,
            length: self.length,
            batch: self.batch,
            workers: self.workers.min(self.micro_batches),
            strategy: self.strategy,
        })
    }

    /// Threads on which the library multiplies: for products of mixers, and for Muon's.
    fn library_threads(&self, layout: &Layout) -> u64 {
        let of_mixers = layout.mixers.iter().flatten().any(|own| own.trace(true).by_library);
        match (of_mixers, self.muon) {
            (true, _) => self.threads as u64,
            (false, true) if layout.largest() > ON_ONE_THREAD => self.threads as u64,
            (false, muon) => u64::from(muon),
        }
    }
}

/// What a training step holds when it holds most, bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemoryPlan {
    /// All of it.
    pub peak: u64,
    /// When.
    pub moment: String,
    /// By part of the model, at that moment.
    pub parts: BTreeMap<Part, PartBytes>,
    /// Working space of matrix products.
    pub working: u64,
    /// What the graph of *one* block keeps of one micro-batch, by part.
    pub block: BTreeMap<Part, u64>,
    /// Keys, values and states of one row of `length` tokens in generation; not part of the peak.
    pub kv_cache: u64,
    /// Tokens per row.
    pub length: usize,
    /// Rows per micro-batch.
    pub batch: usize,
    /// Micro-batches at the same time.
    pub workers: u32,
    /// How gradients come about.
    pub strategy: Strategy,
}

impl MemoryPlan {
    /// The sums over all parts.
    pub fn total(&self) -> PartBytes {
        self.parts.values().fold(PartBytes::default(), |sum, part| PartBytes {
            parameters: sum.parameters + part.parameters,
            gradients: sum.gradients + part.gradients,
            optimizer: sum.optimizer + part.optimizer,
            activations: sum.activations + part.activations,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{LactConfig, Mamba1Config};

    fn plan(hidden: usize) -> PlanConfig {
        PlanConfig::new(ModelConfig::llama(16, hidden, 1, 2), 1).with_threads(3)
    }

    /// Ours on every thread; the library's on those that it multiplies on.
    #[test]
    fn working_space_is_that_of_those_who_multiply() {
        let working = |plan: PlanConfig| plan.init().unwrap().working;
        assert_eq!(working(plan(8)), 3 * SLAB);
        let mamba = MixerConfig::Mamba1(Mamba1Config::new());
        assert_eq!(working(plan(8).with_mixer(mamba)), 3 * SLAB);
        let lact = MixerConfig::Lact(LactConfig::new().with_fast_heads(2).with_low_rank(0));
        assert_eq!(working(plan(8).with_mixer(lact)), 3 * SLAB + 3 * library_slab());
        // Muon's matrices, the largest 8 by 24 or 192 by 512.
        assert_eq!(working(plan(8).with_muon(true)), 3 * SLAB + library_slab());
        assert_eq!(working(plan(192).with_muon(true)), 3 * SLAB + 3 * library_slab());
    }

    /// Of a model of which most is weights the update is the fullest moment.
    #[test]
    fn muon_updates_a_matrix_in_five_of_its_size() {
        let (hidden, inner) = (64, 176);
        let matrices = 4 * hidden * hidden + 3 * hidden * inner;
        let others = 2 * 16 * hidden + 3 * hidden;
        let all = 4 * (matrices + others) as u64;
        for (muon, at_once, moments) in
            [(false, 1, 2 * all), (true, 5, 2 * all - 4 * matrices as u64)]
        {
            let plan = plan(hidden).with_muon(muon).init().unwrap();
            assert_eq!(plan.moment, "update of the weights");
            let total = plan.total();
            assert_eq!((total.parameters, total.optimizer), (all, moments));
            assert_eq!(total.gradients, all + at_once * 4 * (hidden * inner) as u64);
        }
    }
}
