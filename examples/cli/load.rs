//! What several verbs read: models, tokenizers, lists of ids.

use crate::{Globals, output};
use clap::Args;
use longburn::attention::seer::{GateKind, Select};
use longburn::attention::{Compute, Mixer, MixerSchedule};
use longburn::datasets::Tokenizer;
use longburn::models::hub::{HubConfig, Need};
use longburn::models::{Blocks, Decoder, ForwardOptions, ModelConfig, gates, peft};
use longburn::training::report::Progress;
use longburn::{Error, Result};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Put the folder that is meant in the place of a name.
pub fn locate(name: &mut PathBuf) -> Result<()> {
    let mut watch = Progress::new(0).download();
    *name = HubConfig::new().init().locate(name, Need::Model, &mut watch)?;
    Ok(())
}

/// What is put on a checkpoint.
#[derive(Args, Clone, Debug, Default)]
pub struct AdapterArgs {
    /// Folder or repository of an adapter in PEFT form, or folder of gates
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Blocks of keys that gates let through, in place of what they were saved with: `threshold=X`,
    /// `nz-ratio=X` or `budget=TOKENS`
    #[arg(long, value_name = "RULE", requires = "adapter", value_parser = select)]
    pub select: Option<Select>,
}

/// `threshold=0.002` and the like.
fn select(text: &str) -> std::result::Result<Select, String> {
    let expected = "expected threshold=X, nz-ratio=X or budget=TOKENS";
    let (rule, value) = text.split_once('=').ok_or(expected)?;
    let number = || value.parse::<f64>().map_err(|e| format!("{value}: {e}; {expected}"));
    match rule {
        "threshold" => Ok(Select::Threshold(number()?)),
        "nz-ratio" => Ok(Select::NzRatio(number()?)),
        "budget" => {
            let tokens = value.parse().map_err(|e| format!("{value}: {e}; {expected}"))?;
            Ok(Select::Budget(tokens))
        }
        _ => Err(expected.into()),
    }
}

/// The model of a folder, with an adapter where one is named.
///
/// # Errors
/// What checkpoints and adapters are refused for, and a device that does not compute so.
pub fn model(dir: &Path, with: &AdapterArgs, globals: &Globals) -> Result<Decoder<Mixer>> {
    model_in(dir, with, Compute::F32, globals)
}

/// The same for passes that compute in `compute`.
///
/// # Errors
/// As [`model`].
pub fn model_in(
    dir: &Path,
    with: &AdapterArgs,
    compute: Compute,
    globals: &Globals,
) -> Result<Decoder<Mixer>> {
    let adapter = with.adapter.as_deref();
    let device = globals.device.open()?;
    if !compute.runs_on(&device) {
        return Err(Error::Unsupported {
            what: format!("--compute {} on {}", compute.name(), globals.device),
            remedy: "leave it out, or choose a device that has it".into(),
        });
    }
    // An adapter's folder has a configuration of its own where training changed the positions.
    let own = adapter.map(|adapter| adapter.join("config.json")).filter(|file| file.exists());
    let base = ModelConfig::from_file(&dir.join("config.json"))?;
    let config = match &own {
        Some(file) => ModelConfig::from_file(file)?,
        None => base.clone(),
    };
    if let (Some(file), Some(layer)) = (own, config.new_mixers(&base).first()) {
        return Err(Error::Unsupported {
            what: format!(
                "{} has the mixer {} in layer {layer}, of which {} has no weights",
                file.display(),
                config.mixers[*layer].name(),
                dir.display()
            ),
            remedy: "name the checkpoint that the adapter was trained beside".into(),
        });
    }
    let gates = adapter.filter(|adapter| adapter.join(gates::GATE_FILE).is_file());
    let mixers = match gates {
        Some(gates) => gates::mixers(gates, &config.mixers, with.select)?,
        None if with.select.is_some() => {
            let expected = "left out: the adapter has no gates";
            return Err(Error::config("command line", "select", "given", expected));
        }
        None => MixerSchedule::Own,
    };
    let mut model = Decoder::convert(dir, &config, mixers, 0, &device)?;
    if let Some(adapter) = adapter {
        model = match gates {
            Some(_) => gates::load(model, adapter)?,
            None => peft::load_adapter(model, adapter)?,
        };
    }
    let model = model.rounded(compute);
    if globals.explain {
        let options = ForwardOptions::infer().with_compute(compute);
        for line in model.explain(&options, &device) {
            output::note(format_args!("{line}"));
        }
        output::note(format_args!("{}", model.explain_products(&options, &device)));
        if let Some(line) = model.explain_tokens() {
            output::note(format_args!("{line}"));
        }
    }
    Ok(model)
}

