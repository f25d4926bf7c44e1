//! Token ids on disk, so that the second run over the same text need not tokenise it again.
//!
//! A file of 128 bytes of header, then the ids of all documents, then their table (names, lengths,
//! report) as JSON. The header says what the ids were made from and how long the rest is, with sums
//! over each part: a file that is cut short, damaged, of another version or made from something
//! else is noticed and made anew. Ids are used where they lie, through a memory map.

use super::source::{DocumentSource, SourceOptions};
use super::{DataReport, Encoded, FileStamp, TokenDocument, TokenIds, Tokenizer, fingerprint};
use crate::atomic::{Staged, is_unfinished};
use crate::{Error, Result};
use crc32c::{crc32c, crc32c_append};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const MAGIC: &[u8; 8] = b"LBTOKENS";
/// Version of the layout.
const FORMAT: u32 = 1;
/// Bytes in front of the ids; a multiple of their alignment.
const HEADER: usize = 128;
/// How long ago a file that no one holds must have been written to be taken for what a kill left.
const STALE: Duration = Duration::from_secs(60);
/// Text that is tokenised at a time, bytes.
const BATCH: usize = 16 << 20;

/// A folder of token files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenCache {
    dir: PathBuf,
}

/// Documents from a cache.
#[derive(Clone, Debug)]
pub struct Cached {
    /// All documents of the source, those without tokens too.
    pub documents: Vec<Encoded>,
    /// Account of reading the source.
    pub report: DataReport,
    /// The file.
    pub file: PathBuf,
    /// Why the text was tokenised; `None` where the file could be used as it was.
    pub rebuilt: Option<String>,
}

/// What decides the ids.
#[derive(Serialize)]
struct Key<'a> {
    format: u32,
    files: BTreeMap<String, FileStamp>,
    tokenizer: String,
    add_special: bool,
    options: &'a SourceOptions,
}

/// What stands behind the ids.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    /// Name, tokens, characters.
    documents: Vec<(String, u64, u64)>,
    report: DataReport,
}

/// The header's fields, in their order.
struct Header {
    fingerprint: [u8; 64],
    ids_bytes: u64,
    table_bytes: u64,
    ids_sum: u32,
    table_sum: u32,
}

impl TokenCache {
    /// A cache in this folder, which is made where it does not exist.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The tokens of the source at `path`, from the cache where it has them.
    ///
    /// # Errors
    /// When the source cannot be read or tokenised, holds no document, or the folder cannot be
    /// written.
    pub fn documents(
        &self,
        path: &Path,
        options: &SourceOptions,
        tokenizer: &Tokenizer,
        add_special: bool,
    ) -> Result<Cached> {
        let tokenizer_print = tokenizer.fingerprint()?;
        let files = FileStamp::of_source(path)?;
        let key = Key { format: FORMAT, files, tokenizer: tokenizer_print, add_special, options };
        let print = fingerprint(&key)?;
        let file = self.dir.join(format!("{}.tokens", &print[..16]));
        let rebuilt = match read(&file, &print)? {
            Ok((documents, report)) => {
                return Ok(Cached { documents, report, file, rebuilt: None });
            }
            Err(reason) => reason,
        };
        std::fs::create_dir_all(&self.dir).map_err(|e| Error::io(&self.dir, e))?;
        self.clear();
        let mut source = options.open(path)?;
        Staged::try_write(&file, |out| {
            // Held while it is written: others that use the folder leave it alone.
            let _ = out.get_ref().try_lock();
            write(out, &file, &print, &mut *source, tokenizer, add_special)
        })?
        .commit()?;
        match read(&file, &print)? {
            Ok((documents, report)) => {
                Ok(Cached { documents, report, file, rebuilt: Some(rebuilt) })
            }
            Err(reason) => Err(Error::Data(format!(
                "{}: just written, and {reason} (remedy: check the disk, or train without a cache)",
                file.display()
            ))),
        }
    }

