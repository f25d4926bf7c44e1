//! `longburn merge`

use crate::output::Target;
use crate::usable::{lines, runs_in};
use crate::{Globals, load, output};
use clap::{Args, ValueEnum};
use longburn::datasets::Tokenizer;
use longburn::models::gates::GATE_FILE;
use longburn::models::weights::{Dtype, SaveDtype, WeightFiles};
use longburn::models::{Blocks, ModelConfig, SaveOptions, copy_companions, lora, peft};
use longburn::{Error, Result};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Add an adapter to its base checkpoint and write the whole model
///
/// Low-rank updates are added to the weights in 32 bits; what the adapter holds in full (embedding,
/// head, norms) takes the base's place. The base is the one that adapter_config.json names,
/// unless --base names another. Tokenizer and generation settings come with it: the adapter's
/// where it has its own, else the base's.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn merge runs/first/adapter --out runs/first/model
  longburn merge adapter --base checkpoints/base --out merged --dtype bf16")]
pub struct MergeArgs {
    /// Folder or repository of an adapter in PEFT form
    adapter: PathBuf,
    /// Folder or repository of the checkpoint that the adapter belongs to
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Folder to write, new or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number format of the weights; the base's where not given
    #[arg(long, value_enum)]
    dtype: Option<DtypeName>,
    /// Largest weight file, bytes; one file where not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_shard_bytes: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum DtypeName {
    F32,
    Bf16,
    F16,
}

impl From<DtypeName> for SaveDtype {
    fn from(name: DtypeName) -> Self {
        match name {
            DtypeName::F32 => Self::F32,
            DtypeName::Bf16 => Self::BF16,
            DtypeName::F16 => Self::F16,
        }
    }
}

impl MergeArgs {
    pub fn models(&mut self) -> Vec<&mut PathBuf> {
        std::iter::once(&mut self.adapter).chain(&mut self.base).collect()
    }

    pub fn targets(&self) -> Vec<Target<'_>> {
        vec![Target::Folder("out", &self.out)]
    }

    pub fn run(&self, globals: &Globals) -> Result<()> {
        if self.adapter.join(GATE_FILE).is_file() {
            return Err(Error::Unsupported {
                what: format!(
                    "merging the gates of {}, which change no weight of a model",
                    self.adapter.display()
                ),
                remedy:
                    "name their folder where the model is used: longburn generate, eval or logits \
                         with --adapter"
                        .into(),
            });
        }
        let base = match &self.base {
            Some(base) => base.clone(),
            None => self.named_base()?,
        };
        let with = load::AdapterArgs { adapter: Some(self.adapter.clone()), select: None };
        let model = load::model(&base, &with, globals)?;
        let tokenizer = [&self.adapter, &base].into_iter().find(|d| has_tokenizer(d));
        if let Some(dir) = tokenizer {
            Tokenizer::from_file(dir)?.check_model(model.config().vocab_size)?;
        }
        let dtype = match self.dtype {
            Some(name) => name.into(),
            None => stored_dtype(&WeightFiles::open(&base)?),
        };
        let merged = lora::merge(model);
        merged.save(&self.out, &SaveOptions { dtype, max_shard_bytes: self.max_shard_bytes })?;
        copy_companions(&base, &self.out)?;
        if has_tokenizer(&self.adapter) {
            copy_companions(&self.adapter, &self.out)?;
        }
        let config = merged.config();
        let written = ModelConfig::from_file(&self.out.join("config.json"))?;
        if globals.json {
            return output::json(&json!({
                "out": self.out,
                "base": base,
                "adapter": self.adapter,
                "dtype": dtype.torch_name(),
                "tokenizer": tokenizer,
                "tied_head": config.tie_word_embeddings,
                "max_context": config.max_context(),
                "runs_in": runs_in(&written, true),
            }));
        }
        output::print(&format!(
            "{} + {} -> {} ({}, context {}, tokenizer {})\n{}",
            base.display(),
            self.adapter.display(),
            self.out.display(),
            dtype.torch_name(),
            config.max_context(),
            tokenizer.map_or("none".into(), |dir| format!("of {}", dir.display())),
            lines(&runs_in(&written, true))
        ))
    }

    /// The base that the adapter names, where it can be found.
    fn named_base(&self) -> Result<PathBuf> {
        let name = peft::base_name(&self.adapter)?;
        let mut base = PathBuf::from(&name);
        let (value, why) = match name.is_empty() {
            true => ("empty".into(), String::new()),
            false => match load::locate(&mut base) {
                Ok(()) => return Ok(base),
                Err(error) => (format!("`{name}`"), format!(" ({error})")),
            },
        };
        let file = self.adapter.join("adapter_config.json").display().to_string();
        let expected = format!(
            "the folder or repository of a checkpoint; name the one it belongs to with --base \
             DIR{why}"
        );
        Err(Error::config(file, "base_model_name_or_path", value, expected))
    }
}

fn has_tokenizer(dir: &Path) -> bool {
    dir.join("tokenizer.json").exists()
}

/// The format of all weights, or f32 where they differ.
fn stored_dtype(files: &WeightFiles) -> SaveDtype {
    let all = |dtype| files.names().all(|name| files.dtype(name) == Some(dtype));
    match (all(Dtype::BF16), all(Dtype::F16)) {
        (true, _) => SaveDtype::BF16,
        (_, true) => SaveDtype::F16,
        _ => SaveDtype::F32,
    }
}
