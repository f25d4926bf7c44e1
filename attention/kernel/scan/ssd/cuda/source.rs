//! The kernels' text, and what a launch hands over.

use std::fmt::Write;

/// Tokens of a chunk.
pub(super) const Q: usize = 64;
/// Most channels of a head.
pub(super) const P: usize = 64;
/// Most numbers of state of a channel.
pub(super) const N: usize = 128;
pub(super) const THREADS: usize = 256;

/// Entries in the order of [`entries`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Kernel {
    Scores,
    Added,
    Pass,
    Outputs,
    Reads,
    PassBack,
    Gradients,
    Sums,
}

/// What is launched for y, for the states behind rows alone, and backward, in this order.
pub(super) const FORWARD: [Kernel; 4] =
    [Kernel::Scores, Kernel::Added, Kernel::Pass, Kernel::Outputs];
pub(super) const BEHIND: [Kernel; 2] = [Kernel::Added, Kernel::Pass];
pub(super) const BACKWARD: [Kernel; 7] = [
    Kernel::Scores,
    Kernel::Added,
    Kernel::Pass,
    Kernel::Reads,
    Kernel::PassBack,
    Kernel::Gradients,
    Kernel::Sums,
];

/// CUDA C++ without includes, with D or without.
pub(super) fn source(skip: bool) -> String {
    text(skip, include_str!("instructions.cuh"))
}

/// Kernels with other instructions.
pub(super) fn text(skip: bool, instructions: &str) -> String {
    let mut text = String::new();
    let sizes = [("Q", Q), ("P", P), ("N", N), ("THREADS", THREADS)];
    for (name, value) in
        sizes.into_iter().chain([("SKIP_D", skip as usize), ("CALL_BYTES", size_of::<Call>())])
    {
        // Writing to a string does not fail.
        let _ = writeln!(text, "#define {name} {value}");
    }
    text + instructions + include_str!("base.cuh") + include_str!("kernels.cu")
}

/// Names of what is launched, and bytes of shared memory, as kernels.cu lays it out.
pub(super) fn entries() -> [(&'static str, usize); 8] {
    let (along, across) = (|n: usize| n + 4, |n: usize| n + 8);
    let add = Q * across(N) + Q * across(P) + 3 * Q;
    let outputs = Q * along(Q) + Q * across(P) + Q * along(N) + N * across(P) + 4 * Q;
    let of_tokens = 2 * Q * along(P) + Q * across(Q) + Q * (Q + 1) + 2 * Q * along(N);
    let gradients = of_tokens + N * along(P) + N * across(P) + 15 * Q + THREADS / 32;
    [
        ("scores", 4 * 2 * Q * along(N)),
        ("added", 4 * add),
        ("pass", 0),
        ("outputs", 4 * outputs),
        ("reads", 4 * add),
        ("pass_back", 0),
        ("gradients", 4 * gradients),
        ("sums", 0),
    ]
}

/// The argument of every kernel, as base.cuh has it; what a kernel does not read stays 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Call {
    pub x: u64,
    pub weight: u64,
    pub log: u64,
    pub b: u64,
    pub c: u64,
    pub d: u64,
    pub h: u64,
    pub dy: u64,
    pub dh: u64,
    pub scores: u64,
    pub states: u64,
    pub carries: u64,
    pub whole: u64,
    pub y: u64,
    pub behind: u64,
    pub dx: u64,
    pub dweight: u64,
    pub dlog: u64,
    pub db: u64,
    pub dc: u64,
    pub dd: u64,
    pub dh0: u64,
    pub sum_b: u64,
    pub sum_c: u64,
    pub sum_d: u64,
    pub rows: i32,
    pub len: i32,
    pub heads: i32,
    pub groups: i32,
    pub n: i32,
    pub p: i32,
    pub chunks: i32,
    pub parts: i32,
}

/// Words of a call that are addresses, which come first.
#[cfg(test)]
pub(super) const ADDRESSES: usize = 25;

impl Call {
    /// Workgroups of a kernel.
    pub fn grid(&self, kernel: Kernel) -> (u32, u32, u32) {
        let [rows, chunks, heads, groups] =
            [self.rows, self.chunks, self.heads, self.groups].map(|x| x as u32);
        let blocks = |numbers: usize| numbers.div_ceil(THREADS) as u32;
        match kernel {
            Kernel::Scores => (groups, chunks, rows),
            Kernel::Added | Kernel::Outputs | Kernel::Reads => (heads, chunks, rows),
            Kernel::Pass | Kernel::PassBack => (blocks((self.n * self.p) as usize), heads, rows),
            Kernel::Gradients => (groups * self.parts as u32, chunks, rows),
            Kernel::Sums => {
                let lines = self.rows as usize * self.len as usize;
                let shared = lines * (self.groups * self.n) as usize;
                (blocks(shared + (self.heads * self.p) as usize), 1, 1)
            }
        }
    }
}
