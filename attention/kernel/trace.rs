//! Everything that an NVIDIA card does while something runs, by the card's own clock.

use crate::Error;
use burn::tensor::Device;

/// A kernel, a copy or a memory set, as the card did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The kernel's name as it was compiled, or what kind of copy it was.
    pub name: String,
    /// When it began, in nanoseconds of a clock that all launches share.
    pub start: u64,
    /// When it ended, in nanoseconds.
    pub end: u64,
}

/// What `work` gives, and all that the card has done by its end, in the order of beginning.
///
/// Needs NVIDIA's CUPTI library, which comes with the CUDA toolkit. Launches of other threads of this
/// process are among them.
///
/// # Errors
/// [`Error::Unsupported`] on other devices, and where the library is missing, refuses, or is in use.
///
/// ```
/// # use longburn_kernels::traced;
/// # #[cfg(feature = "flex")]
/// assert!(traced(&burn::tensor::Device::flex(), || 1).is_err());
/// ```
pub fn traced<R>(device: &Device, work: impl FnOnce() -> R) -> Result<(R, Vec<Launch>), Error> {
    #[cfg(feature = "cuda")]
    if let Some(number) = crate::named::cuda_number(device) {
        return cupti::traced((device, number), work).map_err(refused);
    }
    let _ = (device, work);
    Err(refused("only CUDA devices tell what they do".into()))
}

fn refused(reason: String) -> Error {
    Error::Unsupported { op: "traced", reason }
}

#[cfg(feature = "cuda")]
mod cupti {
    use super::Launch;
    use crate::stream::within;
    use burn::tensor::Device;
    use cudarc::cupti::result::{CuptiError, activity};
    use cudarc::cupti::sys::{self, CUpti_ActivityKind as Kind};
    use cudarc::driver::sys::CUcontext;
    use std::alloc::{Layout, alloc, dealloc};
    use std::ffi::CStr;
    use std::sync::{Mutex, PoisonError};

    /// What the library has handed over so far. It knows of one receiver per process.
    static SEEN: Mutex<Vec<Launch>> = Mutex::new(Vec::new());
    /// Held while something is traced.
    static ONE: Mutex<()> = Mutex::new(());

    const KINDS: [Kind; 3] = [
        Kind::CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL,
        Kind::CUPTI_ACTIVITY_KIND_MEMCPY,
        Kind::CUPTI_ACTIVITY_KIND_MEMSET,
    ];

    /// Some ten thousand launches.
    const BUFFER: Layout = match Layout::from_size_align(8 << 20, 8) {
        Ok(layout) => layout,
        Err(_) => panic!("8 is a power of two"),
    };

    /// Hand over what is not full, too.
    const FORCED: u32 = 1;

    pub fn traced<R>(
        (device, number): (&Device, i32),
        work: impl FnOnce() -> R,
    ) -> Result<(R, Vec<Launch>), String> {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        // Safe: the library is looked for and no more.
        if !unsafe { sys::is_culib_present() } {
            return Err("CUPTI (libcupti.so) was not found; it comes with the CUDA toolkit, in \
                        extras/CUPTI/lib64, which the loader must be told of (LD_LIBRARY_PATH)"
                .into());
        }
        let failed = |e: CuptiError| format!("CUPTI refuses: {e:?}");
        // CubeCL's queue first, then the streams of all threads.
        let sync = || {
            device.sync().map_err(|e| format!("the device failed: {e}"))?;
            let all = within(number, cudarc::driver::result::ctx::synchronize);
            all.and_then(|done| done).map_err(|e| format!("the device failed: {e:?}"))
        };
        activity::register_callbacks(Some(wanted), Some(completed)).map_err(failed)?;
        sync()?;
        for kind in KINDS {
            activity::enable(kind).map_err(failed)?;
        }
        let done = work();
        let ended = sync();
        for kind in KINDS {
            activity::disable(kind).map_err(failed)?;
        }
        activity::flush_all(FORCED).map_err(failed)?;
        ended?;
        let mut seen = std::mem::take(&mut *SEEN.lock().unwrap_or_else(PoisonError::into_inner));
        seen.sort_by_key(|launch| launch.start);
        Ok((done, seen))
    }

    extern "C" fn wanted(buffer: *mut *mut u8, size: *mut usize, most: *mut usize) {
        // Safe: the library gives places to write to; no address means no buffer, which it knows.
        unsafe {
            *buffer = alloc(BUFFER);
            *size = if (*buffer).is_null() { 0 } else { BUFFER.size() };
            *most = 0;
        }
    }

    extern "C" fn completed(_: CUcontext, _: u32, buffer: *mut u8, _: usize, filled: usize) {
        let mut record = std::ptr::null_mut();
        let mut found = Vec::new();
        // Safe: the buffer is one of `wanted`, filled that far, and every record has its kind first.
        unsafe {
            while activity::get_next_record(buffer, filled, &mut record).is_ok() {
                found.extend(launch(record));
            }
            if !buffer.is_null() {
                dealloc(buffer, BUFFER);
            }
        }
        SEEN.lock().unwrap_or_else(PoisonError::into_inner).append(&mut found);
    }

    /// Newer versions of the library append fields to these records; what is read here stays in place.
    ///
    /// # Safety
    /// A record of the library.
    unsafe fn launch(record: *const sys::CUpti_Activity) -> Option<Launch> {
        // Safe: the kind says what lies there.
        unsafe {
            let (name, start, end) = match (*record).kind {
                Kind::CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL => {
                    let kernel = record.cast::<sys::CUpti_ActivityKernel4>();
                    let name = (*kernel).name;
                    let name = (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy());
                    let name = name.map_or("unnamed".into(), |name| name.into_owned());
                    (name, (*kernel).start, (*kernel).end)
                }
                Kind::CUPTI_ACTIVITY_KIND_MEMCPY => {
                    let copy = record.cast::<sys::CUpti_ActivityMemcpy>();
                    (direction((*copy).copyKind).into(), (*copy).start, (*copy).end)
                }
                Kind::CUPTI_ACTIVITY_KIND_MEMSET => {
                    let set = record.cast::<sys::CUpti_ActivityMemset>();
                    ("memory set".into(), (*set).start, (*set).end)
                }
                _ => return None,
            };
            Some(Launch { name, start, end })
        }
    }

    /// CUPTI's kinds of copies.
    fn direction(kind: u8) -> &'static str {
        match kind {
            1 => "copy to the card",
            2 => "copy from the card",
            8 => "copy on the card",
            _ => "copy",
        }
    }
}
