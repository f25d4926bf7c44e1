//! Kernels on a card, loaded once per device, and tensors as they read them.

use super::OPTIONS;
use super::launch::Map;
use super::source::{Numbers, Variant};
use crate::cuda::kernel::{Loaded, PerDevice, load};
use cudarc::driver::sys;
use std::ffi::c_void;

static LOADED: PerDevice<Variant> = PerDevice::new();

/// The entries of a variant on a device, compiled and loaded where they are not yet.
pub(super) fn ready(device: i32, variant: &Variant) -> Loaded {
    LOADED.get(device, *variant, || {
        let entries: Vec<_> =
            variant.entries().iter().map(|name| (*name, variant.shared())).collect();
        load(device, &variant.source(), &OPTIONS, &entries)
    })
}

/// A tensor as TMA reads it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Rows, heads, tokens, channels.
    pub shape: [usize; 4],
    /// Distances of the first three, in elements; channels are adjacent.
    pub strides: [usize; 3],
}

impl Layout {
    /// Boxes of 64 channels and `tall` tokens; what is not there reads as zero.
    pub fn map(&self, address: u64, numbers: Numbers, tall: u32) -> Result<Map, String> {
        use sys::CUtensorMapDataType as Type;
        let dtype = match numbers {
            Numbers::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            Numbers::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        };
        let [rows, heads, tokens, channels] = self.shape.map(|x| x as u64);
        let bytes = self.strides.map(|x| 2 * x as u64);
        let (sizes, steps) = ([channels, tokens, heads, rows], [bytes[2], bytes[1], bytes[0]]);
        let (of_box, whole) = ([64, tall, 1, 1], [1u32; 4]);
        let mut map = Map::default();
        // Safe: a map is as large and as aligned as the driver's, and all arrays have four entries or,
        // without the channels, three.
        let said = unsafe {
            sys::cuTensorMapEncodeTiled(
                std::ptr::from_mut(&mut map).cast(),
                dtype,
                4,
                address as *mut c_void,
                sizes.as_ptr(),
                steps.as_ptr(),
                of_box.as_ptr(),
                whole.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        said.result().map_err(|e| format!("a tensor map of {self:?}: {e}"))?;
        Ok(map)
    }
}
