//! How a program treats the machine it runs on.

/// Asks the C library to keep memory that is freed instead of handing it back to the system, for
/// programs that ask for the same sizes again and again: pages that come from the system are
/// cleared one by one when they are first touched, which takes a tenth of a training step.
///
/// To be called once, when a program starts. Does nothing where the C library is not glibc, and
/// where the environment has settings of its own (`MALLOC_..._`, `GLIBC_TUNABLES`).
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let own = ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"];
        if own.iter().any(|name| std::env::var_os(name).is_some()) {
            return;
        }
        // The largest that glibc takes.
        const FROM_SYSTEM: libc::c_int = 32 << 20;
        // Safe: settings of the allocator, which locks itself.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, FROM_SYSTEM);
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        }
    }
}
