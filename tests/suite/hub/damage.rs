//! Bytes that are not those that the Hub lists.

use super::server::{Act, Notes, Server};
use super::{REPO, below, digest, files, quiet, repo, weights};
use longburn::models::hub::{FetchOptions, Hub, Need};
use longburn::{Error, HubFault};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn fetch(hub: &Hub) -> longburn::Result<longburn::models::hub::Fetched> {
    hub.fetch(&repo(), &FetchOptions::new(), &mut quiet)
}

/// A server that gives `other` for `name`, the first `times` times.
fn lying(name: &str, other: Vec<u8>, times: usize) -> Server {
    let name = name.to_string();
    Server::new(files(), move |request| {
        let wanted = request.method == "GET" && request.path.ends_with(&format!("/{name}"));
        let large = !name.ends_with(".safetensors") || request.path.starts_with("/cdn/");
        match wanted && large && request.before < times {
            true => Act::Bytes(other.clone()),
            false => Act::Serve,
        }
    })
}

fn flipped(name: &str) -> Vec<u8> {
    let mut bytes = files()[name].clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    bytes
}

#[test]
fn f3_hub_a_wrong_digest_is_fetched_again_and_then_refused() {
    for name in [&*weights(&files())[0], "config.json"] {
        let wrong = flipped(name);
        let server = lying(name, wrong.clone(), 1);
        let cache = tempfile::tempdir().unwrap();
        let fetched = fetch(&server.hub(cache.path()).init()).unwrap();
        assert_eq!(fs::read(fetched.dir.join(name)).unwrap(), files()[name]);
        assert_eq!(server.downloads(name), 2);

        let server = lying(name, wrong.clone(), usize::MAX);
        let cache = tempfile::tempdir().unwrap();
        let hub = server.hub(cache.path()).init();
        let Err(Error::Hub { repo, fault: HubFault::Damaged, reason, .. }) = fetch(&hub) else {
            panic!("{name}");
        };
        assert_eq!(repo, REPO);
        let (right, found) = (digest(name, &files()[name]), digest(name, &wrong));
        for word in [name, &right, &found, "2 times"] {
            assert!(reason.contains(word), "{word}: {reason}");
        }
        assert_eq!(server.downloads(name), 2);
        // No trace of it, under any name, and the revision is not known.
        let left = below(cache.path());
        let trace = |entry: &&String| entry.contains(name) || entry.contains(&right);
        assert_eq!(left.iter().find(trace), None);
        assert!(!left.iter().any(|entry| entry.contains("refs")), "{left:?}");
        let offline = server.hub(cache.path()).with_offline(true).init();
        assert!(offline.locate(Path::new(REPO), Need::Model, &mut quiet).is_err());
    }
}

#[test]
fn p7_a_wrong_length_is_never_a_silent_short_file() {
    let name = &weights(&files())[2];
    let half = files()[name][..files()[name].len() / 2].to_vec();
    let (length, whole) = (half.len().to_string(), files()[name].len().to_string());
    let server = lying(name, half, usize::MAX);
    let cache = tempfile::tempdir().unwrap();
    let Err(Error::Hub { fault: HubFault::Damaged, reason, .. }) =
        fetch(&server.hub(cache.path()).init())
    else {
        panic!();
    };
    for word in [&**name, &length, &whole] {
        assert!(reason.contains(word), "{word}: {reason}");
    }
    assert!(below(cache.path()).iter().all(|entry| !entry.contains(&**name)));
    // What came before it is kept: the next attempt asks for the rest.
    let sound = Server::sound(files());
    let hub = sound.hub(cache.path()).init();
    let again = fetch(&hub).unwrap();
    let came: Vec<&str> = again.files.iter().filter(|f| f.downloaded).map(|f| &*f.name).collect();
    assert!(came.contains(&&**name) && !came.contains(&"config.json"), "{came:?}");
}

#[test]
fn p7_an_excuse_in_place_of_a_file_is_quoted() {
    let name = &weights(&files())[0];
    let server = lying(name, b"quota exceeded, come back tomorrow".to_vec(), usize::MAX);
    let cache = tempfile::tempdir().unwrap();
    let error = fetch(&server.hub(cache.path()).init()).unwrap_err().to_string();
    assert!(error.contains("quota exceeded"), "{error}");
    assert!(error.contains(name) && !error.contains("secret"), "{error}");
}

#[test]
fn f3_hub_what_is_damaged_in_the_cache_is_fetched_again() {
    let (server, cache) = (Server::sound(files()), tempfile::tempdir().unwrap());
    let hub = server.hub(cache.path()).init();
    let fetched = fetch(&hub).unwrap();
    let name = &weights(&files())[0];
    let blob = fetched.dir.join(name).canonicalize().unwrap();
    // One bit, then half of it, then a link that leads nowhere.
    let half = files()[name][..100].to_vec();
    for bytes in [Some(flipped(name)), Some(half), None] {
        match &bytes {
            Some(bytes) => fs::write(&blob, bytes).unwrap(),
            None => fs::remove_file(&blob).unwrap(),
        }
        let mut notes = Notes::default();
        let again = hub.fetch(&repo(), &FetchOptions::new(), &mut notes.watch()).unwrap();
        let came = again.files.iter().filter(|file| file.downloaded);
        assert_eq!(came.map(|file| &file.name).collect::<Vec<_>>(), [name]);
        assert_eq!(fs::read(fetched.dir.join(name)).unwrap(), files()[name]);
        assert_eq!(notes.0.iter().any(|line| line.contains(&**name)), bytes.is_some());
    }
}

#[test]
fn f3_hub_a_damaged_blob_of_another_commit_is_not_taken_over() {
    let name = weights(&files())[0].clone();
    let lies = Arc::new(AtomicBool::new(false));
    let (path, lying) = (format!("/cdn/{name}"), lies.clone());
    let other = flipped(&name);
    let server = Server::new(files(), move |request| {
        match request.path == path && lying.load(Ordering::Relaxed) {
            true => Act::Bytes(other.clone()),
            false => Act::Serve,
        }
    });
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path()).init();
    let first = fetch(&hub).unwrap();
    let damage = || fs::write(first.dir.join(&name).canonicalize().unwrap(), flipped(&name));
    damage().unwrap();
    let commit = "fedcba9876543210fedcba9876543210fedcba98";
    server.commit(commit, "README.md", b"new".to_vec());
    let second = fetch(&hub).unwrap();
    assert_eq!(second.commit, commit);
    assert_eq!(fs::read(second.dir.join(&name)).unwrap(), files()[&name]);
    assert_eq!(fs::read(first.dir.join(&name)).unwrap(), files()[&name]);

    // Where nothing better comes, it is left to nobody.
    damage().unwrap();
    lies.store(true, Ordering::Relaxed);
    server.commit("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "README.md", b"newer".to_vec());
    assert!(matches!(fetch(&hub), Err(Error::Hub { fault: HubFault::Damaged, .. })));
    assert!(!first.dir.join(&name).exists() && !second.dir.join(&name).exists());
}
