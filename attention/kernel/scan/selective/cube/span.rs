//! What the kernels share: sizes, which channel a thread has, a span of tokens side by side.

use cubecl::prelude::*;

/// Tokens that a thread has side by side in registers; states are kept at the ends of such spans.
pub(super) const SPAN: usize = 16;
/// Channels of a workgroup, one per thread.
pub(super) const UNITS: usize = 64;
/// States that a thread has side by side in registers.
pub(super) const STATES: usize = 16;

/// What a token does to the state, as the kernels read it.
pub(super) const NEXT: u32 = 0;
pub(super) const FIRST: u32 = 1;
pub(super) const SKIP: u32 = 2;

/// Four numbers that are read at once.
pub(super) type Four = Vector<f32, Const<4>>;

/// What is known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    /// One document per row and no padding.
    pub plain: bool,
    pub softplus: bool,
    /// Whether D and z are there.
    pub skip: bool,
    pub gate: bool,
    /// Whether the state at the end of every span is kept, not just those at the ends of chunks.
    pub tracked: bool,
    /// Whether the state behind the last token is asked for.
    pub keep_state: bool,
    /// Whether instructions of NVIDIA's cards may be written out.
    pub ptx: bool,
}

/// Sizes of a call. A row is cut into chunks, which run side by side, and a chunk into spans,
/// which a thread walks through.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct Sizes {
    pub len: usize,
    pub channels: usize,
    /// N
    pub states: usize,
    pub groups: usize,
    /// Spans of a row.
    pub spans: usize,
    pub chunks: usize,
    /// Spans of a chunk; the last may have fewer.
    pub per_chunk: usize,
    /// Rows of the packed output: T, and N more where the state is in it.
    pub rows: usize,
}

/// Which part of the tensors a thread works on.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct Place {
    pub row: usize,
    pub chunk: usize,
    pub group: usize,
    /// Which workgroup it is among those of its group of channels.
    pub block: usize,
    pub channel: usize,
    /// Whether the thread has a channel of its own; otherwise it reads another's and writes nothing.
    pub own: bool,
}

#[cube]
impl Place {
    pub fn new(sizes: &Sizes) -> Place {
        let of_group = sizes.channels / sizes.groups;
        let blocks = of_group.div_ceil(UNITS);
        let group = CUBE_POS_X as usize / blocks;
        let block = CUBE_POS_X as usize % blocks;
        let member = block * UNITS + UNIT_POS as usize;
        let own = member < of_group;
        Place {
            row: CUBE_POS_Z as usize,
            chunk: CUBE_POS_Y as usize,
            group,
            block,
            channel: group * of_group + select(own, member, of_group - 1),
            own,
        }
    }

    /// Where token `t` of the channel is in a `[B, rows, E]` tensor.
    pub fn token(&self, t: usize, rows: usize, sizes: &Sizes) -> usize {
        (self.row * rows + t) * sizes.channels + self.channel
    }

    /// The same, or the last token where the row is at its end.
    pub fn within(&self, t: usize, rows: usize, sizes: &Sizes) -> usize {
        self.token(select(t < sizes.len, t, sizes.len - 1), rows, sizes)
    }

    /// Where state `n` of the channel is in slot `slot` of `[B, slots, N, E]`.
    pub fn state(&self, n: usize, slot: usize, slots: usize, sizes: &Sizes) -> usize {
        ((self.row * slots + slot) * sizes.states + n) * sizes.channels + self.channel
    }

    /// Where the group's numbers of token `t` for states of `part` are in `[B, G, padded T, padded N]`,
    /// in fours.
    pub fn token_line(&self, t: usize, part: usize, sizes: &Sizes) -> usize {
        let line = (self.row * sizes.groups + self.group) * sizes.spans * SPAN + t;
        (line * parts(sizes) + part) * (STATES / 4)
    }

    /// Where the group's numbers of state `n` from token `start` on are in `[B, G·N, padded T]`.
    pub fn shared(&self, n: usize, start: usize, sizes: &Sizes) -> usize {
        let line = (self.row * sizes.groups + self.group) * sizes.states + n;
        line * sizes.spans * SPAN + start
    }
}

