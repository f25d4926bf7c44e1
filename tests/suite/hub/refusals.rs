//! What the Hub refuses, and what is refused of the Hub.

use super::server::{Act, Server};
use super::{COMMIT, REPO, below, files, quiet, repo, weights};
use longburn::models::hub::{FetchOptions, Hub, HubConfig, RepoId};
use longburn::{Error, HubFault};
use std::time::{Duration, Instant};

/// Fault, message and remedy of a fetch of `repo`.
fn refused(hub: &Hub, repo: &RepoId) -> (HubFault, String, String) {
    match hub.fetch(repo, &FetchOptions::new(), &mut quiet) {
        Err(Error::Hub { repo: named, fault, reason, remedy }) => {
            assert_eq!(named, repo.to_string());
            assert!(!format!("{reason}{remedy}").contains("hf_secret"));
            (fault, reason, remedy)
        }
        other => panic!("{other:?}"),
    }
}

pub fn with_code(code: &str) -> Vec<(&'static str, String)> {
    vec![("X-Error-Code", code.into()), ("X-Error-Message", format!("the Hub says {code}"))]
}

/// Fetch from a server that answers everything like this.
fn always(act: fn() -> Act, config: fn(HubConfig) -> HubConfig) -> (HubFault, String, String) {
    let server = Server::new(files(), move |_| act());
    let cache = tempfile::tempdir().unwrap();
    let found = refused(&config(server.hub(cache.path())).init(), &repo());
    assert!(below(cache.path()).is_empty());
    found
}

#[test]
fn p7_hub_denied_says_what_opens_it() {
    let token: fn(HubConfig) -> HubConfig = |config| config.with_token("hf_secret");
    for (act, says, remedies) in [
        (
            (|| Act::Status(403, with_code("GatedRepo"))) as fn() -> Act,
            "gives no access",
            &["accept the terms on http://127.0.0.1:", "/org/tiny"][..],
        ),
        (|| Act::Status(401, vec![]), "does not accept the token", &["settings/tokens"]),
    ] {
        let (fault, reason, remedy) = always(act, token);
        assert_eq!(fault, HubFault::Denied, "{reason}");
        assert!(reason.contains(says), "{reason}");
        assert!(remedies.iter().all(|word| remedy.contains(word)), "{remedy}");
    }
}

#[test]
fn p7_hub_a_token_opens_what_is_private() {
    let server = Server::new(files(), |request| {
        // Large storage belongs to somebody else, who must not hear of it.
        let wanted = if request.path.starts_with("/cdn/") { None } else { Some("hf_secret") };
        if request.token == wanted { Act::Serve } else { Act::Status(401, vec![]) }
    });
    let cache = tempfile::tempdir().unwrap();
    let without = server.hub(cache.path()).with_token("hf_other").init();
    assert_eq!(refused(&without, &repo()).0, HubFault::Denied);
    let hub = server.hub(cache.path()).with_token("hf_secret").init();
    let fetched = hub.fetch(&repo(), &FetchOptions::new(), &mut quiet).unwrap();
    assert_eq!(fetched.commit, COMMIT);
}

#[test]
fn p7_hub_missing_says_what_is_missing() {
    for (code, says) in [
        ("RepoNotFound", "no such repository"),
        ("RevisionNotFound", "no revision `v9`"),
        ("", "no such repository, or it has no revision `v9`"),
    ] {
        let server = Server::new(files(), move |_| {
            Act::Status(404, if code.is_empty() { vec![] } else { with_code(code) })
        });
        let cache = tempfile::tempdir().unwrap();
        let repo = repo().with_revision("v9").unwrap();
        let (fault, reason, _) = refused(&server.hub(cache.path()).init(), &repo);
        assert_eq!(fault, HubFault::Missing);
        assert!(reason.contains(says), "{reason}");
    }
    // A file that is listed and not there.
    let shard = weights(&files())[1].clone();
    let path = format!("/{REPO}/resolve/{COMMIT}/{shard}");
    let server = Server::new(files(), move |request| match request.path == path {
        true => Act::Status(404, with_code("EntryNotFound")),
        false => Act::Serve,
    });
    let cache = tempfile::tempdir().unwrap();
    let (fault, reason, remedy) = refused(&server.hub(cache.path()).init(), &repo());
    assert_eq!(fault, HubFault::Missing);
    assert!(reason.contains(&shard) && remedy.contains("tree/main"), "{reason}; {remedy}");
}

