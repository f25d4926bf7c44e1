//! Tasks made on the spot, whose answers are known.

mod copying;
mod hidden_key;
mod mersenne;
mod mqar;
mod needle;
mod passkey;
mod questions;
mod task;

pub use copying::{Copying, CopyingConfig};
pub use hidden_key::{HiddenKey, HiddenKeyConfig};
pub use mersenne::LegacyRandom;
pub use mqar::{Mqar, MqarConfig};
pub use needle::{Needle, NeedleConfig, NeedleSample};
pub use passkey::{
    Passkey, PasskeyConfig, PasskeyPrompt, PasskeyPromptConfig, PasskeySample, PasskeyTemplate,
    insert_statements, longlora_filler, stratified_depth,
};
pub use questions::{Question, QuestionBatch, QuestionRow, QuestionTask};
pub use task::TaskConfig;

use crate::{Error, Result};

fn check_depth(depth: f64) -> Result<()> {
    if (0.0..=1.0).contains(&depth) {
        return Ok(());
    }
    Err(Error::config("task", "depth", depth, "0 (start of the text) to 1 (its end)"))
}
