//! The one error type of the library: what was wrong, where, and what to do about it.

use std::path::{Path, PathBuf};

/// Result with [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, worded for the person who can mend it.
///
/// Bad input never panics; it comes back as one of these.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}{}", path.display(), os_remedy(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A weight file is damaged, hostile or not what it claims to be.
    #[error("{}: {reason} (remedy: {remedy})", file.display())]
    Weights {
        /// The shard.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// Tensors of a checkpoint and of a model do not match; *all* differences are listed.
    #[error("{}", mismatch_text(what, missing, unexpected, misshaped))]
    TensorMismatch {
        /// The checkpoint or file.
        what: String,
        /// Names that the model needs and the checkpoint lacks.
        missing: Vec<String>,
        /// Names in the checkpoint that the model does not know.
        unexpected: Vec<String>,
        /// `name: got [..], expected [..]`.
        misshaped: Vec<String>,
    },
    /// A configuration field has a value that cannot be used.
    #[error("{file}: field `{field}` is {value}; expected {expected}")]
    Config {
        /// File, recipe or type that holds the field.
        file: String,
        /// Dotted path of the field.
        field: String,
        /// The value found ("missing" where there is none).
        value: String,
        /// What would be accepted.
        expected: String,
    },
    /// A recipe or JSON file does not parse. `span` points into `text` for pretty printers.
    #[error("{file}: {message}")]
    Parse {
        /// The file.
        file: String,
        /// What the parser said.
        message: String,
        /// The text, where it is short enough to show.
        text: Option<String>,
        /// Byte range of the fault in `text`.
        span: Option<std::ops::Range<usize>>,
    },
    /// The tokenizer and the model do not fit together.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A data source is unusable.
    #[error("data: {0}")]
    Data(String),
    /// A chat template is broken or hostile, or refuses the messages.
    #[error("{place}: {reason} (remedy: {remedy})")]
    Template {
        /// The file, its field, the line.
        place: String,
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// Shapes or sizes handed to a library function do not fit.
    #[error("{what}: {reason}")]
    Shape {
        /// The function or object.
        what: String,
        /// What does not fit, with the numbers.
        reason: String,
    },
    /// Something is known but cannot be done in this combination.
    #[error("{what} (remedy: {remedy})")]
    Unsupported {
        /// The combination.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// Training met a loss or gradient that is NaN or infinite; no weight was changed.
    #[error(
        "step {step}: {what} is {value}; the update was not applied (batch: {batch}; remedy: a \
         lower learning rate, or `skip_nonfinite` where single steps may be lost)"
    )]
    NonFinite {
        /// Optimizer step, from 1.
        step: u64,
        /// "loss" or the first non-finite gradient's parameter name.
        what: String,
        /// The value seen.
        value: f64,
        /// Which data produced it.
        batch: String,
    },
    /// A training run would take more memory than it may.
    #[error(
        "step {step}: {batch} is predicted to take {predicted}, the budget is {budget} \
         (remedy: {remedy})"
    )]
    Memory {
        /// Optimizer step, from 1.
        step: u64,
        /// Shape of what is computed.
        batch: String,
        /// Peak of the plan.
        predicted: String,
        /// What there is.
        budget: String,
        /// What would make it fit, with the peak of each change.
        remedy: String,
    },
    /// A model that is being evaluated computes no usable number.
    #[error("evaluation: {what} is {value} (remedy: {remedy})")]
    Evaluation {
        /// Which number, of which document and token.
        what: String,
        /// The value seen.
        value: f64,
        /// What to do.
        remedy: String,
    },
    /// A training run cannot go on.
    #[error("training: {0}")]
    Training(String),
    /// Another process works in the folder of a run.
    #[error("{}: {holder} works in this folder (remedy: wait for it to end, or choose another folder)", dir.display())]
    Locked {
        /// The folder.
        dir: PathBuf,
        /// Who has it.
        holder: String,
    },
    /// A checkpoint of a run cannot be written or read.
    #[error("{}: {reason} (remedy: {remedy})", path.display())]
    Checkpoint {
        /// Its folder or file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// A run is resumed with something else than it was begun with; *all* differences are listed.
    #[error("{what}:\n  {}\n(remedy: {remedy})", differences.join("\n  "))]
    Changed {
        /// What has changed.
        what: String,
        /// One line each: name, what it was, what it is.
        differences: Vec<String>,
        /// What to do.
        remedy: String,
    },
    /// A run was asked to stop, and did so between two steps.
    #[error("interrupted after step {step}; {}", kept_text(checkpoint.as_deref()))]
    Interrupted {
        /// Optimizer steps done.
        step: u64,
        /// Where the run can go on from; none where no step was done.
        checkpoint: Option<PathBuf>,
    },
    /// A model gave logits that no token can be chosen from.
    #[error(
        "generation, new token {step}: the logit of id {token} is {value} (remedy: check the \
         weights for NaN and infinite values, or compute in a wider number format)"
    )]
    Logits {
        /// New token, from 0.
        step: u64,
        /// Id with the offending logit.
        token: u32,
        /// The logit.
        value: f32,
    },
    /// A repository of the Hugging Face Hub cannot be used.
    #[error("{repo}: {reason} (remedy: {remedy})")]
    Hub {
        /// Its name, with the revision where one was given.
        repo: String,
        /// What kind of obstacle it is.
        fault: HubFault,
        /// What is wrong, with the file where it is about one.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// An attention or loss kernel refused its input.
    #[error(transparent)]
    Kernel(#[from] longburn_kernels::Error),
}

/// What stands between a repository of the Hub and its use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubFault {
    /// No such repository, revision or file, or none that can be read.
    Missing,
    /// Private or gated, and no token that opens it.
    Denied,
    /// Too many requests.
    Limited,
    /// No answer, or one that broke off.
    Network,
    /// Bytes that are not those that the Hub lists.
    Damaged,
    /// Not in the cache, and downloads are switched off or not compiled in.
    Offline,
}

