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
