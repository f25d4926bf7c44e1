//! Where a measurement ran.

use super::row::Machine;
use crate::doctor;
use burn::tensor::Device;

/// This machine and this program, computing on `device`.
pub fn machine(device: &Device) -> Machine {
    Machine {
        cpu: cpu().unwrap_or_else(|| "unknown".into()),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        simd: doctor::simd().into_iter().map(Into::into).collect(),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        longburn: env!("CARGO_PKG_VERSION").into(),
        build: if cfg!(debug_assertions) { "dev" } else { "release" }.into(),
        card: longburn::kernel::card_name(device),
    }
}

/// Linux says it.
fn cpu() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}
