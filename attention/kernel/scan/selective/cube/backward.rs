//! Gradients: spans from the last to the first, tokens of a span from its end.

use super::span::{FIRST, Form, Four, Place, SKIP, SPAN, STATES, Sizes, UNITS};
use super::span::{decay, in_units, parts, positive, rates, read_span, read_states, sigmoid};
use super::span::{step_at, unless_skipped, write_states};
use cubecl::prelude::*;

/// Columns of the table in which the threads of a workgroup add up: one more than there are, so that
/// those who read down a column do not meet in one bank of the memory.
const PITCH: usize = UNITS + 1;
/// Sums per state of a span: dB and dC of each token.
const SUMS: usize = 2 * SPAN;
/// Threads that share a sum.
const SHARE: usize = UNITS / SUMS;

/// Gradient that each chunk hands to the state before it when none comes from behind, in `carry`
/// `[B, chunks, N, E]`, and by which factors one from behind comes through.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn starts(
    delta: &[f32],
    a: &[f32],
    c: &[Four],
    z: &[f32],
    dout: &[f32],
    steps: &[u32],
    carry: &mut [f32],
    decays: &mut [f32],
    sizes: Sizes,
    #[comptime] form: Form,
) {
    let place = Place::new(&sizes);
    if !place.own {
        terminate!();
    }
    let first = place.chunk * sizes.per_chunk;
    let count = min(sizes.spans - first, sizes.per_chunk);
    let mut total = 0.0f32;
    let mut cut = false;
    for back in 0..count {
        let start = (first + count - 1 - back) * SPAN;
        let mut dt = Array::<f32>::new(SPAN);
        let mut dy = Array::<f32>::new(SPAN);
        let mut fresh = Array::<bool>::new(SPAN);
        #[unroll]
        for i in 0..SPAN {
            let step = step_at(steps, place.row, start + i, &sizes, comptime!(form.plain));
            let at = place.within(start + i, sizes.len, &sizes);
            let x = select(step == SKIP, 0.0, positive(delta[at], comptime!(form.softplus)));
            dt[i] = x;
            let mut grad = dout[place.within(start + i, sizes.rows, &sizes)];
            if comptime!(form.gate) {
                grad *= z[at] * sigmoid(z[at]);
            }
            dy[i] = select(step == SKIP, 0.0, grad);
            fresh[i] = step == FIRST;
            total += x;
            cut = cut || step == FIRST;
        }
        for part in 0..parts(&sizes) {
            let rates = rates(a, part, &place, &sizes, comptime!(form.ptx));
            let slots = sizes.chunks;
            let mut dh = read_states(carry, part, place.chunk, slots, back > 0, &place, &sizes);
            #[unroll]
            for j in 0..SPAN {
                let i = SPAN - 1 - j;
                let line = place.token_line(start + i, part, &sizes);
                #[unroll]
                for n in 0..STATES {
                    let c = c[line + n / 4].extract(n % 4);
                    let of_token = dh[n] + dy[i] * c;
                    dh[n] = decay(dt[i], rates[n], comptime!(form.ptx)) * of_token;
                    if comptime!(!form.plain) {
                        dh[n] = select(fresh[i], 0.0, dh[n]);
                    }
                }
            }
            write_states(carry, &dh, part, place.chunk, slots, &place, &sizes);
        }
    }
    for n in 0..sizes.states {
        let rate = a[n * sizes.channels + place.channel];
        let at = place.state(n, place.chunk, sizes.chunks, &sizes);
        decays[at] = select(cut, 0.0, (total * rate).exp());
    }
}

