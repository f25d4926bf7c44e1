//! Models named by repository: the cache that Python's tools share, and, with the feature `hub`,
//! downloads from a server of the test's own.

mod cached;
#[cfg(feature = "hub")]
mod command;
#[cfg(feature = "hub")]
mod damage;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod refusals;
#[cfg(feature = "hub")]
mod server;

use crate::tiny;
use burn::tensor::Device;
use longburn::datasets::{BpeConfig, train_bpe};
use longburn::models::hub::{Digest, FetchEvent, RepoId};
use longburn::models::{ModelConfig, SaveOptions};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

const REPO: &str = "org/tiny";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TEXT: &str = "The river ran past the mill, and the miller counted seven sacks of flour. ";

/// A small model in three shards with its tokenizer, and what Longburn does not read.
fn files() -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let config = ModelConfig::llama(304, 16, 2, 2).with_max_positions(64).with_eos([0]);
    let shards = SaveOptions { max_shard_bytes: Some(24 << 10), ..SaveOptions::default() };
    tiny::model(&config, &Device::flex()).save(dir.path(), &shards).unwrap();
    let special = vec!["<|endoftext|>".to_string()];
    let texts = [TEXT.repeat(3)];
    let config = BpeConfig::new(300).with_special(special);
    train_bpe(texts.iter(), &config).unwrap().save(dir.path()).unwrap();
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        files.insert(name, std::fs::read(entry.path()).unwrap());
    }
    assert!(weights(&files).len() > 2, "{:?}", files.keys());
    files.insert("README.md".into(), b"# tiny\n".to_vec());
    files.insert("pytorch_model.bin".into(), b"\x80\x04pickle".to_vec());
    files
}

/// Names of the shards.
fn weights(files: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    files.keys().filter(|name| name.ends_with(".safetensors")).cloned().collect()
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".bin")
}

/// The digest by which the Hub names a file.
fn digest(name: &str, bytes: &[u8]) -> String {
    if is_large(name) {
        return format!("{:x}", Sha256::digest(bytes));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blob");
    std::fs::write(&path, bytes).unwrap();
    // Whatever it is, it is not this.
    Digest::Git("0".repeat(40)).differs(&path, &mut |_| {}).unwrap().unwrap()
}

fn repo() -> RepoId {
    RepoId::parse(REPO).unwrap()
}

fn quiet(_: FetchEvent) {}

/// Names of all files and links below `dir`.
fn below(dir: &Path) -> Vec<String> {
    let walk = walkdir::WalkDir::new(dir).sort_by_file_name().into_iter();
    walk.map(|entry| entry.unwrap())
        .filter(|entry| !entry.file_type().is_dir())
        .map(|entry| entry.path().strip_prefix(dir).unwrap().to_string_lossy().into_owned())
        .collect()
}
