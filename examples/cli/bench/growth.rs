//! Whether a run grows: peak of memory early and at the end, over rows of varying lengths.

use super::job::GrowthJob;
use crate::Globals;
use longburn::attention::MixerConfig;
use longburn::datasets::{Row, Side, TokenBatch};
use longburn::models::{Decoder, ModelConfig};
use longburn::training::plan::Resident;
use longburn::training::{NextToken, TrainConfig, Trainer};
use longburn::{Error, Result};
use serde_json::{Value, json};
use std::time::Instant;

const VOCAB: usize = 512;

/// The run, in this process: both peaks beyond what there was before it, and seconds per step.
pub fn child(job: &GrowthJob, globals: &Globals) -> Result<Value> {
    let device = globals.device.open()?;
    let unknown = || Error::Unsupported {
        what: "memory of a process on this system".into(),
        remedy: "measure on Linux".into(),
    };
    let base = Resident::read().ok_or_else(unknown)?.now;
    let config = ModelConfig::llama(VOCAB, job.width, 2, 2).with_max_positions(job.longest);
    let model = Decoder::new(&config, &MixerConfig::Dense, 0, &device)?;
    let longest = job.longest;
    let mut data = |step: u64, _: u32| {
        let ids = super::inputs::ids(length(longest, step), VOCAB, step);
        TokenBatch::stack(vec![Row::single(ids, None, "bench")], Side::Right, 0).map(Some)
    };
    let mut peaks = Vec::new();
    let start = Instant::now();
    Trainer::new(TrainConfig::new(job.steps, 1e-3).with_clip(1.0))?.fit(
        model,
        &NextToken,
        &mut data,
        &mut |step| {
            if step.report.step == job.early || step.report.step == job.steps {
                peaks.push(Resident::read().ok_or_else(unknown)?.peak.saturating_sub(base));
            }
            Ok(())
        },
    )?;
    let seconds = start.elapsed().as_secs_f64() / job.steps as f64;
    Ok(json!({ "peaks": peaks, "seconds": seconds }))
}

/// The longest row comes every seventh step, so that later ones have no reason to take more.
fn length(longest: usize, step: u64) -> usize {
    longest - (step % 7) as usize * longest / 14
}

#[cfg(test)]
mod tests {
    use super::length;
    use std::collections::HashSet;

    #[test]
    fn rows_are_of_seven_lengths_from_half_of_the_longest() {
        let lengths: HashSet<usize> = (0..300).map(|step| length(512, step)).collect();
        assert_eq!(lengths.len(), 7);
        assert_eq!((lengths.iter().min(), lengths.iter().max()), (Some(&293), Some(&512)));
        assert_eq!((length(512, 0), length(512, 7), length(512, 300)), (512, 512, length(512, 6)));
        assert!((0..7).all(|step| length(1, step) == 1));
    }
}
