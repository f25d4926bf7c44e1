//! The kernels' text, and what a launch hands over.

use std::fmt::Write;

/// Tokens between states that are kept for the backward pass, as in the kernels in CubeCL.
pub(super) const SPAN: usize = 16;
/// Most states of a channel.
pub(super) const STATES: usize = 16;
/// Channels of a workgroup, and its threads.
pub(super) const WIDE: usize = 128;

/// What is known when kernels are compiled.
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

/// Entries in the order of [`Form::entries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    Ends,
    Combine,
    Outputs,
    Starts,
    CombineBack,
    Gradients,
    Sums,
}

/// What is launched forward and backward, in this order.
pub(super) const FORWARD: [Kernel; 3] = [Kernel::Ends, Kernel::Combine, Kernel::Outputs];
pub(super) const BACKWARD: [Kernel; 4] =
    [Kernel::Starts, Kernel::CombineBack, Kernel::Gradients, Kernel::Sums];

impl Form {
    /// CUDA C++ without includes; the backward pass only where there will be one.
    pub fn source(self) -> String {
        self.text(include_str!("instructions.cuh"))
    }

    /// Kernels with other instructions.
    pub fn text(self, instructions: &str) -> String {
        let mut text = String::new();
        for (name, value) in [
            ("PLAIN", self.plain as usize),
            ("SOFTPLUS", self.softplus as usize),
            ("SKIP_D", self.skip as usize),
            ("GATE", self.gate as usize),
            ("TRACKED", self.tracked as usize),
            ("KEEP_STATE", self.keep_state as usize),
            ("SPAN", SPAN),
            ("STATES", STATES),
            ("WIDE", WIDE),
            ("WARPS", WARPS),
            ("AHEAD", AHEAD),
            ("TILE", TILE),
            ("TILES", TILES),
            ("ROOM", ROOM),
            ("CALL_BYTES", size_of::<Call>()),
        ] {
            // Writing to a string does not fail.
            let _ = writeln!(text, "#define {name} {value}");
        }
        text += instructions;
        text += include_str!("base.cuh");
        text += include_str!("forward.cu");
        text += include_str!("around.cu");
        if self.tracked {
            text += include_str!("backward.cu");
        }
        text
    }

    /// Names of what is launched, and most bytes of shared memory.
    pub fn entries(self) -> Vec<(&'static str, usize)> {
        let tile = LONGEST * STATES * 4;
        let mut entries = vec![("ends", tile + 2 * COLUMN), ("combine", 0), ("outputs", TILES)];
        if self.tracked {
            entries.push(("starts", tile + 3 * COLUMN));
            entries.extend([("combine_back", 0), ("gradients", ROOM), ("sums", 0)]);
        }
        entries
    }
}

/// Warps of a workgroup of the gradients.
pub(super) const WARPS: usize = 4;
/// Tokens that a thread has or that are on their way to it, where they come through shared memory.
pub(super) const AHEAD: usize = 16;
/// Bytes of a number of each of these for a workgroup.
const COLUMN: usize = 4 * AHEAD * WIDE;
/// Tokens of which B and C are in shared memory together, and bytes of two such tiles.
const TILE: usize = 64;
const TILES: usize = 2 * 2 * 4 * TILE * STATES;
/// Most tokens of a chunk where there are several.
pub(super) const LONGEST: usize = 256;
/// Bytes of shared memory of a workgroup of the gradients: `Room` in backward.cu, where `run` tokens make a run.
pub(super) const ROOM: usize = {
    let run = 4;
    let tokens = (4 + 2) * SPAN * WIDE + 4 * run * WIDE;
    let states = (SPAN / run + 1) * STATES * WIDE;
    let shared = 4 * 2 * SPAN * STATES + WARPS * SPAN * 2 * STATES;
    4 * (tokens + states + shared + WARPS * SPAN)
};

/// The argument of every kernel, as base.cuh has it; what a kernel does not read stays 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Call {
    pub u: u64,
    pub delta: u64,
    pub z: u64,
    pub a: u64,
    pub d: u64,
    pub b: u64,
    pub c: u64,
    pub first: u64,
    pub dout: u64,
    pub steps: u64,
    pub states: u64,
    pub carry: u64,
    pub totals: u64,
    pub cuts: u64,
    pub out: u64,
    pub du: u64,
    pub ddelta: u64,
    pub dz: u64,
    pub dh0: u64,
    pub da: u64,
    pub dd: u64,
    pub shared: u64,
    pub sum_a: u64,
    pub sum_d: u64,
    pub sum_b: u64,
    pub sum_c: u64,
    pub of_row: i64,
    pub batch: i32,
    pub len: i32,
    pub channels: i32,
    pub states_n: i32,
    pub groups: i32,
    pub blocks: i32,
    pub chunk: i32,
    pub chunks: i32,
    pub slots: i32,
    pub per_chunk: i32,
    pub rows: i32,
}

/// Words of a call that are addresses, which come first.
#[cfg(test)]
pub(super) const ADDRESSES: usize = 26;

impl Call {
    /// Sizes alone.
    ///
    /// # Shapes
    /// u `[B, T, E]`, A `[N, E]`
    pub fn new(
        [batch, len, channels]: [usize; 3],
        n: usize,
        groups: usize,
        chunk: usize,
        form: Form,
    ) -> Self {
        let small = |x: usize| x as i32;
        Self {
            batch: small(batch),
            len: small(len),
            channels: small(channels),
            states_n: small(n),
            groups: small(groups),
            blocks: small((channels / groups).div_ceil(WIDE)),
            chunk: small(chunk),
            chunks: small(len.div_ceil(chunk)),
            slots: small(len.div_ceil(if form.tracked { SPAN } else { chunk })),
            per_chunk: small(if form.tracked { chunk / SPAN } else { 1 }),
            rows: small(len + if form.keep_state { n } else { 0 }),
            ..Self::default()
        }
    }

    /// Workgroups of a kernel, which may be none, and bytes of shared memory.
    pub fn grid(&self, kernel: Kernel) -> ((u32, u32, u32), usize) {
        let tile = self.chunk as usize * STATES * 4;
        let small = |numbers: usize| numbers.div_ceil(WIDE) as u32;
        let numbers = (self.states_n * self.channels) as usize;
        let batch = self.batch as u32;
        let of_chunks = |chunks: i32| ((self.groups * self.blocks) as u32, chunks as u32, batch);
        match kernel {
            // The last chunk, or the first, hands nothing on.
            Kernel::Ends => (of_chunks(self.chunks - 1), tile + 2 * COLUMN),
            Kernel::Starts => (of_chunks(self.chunks - 1), tile + 3 * COLUMN),
            Kernel::Combine | Kernel::CombineBack if self.chunks == 1 => ((1, 0, 1), 0),
            Kernel::Combine | Kernel::CombineBack => ((small(numbers), batch, 1), 0),
            Kernel::Outputs => (of_chunks(self.chunks), TILES),
            Kernel::Gradients => (of_chunks(self.chunks), ROOM),
            Kernel::Sums => {
                let lines = self.batch as usize * self.groups as usize * self.len as usize;
                let sums = lines * 2 * STATES + numbers + self.channels as usize;
                ((small(sums), 1, 1), 0)
            }
        }
    }
}
