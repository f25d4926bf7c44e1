//! Token ids that are held in memory or lie in a mapped file.

use memmap2::Mmap;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// The ids of a document, used like a slice. Clones of mapped ids share the map.
#[derive(Clone)]
pub struct TokenIds(Place);

#[derive(Clone)]
enum Place {
    Memory(Vec<u32>),
    /// Bytes of the map, aligned to ids.
    Mapped(Arc<Mmap>, Range<usize>),
}

impl TokenIds {
    /// Ids in bytes `range` of `map`, little-endian; copied where they cannot be used in place.
    pub(super) fn mapped(map: &Arc<Mmap>, range: Range<usize>) -> Self {
        let bytes = &map[range.clone()];
        match aligned(bytes) {
            Some(_) => Self(Place::Mapped(map.clone(), range)),
            None => {
                let (ids, _) = bytes.as_chunks::<4>();
                ids.iter().map(|id| u32::from_le_bytes(*id)).collect()
            }
        }
    }

    /// Keep the first `len` ids.
    pub fn truncate(&mut self, len: usize) {
        match &mut self.0 {
            Place::Memory(ids) => ids.truncate(len),
            Place::Mapped(_, range) => {
                range.end = range.start + range.len().min(len.saturating_mul(4))
            }
        }
    }
}

/// The ids that `bytes` are on this machine.
fn aligned(bytes: &[u8]) -> Option<&[u32]> {
    // SAFETY: every pattern of 32 bits is a `u32`.
    let (before, ids, after) = unsafe { bytes.align_to::<u32>() };
    (cfg!(target_endian = "little") && before.is_empty() && after.is_empty()).then_some(ids)
}

impl Deref for TokenIds {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        match &self.0 {
            Place::Memory(ids) => ids,
            // `mapped` made sure of it.
            Place::Mapped(map, range) => aligned(&map[range.clone()]).unwrap_or_default(),
        }
    }
}

impl From<Vec<u32>> for TokenIds {
    fn from(ids: Vec<u32>) -> Self {
        Self(Place::Memory(ids))
    }
}

impl FromIterator<u32> for TokenIds {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        Self(Place::Memory(ids.into_iter().collect()))
    }
}

impl AsRef<[u32]> for TokenIds {
    fn as_ref(&self) -> &[u32] {
        self
    }
}

impl PartialEq for TokenIds {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for TokenIds {}

impl std::fmt::Debug for TokenIds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}