impl Error {
    /// An I/O error with its path.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// A configuration error.
    pub fn config(
        file: impl Into<String>,
        field: impl Into<String>,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Config {
            file: file.into(),
            field: field.into(),
            value: value.to_string(),
            expected: expected.into(),
        }
    }

    /// A shape error.
    pub fn shape(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Shape { what: what.into(), reason: reason.into() }
    }
}

/// Refuses sizes of 0, which are given by field.
///
/// # Errors
/// [`Error::Config`] for the first of them.
pub(crate) fn check_sizes(file: &str, sizes: &[(&str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((field, _)) => Err(Error::config(file, *field, 0, "at least 1")),
        None => Ok(()),
    }
}

/// What to do about what the system says; errors worded here bring their own remedy.
fn os_remedy(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match source.kind() {
        _ if source.raw_os_error().is_none() => "",
        ErrorKind::NotFound => " (remedy: check the path)",
        ErrorKind::PermissionDenied => " (remedy: check its owner and permissions)",
        ErrorKind::NotADirectory => " (remedy: name a folder; a part of this path is a file)",
        ErrorKind::IsADirectory => " (remedy: name a file in it)",
        ErrorKind::StorageFull => " (remedy: make room on the disk)",
        ErrorKind::ReadOnlyFilesystem => " (remedy: name a place that can be written to)",
        _ => "",
    }
}

fn kept_text(checkpoint: Option<&Path>) -> String {
    match checkpoint {
        Some(dir) => format!("everything is in {} (remedy: go on from there)", dir.display()),
        None => "there is nothing to go on from".into(),
    }
}

fn mismatch_text(
    what: &str,
    missing: &[String],
    unexpected: &[String],
    misshaped: &[String],
) -> String {
    let mut text = format!(
        "{what}: tensors do not match the model (remedy: use weights and configuration of one model)"
    );
    for (title, list) in
        [("missing", missing), ("unexpected", unexpected), ("wrong shape", misshaped)]
    {
        if !list.is_empty() {
            text.push_str(&format!("\n  {title} ({}): {}", list.len(), list.join(", ")));
        }
    }
    text
}
