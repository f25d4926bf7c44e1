//! Downloads that end well, and the cache that they leave.

use super::server::{Act, Notes, Server};
use super::{COMMIT, REPO, below, digest, files, quiet, repo, weights};
use burn::tensor::Device;
use longburn::attention::MixerConfig;
use longburn::models::Decoder;
use longburn::models::hub::{FetchEvent, FetchOptions, Need, verify_snapshot};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[test]
fn p7_a_fetched_repository_is_whole_and_lies_where_python_looks() {
    let (server, cache) = (Server::sound(files()), tempfile::tempdir().unwrap());
    let hub = server.hub(cache.path()).init();
    let mut bytes = 0;
    let mut begun = 0;
    let mut watch = |event| match event {
        FetchEvent::Bytes(n) => bytes += n,
        FetchEvent::Begin { bytes, .. } => begun += bytes,
        _ => {}
    };
    let fetched = hub.fetch(&repo(), &FetchOptions::new(), &mut watch).unwrap();
    assert_eq!((&*fetched.commit, fetched.offline), (COMMIT, false));
    assert!(fetched.files.iter().all(|file| file.downloaded));
    let kind = |name: &str| fetched.files.iter().find(|file| file.name == name).unwrap().verified;
    assert_eq!(kind("config.json"), Some("git-sha1"));
    assert_eq!(kind(&weights(&files())[0]), Some("sha256"));

    // Pickle files and what is not read stay where they are.
    let wanted: Vec<String> =
        files().into_keys().filter(|n| n != "README.md" && !n.ends_with(".bin")).collect();
    let listed: u64 = wanted.iter().map(|name| files()[name].len() as u64).sum();
    assert_eq!((bytes, begun), (listed, listed));
    let folder = cache.path().join("models--org--tiny");
    let mut expected: Vec<String> =
        wanted.iter().map(|name| format!("blobs/{}", digest(name, &files()[name]))).collect();
    expected.push("refs/main".into());
    expected.extend(wanted.iter().map(|name| format!("snapshots/{COMMIT}/{name}")));
    expected.sort();
    assert_eq!(below(&folder), expected);
    assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    for name in &wanted {
        let link = fs::read_link(fetched.dir.join(name)).unwrap();
        let blob = format!("../../blobs/{}", digest(name, &files()[name]));
        assert_eq!(link, PathBuf::from(blob));
        assert_eq!(fs::read(fetched.dir.join(name)).unwrap(), files()[name]);
    }
    assert!(verify_snapshot(&fetched.dir).unwrap().is_some());
    Decoder::load(&fetched.dir, &MixerConfig::Dense, &Device::flex()).unwrap();

    // Once there, nothing is asked for in use, and nothing comes twice.
    let asked = server.log().len();
    assert_eq!(hub.locate(Path::new(REPO), Need::Model, &mut quiet).unwrap(), fetched.dir);
    assert_eq!(server.log().len(), asked);
    let again = hub.fetch(&repo(), &FetchOptions::new(), &mut quiet).unwrap();
    assert!(again.files.iter().all(|file| !file.downloaded && file.verified.is_some()));
    let forced = FetchOptions::new().with_force(true);
    let forced = hub.fetch(&repo(), &forced, &mut quiet).unwrap();
    assert!(forced.files.iter().all(|file| file.downloaded));
    assert_eq!(below(&folder), expected);
}

#[test]
fn p7_a_new_commit_brings_only_what_is_new() {
    let (server, cache) = (Server::sound(files()), tempfile::tempdir().unwrap());
    let hub = server.hub(cache.path()).init();
    let first = hub.fetch(&repo(), &FetchOptions::new(), &mut quiet).unwrap();
    let asked = server.log().len();
    let commit = "fedcba9876543210fedcba9876543210fedcba98";
    let config = String::from_utf8(files()["config.json"].clone()).unwrap() + "\n";
    server.commit(commit, "config.json", config.clone().into_bytes());
    let second = hub.fetch(&repo(), &FetchOptions::new(), &mut quiet).unwrap();
    assert_eq!(second.commit, commit);
    assert_eq!(fs::read_to_string(second.dir.join("config.json")).unwrap(), config);
    let bodies: Vec<String> =
        server.log()[asked..].iter().filter(|l| l.starts_with("GET /")).cloned().collect();
    let bodies: Vec<&String> = bodies.iter().filter(|l| !l.contains("/api/")).collect();
    assert_eq!(bodies, [&format!("GET /{REPO}/resolve/{commit}/config.json")]);
    // The earlier commit is still what it was.
    assert_eq!(fs::read(first.dir.join("config.json")).unwrap(), files()["config.json"]);
    assert!(verify_snapshot(&first.dir).unwrap().is_some());
    let whole = format!("{REPO}@{COMMIT}");
    assert_eq!(hub.locate(Path::new(&whole), Need::Model, &mut quiet).unwrap(), first.dir);
}

