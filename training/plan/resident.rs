//! Memory of this process, as the system counts it.

use serde::Serialize;

/// Resident memory of this process, bytes (Linux: `VmRSS` and `VmHWM` of `/proc/self/status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Resident {
    /// Now.
    pub now: u64,
    /// Most since the process began, or since [`Resident::reset_peak`].
    pub peak: u64,
}

impl Resident {
    /// Read it; `None` where the system does not say.
    pub fn read() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 =
                line.trim_start_matches(':').trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(kib << 10)
        };
        Some(Self { now: field("VmRSS")?, peak: field("VmHWM")? })
    }

    /// Let the peak begin anew; `false` where the system does not allow it, and the peak stays
    /// that of the whole process.
    pub fn reset_peak() -> bool {
        // What `man 5 proc` says of `clear_refs`.
        std::fs::write("/proc/self/clear_refs", "5").is_ok()
    }
}
