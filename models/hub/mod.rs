//! Checkpoints on the Hugging Face Hub, kept where Python's `huggingface_hub` keeps them.
//!
//! A model is named by a folder or by a repository, `org/name` or `org/name@revision`;
//! [`Hub::locate`] makes a folder of either. What is in the cache is used as it is, without a
//! question to the Hub; [`Hub::fetch`] asks for what is new. Downloads need the feature `hub`,
//! the cache does not.
//!
//! A file is compared with the length and the digest that the Hub states before it gets its place
//! in the cache: SHA-256 for large files, git's own digest for small ones.

mod cache;
mod config;
mod digest;
mod fetch;
mod files;
mod locate;
#[cfg(feature = "hub")]
mod online;
#[cfg(feature = "hub")]
mod refusal;
#[cfg(feature = "hub")]
mod remote;
mod repo;
#[cfg(feature = "hub")]
mod store;
mod verify;

pub use cache::Snapshot;
pub use config::{Hub, HubConfig};
pub use digest::Digest;
pub use fetch::{FetchEvent, FetchOptions, Fetched, FetchedFile, Watch};
pub use files::{ListedFile, Need};
pub use locate::Described;
pub use repo::RepoId;
pub use verify::{VerifiedSnapshot, verify_snapshot};
