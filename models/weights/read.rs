//! Reading checkpoints: one file, or shards with an index.

use super::tensor::{RawTensor, decode};
use super::text::shortened;
use super::write::is_shard;
use super::{INDEX, SINGLE, header, index};
use crate::{Error, Result};
use memmap2::Mmap;
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The weights of a checkpoint, mapped into memory: opening reads headers only.
#[derive(Debug)]
pub struct WeightFiles {
    /// What was opened.
    root: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl WeightFiles {
    /// Open the `model.safetensors` of a folder or, failing that, the shards that its
    /// `model.safetensors.index.json` lists; the path of a single file is taken as such.
    ///
    /// # Errors
    /// [`Error::Weights`] with the file at fault and a remedy: nothing to open, only pickle
    /// files, a file that is cut short or malformed, or an index that disagrees with its shards.
    pub fn open(dir: &Path) -> Result<Self> {
        if dir.is_file() {
            return Self::open_file(dir);
        }
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        let mut files = Self::empty(dir);
        if single.is_file() {
            files.add(single)?;
        } else if index.is_file() {
            files.add_shards(dir, &index)?;
        } else {
            return Err(nothing_to_open(dir));
        }
        Ok(files)
    }

    /// Open one safetensors file, whatever its name.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut files = Self::empty(path);
        files.add(path.into())?;
        Ok(files)
    }

    /// The same tensors under other names.
    ///
    /// # Errors
    /// [`Error::Weights`] when two would have one name.
    pub(crate) fn renamed(mut self, name: impl Fn(&str) -> String) -> Result<Self> {
        for (old, entry) in std::mem::take(&mut self.tensors) {
            let new = name(&old);
            let file = self.shards[entry.shard].path.clone();
            if self.tensors.insert(new.clone(), entry).is_some() {
                return Err(Error::Weights {
                    file,
                    reason: format!("holds `{new}` twice, once as `{old}`"),
                    remedy: "get the weights again; they must belong together".into(),
                });
            }
        }
        Ok(self)
    }

