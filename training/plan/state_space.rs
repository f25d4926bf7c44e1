//! Mamba and Mamba-2, as their layers compute.

use super::own::{Parts, Sizes};
use super::tape::{Tape, Value};
use crate::attention::{Mamba1Config, Mamba2Config};
use crate::kernel::scan;

/// See `attention/mamba1.rs`.
pub(super) fn mamba1(
    tape: &Tape,
    x: Value,
    sizes: Sizes,
    config: &Mamba1Config,
    parts: &Parts,
) -> Value {
    let (tokens, hidden) = (sizes.tokens(), sizes.hidden as usize);
    let [e, r, n] =
        [config.inner(hidden), config.rank(hidden), config.d_state].map(|size| size as u64);
    let xz = tape.linear(&x, tokens, parts.layer("in_proj"));
    drop(x);
    let [u, z] = [tokens * e; 2].map(|floats| tape.narrow(&xz, floats));
    drop(xz);
    let u = convolved(tape, u, sizes, (e, config.d_conv as u64), parts);
    let dbc = tape.linear(&u, tokens, parts.layer("x_proj"));
    let [low, b, c] = [r, n, n].map(|width| tape.narrow(&dbc, tokens * width));
    drop(dbc);
    let delta = tape.linear(&low, tokens, parts.layer("dt_proj"));
    drop(low);
    let a = tape.scaled(tape.function(tape.weights(parts.weights("A_log"))));
    let d = tape.weights(parts.weights("D"));
    let h0 = tape.made(sizes.batch * n * e);
    let inputs = [&u, &delta, &a, &b, &c, &d, &z];
    let shape = [sizes.batch, sizes.len, e].map(|size| size as usize);
    let (states, scratch) = scan::selective_memory(shape, n as usize, sizes.threads);
    let states = tape.made(if tape.tracks(&inputs) { states as u64 } else { 1 });
    let keeps = [&u, &delta, &a, &b, &c, &z, &h0, &states];
    let y = tape.op(&inputs, tokens * e, &keeps, (n * e, scratch as u64));
    drop((u, delta, a, b, c, z, h0, states));
    tape.linear(&y, tokens, parts.layer("out_proj"))
}

/// See `attention/mamba2.rs` and the scan by matrix products.
pub(super) fn mamba2(
    tape: &Tape,
    x: Value,
    sizes: Sizes,
    config: &Mamba2Config,
    parts: &Parts,
) -> Value {
    let (tokens, hidden) = (sizes.tokens(), sizes.hidden as usize);
    let (e, heads) = (config.inner(hidden) as u64, config.heads(hidden).max(1) as u64);
    let (groups, n) = (config.n_groups as u64, config.d_state as u64);
    let all = tape.linear(&x, tokens, parts.layer("in_proj"));
    drop(x);
    let channels = e + 2 * groups * n;
    let [z, stream, dt] = [e, channels, heads].map(|width| tape.narrow(&all, tokens * width));
    drop(all);
    let xbc = convolved(tape, stream, sizes, (channels, config.d_conv as u64), parts);
    let [x, b, c] = [e, groups * n, groups * n].map(|width| tape.narrow(&xbc, tokens * width));
    drop(xbc);
    let mut dt = softplus(tape, tape.add(dt, tape.weights(parts.weights("dt_bias"))));
    if config.dt_limit.is_some() {
        dt = tape.function(tape.function(dt));
    }
    let a = tape.scaled(tape.function(tape.weights(parts.weights("A_log"))));
    let decay = tape.mul(dt.clone(), a);
    let h0 = tape.made(sizes.batch * n * e);
    let d = tape.weights(parts.weights("D"));
    let inputs = [&x, &dt, &decay, &b, &c, &d];
    let keeps = [&x, &dt, &decay, &b, &c, &d, &h0];
    let shape = [sizes.batch, sizes.len, heads, e / heads].map(|size| size as usize);
    let of_groups = [config.n_groups, config.d_state];
    let scratch = scan::ssd_memory(shape, of_groups, config.chunk, sizes.threads);
    let y = tape.op(&inputs, tokens * e, &keeps, (0, scratch as u64));
    drop((x, dt, decay, b, c, d, h0));
    let y = match config.rms_norm {
        true => normed(tape, y, z, tokens * e, config, parts),
        false => gated(tape, z, y, tokens * e),
    };
    tape.linear(&y, tokens, parts.layer("out_proj"))
}

