//! What can be said of the kernels without a card.

use super::source::{Call, entries, source};

/// Bytes of shared memory that a workgroup of an H100 may have.
const SHARED: usize = 227 << 10;

#[test]
fn the_kernels_fit() {
    assert!(entries().iter().all(|(_, shared)| *shared <= SHARED));
    assert!(size_of::<Call>() <= 4 << 10);
    assert_ne!(source(false), source(true));
}

/// No number may leave its register.
#[cfg(feature = "cuda-nvrtc")]
#[test]
fn every_kernel_compiles_without_spills() {
    use crate::cuda::cubin;
    if let Err(reason) = cubin::version() {
        return println!("skipped: {reason}");
    }
    for skip in [false, true] {
        let options = ["--gpu-architecture=sm_90", "--ptxas-options=-v"];
        let (cubin, said) =
            cubin::compile(&source(skip), &options).unwrap_or_else(|e| panic!("{e}"));
        assert!(cubin.starts_with(b"\x7fELF"));
        let told = said.matches("bytes spill stores").count();
        assert_eq!(told, entries().len(), "{said}");
        assert_eq!(said.matches(" 0 bytes spill stores").count(), told, "{said}");
    }
}
