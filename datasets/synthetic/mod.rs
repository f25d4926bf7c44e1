//! Tasks made on the spot, whose answers are known.

mod mersenne;
mod needle;
mod passkey;

pub use mersenne::LegacyRandom;
pub use needle::{Needle, NeedleConfig, NeedleSample};
pub use passkey::{
    Passkey, PasskeyConfig, PasskeyPrompt, PasskeyPromptConfig, PasskeySample, PasskeyTemplate,
    insert_statements, longlora_filler, stratified_depth,
};

use crate::{Error, Result};

fn check_depth(depth: f64) -> Result<()> {
    if (0.0..=1.0).contains(&depth) {
        return Ok(());
    }
    Err(Error::config("task", "depth", depth, "0 (start of the text) to 1 (its end)"))
}
