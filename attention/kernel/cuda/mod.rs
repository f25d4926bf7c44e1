//! Kernels in CUDA C++: compiled by NVRTC and kept as cubins (`cubin`), loaded once per device and launched
//! on CubeCL's own stream (`kernel`). What they compute lies with the ops that have them.
#![cfg_attr(not(feature = "cuda-nvrtc"), allow(dead_code))]

pub(crate) mod cubin;
#[cfg(test)]
pub(crate) mod emulated;
#[cfg(feature = "cuda-nvrtc")]
pub(crate) mod kernel;
