//! `longburn logits`

use crate::output::Target;
use crate::{Globals, load, output};
use burn::tensor::DType;
use clap::Args;
use longburn::kernel::TokenMeta;
use longburn::models::weights::{RawTensor, SaveDtype, write_safetensors};
use longburn::models::{Blocks, ForwardOptions, ids_tensor};
use longburn::{Error, Result};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Write the logits of rows of ids, each row on its own
///
/// The ids are a list of rows of any lengths, such as [[1, 5, 9], [1, 7]]. The result holds
/// `logits.0`, `logits.1` ..., [T, V] each, in 32 bits.
#[derive(Args)]
#[command(after_help = "\
Examples:
  longburn logits MODEL --ids ids.json --out logits.safetensors")]
pub struct LogitsArgs {
    /// Folder of a checkpoint in Hugging Face form, or a repository of the Hub: org/name
    dir: PathBuf,
    /// JSON file with a list of rows of ids
    #[arg(long, value_name = "FILE")]
    ids: PathBuf,
    /// File to write, safetensors
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    with: load::AdapterArgs,
}

impl LogitsArgs {
    pub fn models(&mut self) -> Vec<&mut PathBuf> {
        std::iter::once(&mut self.dir).chain(&mut self.with.adapter).collect()
    }

    pub fn targets(&self) -> Vec<Target<'_>> {
        vec![Target::File("out", &self.out)]
    }

    pub fn run(&self, globals: &Globals) -> Result<()> {
        let rows: Vec<Vec<u32>> =
            load::json(&self.ids, "write rows of ids, such as [[1, 5, 9], [1, 7]]")?;
        if rows.is_empty() {
            let file = self.ids.display().to_string();
            return Err(Error::config(file, "[]", "empty", "at least one row of ids"));
        }
        load::check_whole_rows(&self.with)?;
        let model = load::model(&self.dir, &self.with, globals)?;
        let vocabulary = model.config().vocab_size;
        for (i, row) in rows.iter().enumerate() {
            load::check_ids(row, vocabulary, &self.ids, i)?;
        }
        let mut tensors = BTreeMap::new();
        for (i, row) in rows.iter().enumerate() {
            let ids = ids_tensor(row, 1, &model.head().device());
            let tokens = TokenMeta::contiguous(1, row.len(), 0);
            let hidden = model.forward_ids(ids, &tokens, &ForwardOptions::infer(), vec![])?;
            let logits = model.logits(hidden.last).cast(DType::F32).into_data();
            let logits: Vec<f32> = logits.iter::<f32>().collect();
            let tensor = RawTensor::from_f32(vec![row.len(), vocabulary], &logits, SaveDtype::F32)?;
            tensors.insert(format!("logits.{i}"), tensor);
        }
        write_safetensors(&self.out, &tensors, &BTreeMap::new())?;
        let tokens: usize = rows.iter().map(Vec::len).sum();
        if globals.json {
            return output::json(&json!({
                "out": self.out,
                "rows": rows.len(),
                "tokens": tokens,
                "vocab_size": vocabulary,
                "device": globals.device.to_string(),
            }));
        }
        output::note(format_args!(
            "{} rows, {tokens} tokens, vocabulary {vocabulary} -> {}",
            rows.len(),
            self.out.display()
        ));
        Ok(())
    }
}