/// Sets of [`STATES`] states, the last filled up with some that stay zero.
#[cube]
pub(super) fn parts(sizes: &Sizes) -> usize {
    sizes.states.div_ceil(STATES)
}

/// Decay rates of a part's states in the units of [`decay`]; those that are none have 0.
#[cube]
pub(super) fn rates(
    a: &[f32],
    part: usize,
    place: &Place,
    sizes: &Sizes,
    #[comptime] ptx: bool,
) -> Array<f32> {
    let mut rates = Array::<f32>::new(STATES);
    #[unroll]
    for k in 0..STATES {
        let n = part * STATES + k;
        let at = min(n, sizes.states - 1) * sizes.channels + place.channel;
        rates[k] = select(n < sizes.states, in_units(a[at], ptx), 0.0);
    }
    rates
}

/// A part's states in slot `slot` of `[B, slots, N, E]`, or zeros where they are not `given`.
#[cube]
pub(super) fn read_states(
    states: &mut [f32],
    part: usize,
    slot: usize,
    slots: usize,
    given: bool,
    place: &Place,
    sizes: &Sizes,
) -> Array<f32> {
    let mut h = Array::<f32>::new(STATES);
    #[unroll]
    for k in 0..STATES {
        let n = part * STATES + k;
        let at = place.state(min(n, sizes.states - 1), slot, slots, sizes);
        h[k] = select(given && n < sizes.states, states[at], 0.0);
    }
    h
}

/// Writes what [`read_states`] reads.
#[cube]
pub(super) fn write_states(
    states: &mut [f32],
    h: &Array<f32>,
    part: usize,
    slot: usize,
    slots: usize,
    place: &Place,
    sizes: &Sizes,
) {
    #[unroll]
    for k in 0..STATES {
        let n = part * STATES + k;
        if n < sizes.states {
            states[place.state(n, slot, slots, sizes)] = h[k];
        }
    }
}

/// What token `t` does; what is behind the end of the row is skipped. `steps` is `[B, padded T]`.
#[cube]
pub(super) fn step_at(
    steps: &[u32],
    row: usize,
    t: usize,
    sizes: &Sizes,
    #[comptime] plain: bool,
) -> u32 {
    if comptime!(plain) {
        select(t < sizes.len, NEXT, SKIP)
    } else {
        steps[row * sizes.spans * SPAN + t]
    }
}

/// The numbers of a span's tokens from `line` on.
#[cube]
pub(super) fn read_span(x: &Shared<[Four]>, line: usize) -> Array<f32> {
    let mut span = Array::<f32>::new(SPAN);
    #[unroll]
    for i in 0..SPAN / 4 {
        let four = x[line / 4 + i];
        #[unroll]
        for k in 0..4 {
            span[4 * i + k] = four.extract(k);
        }
    }
    span
}

/// A in the units that [`decay`] takes.
#[cube]
pub(super) fn in_units(rate: f32, #[comptime] ptx: bool) -> f32 {
    if comptime!(ptx) { rate * std::f32::consts::LOG2_E } else { rate }
}

/// exp(Δ A). A card has an instruction for powers of two, and CUDA's own exp takes several times as
/// long to get the last bit right, too.
#[cube]
pub(super) fn decay(dt: f32, rate: f32, #[comptime] ptx: bool) -> f32 {
    let power = dt * rate;
    if comptime!(ptx) { exp2(power) } else { power.exp() }
}

#[cube]
#[allow(unused_variables, unused_assignments)]
fn exp2(power: f32) -> f32 {
    let out: f32;
    gpu_asm!("ex2.approx.ftz.f32 {}, {};", out(_) out, in(_) power, options(pure, nomem));
    out
}

/// A token's result: zero where it is skipped.
#[cube]
pub(super) fn unless_skipped(value: f32, step: u32, #[comptime] plain: bool) -> f32 {
    if comptime!(plain) { value } else { select(step == SKIP, 0.0, value) }
}

/// Δ from what the layer gave.
#[cube]
pub(super) fn positive(raw: f32, #[comptime] softplus: bool) -> f32 {
    if comptime!(softplus) { raw.max(0.0) + (-raw.abs()).exp().log1p() } else { raw }
}

#[cube]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
