//! Evaluation: perplexity under named protocols, loss by position, retrieval of pass keys.
//!
//! Documents come as token ids and are never joined. Whoever wants a beginning-of-text id at the
//! front of each puts it there; it changes the loss of the first tokens.

mod passkey;
mod perplexity;
mod position;
mod score;

pub use passkey::{PasskeyCell, PasskeyEval, PasskeyItem, PasskeyReport, wilson};
pub use perplexity::{Perplexity, PerplexityReport, Protocol};
pub use position::{
    BucketSum, PositionBucket, PositionReport, by_position, document_starts, doubling_buckets,
};
pub use score::{EvalWindow, WindowNll};
