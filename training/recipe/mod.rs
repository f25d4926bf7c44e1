//! Recipes: a training run as a TOML file, and the function that runs it.
//!
//! Every key that is not known, every value that cannot be used and every combination that makes
//! no sense is refused before anything is loaded, with the line it stands in.

mod base;
mod chat;
mod check;
mod data;
mod evaluate;
mod extend;
mod options;
mod output;
mod resume;
mod run;
mod saving;
mod sections;
mod settings;
mod toml;
mod watch;

pub use chat::ChatSection;
pub use evaluate::Evaluation;
pub use extend::ExtendSection;
pub use options::{RunOptions, RunSummary};
pub use resume::{MAY_CHANGE, OF_A_RUN};
pub use run::{run_recipe, run_recipe_with};
pub use sections::{
    AnchorSection, CheckpointSection, DataKind, DataSection, EvalSection, Family, MixSection,
    ModelSection, NewModel, OutputSection, Recipe, Rows, TrainSection,
};
pub use settings::{exit_code, settings};
pub use watch::MemoryReport;

use crate::attention::MixerConfig;
use crate::{Error, Result};
use std::path::Path;

/// Largest recipe that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

impl Recipe {
    /// Read a recipe.
    ///
    /// # Errors
    /// [`Error::Io`], and those of [`Recipe::parse`].
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = crate::models::weights::read_text(path, MAX_FILE)?;
        Self::parse(&text, &path.display().to_string())
    }

    /// The same with another mixer in all layers than the file's, which is not looked at.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub fn from_file_with(path: &Path, mixer: &MixerConfig) -> Result<Self> {
        let text = crate::models::weights::read_text(path, MAX_FILE)?;
        Self::read(&text, &path.display().to_string(), Some(mixer))
    }

    /// Read the text of a recipe; `file` is its name in messages.
    ///
    /// # Errors
    /// [`Error::Parse`], pointing into the line, for what is no TOML, for unknown keys, and for
    /// values that cannot be used or contradict each other.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        Self::read(text, file, None)
    }

    fn read(text: &str, file: &str, mixer: Option<&MixerConfig>) -> Result<Self> {
        let mut recipe: Self = toml::parse(text, file)?;
        (recipe.file, recipe.text) = (file.into(), text.into());
        if let Some(mixer) = mixer {
            recipe.mixer = mixer.into();
        }
        recipe.check()?;
        Ok(recipe)
    }

    /// The text that the recipe was read from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// An error about a field of this recipe, pointing into the line.
    fn bad(&self, field: &str, value: impl ToString, expected: impl Into<String>) -> Error {
        toml::point(Error::config(&self.file, field, value, expected), &self.text, &self.file)
    }

    /// An error of a part of the library about a field of its own, as one about `section`.
    fn within(&self, section: &str, error: Error) -> Error {
        match error {
            Error::Config { field, value, expected, .. } => {
                self.bad(&format!("{section}.{field}"), value, expected)
            }
            other => other,
        }
    }
}
