//! Small kernels between the large ones: B and C by states, states from chunk to chunk, sums of
//! parts.

use super::span::{SKIP, SPAN, STATES, Sizes, parts, step_at};
use cubecl::prelude::*;

/// Chunks whose numbers a thread of [`combine`] asks for together: it waits for memory, not for itself.
const AHEAD: usize = 8;

/// `[B, T, G·N]` as `[B, G·N, padded T]`, zero where nothing is to be read: a thread has the tokens
/// of a span for one state next to each other.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn by_state(
    x: &[f32],
    steps: &[u32],
    out: &mut [f32],
    sizes: Sizes,
    #[comptime] plain: bool,
) {
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let padded = sizes.spans * SPAN;
    let width = sizes.groups * sizes.states;
    let t = ABSOLUTE_POS % padded;
    let line = ABSOLUTE_POS / padded;
    let row = line / width;
    let step = step_at(steps, row, t, &sizes, plain);
    let from = select(t < sizes.len, t, sizes.len - 1);
    let value = x[(row * sizes.len + from) * width + line % width];
    out[ABSOLUTE_POS] = select(step == SKIP, 0.0, value);
}

/// `[B, T, G·N]` as `[B, G, padded T, padded N]`, zero where nothing is to be read: a thread has the
/// states of a token next to each other.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn by_token(
    x: &[f32],
    steps: &[u32],
    out: &mut [f32],
    sizes: Sizes,
    #[comptime] plain: bool,
) {
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let width = parts(&sizes) * STATES;
    let n = ABSOLUTE_POS % width;
    let padded = sizes.spans * SPAN;
    let t = ABSOLUTE_POS / width % padded;
    let line = ABSOLUTE_POS / width / padded;
    let (row, group) = (line / sizes.groups, line % sizes.groups);
    let step = step_at(steps, row, t, &sizes, plain);
    let from = row * sizes.len + select(t < sizes.len, t, sizes.len - 1);
    let state = group * sizes.states + min(n, sizes.states - 1);
    let value = x[from * sizes.groups * sizes.states + state];
    out[ABSOLUTE_POS] = select(step == SKIP || n >= sizes.states, 0.0, value);
}

/// What chunks leave in a state of zeros becomes the state before each chunk, in their order or, for
/// gradients, from the last to the first.
///
/// `first` has the state before all of them, from `skipped` numbers on in each row of `of_row`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn combine(
    first: &[f32],
    decays: &[f32],
    states: &mut [f32],
    of_row: usize,
    skipped: usize,
    per_slot: usize,
    slots: usize,
    sizes: Sizes,
    #[comptime] given: bool,
    #[comptime] reverse: bool,
) {
    let width = sizes.states * sizes.channels;
    let row = CUBE_POS_Y as usize;
    let number = ABSOLUTE_POS_X as usize;
    if number >= width {
        terminate!();
    }
    let mut h =
        if comptime!(given) { first[row * of_row + skipped + number] } else { 0.0f32.runtime() };
    let last = sizes.chunks - 1;
    for part in 0..sizes.chunks.div_ceil(AHEAD) {
        let mut left = Array::<f32>::new(AHEAD);
        let mut decay = Array::<f32>::new(AHEAD);
        #[unroll]
        for k in 0..AHEAD {
            let i = min(part * AHEAD + k, last);
            let chunk = if comptime!(reverse) { last - i } else { i };
            left[k] = states[(row * slots + chunk * per_slot) * width + number];
            decay[k] = decays[(row * sizes.chunks + chunk) * width + number];
        }
        #[unroll]
        for k in 0..AHEAD {
            let i = part * AHEAD + k;
            if i <= last {
                let chunk = if comptime!(reverse) { last - i } else { i };
                states[(row * slots + chunk * per_slot) * width + number] = h;
                // Where a document begins in the chunk, what was before does not count even if it is no
                // number.
                h = select(decay[k] == 0.0, left[k], decay[k] * h + left[k]);
            }
        }
    }
}

/// Sums over the first dimension of `[parts, numbers]`, in their order.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn sum_parts(parts: &[f32], out: &mut [f32], count: usize) {
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let mut sum = 0.0f32;
    for part in 0..count {
        sum += parts[part * out.len() + ABSOLUTE_POS];
    }
    out[ABSOLUTE_POS] = sum;
}

/// Sums over the blocks of channels of one half of `[blocks, 2, B, G·N, padded T]`, as
/// `[B, T, G·N]`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn sum_blocks(
    parts: &[f32],
    out: &mut [f32],
    batch: usize,
    half: usize,
    blocks: usize,
    sizes: Sizes,
) {
    let width = sizes.groups * sizes.states;
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let t = ABSOLUTE_POS % sizes.len;
    let line = ABSOLUTE_POS / sizes.len;
    let numbers = batch * width * sizes.spans * SPAN;
    let mut sum = 0.0f32;
    for block in 0..blocks {
        sum += parts[(2 * block + half) * numbers + line * sizes.spans * SPAN + t];
    }
    out[(line / width * sizes.len + t) * width + line % width] = sum;
}
