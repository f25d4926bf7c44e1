//! Where the Hub and its cache are.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// The Hub where nothing else is named.
const ENDPOINT: &str = "https://huggingface.co";
/// How long is waited for a byte, and for a server that asks for patience.
const PATIENCE: Duration = Duration::from_secs(60);

/// Settings of a [`Hub`]. What is not set is taken from the environment, as Python's
/// `huggingface_hub` does: `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`,
/// `HF_TOKEN_PATH`, the token file of `hf auth login`, `HF_HUB_OFFLINE`.
#[derive(Clone, Default)]
pub struct HubConfig {
    endpoint: Option<String>,
    cache: Option<PathBuf>,
    token: Option<String>,
    offline: Option<bool>,
    patience: Option<Duration>,
}

impl HubConfig {
    /// Everything from the environment.
    pub fn new() -> Self {
        Self::default()
    }

    /// Address of the Hub or of a mirror.
    pub fn with_endpoint(self, endpoint: impl Into<String>) -> Self {
        Self { endpoint: Some(endpoint.into()), ..self }
    }

    /// Folder of the cache.
    pub fn with_cache(self, cache: impl Into<PathBuf>) -> Self {
        Self { cache: Some(cache.into()), ..self }
    }

    /// What opens private and gated repositories.
    pub fn with_token(self, token: impl Into<String>) -> Self {
        Self { token: Some(token.into()), ..self }
    }

    /// Whether only the cache is used.
    pub fn with_offline(self, offline: bool) -> Self {
        Self { offline: Some(offline), ..self }
    }

    /// How long to wait for the next byte, and at most for a server that asks to wait (a minute).
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self }
    }

    /// The Hub with these settings. Nothing is asked of it yet.
    pub fn init(self) -> Hub {
        let endpoint = self.endpoint.or_else(|| text("HF_ENDPOINT"));
        Hub {
            endpoint: endpoint.unwrap_or(ENDPOINT.into()).trim_end_matches('/').into(),
            cache: self.cache.unwrap_or_else(cache),
            token: self.token.or_else(token),
            offline: self.offline.unwrap_or_else(|| is_true("HF_HUB_OFFLINE")),
            patience: self.patience.unwrap_or(PATIENCE),
        }
    }
}

/// The Hugging Face Hub, and the cache of what came from it.
#[derive(Clone)]
pub struct Hub {
    pub(super) endpoint: String,
    pub(super) cache: PathBuf,
    #[cfg_attr(not(feature = "hub"), expect(dead_code))]
    pub(super) token: Option<String>,
    pub(super) offline: bool,
    #[cfg_attr(not(feature = "hub"), expect(dead_code))]
    pub(super) patience: Duration,
}

impl Hub {
    /// Folder of the cache, shared with Python's tools.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Whether what is sent can be read on the way.
    #[cfg_attr(not(any(feature = "hub", test)), expect(dead_code))]
    pub(super) fn sends_in_clear(&self) -> bool {
        let Some(rest) = self.endpoint.strip_prefix("http://") else { return false };
        let host = rest.split('/').next().unwrap_or_default();
        let own = ["localhost", "127.0.0.1", "[::1]"];
        !own.iter()
            .any(|own| host.strip_prefix(own).is_some_and(|p| p.is_empty() || p.starts_with(':')))
    }
}

fn path(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)?;
    Some(match value.strip_prefix("~") {
        Ok(rest) => home().join(rest),
        Err(_) => value,
    })
}

fn text(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|v| v.trim().to_string()).filter(|v| !v.is_empty())
}

/// What counts as yes in Python's tools.
fn is_true(name: &str) -> bool {
    text(name).is_some_and(|v| ["1", "on", "yes", "true"].contains(&&*v.to_ascii_lowercase()))
}

fn home() -> PathBuf {
    std::env::home_dir().unwrap_or_default()
}

fn hf_home() -> PathBuf {
    path("HF_HOME").unwrap_or_else(|| {
        path("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache")).join("huggingface")
    })
}

fn cache() -> PathBuf {
    path("HF_HUB_CACHE")
        .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
        .unwrap_or_else(|| hf_home().join("hub"))
}

fn token() -> Option<String> {
    if is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return None;
    }
    let file = || path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home().join("token"));
    let stored = || std::fs::read_to_string(file()).ok();
    text("HF_TOKEN").or_else(|| stored().map(|t| t.trim().to_string()).filter(|t| !t.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::HubConfig;

    #[test]
    fn what_goes_to_another_machine_without_encryption_is_in_clear() {
        let clear =
            |endpoint: &str| HubConfig::new().with_endpoint(endpoint).init().sends_in_clear();
        for endpoint in
            ["http://mirror.example", "http://localhost.example/hf", "http://10.0.0.1:80"]
        {
            assert!(clear(endpoint), "{endpoint}");
        }
        for endpoint in ["https://mirror.example", "http://localhost:8080/", "http://127.0.0.1:1"] {
            assert!(!clear(endpoint), "{endpoint}");
        }
    }
}
