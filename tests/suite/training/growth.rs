//! P6: a run does not grow.

use super::{batch, decoder, silent};
use crate::alloc::measure;
use longburn::training::{NextToken, TrainConfig, Trainer};

/// Most bytes held at one time in a run of so many steps.
fn peak(steps: u64) -> usize {
    let usage = measure(|| {
        let mut data = |step: u64, _| Ok(Some(batch(step % 7, &[24, 17])));
        let config = TrainConfig::new(steps, 1e-3).with_clip(1.0);
        Trainer::new(config)
            .unwrap()
            .fit(decoder(true), &NextToken, &mut data, &mut silent)
            .unwrap()
    });
    usage.peak
}

#[test]
fn p6_memory_does_not_grow_with_the_steps() {
    let (few, many) = (peak(30), peak(300));
    for n in [30, 100, 300, 1000] {
        println!("{n}: {}", peak(n));
    }
    let ratio = many as f64 / few as f64;
    assert!(ratio <= 1.10, "{few} bytes after 30 steps, {many} after 300: {ratio:.3}");
}
