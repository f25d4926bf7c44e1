//! Kernels' own text on this machine, with an emulator in the place of their instructions: what every thread
//! reads and writes, barriers and sums. What it cannot show is what happens at the same time.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A folder of a test's own, which is gone with it.
pub(crate) struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("longburn-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Buffers, each with a number in place of an address.
#[derive(Default)]
pub(crate) struct Memory(Vec<Vec<u8>>);

impl Memory {
    pub fn add(&mut self, bytes: Vec<u8>) -> u64 {
        self.0.push(bytes);
        (self.0.len() as u64) << 32
    }

    /// In f32.
    pub fn floats(&mut self, x: &[f64]) -> u64 {
        self.add(x.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect())
    }

    /// Of NaN.
    pub fn empty(&mut self, count: usize) -> u64 {
        self.add(vec![0xff; 4 * count])
    }

    pub fn read(&self, address: u64) -> Vec<f64> {
        let bytes = &self.0[(address >> 32) as usize - 1];
        let float = |x: &[u8]| f32::from_le_bytes([x[0], x[1], x[2], x[3]]);
        bytes.chunks(4).map(|x| f64::from(float(x))).collect()
    }
}

/// A launch of an entry.
pub(crate) struct Launch {
    bytes: Vec<u8>,
}

impl Launch {
    pub fn new<C: Copy>(entry: usize, grid: (u32, u32, u32), threads: u32, call: &C) -> Self {
        // Safe: a call is plain numbers, without gaps but behind the last.
        let call = unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(call).cast::<u8>(), size_of::<C>())
        };
        let numbers = [entry as u32, grid.0, grid.1, grid.2, threads];
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        bytes.extend(call);
        Self { bytes }
    }
}

/// Kernels that were compiled.
pub(crate) struct Program {
    scratch: Scratch,
}

impl Program {
    /// Kernels without their instructions, whose calls begin with so many addresses; none where there is no
    /// compiler.
    pub fn new(name: &str, text: &str, entries: &[&str], addresses: usize) -> Option<Self> {
        let scratch = Scratch::new(name);
        let text = format!(
            "{}{text}\n#define ENTRIES {}\n#define ADDRESSES {addresses}\n{}",
            include_str!("emulated/workgroup.h"),
            entries.join(", "),
            include_str!("emulated/main.h")
        );
        let source = scratch.0.join("kernels.cpp");
        std::fs::write(&source, text).unwrap();
        let options = ["-O1", "-w", "-std=c++17", "-o"];
        let program = scratch.0.join("kernels");
        let done = Command::new("c++").args(options).arg(&program).arg(&source).output().ok()?;
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Some(Self { scratch })
    }

    pub fn run(&self, memory: &mut Memory, launches: &[Launch]) {
        let mut input = (memory.0.len() as u32).to_le_bytes().to_vec();
        for buffer in &memory.0 {
            input.extend((buffer.len() as u64).to_le_bytes());
            input.extend(buffer);
        }
        input.extend((launches.len() as u32).to_le_bytes());
        launches.iter().for_each(|launch| input.extend(&launch.bytes));
        let file = self.scratch.0.join("input");
        std::fs::write(&file, input).unwrap();
        let input = Stdio::from(std::fs::File::open(&file).unwrap());
        let done = Command::new(self.scratch.0.join("kernels")).stdin(input).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let mut rest = &done.stdout[..];
        for buffer in &mut memory.0 {
            let (own, behind) = rest.split_at(buffer.len());
            buffer.copy_from_slice(own);
            rest = behind;
        }
    }
}
