//! Where a run is resumed, and whether it is still the same run.

use super::RunOptions;
use super::data::RowSource;
use super::sections::Recipe;
use crate::attention::MixerConfig;
use crate::datasets::TokenBatch;
use crate::models::COMPANIONS;
use crate::models::peft::WEIGHTS as ADAPTER;
use crate::models::weights::{INDEX, SINGLE, is_unfinished, obstacle, read_text};
use crate::training::checkpoint::{Checkpoint, Checkpoints, Inputs, MANIFEST, RunLock};
use crate::training::state::{OPTIMIZER, STATE};
use crate::training::{BatchSource, TrainState};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Fields of a recipe that may change when a run is resumed: they do not decide what the steps
/// that are left compute, or, as the number of steps and the strategy, are changed on purpose.
pub const MAY_CHANGE: [&str; 11] = [
    "title",
    "expected",
    "train.steps",
    "train.workers",
    "train.strategy",
    "train.device_memory",
    "train.skip_nonfinite",
    "train.empty_step",
    "eval",
    "checkpoints",
    "output",
];

/// The recipe as it was run, in a checkpoint's folder.
pub(super) const RECIPE: &str = "recipe.json";
/// Files of a checkpoint that are about the run and not the model.
pub const OF_A_RUN: [&str; 4] = [MANIFEST, OPTIMIZER, STATE, RECIPE];
/// Stands in a cursor whose inputs hold the companions of the model, as those of earlier versions
/// do not.
const COMPANIONS_STAMPED: &str = "companions";
const MAX_RECIPE: u64 = 1 << 20;
/// Folder of the checkpoints in that of the run.
const FOLDER: &str = "checkpoints";
/// What a run writes first.
const MARK: &str = "recipe.toml";

/// The folder of a run, this process's alone.
pub(super) struct Place {
    pub checkpoints: Checkpoints,
    _lock: RunLock,
}

/// A checkpoint to go on from.
pub(super) struct Origin {
    pub checkpoint: Checkpoint,
    pub state: TrainState,
}

impl Place {
    /// Take the folder, which is made if need be, and clear it of what killed writers left.
    fn take(dir: &Path, recipe: &Recipe) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let lock = RunLock::acquire(dir)?;
        for folder in [dir.to_path_buf(), dir.join("model"), dir.join("adapter")] {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if is_unfinished(&entry.file_name().to_string_lossy()) {
                    fs::remove_file(entry.path()).map_err(|e| Error::io(entry.path(), e))?;
                }
            }
        }
        let checkpoints = Checkpoints::open(dir.join(FOLDER))?.with_keep(recipe.checkpoints.keep);
        Ok(Self { checkpoints, _lock: lock })
    }

    /// Take a folder for a new run.
    ///
    /// # Errors
    /// As [`check_vacant`], which is asked again now that no one else can write here.
    pub fn new_run(dir: &Path, recipe: &Recipe, options: &RunOptions) -> Result<Self> {
        let place = Self::take(dir, recipe)?;
        check_vacant(dir, recipe, options)?;
        Ok(place)
    }

    /// Take the folder of a run that stopped, with the checkpoint to go on from. None where there
    /// is no run; without a checkpoint where it stopped before its first save.
    pub fn resume(dir: &Path, recipe: &Recipe) -> Result<Option<(Self, Option<Origin>)>> {
        if !dir.join(MARK).is_file() && !dir.join(FOLDER).is_dir() {
            return Ok(None);
        }
        let place = Self::take(dir, recipe)?;
        let Some(checkpoint) = place.checkpoints.newest()? else {
            // What a run ends with must not be overwritten because its checkpoints were removed.
            let results = [dir.join("model"), dir.join("adapter")];
            let whole = |dir: &PathBuf| {
                [SINGLE, INDEX, ADAPTER].iter().any(|weights| dir.join(weights).exists())
            };
            if let Some(result) = results.into_iter().find(whole) {
                return Err(Error::Checkpoint {
                    path: dir.join(FOLDER),
                    reason: format!(
                        "there is no checkpoint to go on from, and {} holds a result",
                        result.display()
                    ),
                    remedy: "name another folder with --out, or remove the result".into(),
                });
            }
            return Ok(Some((place, None)));
        };
        let state = TrainState::read(&checkpoint.dir)?;
        Ok(Some((place, Some(Origin { checkpoint, state }))))
    }
}

