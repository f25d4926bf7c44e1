//! `longburn fetch`

use crate::{Globals, output};
use clap::Args;
use longburn::Result;
use longburn::models::hub::{FetchOptions, HubConfig, RepoId};
use longburn::training::plan::bytes;
use longburn::training::report::Progress;
use serde_json::json;
use std::path::PathBuf;

/// Download a model from the Hugging Face Hub
///
/// Configuration, tokenizer, chat template and safetensors, never pickle files, come into the cache
/// that Python's tools use; the folder is printed. Every file is compared with the length and the
/// digest that the Hub states before it is used, those that were in the cache, too. Without a
/// network, a snapshot in the cache in which nothing is missing is used.
///
/// Needs a build with the feature `hub`. HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_CACHE and
/// HF_HUB_OFFLINE mean what they mean to Python's tools.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn fetch org/name
  longburn fetch org/name --revision v1.0 --json")]
pub struct FetchArgs {
    /// Repository: org/name, or org/name@revision
    #[arg(value_name = "REPO")]
    repo: String,
    /// Branch, tag or commit; main where not given
    #[arg(long, value_name = "NAME")]
    revision: Option<String>,
    /// Download files again that are in the cache
    #[arg(long)]
    force: bool,
    /// Folder of the cache
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

impl FetchArgs {
    pub fn run(&self, globals: &Globals) -> Result<()> {
        let mut repo = RepoId::parse(&self.repo)?;
        if let Some(revision) = &self.revision {
            repo = repo.with_revision(revision)?;
        }
        let mut config = HubConfig::new();
        if let Some(cache) = &self.cache {
            config = config.with_cache(cache);
        }
        let options = FetchOptions::new().with_force(self.force);
        let mut watch = Progress::new(0).download();
        let fetched = config.init().fetch(&repo, &options, &mut watch)?;
        if globals.json {
            return output::json(&json!({
                "repo": repo.id(),
                "revision": repo.revision(),
                "commit": fetched.commit,
                "dir": fetched.dir,
                "offline": fetched.offline,
                "files": fetched.files,
            }));
        }
        let came: Vec<u64> =
            fetched.files.iter().filter(|file| file.downloaded).map(|file| file.bytes).collect();
        output::note(format_args!(
            "{repo} at commit {}: {} files downloaded ({}), {} were there",
            fetched.commit,
            came.len(),
            bytes(came.iter().sum()),
            fetched.files.len() - came.len()
        ));
        output::print(&format!("{}\n", fetched.dir.display()))
    }
}