/// All gradients of each chunk, from the states before its spans and the gradient of the state behind
/// it, which is in `carry`.
///
/// What other chunks, rows or workgroups add to, too, comes in parts: `da` `[B, chunks, N, E]`, `dd`
/// `[B, chunks, E]`, and dB and dC in `shared`, `[blocks, 2, B, G·N, padded T]`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn gradients(
    u: &[f32],
    delta: &[f32],
    a: &[f32],
    b: &[Four],
    c: &[Four],
    d: &[f32],
    z: &[f32],
    dout: &[f32],
    steps: &[u32],
    states: &[f32],
    carry: &mut [f32],
    du: &mut [f32],
    ddelta: &mut [f32],
    dz: &mut [f32],
    dh0: &mut [f32],
    da: &mut [f32],
    dd: &mut [f32],
    shared: &mut [f32],
    batch: usize,
    sizes: Sizes,
    #[comptime] form: Form,
) {
    let place = Place::new(&sizes);
    let unit = UNIT_POS as usize;
    let mut table = Shared::<[f32]>::new_slice(SUMS * PITCH);
    let mut halves = Shared::<[f32]>::new_slice(UNITS);
    let mut b_tile = Shared::<[Four]>::new_slice(UNITS);
    let mut c_tile = Shared::<[Four]>::new_slice(UNITS);
    let numbers = batch * sizes.groups * sizes.states * sizes.spans * SPAN;
    let first = place.chunk * sizes.per_chunk;
    let count = min(sizes.spans - first, sizes.per_chunk);
    let mut dd_sum = 0.0f32;
    for back in 0..count {
        let s = first + count - 1 - back;
        let start = s * SPAN;
        let mut dt = Array::<f32>::new(SPAN);
        let mut input = Array::<f32>::new(SPAN);
        let mut dy = Array::<f32>::new(SPAN);
        let mut step = Array::<u32>::new(SPAN);
        let mut y = Array::<f32>::new(SPAN);
        // Through the input of the state, and through its decay.
        let mut into = Array::<f32>::new(SPAN);
        let mut through = Array::<f32>::new(SPAN);
        #[unroll]
        for i in 0..SPAN {
            step[i] = step_at(steps, place.row, start + i, &sizes, comptime!(form.plain));
            // Threads without a channel add nothing to the sums.
            let skip = step[i] == SKIP || !place.own;
            let at = place.within(start + i, sizes.len, &sizes);
            let x = select(skip, 0.0, positive(delta[at], comptime!(form.softplus)));
            dt[i] = x;
            input[i] = select(skip, 0.0, x * u[at]);
            let mut grad = dout[place.within(start + i, sizes.rows, &sizes)];
            if comptime!(form.gate) {
                grad *= z[at] * sigmoid(z[at]);
            }
            dy[i] = select(skip, 0.0, grad);
            y[i] = 0.0;
            into[i] = 0.0;
            through[i] = 0.0;
        }
        // What the next state needs is asked for while one is computed.
        let mut rate = a[place.channel];
        let mut state = states[place.state(0, s, sizes.spans, &sizes)];
        let mut dh = carry[place.state(0, place.chunk, sizes.chunks, &sizes)];
        let mut da_before = da[place.state(0, place.chunk, sizes.chunks, &sizes)];
        for n in 0..sizes.states {
            if n % STATES == 0 {
                sync_cube();
                let of_unit = min(n + unit / (SPAN / 4), sizes.states - 1);
                let from = place.shared(of_unit, start, &sizes) / 4 + unit % (SPAN / 4);
                b_tile[unit] = b[from];
                c_tile[unit] = c[from];
                sync_cube();
            }
            let next = min(n + 1, sizes.states - 1);
            let next_rate = a[next * sizes.channels + place.channel];
            let next_state = states[place.state(next, s, sizes.spans, &sizes)];
            let next_at = place.state(next, place.chunk, sizes.chunks, &sizes);
            let (next_dh, next_da) = (carry[next_at], da[next_at]);
            let in_units = in_units(rate, comptime!(form.ptx));
            let line = place.shared(n, start, &sizes);
            let b = read_span(&b_tile, n % STATES * SPAN);
            let c = read_span(&c_tile, n % STATES * SPAN);
            let mut decays = Array::<f32>::new(SPAN);
            let mut past = Array::<f32>::new(SPAN);
            // Zeros of threads without a channel stay zeros only beside numbers.
            state = select(place.own, state, 0.0);
            #[unroll]
            for i in 0..SPAN {
                if comptime!(!form.plain) {
                    state = select(step[i] == FIRST, 0.0, state);
                }
                past[i] = state;
                decays[i] = decay(dt[i], in_units, comptime!(form.ptx));
                state = decays[i] * state + input[i] * b[i];
                y[i] += state * c[i];
                table[(SPAN + i) * PITCH + unit] = dy[i] * state;
            }
            let at = place.state(n, place.chunk, sizes.chunks, &sizes);
            dh = select(place.own, dh, 0.0);
            let mut of_rate = 0.0f32;
            #[unroll]
            for j in 0..SPAN {
                let i = SPAN - 1 - j;
                dh += dy[i] * c[i];
                table[i * PITCH + unit] = dh * input[i];
                into[i] += dh * b[i];
                dh *= decays[i];
                if comptime!(!form.plain) {
                    dh = select(step[i] == FIRST, 0.0, dh);
                }
                let of_decay = dh * past[i];
                through[i] += of_decay * rate;
                of_rate += of_decay * dt[i];
            }
            if place.own {
                carry[at] = dh;
                if s == 0 {
                    dh0[place.state(n, 0, 1, &sizes)] = dh;
                }
                da[at] = of_rate + select(back > 0, da_before, 0.0);
            }
            rate = next_rate;
            state = next_state;
            dh = next_dh;
            da_before = next_da;
            sync_cube();
            let mut sum = 0.0f32;
            #[unroll]
            for i in 0..SUMS {
                sum += table[unit % SUMS * PITCH + unit / SUMS * SUMS + i];
            }
            halves[unit] = sum;
            sync_cube();
            if unit < SUMS {
                let mut sum = halves[unit];
                #[unroll]
                for i in 1..SHARE {
                    sum += halves[i * SUMS + unit];
                }
                let half = 2 * place.block + unit / SPAN;
                shared[half * numbers + line + unit % SPAN] = sum;
            }
        }
        let plain = comptime!(form.plain);
        #[unroll]
        for i in 0..SPAN {
            let at = place.token(start + i, sizes.len, &sizes);
            if place.own && start + i < sizes.len {
                let mut grad = dt[i] * into[i];
                if comptime!(form.skip) {
                    grad += d[place.channel] * dy[i];
                    dd_sum += unless_skipped(dy[i] * u[at], step[i], plain);
                }
                du[at] = unless_skipped(grad, step[i], plain);
                let mut grad = u[at] * into[i] + through[i];
                if comptime!(form.softplus) {
                    grad *= sigmoid(delta[at]);
                }
                ddelta[at] = unless_skipped(grad, step[i], plain);
                if comptime!(form.gate) {
                    let mut value = y[i];
                    if comptime!(form.skip) {
                        value += d[place.channel] * u[at];
                    }
                    let s = sigmoid(z[at]);
                    let slope = s * (1.0 + z[at] * (1.0 - s));
                    let grad = dout[place.token(start + i, sizes.rows, &sizes)] * value * slope;
                    dz[at] = unless_skipped(grad, step[i], plain);
                }
            }
        }
    }
    if comptime!(form.skip) {
        if place.own {
            dd[(place.row * sizes.chunks + place.chunk) * sizes.channels + place.channel] = dd_sum;
        }
    }
}