/// Gates that choose for one token at a time do nothing to rows that are scored in one pass.
///
/// # Errors
/// [`Error::Unsupported`] where a choice of theirs was asked for, and what files of gates are refused for.
pub fn check_whole_rows(with: &AdapterArgs) -> Result<()> {
    let gates = with.adapter.as_deref().filter(|dir| dir.join(gates::GATE_FILE).is_file());
    let Some(dir) = gates else { return Ok(()) };
    let settings = gates::GateSummary::read(dir)?.settings;
    if settings.gate != GateKind::Decode {
        return Ok(());
    }
    if with.select.is_some() {
        return Err(Error::Unsupported {
            what: format!(
                "--select for rows in one pass: the gates of {} choose for one token at a time",
                dir.display()
            ),
            remedy:
                "leave it out, which is dense attention; what gates of this kind do to a model is \
                     measured token by token: eval with --passkey or --needle, or generate"
                    .into(),
        });
    }
    if settings.select.is_some() {
        output::note(format_args!(
            "the gates of {} choose for one token at a time: rows in one pass see everything",
            dir.display()
        ));
    }
    Ok(())
}

/// The tokenizer of a folder, found to fit the model; `None` where there is none.
pub fn tokenizer(dir: &Path, model: &impl Blocks) -> Result<Option<Tokenizer>> {
    if !dir.join("tokenizer.json").exists() {
        return Ok(None);
    }
    let tokenizer = Tokenizer::from_file(dir)?;
    tokenizer.check_model(model.config().vocab_size)?;
    Ok(Some(tokenizer))
}

/// The same, where the verb cannot do without.
pub fn needed_tokenizer(dir: &Path, model: &impl Blocks) -> Result<Tokenizer> {
    tokenizer(dir, model)?.ok_or_else(|| {
        let missing = std::io::Error::new(
            std::io::ErrorKind::NotFound,
            "there is none, and text needs one (remedy: copy it from where the checkpoint is from)",
        );
        Error::io(dir.join("tokenizer.json"), missing)
    })
}

/// The text of a file.
pub fn text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map_err(|e| Error::Parse {
        file: path.display().to_string(),
        message: format!("is not UTF-8: {} (remedy: save it as UTF-8 text)", e.utf8_error()),
        text: None,
        span: None,
    })
}

/// A JSON file; errors point into it, and say what to do.
pub fn json<T: DeserializeOwned>(path: &Path, remedy: &str) -> Result<T> {
    let text = text(path)?;
    serde_json::from_str(&text).map_err(|e| {
        let before = text.split_inclusive('\n').take(e.line().saturating_sub(1));
        let at = before.map(str::len).sum::<usize>() + e.column().saturating_sub(1);
        let at = at.min(text.len());
        Error::Parse {
            file: path.display().to_string(),
            message: format!("{e} (remedy: {remedy})"),
            text: Some(text),
            span: Some(at..at),
        }
    })
}

/// Every id must have a row in the embedding.
pub fn check_ids(ids: &[u32], vocabulary: usize, file: &Path, row: usize) -> Result<()> {
    let bad = |field: String, value: String, expected: String| {
        Err(Error::config(file.display().to_string(), field, value, expected))
    };
    if ids.is_empty() {
        return bad(format!("[{row}]"), "empty".into(), "at least one id".into());
    }
    match ids.iter().position(|id| *id as usize >= vocabulary) {
        Some(at) => bad(
            format!("[{row}][{at}]"),
            ids[at].to_string(),
            format!("an id below {vocabulary}, the model's vocabulary"),
        ),
        None => Ok(()),
    }
}
