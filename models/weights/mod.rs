//! safetensors files, single and sharded, read with suspicion and written with care.
//!
//! Reading checks everything that a header or an index claims before anything is allocated for
//! it. Writing goes to a temporary sibling that is synced and renamed, so that a name never
//! stands for half a file.

mod header;
mod index;
mod read;
mod tensor;
mod text;
mod write;

pub use crate::atomic::{obstacle, write_atomic};
pub use read::{WeightFiles, read_safetensors};
pub use safetensors::Dtype;
pub use tensor::{HostTensor, RawTensor, SaveDtype};
pub use write::{save_weights, write_safetensors};

pub(crate) use crate::atomic::{is_unfinished, sync_folder};
pub(crate) use index::shards;
pub(crate) use text::{read_needed, read_text, shortened};

/// Name of the file that holds all weights.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Name of the file that says which shard holds which tensor.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