#[test]
fn p7_hub_limits_are_respected_within_a_bound() {
    let started = Instant::now();
    let (fault, reason, remedy) =
        always(|| Act::Status(429, vec![("Retry-After", "3600".into())]), |config| config);
    assert_eq!(fault, HubFault::Limited);
    assert!(reason.contains("3600 s") && remedy.contains("HF_TOKEN"), "{reason}; {remedy}");
    // Again and again: given up when patience ends, not before the server's time.
    let (fault, ..) = always(
        || Act::Status(429, vec![("Retry-After", "1".into())]),
        |config| config.with_patience(Duration::from_millis(1500)),
    );
    assert_eq!(fault, HubFault::Limited);
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn p7_hub_a_connection_that_is_always_cut_is_given_up() {
    let shard = weights(&files())[0].clone();
    let path = format!("/cdn/{shard}");
    let server = Server::new(files(), move |request| match request.path == path {
        true => Act::Cut(1000),
        false => Act::Serve,
    });
    let cache = tempfile::tempdir().unwrap();
    let (fault, reason, remedy) = refused(&server.hub(cache.path()).init(), &repo());
    assert_eq!(fault, HubFault::Network);
    assert!(reason.contains(&shard) && remedy.contains("kept"), "{reason}; {remedy}");
    assert!(!reason.contains("secret"), "{reason}");
    assert_eq!(server.downloads(&shard), 4);
    let left = below(cache.path());
    assert!(left.iter().all(|entry| !entry.contains(&shard)), "{left:?}");
    assert!(left.iter().any(|entry| entry.ends_with("config.json")), "{left:?}");
}

#[test]
fn p7_hub_silence_is_not_waited_for_without_end() {
    let started = Instant::now();
    let (fault, reason, _) =
        always(|| Act::Silence, |config| config.with_patience(Duration::from_millis(700)));
    assert_eq!(fault, HubFault::Network);
    assert!(reason.contains("sent nothing for 700ms"), "{reason}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn f7_hub_pickles_are_not_read() {
    let mut all = files();
    all.retain(|name, _| !name.contains("safetensors"));
    let cache = tempfile::tempdir().unwrap();
    let (fault, reason, remedy) = refused(&Server::sound(all).hub(cache.path()).init(), &repo());
    assert_eq!(fault, HubFault::Missing);
    assert!(reason.contains("pytorch_model.bin") && reason.contains("run code"), "{reason}");
    assert!(remedy.contains("save_pretrained") && remedy.contains(REPO), "{remedy}");
    assert!(below(cache.path()).is_empty());
}

#[test]
fn f4_hub_an_index_cannot_reach_beyond_the_repository() {
    let index = "model.safetensors.index.json";
    for (shard, says) in [("absent.safetensors", "absent.safetensors"), ("../x", "plain file name")]
    {
        let mut all = files();
        let text = format!("{{\"weight_map\": {{\"a\": \"{shard}\"}}}}");
        all.insert(index.into(), text.into_bytes());
        let cache = tempfile::tempdir().unwrap();
        let hub = Server::sound(all).hub(cache.path()).init();
        let error = hub.fetch(&repo(), &FetchOptions::new(), &mut quiet).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains(index), "{error}");
    }
}

#[test]
fn p7_hub_an_address_that_is_none_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let hub = HubConfig::new().with_cache(cache.path()).with_endpoint("not an address");
    let hub = hub.with_offline(false).init();
    match hub.fetch(&repo(), &FetchOptions::new(), &mut quiet) {
        Err(Error::Config { field, value, .. }) => {
            assert_eq!((&*field, &*value), ("HF_ENDPOINT", "`not an address`"));
        }
        other => panic!("{other:?}"),
    }
}
