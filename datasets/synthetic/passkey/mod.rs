//! Pass-key retrieval: a key stands somewhere in a long text, and the end asks for it.
//!
//! [`Passkey`] puts key statements of single-token words into documents, for models small enough
//! to be trained in minutes; [`PasskeyPrompt`] is the usual prompt of filler text for ordinary
//! checkpoints.

mod prompt;
mod words;

pub(super) use prompt::continuation;
pub use prompt::{
    PasskeyPrompt, PasskeyPromptConfig, PasskeySample, PasskeyTemplate, longlora_filler,
};
pub use words::{Passkey, PasskeyConfig, insert_statements};

use super::check_depth;
use crate::streams::Draw;
use crate::{Error, Result};
use rand_chacha::rand_core::RngCore;

/// A depth in the `bucket`-th of `buckets` equal parts of 0 to 1, so that a few tests leave no
/// gap between them.
///
/// # Errors
/// When there is no such bucket.
pub fn stratified_depth(
    bucket: usize,
    buckets: usize,
    rng: &mut (impl RngCore + ?Sized),
) -> Result<f64> {
    if bucket >= buckets {
        return Err(Error::config("passkey", "bucket", bucket, format!("less than {buckets}")));
    }
    Ok((bucket as f64 + rng.unit()) / buckets as f64)
}
