//! What a mixer remembers of one row in generation.

use super::PlanConfig;
use crate::attention::MixerConfig;
use crate::attention::lact::WeightNorm;
use crate::attention::seer::GateKind;

/// Numbers behind `plan.length` tokens: keys and values, or states, whose sizes do not grow.
pub(super) fn of_row(plan: &PlanConfig, mixer: &MixerConfig) -> u64 {
    let (model, len) = (&plan.model, plan.length as u64);
    let hidden = model.hidden_size;
    let [heads, key_heads, head_dim] =
        [model.num_attention_heads, model.num_key_value_heads, model.head_dim];
    let numbers = |sizes: &[usize]| sizes.iter().map(|size| *size as u64).product::<u64>();
    let dense = 2 * len * numbers(&[key_heads, head_dim]);
    match mixer {
        MixerConfig::Dense | MixerConfig::LongLora(_) | MixerConfig::Anchor => dense,
        MixerConfig::LongGen(config) => {
            let kept = config.peak_tokens(plan.length, heads, key_heads);
            2 * kept.iter().map(|tokens| *tokens as u64).sum::<u64>() * head_dim as u64
        }
        MixerConfig::Seer(config)
            if config.gate == GateKind::Prefill || config.select.is_none() =>
        {
            dense
        }
        MixerConfig::Seer(config) => {
            let wide = config.gate_dim.unwrap_or(head_dim);
            let blocks = plan.length.div_ceil(config.block.max(1));
            let open = config.block.min(plan.length);
            dense + numbers(&[key_heads, blocks * wide + open * head_dim])
        }
        MixerConfig::Mamba1(config) => {
            numbers(&[config.inner(hidden), config.d_conv + config.d_state])
        }
        MixerConfig::Mamba2(config) => {
            let (inner, state) = (config.inner(hidden), config.d_state);
            let convolved = inner + 2 * config.n_groups * state;
            numbers(&[config.d_conv, convolved]) + numbers(&[inner, state])
        }
        MixerConfig::Lact(config) => {
            let (d, d_h) = config.widths(hidden).unwrap_or_default();
            let copies =
                1 + usize::from(config.momentum) + usize::from(config.norm == WeightNorm::Pre);
            let rates = config.fast_heads * (3 + usize::from(config.momentum));
            let buffer = config.chunk.min(plan.length);
            // The window of the next token holds that token, too.
            let window = config.window.saturating_sub(1).clamp(1, plan.length);
            numbers(&[2, window, hidden])
                + numbers(&[3 * copies, config.fast_heads, d, d_h])
                + numbers(&[buffer, 2 * hidden + rates])
        }
    }
}
