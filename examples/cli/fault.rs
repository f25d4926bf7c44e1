//! Errors for people and for programs.

use crate::output;
use longburn::{Error, HubFault};
use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};
use std::fmt;

/// Show an error on standard error; for programs, as an object on standard output, too.
pub fn show(error: Error, json: bool) {
    if json {
        // If standard output is gone, standard error still has the message.
        let _ = output::json(&serde_json::json!({
            "error": { "kind": kind(&error), "message": error.to_string() }
        }));
    }
    output::note(format_args!("{:?}", miette::Report::new(Fault::from(error))));
}

/// The variant's name, which programs may rely on.
fn kind(error: &Error) -> &'static str {
    match error {
        Error::Io { .. } => "io",
        Error::Weights { .. } => "weights",
        Error::TensorMismatch { .. } => "tensor_mismatch",
        Error::Config { .. } => "config",
        Error::Parse { .. } => "parse",
        Error::Tokenizer(_) => "tokenizer",
        Error::Data(_) => "data",
        Error::Template { .. } => "template",
        Error::Shape { .. } => "shape",
        Error::Unsupported { .. } => "unsupported",
        Error::NonFinite { .. } => "non_finite",
        Error::Evaluation { .. } => "evaluation",
        Error::Training(_) => "training",
        Error::Logits { .. } => "logits",
        Error::Memory { .. } => "memory",
        Error::Kernel(_) => "kernel",
        Error::Locked { .. } => "locked",
        Error::Checkpoint { .. } => "checkpoint",
        Error::Changed { .. } => "changed",
        Error::Interrupted { .. } => "interrupted",
        Error::Hub { fault: HubFault::Missing, .. } => "hub_missing",
        Error::Hub { fault: HubFault::Denied, .. } => "hub_denied",
        Error::Hub { fault: HubFault::Limited, .. } => "hub_limited",
        Error::Hub { fault: HubFault::Network, .. } => "hub_network",
        Error::Hub { fault: HubFault::Damaged, .. } => "hub_damaged",
        Error::Hub { fault: HubFault::Offline, .. } => "hub_offline",
        _ => "other",
    }
}

/// An error as miette shows it: the remedy as help, the line of the file where there is one.
#[derive(Debug)]
struct Fault {
    message: String,
    help: Option<String>,
    source: Option<NamedSource<String>>,
    label: Option<LabeledSpan>,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let plain = |message: String, help: Option<String>| Self {
            message,
            help,
            source: None,
            label: None,
        };
        match error {
            Error::Weights { file, reason, remedy } => {
                plain(format!("{}: {reason}", file.display()), Some(remedy))
            }
            Error::Hub { repo, reason, remedy, .. } => {
                plain(format!("{repo}: {reason}"), Some(remedy))
            }
            Error::Unsupported { what, remedy } => plain(what, Some(remedy)),
            Error::Template { place, reason, remedy } => {
                plain(format!("{place}: {reason}"), Some(remedy))
            }
            Error::Checkpoint { path, reason, remedy } => {
                plain(format!("{}: {reason}", path.display()), Some(remedy))
            }
            Error::Changed { what, differences, remedy } => {
                plain(format!("{what}:\n{}", differences.join("\n")), Some(remedy))
            }
            Error::Interrupted { step, checkpoint: Some(dir) } => plain(
                format!("interrupted after step {step}; everything is in {}", dir.display()),
                Some("the same command with --resume goes on from there".into()),
            ),
            Error::Parse { file, message, text: Some(text), span } => Self {
                message,
                help: None,
                source: Some(NamedSource::new(file, text)),
                label: span.map(LabeledSpan::underline),
            },
            other => plain(other.to_string(), None),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl Diagnostic for Fault {
    fn help(&self) -> Option<Box<dyn fmt::Display + '_>> {
        self.help.as_ref().map(|help| Box::new(help) as _)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_ref().map(|source| source as _)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.label.clone().map(|label| Box::new(std::iter::once(label)) as _)
    }
}