    /// Remove what killed runs left unfinished.
    fn clear(&self) {
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let stale = || {
                let file = File::open(entry.path()).ok()?;
                let age = file.metadata().ok()?.modified().ok()?.elapsed().ok()?;
                (age > STALE && file.try_lock().is_ok()).then_some(())
            };
            if is_unfinished(&entry.file_name().to_string_lossy()) && stale().is_some() {
                // What cannot be removed now is left to the next run.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// Tokenise a source into a file.
fn write(
    file: &mut BufWriter<&File>,
    path: &Path,
    print: &str,
    source: &mut dyn DocumentSource,
    tokenizer: &Tokenizer,
    add_special: bool,
) -> Result<()> {
    let io = |e| Error::io(path, e);
    file.write_all(&[0; HEADER]).map_err(io)?;
    let (mut documents, mut ids_bytes, mut ids_sum) = (Vec::new(), 0, 0);
    let mut more = true;
    while more {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH && more {
            match source.next_document()? {
                Some(document) => {
                    bytes += document.text.len();
                    batch.push(document);
                }
                None => more = false,
            }
        }
        let texts: Vec<_> = batch.iter().map(|document| document.text.as_str()).collect();
        for (document, ids) in batch.iter().zip(tokenizer.encode_batch(&texts, add_special)?) {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            ids_sum = crc32c_append(ids_sum, &bytes);
            ids_bytes += bytes.len() as u64;
            file.write_all(&bytes).map_err(io)?;
            let characters = document.text.chars().count() as u64;
            documents.push((document.id.clone(), ids.len() as u64, characters));
        }
    }
    if documents.is_empty() {
        return Err(Error::Data(format!("no document in the source: {}", source.report())));
    }
    let table = Table { documents, report: source.report().clone() };
    let table = serde_json::to_vec(&table).map_err(|e| Error::Data(format!("token cache: {e}")))?;
    file.write_all(&table).map_err(io)?;
    let mut fingerprint = [0; 64];
    fingerprint.copy_from_slice(&print.as_bytes()[..64]);
    let (table_bytes, table_sum) = (table.len() as u64, crc32c(&table));
    let header = Header { fingerprint, ids_bytes, table_bytes, ids_sum, table_sum };
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    file.write_all(&header.bytes()).map_err(io)
}

type Documents = (Vec<Encoded>, DataReport);

/// The documents of a cache file, or why it cannot be used.
///
/// # Errors
/// When the file is there and cannot be read.
fn read(path: &Path, print: &str) -> Result<Result<Documents, String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Err("not there yet".into()));
        }
        Err(e) => return Err(Error::io(path, e)),
    };
    // SAFETY: the map is read-only and its bytes are plain numbers. Files of a cache are replaced
    // by renaming, which leaves a mapped one intact; cutting one short in place while it is in use
    // is outside the contract.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
    Ok(parse(map, print))
}

fn parse(map: Mmap, print: &str) -> Result<Documents, String> {
    let header = Header::parse(&map)?;
    if header.fingerprint[..] != *print.as_bytes() {
        return Err("it was made from other text, tokens or settings".into());
    }
    let rest = (map.len() - HEADER) as u64;
    let whole = header.ids_bytes.checked_add(header.table_bytes);
    if whole != Some(rest) {
        return Err(format!("it has {rest} bytes behind its header, which says {whole:?}"));
    }
    let table_start = HEADER + header.ids_bytes as usize;
    let (ids, table) = (&map[HEADER..table_start], &map[table_start..]);
    if crc32c(table) != header.table_sum || crc32c(ids) != header.ids_sum {
        return Err("its bytes are not those that were written".into());
    }
    let table: Table = serde_json::from_slice(table).map_err(|e| format!("its table: {e}"))?;
    let map = Arc::new(map);
    let (mut documents, mut start) = (Vec::with_capacity(table.documents.len()), HEADER);
    for (id, tokens, characters) in table.documents {
        if tokens > (table_start - start) as u64 / 4 {
            return Err("its documents are longer than its ids".into());
        }
        let end = start + 4 * tokens as usize;
        let ids = TokenIds::mapped(&map, start..end);
        documents.push(Encoded { document: TokenDocument { id, ids }, characters });
        start = end;
    }
    Ok((documents, table.report))
}

impl Header {
    fn bytes(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        let fields: [&[u8]; 7] = [
            MAGIC,
            &FORMAT.to_le_bytes(),
            &self.ids_sum.to_le_bytes(),
            &self.table_sum.to_le_bytes(),
            &self.ids_bytes.to_le_bytes(),
            &self.table_bytes.to_le_bytes(),
            &self.fingerprint,
        ];
        let mut at = 0;
        for field in fields {
            out[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        }
        let sum = crc32c(&out[..HEADER - 4]);
        out[HEADER - 4..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let Some(header) = bytes.first_chunk::<HEADER>() else {
            return Err("it is shorter than a header".into());
        };
        if !header.starts_with(MAGIC) {
            return Err("it is no token cache".into());
        }
        let u32_at = |at: usize| {
            let mut field = [0; 4];
            field.copy_from_slice(&header[at..at + 4]);
            u32::from_le_bytes(field)
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(8) != FORMAT {
            return Err(format!("it has format {}; this program reads {FORMAT}", u32_at(8)));
        }
        if u32_at(HEADER - 4) != crc32c(&header[..HEADER - 4]) {
            return Err("its header is damaged".into());
        }
        let mut fingerprint = [0; 64];
        fingerprint.copy_from_slice(&header[36..100]);
        Ok(Self {
            fingerprint,
            ids_sum: u32_at(12),
            table_sum: u32_at(16),
            ids_bytes: u64_at(20),
            table_bytes: u64_at(28),
        })
    }
}
