//! What the kernels share: sizes, which channel a thread has, a span of tokens side by side.

use cubecl::prelude::*;

/// Tokens that a thread has side by side in registers; states are kept at the ends of such spans.
pub(super) const SPAN: usize = 16;
/// Channels of a workgroup, one per thread.
pub(super) const UNITS: usize = 64;

/// What a token does to the state, as the kernels read it.
pub(super) const NEXT: u32 = 0;
pub(super) const FIRST: u32 = 1;
pub(super) const SKIP: u32 = 2;

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

    /// Where token `t` of the channel is in a `[B, rows, E]` tensor; the last token where the row
    /// is at its end.
    pub fn token(&self, t: usize, rows: usize, sizes: &Sizes) -> usize {
        let t = select(t < sizes.len, t, sizes.len - 1);
        (self.row * rows + t) * sizes.channels + self.channel
    }

    /// Where state `n` of the channel is in slot `slot` of `[B, slots, N, E]`.
    pub fn state(&self, n: usize, slot: usize, slots: usize, sizes: &Sizes) -> usize {
        ((self.row * slots + slot) * sizes.states + n) * sizes.channels + self.channel
    }

    /// Where the group's numbers of state `n` from token `start` on are in `[B, G·N, padded T]`.
    pub fn shared(&self, n: usize, start: usize, sizes: &Sizes) -> usize {
        let line = (self.row * sizes.groups + self.group) * sizes.states + n;
        line * sizes.spans * SPAN + start
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

/// Δ from what the layer gave.
#[cube]
pub(super) fn positive(raw: f32, #[comptime] softplus: bool) -> f32 {
    if comptime!(softplus) { raw.max(0.0) + (-raw.abs()).exp().log1p() } else { raw }
}

#[cube]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
