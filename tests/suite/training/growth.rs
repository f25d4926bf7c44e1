//! P6: a run does not grow.

use super::{VOCAB, batch, silent};
use crate::alloc::measure;
use burn::tensor::{Device, Tensor};
use longburn::attention::MixerConfig;
use longburn::models::{Decoder, ModelConfig};
use longburn::training::{NextToken, TrainConfig, Trainer};

/// Most bytes held at one time in a run of so many steps.
fn peak(steps: u64) -> usize {
    // Large enough that tensors, not the bookkeeping around them, make up the memory.
    let config = ModelConfig::llama(VOCAB, 64, 2, 2);
    let usage = measure(|| {
        let model = Decoder::new(&config, &MixerConfig::Dense, 3, &Device::flex()).unwrap();
        let mut data = |step: u64, _| Ok(Some(batch(step % 7, &[64, 50])));
        let config = TrainConfig::new(steps, 1e-3).with_clip(1.0);
        Trainer::new(config).unwrap().fit(model, &NextToken, &mut data, &mut silent).unwrap()
    });
    usage.peak
}

#[test]
fn p6_memory_does_not_grow_with_the_steps() {
    // Every thread that multiplies keeps working space from its first product on; small products
    // may leave a thread without one for long.
    let one = Tensor::<2>::ones([1024, 1024], &Device::flex());
    (0..20).for_each(|_| drop(one.clone().matmul(one.clone())));
    let (few, many) = (peak(30), peak(300));
    let ratio = many as f64 / few as f64;
    assert!(ratio <= 1.10, "{few} bytes after 30 steps, {many} after 300: {ratio:.3}");
}