/// silu(z) · y, by the kernel that makes both contiguous.
fn gated(tape: &Tape, z: Value, y: Value, floats: u64) -> Value {
    tape.op(&[&z, &y], floats, &[&z, &y], (floats, floats))
}

fn normed(
    tape: &Tape,
    y: Value,
    z: Value,
    floats: u64,
    config: &Mamba2Config,
    parts: &Parts,
) -> Value {
    let weight = tape.weights(parts.weights("norm.weight"));
    let before = config.norm_before_gate;
    let y = if before { y } else { gated(tape, z.clone(), y, floats) };
    let y = match config.norm_groups.unwrap_or(config.n_groups) {
        1 => tape.op(&[&y, &weight], floats, &[&y], (0, 0)),
        _ => {
            let normed = tape.op(&[&y], floats, &[&y], (0, 0));
            drop(y);
            tape.mul(normed, weight)
        }
    };
    if before { tape.mul(y, tape.silu(z)) } else { y }
}

/// The convolution with its silu, of `channels` inputs over `taps` tokens.
fn convolved(
    tape: &Tape,
    x: Value,
    sizes: Sizes,
    (channels, taps): (u64, u64),
    parts: &Parts,
) -> Value {
    let weight = tape.weights(parts.weights("conv1d.weight"));
    let bias = tape.weights(parts.weights("conv1d.bias"));
    let tail = tape.made(sizes.batch * taps * channels);
    // Where each token's inputs lie, and the gradient of the tail.
    let places = sizes.tokens() * taps;
    let scratch = (places, places + tail.floats);
    tape.op(&[&x, &weight, &bias], sizes.tokens() * channels, &[&x, &tail], scratch)
}

