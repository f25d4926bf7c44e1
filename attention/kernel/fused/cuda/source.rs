//! The kernels' text, and what a launch hands over.

use crate::fused::AdamWStep;
use std::fmt::Write;

/// Tensors of a launch: as many as fit the 4 KiB of an argument.
pub(super) const MANY: usize = 36;
/// Addresses and numbers of a tensor.
pub(super) const ADDRESSES: usize = 7;
const NUMBERS: usize = 8;
pub(super) const THREADS: usize = 256;
/// Numbers of a tensor that a workgroup has.
pub(super) const EACH: usize = 16 * THREADS;
/// Names of what is launched, and bytes of shared memory.
pub(super) const ENTRIES: [(&str, usize); 3] =
    [("steps", 0), ("squares", 4 * THREADS / 32), ("sums", 4 * THREADS / 32)];

/// CUDA C++ without includes.
pub(super) fn source() -> String {
    let mut text = String::new();
    for (name, value) in [
        ("MANY", MANY),
        ("ADDRESSES", ADDRESSES),
        ("NUMBERS", NUMBERS),
        ("THREADS", THREADS),
        ("EACH", EACH),
        ("CALL_BYTES", size_of::<Call>()),
    ] {
        // Writing to a string does not fail.
        let _ = writeln!(text, "#define {name} {value}");
    }
    text + include_str!("many.cu")
}

/// The argument of every kernel, as many.cu has it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub of: [[u64; MANY]; ADDRESSES],
    len: [i64; MANY],
    by: [[f32; MANY]; NUMBERS],
    start: [i32; MANY + 1],
    pub count: i32,
    /// Whether there is no step after all.
    undone: i32,
}

impl Default for Call {
    fn default() -> Self {
        Self {
            of: [[0; MANY]; ADDRESSES],
            len: [0; MANY],
            by: [[0.0; MANY]; NUMBERS],
            start: [0; MANY + 1],
            count: 0,
            undone: 0,
        }
    }
}

impl Call {
    /// One more tensor of so many numbers.
    pub fn push(&mut self, len: usize) {
        let i = self.count as usize;
        self.len[i] = len as i64;
        self.start[i + 1] = self.start[i] + len.div_ceil(EACH) as i32;
        self.count += 1;
    }

    /// One more, with the numbers of its step but for the gradients' factor.
    pub fn push_step(&mut self, len: usize, step: &AdamWStep) {
        let AdamWStep { lr, beta1, beta2, eps, weight_decay, .. } = *step;
        let (c1, c2) = step.corrections();
        let numbers = [1.0, lr, beta1, beta2, eps, 1.0 - lr * weight_decay, c1, c2];
        for (of, number) in self.by.iter_mut().zip(numbers) {
            of[self.count as usize] = number;
        }
        self.push(len);
    }

    /// Whether there is room for a tensor of so many numbers.
    pub fn takes(&self, len: usize) -> bool {
        let groups = self.groups() as usize + len.div_ceil(EACH);
        (self.count as usize) < MANY && i32::try_from(groups).is_ok()
    }

    /// What all gradients are multiplied by, or that no step is made.
    pub fn scale(&mut self, scale: Option<f32>) {
        self.by[0] = [scale.unwrap_or_default(); MANY];
        self.undone = i32::from(scale.is_none());
    }

    /// Workgroups over all tensors.
    pub fn groups(&self) -> u32 {
        self.start[self.count as usize] as u32
    }
}
