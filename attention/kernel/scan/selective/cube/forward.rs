//! Outputs, the last state, and the states at the ends of spans.

use super::span::write_states;
use super::span::{FIRST, Form, Four, Place, SKIP, SPAN, STATES, Sizes};
use super::span::{decay, parts, positive, rates, read_states, sigmoid, step_at, unless_skipped};
use cubecl::prelude::*;

/// What each chunk but the last leaves in a state of zeros, in the chunk's slot of `states`, and by
/// which factors the state before it comes through, in `decays` `[B, chunks, N, E]`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn ends(
    u: &[f32],
    delta: &[f32],
    a: &[f32],
    b: &[Four],
    steps: &[u32],
    states: &mut [f32],
    decays: &mut [f32],
    sizes: Sizes,
    #[comptime] form: Form,
) {
    let place = Place::new(&sizes);
    if !place.own {
        terminate!();
    }
    let per_slot = if comptime!(form.tracked) { sizes.per_chunk } else { 1usize.runtime() };
    let slots = if comptime!(form.tracked) { sizes.spans } else { sizes.chunks };
    let slot = place.chunk * per_slot;
    let first = place.chunk * sizes.per_chunk;
    let end = min(first + sizes.per_chunk, sizes.spans);
    let mut total = 0.0f32;
    let mut cut = false;
    for s in first..end {
        let start = s * SPAN;
        let mut dt = Array::<f32>::new(SPAN);
        let mut input = Array::<f32>::new(SPAN);
        let mut fresh = Array::<bool>::new(SPAN);
        #[unroll]
        for i in 0..SPAN {
            let step = step_at(steps, place.row, start + i, &sizes, comptime!(form.plain));
            let at = place.within(start + i, sizes.len, &sizes);
            let x = select(step == SKIP, 0.0, positive(delta[at], comptime!(form.softplus)));
            dt[i] = x;
            input[i] = select(step == SKIP, 0.0, x * u[at]);
            fresh[i] = step == FIRST;
            total += x;
            cut = cut || step == FIRST;
        }
        for part in 0..parts(&sizes) {
            let rates = rates(a, part, &place, &sizes, comptime!(form.ptx));
            let mut h = read_states(states, part, slot, slots, s > first, &place, &sizes);
            #[unroll]
            for i in 0..SPAN {
                let line = place.token_line(start + i, part, &sizes);
                #[unroll]
                for n in 0..STATES {
                    if comptime!(!form.plain) {
                        h[n] = select(fresh[i], 0.0, h[n]);
                    }
                    let b = b[line + n / 4].extract(n % 4);
                    h[n] = decay(dt[i], rates[n], comptime!(form.ptx)) * h[n] + input[i] * b;
                }
            }
            write_states(states, &h, part, slot, slots, &place, &sizes);
        }
    }
    for n in 0..sizes.states {
        let rate = a[n * sizes.channels + place.channel];
        let at = place.state(n, place.chunk, sizes.chunks, &sizes);
        decays[at] = select(cut, 0.0, (total * rate).exp());
    }
}

/// Outputs of each chunk from the state before it, which is in the chunk's slot of `states`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn outputs(
    u: &[f32],
    delta: &[f32],
    a: &[f32],
    b: &[Four],
    c: &[Four],
    d: &[f32],
    z: &[f32],
    steps: &[u32],
    states: &mut [f32],
    out: &mut [f32],
    sizes: Sizes,
    #[comptime] form: Form,
) {
    let place = Place::new(&sizes);
    if !place.own {
        terminate!();
    }
    let slots = if comptime!(form.tracked) { sizes.spans } else { sizes.chunks };
    let first = place.chunk * sizes.per_chunk;
    let end = min(first + sizes.per_chunk, sizes.spans);
    for s in first..end {
        let start = s * SPAN;
        let mut dt = Array::<f32>::new(SPAN);
        let mut input = Array::<f32>::new(SPAN);
        let mut y = Array::<f32>::new(SPAN);
        let mut step = Array::<u32>::new(SPAN);
        #[unroll]
        for i in 0..SPAN {
            step[i] = step_at(steps, place.row, start + i, &sizes, comptime!(form.plain));
            let at = place.within(start + i, sizes.len, &sizes);
            let x = select(step[i] == SKIP, 0.0, positive(delta[at], comptime!(form.softplus)));
            dt[i] = x;
            input[i] = select(step[i] == SKIP, 0.0, x * u[at]);
            y[i] = if comptime!(form.skip) { d[place.channel] * u[at] } else { 0.0f32.runtime() };
        }
        let slot = if comptime!(form.tracked) { s } else { place.chunk };
        for part in 0..parts(&sizes) {
            let rates = rates(a, part, &place, &sizes, comptime!(form.ptx));
            let mut h = read_states(states, part, slot, slots, true, &place, &sizes);
            #[unroll]
            for i in 0..SPAN {
                let line = place.token_line(start + i, part, &sizes);
                #[unroll]
                for n in 0..STATES {
                    if comptime!(!form.plain) {
                        h[n] = select(step[i] == FIRST, 0.0, h[n]);
                    }
                    let b = b[line + n / 4].extract(n % 4);
                    let c = c[line + n / 4].extract(n % 4);
                    h[n] = decay(dt[i], rates[n], comptime!(form.ptx)) * h[n] + input[i] * b;
                    y[i] += h[n] * c;
                }
            }
            if s + 1 < end {
                let next = if comptime!(form.tracked) { s + 1 } else { place.chunk };
                write_states(states, &h, part, next, slots, &place, &sizes);
            } else if comptime!(form.keep_state) {
                if s + 1 == sizes.spans {
                    #[unroll]
                    for k in 0..STATES {
                        let n = part * STATES + k;
                        if n < sizes.states {
                            let line = place.row * sizes.rows + sizes.len + n;
                            out[line * sizes.channels + place.channel] = h[k];
                        }
                    }
                }
            }
        }
        #[unroll]
        for i in 0..SPAN {
            if start + i < sizes.len {
                let mut value = y[i];
                if comptime!(form.gate) {
                    let gate = z[place.token(start + i, sizes.len, &sizes)];
                    value *= gate * sigmoid(gate);
                }
                let at = place.token(start + i, sizes.rows, &sizes);
                out[at] = unless_skipped(value, step[i], comptime!(form.plain));
            }
        }
    }
}