/// ln(1 + eˣ) of tensor operations.
pub(super) fn softplus(tape: &Tape, x: Value) -> Value {
    let positive = tape.function(x.clone());
    let exp = tape.function(tape.scaled(tape.function(x)));
    tape.add(positive, tape.function(exp))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::MixerConfig;
    use crate::models::ModelConfig;
    use crate::models::lora::{LoraConfig, Target};
    use crate::training::plan::PlanConfig;
    use crate::training::plan::layout::Training;
    use crate::training::plan::tape::Trace;

    /// Rows, tokens of each, width, inner channels, state, taps.
    const B: u64 = 2;
    const T: u64 = 3;
    const D: u64 = 4;
    const E: u64 = 8;
    const N: u64 = 5;
    const K: u64 = 4;
    /// All tokens.
    const BT: u64 = B * T;
    const SIZES: Sizes = Sizes { batch: B, len: T, hidden: D, threads: 1 };

    fn parts(mixer: MixerConfig, lora: Option<LoraConfig>) -> Parts {
        let plan = PlanConfig::new(ModelConfig::llama(8, 4, 1, 1), 3).with_lora(lora);
        Parts::new(&mixer, D as usize, &Training::of(&plan, false))
    }

    fn most(trace: &Trace) -> u64 {
        trace.backward.0 + trace.backward.1
    }

    #[test]
    fn mamba_holds_what_its_layer_makes() {
        let rank = 2;
        let config = Mamba1Config::new().with_d_state(N as usize).with_dt_rank(rank as usize);
        let trace = |lora| {
            let parts = parts(MixerConfig::Mamba1(config.clone()), lora);
            Tape::trace(BT * D, true, |tape, x| (mamba1(tape, x, SIZES, &config, &parts), None))
        };
        let (x, xz, u, dbc) = (BT * D, BT * 2 * E, BT * E, BT * (rank + 2 * N));
        let (tail, delta, a, h0, y) = (B * K * E, BT * E, N * E, B * N * E, BT * E);
        let (states, scratch) = scan::selective_memory([2, 3, 8], N as usize, 1);
        let (states, scratch) = (states as u64, scratch as u64);
        assert!(states > 0);
        let of_scan = xz + tail + u + dbc + delta + a + h0 + states;
        let all = trace(None);
        assert_eq!(all.kept, x + of_scan + y);
        // The scan's output, and the state behind it, which is cut off.
        assert_eq!(all.forward, x + of_scan + y + N * E);
        // In the scan: gradients of its output and of all that it reads but weights; D and the layer
        // behind have theirs.
        let gradients = y + u + delta + a + 2 * BT * N + BT * E;
        assert_eq!(most(&all), x + of_scan + scratch + gradients + E + E * D);
        let weights = D * 2 * E + (K + 1) * E + E * (rank + 2 * N) + (rank + 1) * E + N * E + E;
        assert_eq!(all.learned, weights + E * D);

        // Updates of the layer in alone: its input and what the first factor makes of it.
        let lora = LoraConfig { rank: 3, targets: vec![Target::In], ..LoraConfig::default() };
        let adapted = trace(Some(lora));
        assert_eq!(adapted.kept, x + BT * 3 + of_scan);
        assert_eq!(adapted.learned, 3 * (D + 2 * E));
    }

    #[test]
    fn mamba2_holds_what_its_layer_makes() {
        let (heads, groups) = (2, 1);
        let base = Mamba2Config::new().with_d_state(N as usize).with_head_dim(4);
        let trace = |config: &Mamba2Config| {
            let parts = parts(MixerConfig::Mamba2(config.clone()), None);
            Tape::trace(BT * D, true, |tape, x| (mamba2(tape, x, SIZES, config, &parts), None))
        };
        let xbc = E + 2 * groups * N;
        let (x, all, tail, stream) = (BT * D, BT * (E + xbc + heads), B * K * xbc, BT * xbc);
        // The steps, their decays and what softplus keeps: its input, −|x| and e to that.
        let (dt, decay, softplus, a) = (BT * heads, BT * heads, 3 * BT * heads, heads);
        let (h0, y) = (B * N * E, BT * E);
        let of_scan = all + tail + stream + dt + decay + softplus + a + h0;
        let normed = trace(&base);
        assert_eq!(normed.kept, x + of_scan + 3 * y, "y, gated, normed");
        // The gate copies z beside.
        let shape = [2, 3, 2, 4];
        let scratch = scan::ssd_memory(shape, [1, N as usize], base.chunk, 1) as u64;
        assert!(scratch > 0);
        let gradients = y + BT * E + BT * E + dt + decay + 2 * BT * N;
        let learned = E * D + E + heads;
        assert_eq!(most(&normed), x + of_scan + scratch + gradients + learned);

        let gated = Mamba2Config { rms_norm: false, ..base.clone() };
        assert_eq!(trace(&gated).kept, x + of_scan + 2 * y);
        // Bounds: two more functions, which keep their inputs.
        let bounded = base.clone().with_dt_limit(Some((0.1, 1.0)));
        assert_eq!(trace(&bounded).kept, normed.kept + 2 * dt);
        // Norms of two runs of channels are followed by the weight, which keeps the result.
        let runs = base.with_norm(Some(2), false);
        assert_eq!(trace(&runs).kept, normed.kept + y);
    }

    /// The convolution keeps its input and the inputs before; a place per tap is there for a moment.
    #[test]
    fn the_convolution_has_a_place_for_each_tap() {
        let parts = parts(MixerConfig::Mamba1(Mamba1Config::new()), None);
        let trace =
            Tape::trace(BT * E, true, |tape, x| (convolved(tape, x, SIZES, (E, K), &parts), None));
        let (x, tail, places) = (BT * E, B * K * E, BT * K);
        assert_eq!(trace.kept, x + tail);
        assert_eq!(trace.forward, x + tail + BT * E + places);
        // Beside them the gradients of the input and the weights, and that of the tail.
        assert_eq!(most(&trace), (x + tail) + (places + tail) + BT * E + (K + 1) * E);
        assert_eq!(trace.learned, (K + 1) * E);
    }

    #[test]
    fn the_gate_copies_both_sides() {
        let trace = Tape::trace(10, true, |tape, z| {
            let y = tape.copy(&z);
            (gated(tape, z, y, 10), None)
        });
        assert_eq!((trace.kept, trace.forward), (20, 40));
    }
}