/// Rows whose cursor tells, too, which files they were made of.
pub(super) struct Tracked<'a> {
    pub rows: &'a mut RowSource,
    pub inputs: &'a Inputs,
}

impl BatchSource<TokenBatch> for Tracked<'_> {
    fn batch(&mut self, step: u64, micro: u32) -> Result<Option<TokenBatch>> {
        self.rows.batch(step, micro)
    }

    fn cursor(&self) -> Value {
        json!({ "rows": self.rows.cursor(), "inputs": self.inputs, COMPANIONS_STAMPED: true })
    }

    fn seek(&mut self, cursor: &Value) -> Result<()> {
        self.rows.seek(&cursor["rows"])
    }
}

impl Recipe {
    /// Files and folders that decide what the run computes.
    pub(super) fn input_paths(&self) -> Vec<PathBuf> {
        let mut paths = vec![self.data.train.clone()];
        paths.extend(self.data.mix.iter().map(|mix| mix.path.clone()));
        paths.extend(self.data.held_out.clone());
        paths.extend(self.model.tokenizer.clone());
        paths.extend(self.extend.as_ref().and_then(|extend| extend.factors.clone()));
        paths.extend(self.companions());
        paths.retain(|path| path.exists());
        let Some(model) = self.base() else { return paths };
        paths.push(model.join("config.json"));
        if self.lora.is_some() || self.mixer.seer().is_some() {
            // What stays frozen comes from there at every start.
            let weights = fs::read_dir(model).into_iter().flatten().flatten();
            let weights = weights.map(|entry| entry.path());
            paths.extend(weights.filter(|p| p.extension().is_some_and(|e| e == "safetensors")));
        }
        paths
    }

    /// Where tokenizer, template and what else goes with a model is read and copied from, there or
    /// not.
    fn companions(&self) -> Vec<PathBuf> {
        let from = [self.tokenizer_dir(), self.base()].into_iter().flatten();
        from.flat_map(|dir| COMPANIONS.map(|name| dir.join(name))).collect()
    }
}

/// Nothing of value lies where a new run wants to write.
///
/// # Errors
/// [`Error::Config`] or [`Error::Parse`] that names the field that chose the folder.
pub(super) fn check_vacant(dir: &Path, recipe: &Recipe, options: &RunOptions) -> Result<()> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let names: Vec<String> =
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let left_over = |name: &String| {
        // The empty folder of checkpoints is made with the lock.
        let empty = || fs::read_dir(dir.join(FOLDER)).is_ok_and(|mut e| e.next().is_none());
        RunLock::is_lock(name) || is_unfinished(name) || (name == FOLDER && empty())
    };
    let obstacle = obstacle(dir);
    if names.iter().all(left_over) && obstacle.is_none() {
        return Ok(());
    }
    let value = match obstacle {
        Some(obstacle) => format!("{} ({obstacle})", dir.display()),
        None => dir.display().to_string(),
    };
    let expected = if names.iter().any(|name| name == MARK) {
        "a new or empty folder, so that nothing is overwritten: this one holds a run (--resume \
         goes on with it, --out writes elsewhere)"
    } else {
        "a new or empty folder, so that nothing is overwritten"
    };
    Err(match &options.out {
        Some(_) => Error::config("command line", "out", value, expected),
        None => recipe.bad("output.dir", value, expected),
    })
}

impl Origin {
    /// The recipe is the one that the run was begun with, as far as it decides the result.
    ///
    /// # Errors
    /// [`Error::Changed`] with all fields that differ.
    pub fn check_recipe(&self, recipe: &Recipe, seed: u64, allow: bool) -> Result<()> {
        let path = self.checkpoint.dir.join(RECIPE);
        let text = read_text(&path, MAX_RECIPE)?;
        let old: Recipe = serde_json::from_str(&text).map_err(|e| Error::Checkpoint {
            path: path.clone(),
            reason: format!("is not a recipe of this version: {e}"),
            remedy: "go on with the version of Longburn that the run was begun with".into(),
        })?;
        let differences = differences(&as_run(&old, old.seed), &as_run(recipe, seed))?;
        let remedy = format!(
            "set them back, or allow it: --allow-changes; {} may always change",
            MAY_CHANGE.join(", ")
        );
        changed("the recipe is not the one that the run was begun with", differences, remedy, allow)
    }

