//! Files that appear whole or not at all.

use crate::{Error, Result};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// How the names of unfinished files begin.
const UNFINISHED: &str = ".longburn-";

/// A complete, synced file that does not have its name yet; dropped, it is removed.
pub(crate) struct Staged {
    path: PathBuf,
    file: NamedTempFile,
}

impl Staged {
    /// Write beside `path` what `content` produces.
    pub fn write(
        path: &Path,
        content: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
    ) -> Result<Self> {
        Self::try_write(path, |out| content(out).map_err(|e| Error::io(path, e)))
    }

    /// The same for content that can fail otherwise.
    pub fn try_write(
        path: &Path,
        content: impl FnOnce(&mut BufWriter<&File>) -> Result<()>,
    ) -> Result<Self> {
        let failed = |e| Error::io(path, e);
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNFINISHED).suffix(".tmp");
        // The default of 0600 would outlive the rename; this is what other files get.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder(path)).map_err(failed)?;
        let mut writer = BufWriter::with_capacity(1 << 20, file.as_file());
        content(&mut writer)?;
        writer.flush().map_err(failed)?;
        drop(writer);
        file.as_file().sync_all().map_err(failed)?;
        Ok(Self { path: path.into(), file })
    }

    /// Give it its name, in place of whatever had it.
    pub fn commit(self) -> Result<()> {
        let Self { path, file } = self;
        file.persist(&path).map(drop).map_err(|e| Error::io(path, e.error))
    }
}

/// Write a file so that its name stands for the old bytes or for all of the new ones, also
/// after a kill or a power cut.
///
/// # Errors
/// The folder is missing or not writable, or the disk is full; the old file is then untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    Staged::write(path, |out| out.write_all(bytes))?.commit()?;
    sync_folder(folder(path))
}

/// What keeps files from being written in `dir`, which need not be there yet, in words; none where
/// nothing does. To be asked before the work that they are to hold.
pub fn obstacle(dir: &Path) -> Option<String> {
    let shown = dir.display();
    match std::fs::metadata(dir) {
        Ok(about) if about.is_dir() => {
            let tried = tempfile::tempfile_in(dir);
            tried.err().map(|e| format!("nothing can be written in {shown}: {e}"))
        }
        Ok(_) => Some(format!("{shown} is a file")),
        // Whatever is wrong with it shows in the folder above, if there is one.
        Err(e) if dir.parent().is_none() || dir == Path::new(".") => Some(format!("{shown}: {e}")),
        Err(_) => obstacle(folder(dir)),
    }
}

/// Whether this is the name of a file that its writer did not finish.
pub(crate) fn is_unfinished(name: &str) -> bool {
    name.starts_with(UNFINISHED)
}

/// Make renames and removals in `folder` last.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    match File::open(folder).and_then(|f| f.sync_all()) {
        // Some file systems cannot sync folders.
        Err(e) if e.kind() != io::ErrorKind::InvalidInput => return Err(Error::io(folder, e)),
        _ => {}
    }
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// The folder that `path` lies in.
pub(crate) fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
