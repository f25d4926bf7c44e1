//! Kernels compiled by NVRTC, and kept in the user's cache folder: compiling takes a second, reading a
//! file does not.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How a cubin begins: it is an ELF file.
const MAGIC: &[u8] = b"\x7fELF";

/// The name of a cubin: a hash of all that it depends on. Architecture is among the options.
pub(crate) fn key(source: &str, options: &[&str], version: (i32, i32)) -> String {
    let version = format!("{}.{}", version.0, version.1);
    let parts = [version.as_str(), source].into_iter().chain(options.iter().copied());
    // FNV-1a: it tells our own texts apart, and nobody else's are looked up.
    let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58du128;
    for part in parts {
        // Every part with its length, so that none can be taken for another's end.
        for byte in (part.len() as u64).to_le_bytes().iter().chain(part.as_bytes()) {
            hash = (hash ^ u128::from(*byte)).wrapping_mul((1 << 88) + 0x13b);
        }
    }
    format!("{hash:032x}")
}

/// Where cubins are kept; none where the user has no such place.
pub(crate) fn folder() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|x| !x.is_empty()).map(PathBuf::from);
    let cache = of("XDG_CACHE_HOME")
        .or_else(|| of("LOCALAPPDATA"))
        .or_else(|| of("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("longburn").join("cubins"))
}

/// The cubin of that name, if it is there and whole.
pub(crate) fn kept(folder: &Path, key: &str) -> Option<Vec<u8>> {
    let cubin = std::fs::read(folder.join(format!("{key}.cubin"))).ok()?;
    cubin.starts_with(MAGIC).then_some(cubin)
}

/// Keeps a cubin, or does not: without it, the next program compiles once more.
pub(crate) fn keep(folder: &Path, key: &str, cubin: &[u8]) {
    let _ = write(folder, key, cubin);
}

/// A file appears whole, whoever else writes it.
fn write(folder: &Path, key: &str, cubin: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let unfinished = folder.join(format!(".{key}-{}-{count}", std::process::id()));
    let written = std::fs::write(&unfinished, cubin)
        .and_then(|()| std::fs::rename(&unfinished, folder.join(format!("{key}.cubin"))));
    if written.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    written
}

#[cfg(all(feature = "cuda-nvrtc", test))]
pub(crate) use nvrtc::compile;
#[cfg(feature = "cuda-nvrtc")]
pub(crate) use nvrtc::{cubin, version};

#[cfg(feature = "cuda-nvrtc")]
mod nvrtc {
    use super::{folder, keep, kept, key};
    use cudarc::nvrtc::{result, sys};
    use std::ffi::{CString, c_char};
    use std::sync::LazyLock;

    /// The cubin of a source, from the cache folder where it has it and `fresh` does not forbid that.
    pub fn cubin(source: &str, options: &[&str], fresh: bool) -> Result<Vec<u8>, String> {
        let key = key(source, options, version()?);
        let folder = folder();
        let found = folder.as_ref().filter(|_| !fresh).and_then(|folder| kept(folder, &key));
        if let Some(cubin) = found {
            return Ok(cubin);
        }
        let (cubin, _) = compile(source, options)?;
        if let Some(folder) = folder {
            keep(&folder, &key, &cubin);
        }
        Ok(cubin)
    }

    /// NVRTC's version.
    ///
    /// # Errors
    /// Where the library is not there.
    pub fn version() -> Result<(i32, i32), String> {
        static VERSION: LazyLock<Result<(i32, i32), String>> = LazyLock::new(asked);
        VERSION.clone()
    }

    fn asked() -> Result<(i32, i32), String> {
        // Safe: the library is looked for and no more; below, it is there.
        if !unsafe { sys::is_culib_present() } {
            return Err("NVRTC (libnvrtc), which compiles its kernels, is not installed".into());
        }
        let (mut major, mut minor) = (0, 0);
        // Safe: both places live.
        let said = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
        said.result().map_err(|e| format!("NVRTC does not tell its version: {e}"))?;
        Ok((major, minor))
    }

    /// A cubin and what the compiler said.
    pub fn compile(source: &str, options: &[&str]) -> Result<(Vec<u8>, String), String> {
        version()?;
        let failed = |what: &str| format!("NVRTC: {what}");
        let source = CString::new(source).map_err(|e| failed(&e.to_string()))?;
        let program = result::create_program(&source, None).map_err(|e| failed(&e.to_string()))?;
        let options: Vec<String> = options.iter().map(|x| x.to_string()).collect();
        // Safe: the program lives until it is destroyed, and with it what it refers to.
        unsafe {
            let compiled = result::compile_program(program, &options);
            let said = result::get_program_log(program).unwrap_or_default();
            let said: String =
                said.iter().map(|c| *c as u8 as char).filter(|c| *c != '\0').collect();
            let done = match compiled {
                Ok(()) => image(program).map(|cubin| (cubin, said)),
                Err(e) => Err(failed(&format!("{e}\n{said}"))),
            };
            let _ = result::destroy_program(program);
            done
        }
    }

    /// # Safety
    /// The program must have been compiled.
    unsafe fn image(program: sys::nvrtcProgram) -> Result<Vec<u8>, String> {
        let failed = |e: result::NvrtcError| format!("NVRTC gives no cubin: {e}");
        let mut size = 0usize;
        // Safe: the program has a cubin, of this size.
        unsafe {
            sys::nvrtcGetCUBINSize(program, &mut size).result().map_err(failed)?;
            let mut cubin = vec![0u8; size];
            let to = cubin.as_mut_ptr().cast::<c_char>();
            sys::nvrtcGetCUBIN(program, to).result().map_err(failed)?;
            Ok(cubin)
        }
    }
}