    fn empty(root: &Path) -> Self {
        Self {
            root: root.into(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
        }
    }

    /// Map a file and take up its tensors; their names.
    fn add(&mut self, path: PathBuf) -> Result<Vec<String>> {
        let file = File::open(&path).map_err(|e| Error::io(&path, e))?;
        // SAFETY: the map is read-only, and the bytes are plain numbers, valid whatever they
        // are. Writers that replace a file by renaming, as this library does, leave the mapped
        // one intact; cutting it short in place while it is in use is outside the contract.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(&path, e))?;
        let header = header::parse(&map, &path)?;
        let names = header.tensors.keys().cloned().collect();
        let shard = self.shards.len();
        self.metadata.extend(header.metadata);
        self.tensors.extend(header.tensors.into_iter().map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let bytes = header.data_start + start..header.data_start + end;
            (name, Entry { shard, dtype: info.dtype, shape: info.shape, bytes })
        }));
        self.shards.push(Shard { path, map });
        Ok(names)
    }

    fn add_shards(&mut self, dir: &Path, index: &Path) -> Result<()> {
        for (shard, listed) in index::read(index)? {
            let path = dir.join(&shard);
            let wrong = |reason: String| Error::Weights {
                file: path.clone(),
                reason: shortened(&reason, 1000),
                remedy: "get the index and all its shards again; they must belong together".into(),
            };
            if !path.is_file() {
                return Err(wrong(format!("is missing, but {INDEX} lists it")));
            }
            let held = self.add(path.clone())?;
            let extra: Vec<_> = held.iter().filter(|n| !listed.contains(*n)).collect();
            if !extra.is_empty() {
                return Err(wrong(format!(
                    "holds tensors that {INDEX} does not place here: {extra:?}"
                )));
            }
            if held.len() < listed.len() {
                let lacking: Vec<_> = listed.iter().filter(|n| !held.contains(n)).collect();
                return Err(wrong(format!("lacks tensors that {INDEX} places here: {lacking:?}")));
            }
        }
        Ok(())
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Lengths of a tensor's axes.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| &t.shape[..])
    }

    /// Number type of a tensor.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|t| t.dtype)
    }

    /// The file that holds a tensor.
    pub fn file(&self, name: &str) -> Option<&Path> {
        self.tensors.get(name).map(|t| &*self.shards[t.shard].path)
    }

    /// The free-form texts of the headers.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The values of an F32, BF16 or F16 tensor, exactly.
    ///
    /// # Errors
    /// [`Error::Weights`] when there is no such tensor or it has another type.
    pub fn load_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (entry, bytes) = self.find(name)?;
        decode(entry.dtype, bytes).ok_or_else(|| Error::Weights {
            file: self.shards[entry.shard].path.clone(),
            reason: format!("holds `{name}` as {:?}", entry.dtype),
            remedy: "use a checkpoint in float32, bfloat16 or float16".into(),
        })
    }

    /// A tensor of any type, as it lies in the file.
    ///
    /// # Errors
    /// [`Error::Weights`] when there is no such tensor.
    pub fn load_raw(&self, name: &str) -> Result<RawTensor> {
        let (entry, bytes) = self.find(name)?;
        Ok(RawTensor { dtype: entry.dtype, shape: entry.shape.clone(), data: bytes.into() })
    }

    fn find(&self, name: &str) -> Result<(&Entry, &[u8])> {
        let entry = self.tensors.get(name).ok_or_else(|| Error::Weights {
            file: self.root.clone(),
            reason: format!("holds no tensor `{name}`"),
            remedy: "check that the weights belong to this model".into(),
        })?;
        Ok((entry, &self.shards[entry.shard].map[entry.bytes.clone()]))
    }

    /// Compare with the tensors that a model needs. Names for which `ignore` holds may be there
    /// or not (buffers that old checkpoints carry, a tied head).
    ///
    /// # Errors
    /// [`Error::TensorMismatch`] with *all* that is missing, unexpected or of another shape.
    pub fn check_names(
        &self,
        expected: &BTreeMap<String, Vec<usize>>,
        ignore: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let (mut missing, mut misshaped) = (Vec::new(), Vec::new());
        for (name, shape) in expected {
            match self.shape(name) {
                None if ignore(name) => {}
                None => missing.push(name.clone()),
                Some(got) if got == shape => {}
                Some(got) => misshaped.push(format!("{name}: got {got:?}, expected {shape:?}")),
            }
        }
        let unexpected: Vec<String> = self
            .names()
            .filter(|name| !expected.contains_key(*name) && !ignore(name))
            .map(Into::into)
            .collect();
        if missing.is_empty() && unexpected.is_empty() && misshaped.is_empty() {
            return Ok(());
        }
        let what = self.root.display().to_string();
        Err(Error::TensorMismatch { what, missing, unexpected, misshaped })
    }
}

/// All tensors of one safetensors file, and its free-form texts.
///
/// # Errors
/// As [`WeightFiles::open_file`].
pub fn read_safetensors(
    path: &Path,
) -> Result<(BTreeMap<String, RawTensor>, BTreeMap<String, String>)> {
    let files = WeightFiles::open_file(path)?;
    let tensors = files
        .names()
        .map(|name| Ok((name.to_string(), files.load_raw(name)?)))
        .collect::<Result<_>>()?;
    Ok((tensors, files.metadata))
}

fn nothing_to_open(dir: &Path) -> Error {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => return Error::io(dir, e),
    };
    let names: Vec<String> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let pickle =
        |name: &&String| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|e| name.ends_with(e));
    let (reason, remedy) = if names.iter().any(|name| is_shard(name)) {
        (
            format!("holds shards without {INDEX}, as an interrupted save or download does"),
            "save or download the weights again".into(),
        )
    } else if let Some(name) = names.iter().find(pickle) {
        (
            format!("holds weights only as pickle ({name}), which can run code"),
            "convert them in Python, where you trust them: \
             AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
                .into(),
        )
    } else {
        (
            format!("holds neither {SINGLE} nor {INDEX}"),
            "name a folder with a checkpoint in Hugging Face form".into(),
        )
    };
    Error::Weights { file: dir.into(), reason, remedy }
}
