//! What the Hub refuses, in words that say what to do.

use super::{Hub, RepoId};
use crate::models::weights::shortened;
use crate::{Error, HubFault};
use hf_hub::HFError;
use std::error::Error as StdError;
use std::time::Duration;

/// HTTP answers after which the same question may succeed.
const TRANSIENT: [u16; 6] = [408, 429, 500, 502, 503, 504];

/// Whether the same question may succeed later, and when the server says so.
pub(super) fn transient(error: &HFError) -> Option<Option<Duration>> {
    match error {
        HFError::RateLimited { retry_after, .. } => Some(*retry_after),
        HFError::Http { context } if TRANSIENT.contains(&context.status.as_u16()) => Some(None),
        HFError::Request { .. } | HFError::Xet { .. } => Some(None),
        _ => None,
    }
}

/// Words for an error; `file` is what was asked for, where it was a file.
pub(super) fn refusal(error: HFError, hub: &Hub, repo: &RepoId, file: Option<&str>) -> Error {
    let (status, code, said) = match &error {
        HFError::Http { context }
        | HFError::AuthRequired { context }
        | HFError::Forbidden { context }
        | HFError::RateLimited { context, .. } => (
            context.status.as_u16(),
            context.error_code.clone(),
            context.server_message.clone().filter(|text| !text.is_empty()),
        ),
        HFError::RepoNotFound { context, .. }
        | HFError::RevisionNotFound { context, .. }
        | HFError::EntryNotFound { context, .. } => {
            (404, context.as_ref().and_then(|c| c.error_code.clone()), None)
        }
        _ => (0, None, None),
    };
    let place = file.map_or(String::new(), |file| format!("{file}: "));
    let said = said.map_or(String::new(), |text| format!(" (\"{}\")", shortened(&text, 200)));
    let make = |fault, reason: String, remedy: String| Error::Hub {
        repo: repo.to_string(),
        fault,
        reason: format!("{place}{reason}{said}"),
        remedy,
    };
    let (endpoint, id) = (&hub.endpoint, repo.id());
    let accept = format!("accept the terms on {endpoint}/{id} with the account of your token");
    let with_token = format!(
        "set HF_TOKEN to a token of {endpoint}/settings/tokens, or log in with `hf auth login`"
    );
    match (status, code.as_deref(), &hub.token) {
        (401 | 403, Some("GatedRepo"), None) => make(
            HubFault::Denied,
            "is gated: its owners give access to those who accept their terms".into(),
            format!("{accept}, then {with_token}"),
        ),
        (401 | 403, Some("GatedRepo"), Some(_)) | (403, _, Some(_)) => make(
            HubFault::Denied,
            "the token gives no access to it; it may be gated".into(),
            format!("{accept}; the token must be allowed to read gated repositories"),
        ),
        (401 | 403, _, None) => make(
            HubFault::Denied,
            "the Hub has no public repository of this name; there may be a private or gated one"
                .into(),
            format!("check the name; for a private or gated one, {with_token}, and {accept}"),
        ),
        (401, _, Some(_)) => make(
            HubFault::Denied,
            "the Hub does not accept the token, or has no such repository".into(),
            format!("check the name; {with_token}; unset a token that has expired"),
        ),
        (404, code, _) => not_found(code, &error, hub, repo, &make),
        (429, ..) => make(
            HubFault::Limited,
            format!("the Hub asks to wait{}: too many requests", after(&error)),
            "try again later; with HF_TOKEN set, the limits are wider".into(),
        ),
        (0, ..) => make(
            HubFault::Network,
            format!("{endpoint} gave no usable answer: {}", cause(&error)),
            "check the network and HF_ENDPOINT; what has come already is kept".into(),
        ),
        _ => make(
            HubFault::Network,
            format!("{endpoint} answered with status {status}"),
            "try again later; what has come already is kept".into(),
        ),
    }
}

fn not_found(
    code: Option<&str>,
    error: &HFError,
    hub: &Hub,
    repo: &RepoId,
    make: &dyn Fn(HubFault, String, String) -> Error,
) -> Error {
    let (endpoint, id) = (&hub.endpoint, repo.id());
    let revision = matches!(error, HFError::RevisionNotFound { .. });
    let (reason, remedy) = match (code, error) {
        (Some("EntryNotFound"), _) | (None, HFError::EntryNotFound { .. }) => (
            format!("revision {} has no such file", repo.revision()),
            format!("see what there is: {endpoint}/{id}/tree/{}", repo.revision()),
        ),
        (Some("RevisionNotFound"), _) => (
            format!("has no revision `{}`", repo.revision()),
            format!("see {endpoint}/{id} for its branches and tags"),
        ),
        (None, _) if revision => (
            format!("there is no such repository, or it has no revision `{}`", repo.revision()),
            format!("check both names on {endpoint}"),
        ),
        _ => ("there is no such repository".into(), format!("check the name on {endpoint}")),
    };
    make(HubFault::Missing, reason, remedy)
}

fn after(error: &HFError) -> String {
    match error {
        HFError::RateLimited { retry_after: Some(time), .. } => format!(" {} s", time.as_secs()),
        _ => String::new(),
    }
}

/// The innermost cause: outer ones repeat addresses, which may hold signatures.
fn cause(error: &HFError) -> String {
    let mut inner: &dyn StdError = match error {
        HFError::Request { source, .. } => source,
        other => other,
    };
    while let Some(source) = inner.source() {
        inner = source;
    }
    let text = inner.to_string();
    let plain = text.split("http").next().unwrap_or_default().trim_end_matches([' ', '(']);
    shortened(if plain.is_empty() { "the answer is not that of a Hub" } else { plain }, 300)
}