#[test]
fn p7_many_fetch_the_same_file_at_once() {
    let (server, cache) = (Server::sound(files()), tempfile::tempdir().unwrap());
    let hub = server.hub(cache.path()).init();
    std::thread::scope(|scope| {
        let fetch = || hub.fetch(&repo(), &FetchOptions::new(), &mut quiet).unwrap();
        let all: Vec<_> = (0..4).map(|_| scope.spawn(fetch)).collect();
        let came = all.into_iter().map(|one| one.join().unwrap());
        let came = came.filter(|fetched| fetched.files.iter().any(|file| file.downloaded));
        assert_eq!(came.count(), 1);
    });
    for name in weights(&files()) {
        assert_eq!(server.downloads(&name), 1, "{name}");
    }
}

#[test]
fn p7_a_connection_cut_in_the_middle_is_tried_again() {
    let all = files();
    let shard = weights(&all)[1].clone();
    let path = format!("/cdn/{shard}");
    let half = all[&shard].len() / 2;
    let server =
        Server::new(all, move |request| match request.path == path && request.before < 2 {
            true => Act::Cut(half),
            false => Act::Serve,
        });
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path()).init();
    let fetched = hub.fetch(&repo(), &FetchOptions::new(), &mut quiet).unwrap();
    assert_eq!(server.downloads(&shard), 3);
    assert_eq!(fs::read(fetched.dir.join(&shard)).unwrap(), files()[&shard]);
    assert!(below(cache.path()).iter().all(|name| !name.contains("longburn-")), "staging is gone");
}

#[test]
fn p7_a_server_that_asks_to_wait_is_waited_for() {
    let server = Server::new(files(), |request| {
        match request.path.starts_with("/api/") && request.before == 0 {
            true => Act::Status(429, vec![("Retry-After", "1".into())]),
            false => Act::Serve,
        }
    });
    let cache = tempfile::tempdir().unwrap();
    let mut notes = Notes::default();
    let started = Instant::now();
    let hub = server.hub(cache.path()).init();
    hub.fetch(&repo(), &FetchOptions::new(), &mut notes.watch()).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert!(notes.0.iter().any(|line| line.contains("1s")), "{:?}", notes.0);
}

#[test]
fn p7_without_an_answer_a_whole_snapshot_does() {
    let (server, cache) = (Server::sound(files()), tempfile::tempdir().unwrap());
    let fetched =
        server.hub(cache.path()).init().fetch(&repo(), &FetchOptions::new(), &mut quiet).unwrap();
    // A proxy's page of its own counts as no answer, too.
    let page = Server::new(files(), |request| match request.path.contains("/api/") {
        true => Act::Status(200, vec![("Content-Type", "text/html".into())]),
        false => Act::Serve,
    });
    for endpoint in ["http://127.0.0.1:9", &page.endpoint] {
        let hub = server.hub(cache.path()).with_endpoint(endpoint);
        let hub = hub.with_patience(Duration::from_millis(300)).init();
        let mut notes = Notes::default();
        let again = hub.fetch(&repo(), &FetchOptions::new(), &mut notes.watch()).unwrap();
        assert_eq!((&again.dir, again.offline), (&fetched.dir, true));
        let warned = |line: &String| line.contains("warning") && line.contains(endpoint);
        assert!(notes.0.iter().any(warned), "{:?}", notes.0);
        let forced = FetchOptions::new().with_force(true);
        assert!(hub.fetch(&repo(), &forced, &mut quiet).is_err());
        // What lacks a file does not do, and the message says which.
        let shard = fetched.dir.join(&weights(&files())[0]);
        let link = fs::read_link(&shard).unwrap();
        fs::remove_file(&shard).unwrap();
        let error = hub.fetch(&repo(), &FetchOptions::new(), &mut quiet).unwrap_err().to_string();
        assert!(error.contains(endpoint) && error.contains(&weights(&files())[0]), "{error}");
        std::os::unix::fs::symlink(link, shard).unwrap();
    }
}
