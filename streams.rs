//! Counter-based random streams: the same numbers for the same purpose, step, micro-batch and
//! layer, in whatever order and on whatever thread they are asked for.
//!
//! Recompute, resume and parallel tests replay them, because nothing is drawn from a shared
//! generator.

use rand_chacha::ChaCha8Rng;
pub use rand_chacha::rand_core::RngCore;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

/// Words of 32 bits of a stream that [`Draw::unit`] takes, for those who begin in the middle of one.
pub const WORDS_OF_UNIT: u128 = 2;
/// The same of [`Draw::normal`].
pub const WORDS_OF_NORMAL: u128 = 2 * WORDS_OF_UNIT;

/// What random numbers are for; streams of different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Initial weights.
    Init = 0,
    /// Dropout masks.
    Dropout = 1,
    /// Tokens drawn in generation.
    Sampling = 2,
    /// Order of documents.
    Shuffle = 3,
    /// Windows cut from documents.
    Window = 4,
    /// Synthetic tasks.
    Synthetic = 5,
}

/// The random streams of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    seed: u64,
}

impl Streams {
    /// Streams of a run with this seed.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The seed of the run.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The generator of one (purpose, step, micro-batch, layer), from its beginning.
    pub fn rng(&self, purpose: Purpose, step: u64, micro_batch: u32, layer: u32) -> ChaCha8Rng {
        // The four counters fill the 256-bit key, so no two streams can share one.
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&step.to_le_bytes());
        key[16..20].copy_from_slice(&micro_batch.to_le_bytes());
        key[20..24].copy_from_slice(&layer.to_le_bytes());
        key[24..].copy_from_slice(&(purpose as u64).to_le_bytes());
        ChaCha8Rng::from_seed(key)
    }
}

/// Draws from a generator; the same on every platform.
pub trait Draw: RngCore {
    /// Uniform in `[0, 1)`.
    fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`; 0 where `n` is 0.
    fn below(&mut self, n: usize) -> usize {
        // Multiply-shift: the bias is below n / 2^64.
        ((self.next_u64() as u128 * n as u128) >> 64) as usize
    }

    /// Standard normal (Box-Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Put `items` into random order (Fisher-Yates).
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

impl<R: RngCore + ?Sized> Draw for R {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_selects_its_own_stream() {
        let first =
            |s: u64, p, step, micro, layer| Streams::new(s).rng(p, step, micro, layer).next_u64();
        let base = first(7, Purpose::Window, 3, 1, 2);
        assert_eq!(base, first(7, Purpose::Window, 3, 1, 2));
        for other in [
            first(8, Purpose::Window, 3, 1, 2),
            first(7, Purpose::Shuffle, 3, 1, 2),
            first(7, Purpose::Window, 4, 1, 2),
            first(7, Purpose::Window, 3, 2, 2),
            first(7, Purpose::Window, 3, 1, 3),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn a_stream_can_be_entered_at_any_normal() {
        let start = Streams::new(3).rng(Purpose::Init, 0, 0, 1);
        let (mut all, mut late) = (start.clone(), start);
        let all: Vec<f64> = (0..9).map(|_| all.normal()).collect();
        late.set_word_pos(5 * WORDS_OF_NORMAL);
        assert_eq!(all[5..], [late.normal(), late.normal(), late.normal(), late.normal()]);
    }

    #[test]
    fn draws_have_their_moments() {
        let mut rng = Streams::new(0).rng(Purpose::Init, 0, 0, 0);
        let n = 20_000;
        let (mut sum, mut square, mut unit) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            let x = rng.normal();
            sum += x;
            square += x * x;
            unit += rng.unit();
        }
        let n = n as f64;
        assert!((sum / n).abs() < 0.03 && (square / n - 1.0).abs() < 0.05);
        assert!((unit / n - 0.5).abs() < 0.01);
        let mut seen = [0; 5];
        (0..5_000).for_each(|_| seen[rng.below(5)] += 1);
        assert!(seen.iter().all(|c| (850..1150).contains(c)), "{seen:?}");
    }
}