    /// The files that the run read until the checkpoint.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when they are not written down.
    pub fn inputs(&self) -> Result<Inputs> {
        let cursor = &self.state.counters.cursor;
        serde_json::from_value(cursor["inputs"].clone()).map_err(|e| Error::Checkpoint {
            path: self.checkpoint.dir.clone(),
            reason: format!("names no input files: {e}"),
            remedy: "go on from another checkpoint".into(),
        })
    }

    /// The files that the run reads are the ones that it was begun with.
    ///
    /// # Errors
    /// [`Error::Changed`] with all files that differ.
    pub fn check_inputs(
        &self,
        before: &Inputs,
        mut now: Inputs,
        recipe: &Recipe,
        allow: bool,
    ) -> Result<()> {
        if self.state.counters.cursor[COMPANIONS_STAMPED] != true {
            // Whether these were there, an earlier version did not write down.
            for path in recipe.companions().iter().map(|path| path.display().to_string()) {
                if !before.0.contains_key(&path) {
                    now.0.remove(&path);
                }
            }
        }
        let remedy = "restore the files, or allow it: --allow-changes; the rest of the run then \
                      trains on something else"
            .into();
        let what = "the files that the run reads are not those that it was begun with";
        changed(what, before.differences(&now), remedy, allow)
    }
}

/// Nothing where nothing differs, an error, or a warning where it is allowed.
fn changed(what: &str, differences: Vec<String>, remedy: String, allow: bool) -> Result<()> {
    if differences.is_empty() {
        return Ok(());
    }
    if allow {
        tracing::warn!("{what}: {}", differences.join("; "));
        return Ok(());
    }
    Err(Error::Changed { what: what.into(), differences, remedy })
}

/// The recipe with what the command line replaced in it.
pub(super) fn as_run(recipe: &Recipe, seed: u64) -> Recipe {
    let mut run = Recipe { seed, ..recipe.clone() };
    // Said or not, what holds is what counts.
    run.data.pack = Some(run.data.pack());
    run
}

/// Fields in which two recipes differ and must not, with both values.
fn differences(old: &Recipe, new: &Recipe) -> Result<Vec<String>> {
    let (old, new) = (fields(old)?, fields(new)?);
    let may_change = |field: &str| {
        let rest = |whole: &&str| field.strip_prefix(whole);
        MAY_CHANGE.iter().filter_map(rest).any(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    let shown = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "not set".into(),
        Some(value) => value.to_string(),
    };
    Ok(names
        .into_iter()
        .filter(|name| !may_change(name))
        .map(|name| (name, shown(old.get(name)), shown(new.get(name))))
        .filter(|(_, old, new)| old != new)
        .map(|(name, old, new)| format!("{name} was {old}, is {new}"))
        .collect())
}

/// All values of a recipe by dotted path. By way of text, in which f32 has its shortest form.
fn fields(recipe: &Recipe) -> Result<BTreeMap<String, Value>> {
    fn walk(path: String, value: Value, into: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (name, value) in fields {
                    let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                    walk(path, value, into);
                }
            }
            value => _ = into.insert(path, value),
        }
    }
    let mut recipe = recipe.clone();
    if recipe.mixer.is_own() {
        // As it is read where a recipe says nothing else; earlier versions wrote it down.
        recipe.mixer = MixerConfig::Dense.into();
    }
    let text = serde_json::to_string(&recipe);
    let value = text.and_then(|text| serde_json::from_str(&text));
    let value = value.map_err(|e| Error::Training(format!("a recipe as JSON: {e}")))?;
    let mut found = BTreeMap::new();
    walk(String::new(), value, &mut found);
    Ok(found)
}
