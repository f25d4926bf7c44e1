//! Kernels on a card: loaded into a device's context, launched with one argument.

use super::cubin;
use crate::stream::within;
use burn_cubecl::CubeDevice;
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::hash::Hash;
use std::sync::{Arc, LazyLock, Mutex, Once, OnceLock, PoisonError};

/// What can be launched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    function: sys::CUfunction,
    shared: u32,
}

// Safe: a function is a name that the driver gave out, for all threads.
unsafe impl Send for Entry {}
unsafe impl Sync for Entry {}

/// The entries of a source, or why there are none.
pub(crate) type Loaded = Result<Arc<[Entry]>, String>;

/// What was loaded of kernels that are compiled for a `F`. Modules belong to a context, so that each device has its own.
pub(crate) struct PerDevice<F>(LazyLock<Mutex<Forms<F>>>);

type Forms<F> = HashMap<(i32, F), Arc<OnceLock<Loaded>>>;

impl<F: Eq + Hash> PerDevice<F> {
    /// None yet.
    pub const fn new() -> Self {
        Self(LazyLock::new(Mutex::default))
    }

    /// Those for `form` on a device, by `load` where nobody has asked for them yet. Compiling takes a second: whoever
    /// asks for the same waits, others do not.
    pub fn get(&self, device: i32, form: F, load: impl FnOnce() -> Loaded) -> Loaded {
        let of_form = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry((device, form)).or_default())
        };
        of_form.get_or_init(load).clone()
    }
}

/// Compiles a source, unless its cubin is kept, and loads it: `entries` are names, and the most bytes of
/// shared memory that a workgroup of each has. A module is never unloaded: callers ask once per device ([`PerDevice`]).
pub(crate) fn load(
    device: i32,
    source: &str,
    options: &[&str],
    entries: &[(&str, usize)],
) -> Loaded {
    let loaded = |fresh: bool| -> Loaded {
        let image = cubin::cubin(source, options, fresh)?;
        within(device, || module(&image, entries)).map_err(|e| format!("the driver: {e}"))?
    };
    // A file of the cache may have been damaged.
    loaded(false).or_else(|_| loaded(true))
}

/// The entries, if they are loaded; otherwise the reason is told, once, and `instead` of what runs.
pub(crate) fn or_warn(loaded: Loaded, instead: &str, told: &Once) -> Option<Arc<[Entry]>> {
    let warn = |reason: &String| told.call_once(|| tracing::warn!("{instead}: {reason}"));
    loaded.inspect_err(warn).ok()
}

fn module(image: &[u8], entries: &[(&str, usize)]) -> Loaded {
    let failed = |e: result::DriverError| format!("a kernel does not load: {e}");
    let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // Safe: the image is a whole cubin, and a module is never unloaded.
    unsafe {
        let module = result::module::load_data(image.as_ptr().cast()).map_err(failed)?;
        let entry = |(name, shared): &(&str, usize)| {
            let name = CString::new(*name).expect("names have no zero in them");
            let function = result::module::get_function(module, name).map_err(failed)?;
            let shared = *shared as u32;
            if shared > 0 {
                result::function::set_function_attribute(function, most, shared as i32)
                    .map_err(failed)?;
            }
            Ok(Entry { function, shared })
        };
        entries.iter().map(entry).collect()
    }
}

impl Entry {
    /// With less shared memory than the entry may have.
    pub fn with_shared(self, bytes: usize) -> Self {
        Self { shared: bytes as u32, ..self }
    }

    /// # Safety
    /// On CubeCL's thread for the device, with buffers as large as `call` says. `C` is what the kernel
    /// takes.
    pub unsafe fn launch<C: Copy>(
        self,
        stream: sys::CUstream,
        grid: (u32, u32, u32),
        threads: u32,
        call: &C,
    ) -> Result<(), String> {
        let mut arguments = [std::ptr::from_ref(call).cast_mut().cast::<c_void>()];
        // Safe: as above; the driver copies the argument.
        unsafe {
            let to = &mut arguments;
            result::launch_kernel(self.function, grid, (threads, 1, 1), self.shared, stream, to)
        }
        .map_err(|e| format!("a launch of a kernel in CUDA C++: {e}"))
    }

    /// Behind a launch on the same stream, of which its kernel waits for what it needs: it may begin before that one
    /// ends, on cards of capability 9.0 and above.
    ///
    /// # Safety
    /// As of [`Entry::launch`].
    unsafe fn launch_behind<C: Copy>(
        self,
        stream: sys::CUstream,
        grid: (u32, u32, u32),
        threads: u32,
        call: &C,
    ) -> Result<(), String> {
        let mut arguments = [std::ptr::from_ref(call).cast_mut().cast::<c_void>()];
        let overlap =
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
        let mut attribute = sys::CUlaunchAttribute { id: overlap, pad: [0; 4], value };
        let config = sys::CUlaunchConfig {
            gridDimX: grid.0,
            gridDimY: grid.1,
            gridDimZ: grid.2,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared,
            hStream: stream,
            attrs: &raw mut attribute,
            numAttrs: 1,
        };
        let (to, none) = (arguments.as_mut_ptr(), std::ptr::null_mut());
        // Safe: as above; the driver copies the argument and the attribute.
        unsafe { sys::cuLaunchKernelEx(&raw const config, self.function, to, none) }
            .result()
            .map_err(|e| format!("a launch of a kernel in CUDA C++: {e}"))
    }
}

/// Launches on a stream, one after the other; where `overlap` is set, all but the first may begin before the one ahead
/// ends ([`Entry::launch_behind`]).
pub(crate) struct InTurn {
    stream: sys::CUstream,
    overlap: bool,
    begun: bool,
}

impl InTurn {
    /// None yet.
    pub fn on(stream: sys::CUstream, overlap: bool) -> Self {
        Self { stream, overlap, begun: false }
    }

    /// # Safety
    /// As of [`Entry::launch`].
    pub unsafe fn launch<C: Copy>(
        &mut self,
        entry: Entry,
        grid: (u32, u32, u32),
        threads: u32,
        call: &C,
    ) -> Result<(), String> {
        let behind = std::mem::replace(&mut self.begun, true) && self.overlap;
        // Safe: as of this function.
        unsafe {
            match behind {
                true => entry.launch_behind(self.stream, grid, threads, call),
                false => entry.launch(self.stream, grid, threads, call),
            }
        }
    }
}

/// The compute capability of a CUDA device, nine for 9.0 as 90; none on others.
pub(crate) fn capability(device: &CubeDevice) -> Option<u32> {
    let client = device.client();
    if client.name() != "cuda" {
        return None;
    }
    // As CubeCL's CUDA runtime writes it.
    client.properties().identity.fingerprint.strip_prefix("ptx_sm")?.parse().ok()
}
