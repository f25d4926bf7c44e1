//! Evaluation: perplexity under named protocols, loss by position, retrieval of pass keys and
//! needles, and tasks scored by log-likelihood.
//!
//! Documents come as token ids and are never joined. Whoever wants a beginning-of-text id at the
//! front of each puts it there; it changes the loss of the first tokens.

mod loglikelihood;
mod passkey;
mod perplexity;
mod position;
mod questions;
mod results;
mod rolling;
mod rope_shift;
mod rows;
mod score;
mod tasks;

pub use loglikelihood::{Continuation, EncodedPair, Loglikelihood, LoglikelihoodEval};
pub use passkey::{PasskeyCell, PasskeyEval, PasskeyItem, PasskeyReport, wilson};
pub use perplexity::{Perplexity, PerplexityReport, Protocol};
pub use position::{
    BucketSum, PositionBucket, PositionReport, by_position, document_starts, doubling_buckets,
};
pub use questions::answered;
pub use results::{ResultsFile, data_stamp, model_stamp, resumable};
pub use rolling::{RollingItem, RollingReport, rolling, rolling_windows};
pub use rope_shift::{RopePrecision, RopeShift, rope_shift_probe};
pub use rows::read_rows;
pub use score::{EvalWindow, WindowNll};
pub use tasks::{
    ChoiceItem, ChoiceReport, ChoiceScore, LastWordItem, LastWordReport, LastWordScore, Share,
    choices, last_words,
};
