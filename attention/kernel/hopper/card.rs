//! Kernels on a card: loaded once per device, launched on CubeCL's own stream.

use super::cubin;
use super::launch::{Call, Map};
use super::source::{Numbers, Variant};
use crate::stream::within;
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// What can be launched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    function: sys::CUfunction,
    shared: u32,
}

// Safe: a function is a name that the driver gave out, for all threads.
unsafe impl Send for Entry {}
unsafe impl Sync for Entry {}

type Loaded = Result<Arc<[Entry]>, String>;

/// Modules belong to a context, so that each device has its own.
static LOADED: LazyLock<Mutex<HashMap<(i32, Variant), Loaded>>> = LazyLock::new(Mutex::default);

/// The entries of a variant on a device, compiled and loaded where they are not yet.
pub(super) fn ready(device: i32, variant: &Variant) -> Loaded {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    loaded.entry((device, *variant)).or_insert_with(|| load(device, variant)).clone()
}

fn load(device: i32, variant: &Variant) -> Loaded {
    let source = variant.source();
    let loaded = |fresh: bool| -> Loaded {
        let image = cubin::cubin(&source, fresh)?;
        within(device, || module(&image, variant)).map_err(|e| format!("the driver: {e}"))?
    };
    // A file of the cache may have been damaged.
    loaded(false).or_else(|_| loaded(true))
}

fn module(image: &[u8], variant: &Variant) -> Loaded {
    let failed = |e: result::DriverError| format!("a kernel does not load: {e}");
    let shared = variant.shared() as u32;
    let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // Safe: the image is a whole cubin, and a module is never unloaded.
    unsafe {
        let module = result::module::load_data(image.as_ptr().cast()).map_err(failed)?;
        let entry = |name: &&str| {
            let name = CString::new(*name).expect("names have no zero in them");
            let function = result::module::get_function(module, name).map_err(failed)?;
            if shared > 0 {
                result::function::set_function_attribute(function, most, shared as i32)
                    .map_err(failed)?;
            }
            Ok(Entry { function, shared })
        };
        variant.entries().iter().map(entry).collect()
    }
}

impl Entry {
    /// # Safety
    /// On CubeCL's thread for the device, with buffers as large as `call` says.
    pub unsafe fn launch(
        self,
        stream: sys::CUstream,
        grid: (u32, u32),
        threads: u32,
        call: &Call,
    ) -> Result<(), String> {
        let mut arguments = [std::ptr::from_ref(call).cast_mut().cast::<c_void>()];
        let (grid, block) = ((grid.0, grid.1, 1), (threads, 1, 1));
        // Safe: as above; the driver copies the argument.
        unsafe {
            let to = &mut arguments;
            result::launch_kernel(self.function, grid, block, self.shared, stream, to)
        }
        .map_err(|e| format!("a launch of attention: {e}"))
    }
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
