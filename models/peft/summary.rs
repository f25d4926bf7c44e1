//! An adapter looked at without its base.

use super::config::AdapterConfig;
use super::{CONFIG, open};
use crate::Result;
use crate::models::weights::WeightFiles;
use serde::Serialize;
use std::path::Path;

/// What the folder of an adapter says of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdapterSummary {
    /// The checkpoint that it belongs to: a path, or a name on a hub; empty where it does not say.
    pub base: String,
    /// Rank of the updates.
    pub rank: usize,
    /// α of the updates, which count α / rank times.
    pub alpha: f64,
    /// Whether they count α / √rank times instead.
    pub rslora: bool,
    /// Names of the modules with updates.
    pub targets: Vec<String>,
    /// Names with ranks of their own.
    pub other_ranks: Vec<(String, usize)>,
    /// Names of the modules that it holds in full.
    pub saved_whole: Vec<String>,
}

impl AdapterSummary {
    /// Read `adapter_config.json` in `dir`.
    ///
    /// # Errors
    /// Those of the file, as in [`super::load_adapter`].
    pub fn read(dir: &Path) -> Result<Self> {
        let config = AdapterConfig::read(&dir.join(CONFIG))?;
        Ok(Self {
            base: config.base_model_name_or_path,
            rank: config.r,
            alpha: config.lora_alpha,
            rslora: config.use_rslora,
            targets: config.target_modules,
            other_ranks: config.rank_pattern,
            saved_whole: config.modules_to_save,
        })
    }

    /// The tensors of the adapter in `dir`, by their headers.
    ///
    /// # Errors
    /// [`crate::Error::Weights`] or [`crate::Error::Io`] for a file that is missing or damaged.
    pub fn weights(dir: &Path) -> Result<WeightFiles> {
        open(dir)
    }
}
