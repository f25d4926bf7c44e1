//! The frequencies of each kind of scaling, in f64, and the factor on cosines and sines.

use super::kind::{LongRope, RopeKind, Yarn};
use std::f64::consts::TAU;

/// f_i = θ^(−2i/d), `[d/2]`
fn base(theta: f64, dim: usize) -> impl Iterator<Item = f64> {
    (0..dim / 2).map(move |i| theta.powf(-2.0 * i as f64 / dim as f64))
}

/// θ·α^(d/(d−2)): the first frequency stays, the last is divided by α.
pub(super) fn ntk_base(theta: f64, dim: usize, alpha: f64) -> f64 {
    theta * alpha.powf(dim as f64 / (dim as f64 - 2.0))
}

/// Radians per position for a sequence of `length` tokens, `[dim/2]`.
pub(super) fn frequencies(kind: &RopeKind, theta: f64, dim: usize, length: usize) -> Vec<f64> {
    match kind {
        RopeKind::Default => base(theta, dim).collect(),
        RopeKind::Linear { factor } => base(theta, dim).map(|f| f / factor).collect(),
        RopeKind::Dynamic { factor, original_max_position_embeddings: original } => {
            let stretch = length.max(*original) as f64 / *original as f64;
            base(ntk_base(theta, dim, factor * stretch - (factor - 1.0)), dim).collect()
        }
        RopeKind::Yarn(settings) => yarn(settings, theta, dim),
        RopeKind::ByParts { factor, beta_slow, beta_fast, original_max_position_embeddings } => {
            let kept = |f: f64| {
                let turns = *original_max_position_embeddings as f64 * f / TAU;
                // Equal bounds make a step.
                if beta_fast == beta_slow {
                    f64::from(u8::from(turns > *beta_slow))
                } else {
                    ((turns - beta_slow) / (beta_fast - beta_slow)).clamp(0.0, 1.0)
                }
            };
            base(theta, dim).map(|f| blend(f, *factor, kept(f))).collect()
        }
        RopeKind::LongRope(settings) => {
            let LongRope { short_factor, long_factor, .. } = settings;
            let long = length > settings.original_max_position_embeddings;
            let divisors = if long { long_factor } else { short_factor };
            base(theta, dim).zip(divisors).map(|(f, lambda)| f / lambda).collect()
        }
        RopeKind::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original,
        } => {
            let kept = |f: f64| ((*original as f64 * f / TAU - low) / (high - low)).clamp(0.0, 1.0);
            base(theta, dim).map(|f| blend(f, *factor, kept(f))).collect()
        }
        RopeKind::Proportional { factor, partial_rotary_factor: share } => {
            let rotating = (share * dim as f64 / 2.0).floor() as usize;
            let one = |(i, f)| if i < rotating { f / factor } else { 0.0 };
            base(theta, dim).enumerate().map(one).collect()
        }
    }
}

/// `f` where `kept` is 1, `f / factor` where it is 0.
fn blend(f: f64, factor: f64, kept: f64) -> f64 {
    (1.0 - kept) * f / factor + kept * f
}

/// A ramp over the index of the pair, from where f_i turns `beta_fast` times within L to where it
/// turns `beta_slow` times.
fn yarn(settings: &Yarn, theta: f64, dim: usize) -> Vec<f64> {
    let original = settings.original_max_position_embeddings as f64;
    let index = |turns: f64| dim as f64 * (original / (turns * TAU)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (index(settings.beta_fast), index(settings.beta_slow));
    if settings.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    // The upper end is that of channels, though the ramp counts pairs: what checkpoints rely on.
    (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
    if low == high {
        high += 0.001;
    }
    let kept = |i: usize| 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
    base(theta, dim).enumerate().map(|(i, f)| blend(f, settings.factor, kept(i))).collect()
}

/// What cosines and sines are multiplied by; logits get its square.
pub(super) fn attention_factor(kind: &RopeKind) -> f64 {
    match kind {
        RopeKind::Yarn(Yarn { attention_factor: Some(a), .. })
        | RopeKind::LongRope(LongRope { attention_factor: Some(a), .. }) => *a,
        RopeKind::Yarn(yarn) => {
            let m = |scale: f64| match yarn.factor {
                s if s <= 1.0 => 1.0,
                s => 0.1 * scale * s.ln() + 1.0,
            };
            match (yarn.mscale, yarn.mscale_all_dim) {
                (Some(one), Some(all)) if one != 0.0 && all != 0.0 => m(one) / m(all),
                _ => m(1.0),
            }
        }
        RopeKind::LongRope(long) if long.factor > 1.0 => {
            let original = long.original_max_position_embeddings as f64;
            (1.0 + long.factor.ln() / original.ln()).sqrt()
        }
        _ => 1.0,
    }
}
