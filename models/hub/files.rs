//! Which files of a repository are read.

use super::RepoId;
use crate::models::companions::COMPANIONS;
use crate::models::weights::{INDEX, SINGLE, shards};
use crate::{Error, HubFault, Result};
use serde::Serialize;
use std::path::Path;

pub(super) const CONFIG: &str = "config.json";
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER: &str = "adapter_model.safetensors";
/// Endings of files that can run code when they are read, or that only other programs read.
const FOREIGN: [&str; 8] = [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf"];

/// How much of a repository is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Configuration, tokenizer and the list of weights.
    Description,
    /// The weights, too.
    Model,
}

/// A file as the Hub lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListedFile {
    /// Name in the repository.
    pub name: String,
    /// Length, bytes.
    pub bytes: u64,
}

/// What is not in a snapshot though it is needed.
pub(super) fn missing(dir: &Path, need: Need) -> Vec<String> {
    // Links that lead nowhere count as missing.
    let has = |name: &str| dir.join(name).is_file();
    let adapter = has(ADAPTER_CONFIG);
    let mut wanted = Vec::new();
    if !adapter {
        wanted.push(CONFIG.to_string());
    }
    if need == Need::Model {
        match () {
            () if adapter && !has(SINGLE) && !has(INDEX) => wanted.push(ADAPTER.into()),
            () if !has(SINGLE) && has(INDEX) => {
                wanted.extend(shards(&dir.join(INDEX)).unwrap_or_else(|_| vec![INDEX.into()]));
            }
            () => wanted.push(SINGLE.into()),
        }
        // An index that cannot be read is as good as none.
        if wanted.last().is_some_and(|name| name == INDEX) {
            return wanted;
        }
    }
    wanted.retain(|name| !has(name));
    wanted
}

/// Files beside the weights.
#[cfg_attr(not(feature = "hub"), expect(dead_code))]
pub(super) fn is_small(name: &str) -> bool {
    [CONFIG, ADAPTER_CONFIG, INDEX].contains(&name) || COMPANIONS.contains(&name)
}

/// Names of the weights among `names`; an index, where one counts, lies in `dir` by now.
///
/// # Errors
/// [`Error::Hub`] when the index names what the repository has not.
#[cfg_attr(not(feature = "hub"), expect(dead_code))]
pub(super) fn weights(repo: &RepoId, names: &[&str], dir: &Path) -> Result<Vec<String>> {
    let has = |name: &str| names.contains(&name);
    if has(SINGLE) {
        return Ok(vec![SINGLE.into()]);
    }
    if !has(INDEX) {
        return Ok(vec![ADAPTER.into()]);
    }
    let shards = shards(&dir.join(INDEX))?;
    match shards.iter().find(|shard| !has(shard)) {
        None => Ok(shards),
        Some(shard) => Err(Error::Hub {
            repo: repo.to_string(),
            fault: HubFault::Missing,
            reason: format!("{INDEX} names {shard}, which the repository does not have"),
            remedy: "name another revision, or tell its owners".into(),
        }),
    }
}

/// There is something to read among `names`.
///
/// # Errors
/// [`Error::Hub`] that says what there is instead, and how to convert it.
#[cfg_attr(not(feature = "hub"), expect(dead_code))]
pub(super) fn check(repo: &RepoId, names: &[&str], need: Need) -> Result<()> {
    let has = |name: &str| names.contains(&name);
    let refused = |reason: String, remedy: String| {
        let (repo, fault) = (repo.to_string(), HubFault::Missing);
        Err(Error::Hub { repo, fault, reason, remedy })
    };
    if !has(CONFIG) && !has(ADAPTER_CONFIG) {
        return refused(
            format!("holds neither {CONFIG} nor {ADAPTER_CONFIG}"),
            "name the repository of a model in the form of `transformers`".into(),
        );
    }
    if need == Need::Description || has(SINGLE) || has(INDEX) || has(ADAPTER) {
        return Ok(());
    }
    let foreign = |name: &&&str| FOREIGN.iter().any(|ending| name.ends_with(ending));
    let found: Vec<&str> = names.iter().filter(foreign).take(4).copied().collect();
    match found.is_empty() {
        true => refused("holds no weights".into(), "name another repository or revision".into()),
        false => refused(
            format!(
                "holds no {SINGLE}, only {}; pickle files can run code when they are read, and \
                 are not read here",
                found.join(", ")
            ),
            format!(
                "convert it, in Python: transformers.AutoModelForCausalLM.from_pretrained({:?})\
                 .save_pretrained(\"folder\"), and the tokenizer likewise; then name that folder",
                repo.id()
            ),
        ),
    }
}
