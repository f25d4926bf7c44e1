//! Small kernels between the large ones: B and C by states, states from chunk to chunk, sums of
//! parts.

use super::span::{SKIP, SPAN, Sizes, step_at};
use cubecl::prelude::*;

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
    for i in 0..sizes.chunks {
        let chunk = if comptime!(reverse) { sizes.chunks - 1 - i } else { i };
        let at = (row * slots + chunk * per_slot) * width + number;
        let left = states[at];
        states[at] = h;
        // Where a document begins in the chunk, what was before does not count even if it is no
        // number.
        let decay = decays[(row * sizes.chunks + chunk) * width + number];
        h = select(decay == 0.0, left, decay * h + left);
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
