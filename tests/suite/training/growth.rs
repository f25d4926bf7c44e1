//! P6: a run does not grow.

use super::{VOCAB, batch, silent};
use crate::alloc::measure;
use burn::tensor::{Device, Tensor};
use longburn::attention::MixerConfig;
use longburn::kernel::fused::matmul_detached;
use longburn::models::{Decoder, ModelConfig};
use longburn::training::{NextToken, TrainConfig, Trainer};

/// Most bytes held at one time in a run of so many steps.
fn peak(steps: u64) -> usize {
    // Large enough that tensors, not the bookkeeping around them, make up the memory: the working space of a thread is
    // as large as a core's cache.
    let config = ModelConfig::llama(VOCAB, 160, 2, 2);
    let usage = measure(|| {
        working_space();
        let model = Decoder::new(&config, &MixerConfig::Dense, 3, &Device::flex()).unwrap();
        let mut data = |step: u64, _| Ok(Some(batch(step % 7, &[64, 50])));
        let config = TrainConfig::new(steps, 1e-3).with_clip(1.0);
        Trainer::new(config).unwrap().fit(model, &NextToken, &mut data, &mut silent).unwrap()
    });
    usage.peak
}

/// Every thread that multiplies keeps working space from its first product on; small products may
/// leave a thread without one for long, on a busy machine above all, so that each is given some. Less is
/// held here than in the run.
fn working_space() {
    let (a, b) = ([96, 1024], [1024, 64]);
    let one = |shape: [usize; 2]| Tensor::<2>::ones(shape, &Device::flex());
    rayon::broadcast(|_| {
        for _ in 0..100 {
            drop(one(a).matmul(one(b)));
            drop(matmul_detached(one([1024, 96]).transpose(), one(b)));
        }
    });
}

#[test]
fn p6_memory_does_not_grow_with_the_steps() {
    let (few, many) = (peak(30), peak(300));
    let ratio = many as f64 / few as f64;
    assert!(ratio <= 1.10, "{few} bytes after 30 steps, {many} after 300: {ratio:.3}");
}
