//! What needs no network: names, and a cache as Python's `huggingface_hub` leaves it.

use super::{COMMIT, REPO, TEXT, below, digest, files, is_large, quiet, repo, weights};
use assert_cmd::Command;
use longburn::models::hub::{Digest, FetchEvent, Hub, HubConfig, Need, RepoId, verify_snapshot};
use longburn::{Error, HubFault};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A cache with one repository, made file by file as Python's tools make it.
struct Cache {
    dir: TempDir,
    files: BTreeMap<String, Vec<u8>>,
}

impl Cache {
    fn new() -> Self {
        let files = files();
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("models--org--tiny");
        for name in ["blobs", "refs", "snapshots", ".no_exist"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        fs::write(folder.join("refs/main"), COMMIT).unwrap();
        fs::create_dir_all(folder.join("refs/refs/pr")).unwrap();
        fs::write(folder.join("refs/refs/pr/1"), COMMIT).unwrap();
        let snapshot = folder.join("snapshots").join(COMMIT);
        fs::create_dir(&snapshot).unwrap();
        for (name, bytes) in &files {
            let blob = digest(name, bytes);
            fs::write(folder.join("blobs").join(&blob), bytes).unwrap();
            std::os::unix::fs::symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
        }
        Self { dir, files }
    }

    fn hub(&self) -> Hub {
        // An address that nothing answers: no test here may ask.
        let config = HubConfig::new().with_cache(self.dir.path()).with_offline(true);
        config.with_endpoint("http://127.0.0.1:9").init()
    }

    fn snapshot(&self) -> PathBuf {
        self.dir.path().join("models--org--tiny/snapshots").join(COMMIT)
    }

    /// Run in the folder of the cache, with it.
    fn longburn(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longburn"));
        command.current_dir(self.dir.path()).env("NO_COLOR", "1").args(args);
        command.env("HF_HUB_CACHE", self.dir.path()).env("HF_HUB_OFFLINE", "1");
        command
    }

    fn json(&self, args: &[&str]) -> Value {
        let out = self.longburn(&[args, &["--json"]].concat()).assert().success();
        serde_json::from_slice(&out.get_output().stdout).unwrap()
    }

    fn refusal(&self, args: &[&str]) -> Value {
        let out = self.longburn(&[args, &["--json"]].concat()).assert().code(1);
        serde_json::from_slice::<Value>(&out.get_output().stdout).unwrap()["error"].take()
    }
}

#[test]
fn names_of_repositories() {
    for (text, id, revision, folder) in [
        ("org/name", "org/name", "main", "models--org--name"),
        ("gpt2", "gpt2", "main", "models--gpt2"),
        ("org/name@v1.0", "org/name", "v1.0", "models--org--name"),
        ("Org-1/na_me.2@refs/pr/1", "Org-1/na_me.2", "refs/pr/1", "models--Org-1--na_me.2"),
    ] {
        let repo = RepoId::parse(text).unwrap();
        assert_eq!((repo.id(), repo.revision(), &*repo.folder()), (id, revision, folder));
        assert_eq!(repo.to_string(), text);
    }
    let long = "x".repeat(97);
    for text in [
        "", "/", "a/b/c", "/a", "a/", "./a", "../a", "a/..", "-a/b", "a/b.", "a--b/c", "a b",
        "a/b.git", "a\\b", "ä/b", "a/b@", "a/b@../x", "a/b@x y", "a/b@/x", "a/b@x//y", "~/a",
        &long,
    ] {
        match RepoId::parse(text) {
            Err(Error::Config { file, .. }) => assert_eq!(file, "repository", "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn f3_hub_digests_equal_those_of_git_and_sha256sum() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hello");
    fs::write(&path, "hello\n").unwrap();
    // As `git hash-object` and `sha256sum` have them.
    for hex in [
        "ce013625030ba8dba906f756967f9e9ca394464a",
        "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
    ] {
        let digest = Digest::of_name(hex).unwrap();
        assert_eq!(digest.differs(&path, &mut |_| {}).unwrap(), None);
        let wrong = Digest::of_name(&hex.replace('e', "f")).unwrap();
        assert_eq!(wrong.differs(&path, &mut |_| {}).unwrap().as_deref(), Some(hex));
    }
    for name in ["", "abc", &"g".repeat(40), &"A".repeat(64), "main"] {
        assert_eq!(Digest::of_name(name), None, "{name}");
    }
}

#[test]
fn a_cache_of_pythons_is_used_without_a_question() {
    let cache = Cache::new();
    let hub = cache.hub();
    let locate = |name: &str| hub.locate(Path::new(name), Need::Model, &mut quiet);
    for name in [REPO.to_string(), format!("{REPO}@{COMMIT}"), format!("{REPO}@refs/pr/1")] {
        assert_eq!(locate(&name).unwrap(), cache.snapshot());
    }
    // A folder comes before a repository, even one that is no model.
    assert_eq!(locate("tests/suite").unwrap(), Path::new("tests/suite"));
    assert!(hub.describe(Path::new(REPO), &mut quiet).unwrap().listed.is_none());

    // One file away from a whole model.
    let shard = &weights(&cache.files)[1];
    fs::remove_file(cache.snapshot().join(shard).canonicalize().unwrap()).unwrap();
    match locate(REPO).unwrap_err() {
        Error::Hub { fault: HubFault::Offline, reason, repo, .. } => {
            assert_eq!(repo, REPO);
            assert!(reason.contains("no such folder") && reason.contains(shard), "{reason}");
        }
        other => panic!("{other}"),
    }
    let described = hub.locate(Path::new(REPO), Need::Description, &mut quiet).unwrap();
    assert_eq!(described, cache.snapshot());
    fs::remove_file(cache.snapshot().join("config.json")).unwrap();
    let error = hub.locate(Path::new(REPO), Need::Description, &mut quiet).unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
}

#[test]
fn a_cached_model_without_its_tokenizer_is_used_with_a_word() {
    let cache = Cache::new();
    let said = |need| {
        let mut said = Vec::new();
        let dir = cache.hub().locate(Path::new(REPO), need, &mut |event| {
            if let FetchEvent::Note(line) = event {
                said.push(line);
            }
        });
        assert_eq!(dir.unwrap(), cache.snapshot());
        said
    };
    assert!(said(Need::Model).is_empty());
    fs::remove_file(cache.snapshot().join("tokenizer.json")).unwrap();
    assert!(said(Need::Description).is_empty());
    let lines = said(Need::Model);
    let word = format!("longburn fetch {REPO}");
    assert!(lines.len() == 1 && lines[0].contains(&word), "{lines:?}");
}

#[test]
fn references_that_lead_out_of_the_cache_are_not_followed() {
    let cache = Cache::new();
    fs::write(cache.dir.path().join("models--org--tiny/refs/main"), "../../../..").unwrap();
    assert_eq!(cache.hub().snapshot(&repo()), None);
}

#[test]
fn every_verb_takes_a_repository_in_the_cache() {
    let cache = Cache::new();
    fs::write(cache.dir.path().join("ids.json"), "[[1, 5, 9]]").unwrap();
    fs::write(cache.dir.path().join("text.txt"), TEXT.repeat(9)).unwrap();
    let facts = cache.json(&["inspect", REPO, "--verify"]);
    assert_eq!(facts["weights"]["complete"], true, "{facts}");
    assert_eq!(facts["verified"]["sha256"], weights(&cache.files).len() + 1, "{facts}");
    assert_eq!(facts["verified"]["without_digest"].as_array().unwrap().len(), 0);
    cache.json(&["logits", REPO, "--ids", "ids.json", "--out", "out.safetensors"]);
    cache.json(&["eval", REPO, "--data", "text.txt", "--max-len", "32"]);
    cache.json(&["generate", REPO, "--prompt", "The", "--max-new-tokens", "2"]);
    cache.json(&["extend", REPO, "--method", "linear", "--to", "128", "--out", "longer"]);

    let recipe = format!(
        "[model]\npath = \"{REPO}@{COMMIT}\"\n[lora]\n[data]\ntrain = \"text.txt\"\n[train]\n\
         steps = 1\nlength = 16\nlr = 1e-3\n[output]\ndir = \"run\"\n"
    );
    fs::write(cache.dir.path().join("run.toml"), recipe).unwrap();
    cache.json(&["plan", "run.toml"]);
    cache.json(&["mask", "show", "run.toml"]);
    cache.json(&["train", "run.toml"]);
    // As Python's `peft` writes it: the revision apart.
    let adapter = cache.dir.path().join("run/adapter/adapter_config.json");
    let adapter: Value = serde_json::from_slice(&fs::read(adapter).unwrap()).unwrap();
    assert_eq!(adapter["base_model_name_or_path"], REPO);
    assert_eq!(adapter["revision"], COMMIT);
    let merged = cache.json(&["merge", "run/adapter", "--out", "merged"]);
    assert_eq!(merged["base"], cache.snapshot().display().to_string());
    // Going on reads the same files.
    let longer = fs::read_to_string(cache.dir.path().join("run.toml")).unwrap();
    fs::write(cache.dir.path().join("run.toml"), longer.replace("steps = 1", "steps = 2")).unwrap();
    assert_eq!(cache.json(&["train", "run.toml", "--resume"])["resumed"], 1);
}

#[test]
fn what_is_neither_a_folder_nor_a_repository_is_told_in_both_readings() {
    let cache = Cache::new();
    for args in [
        &["inspect", "org/other"][..],
        &["logits", "org/other", "--ids", "x", "--out", "y"],
        &["generate", "org/other", "--prompt", "x"],
        &["merge", "model", "--base", "org/other", "--out", "x"],
    ] {
        let args = args.iter().map(|arg| if *arg == "model" { REPO } else { arg });
        let error = cache.refusal(&args.collect::<Vec<_>>());
        let message = error["message"].as_str().unwrap();
        assert_eq!(error["kind"], "hub_offline", "{error}");
        for word in ["org/other", "no such folder", "cache", "remedy"] {
            assert!(message.contains(word), "{word}: {message}");
        }
    }
    let error = cache.refusal(&["inspect", "some/deep/folder"]);
    assert_eq!(error["kind"], "io");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("some/deep/folder") && message.contains("org/name"), "{message}");
}

#[test]
fn f3_hub_a_flipped_bit_in_the_cache_is_found() {
    let cache = Cache::new();
    assert!(verify_snapshot(&cache.snapshot()).unwrap().is_some());
    assert_eq!(verify_snapshot(cache.dir.path()).unwrap(), None);
    for name in [&*weights(&cache.files)[0], "config.json"] {
        let blob = cache.snapshot().join(name).canonicalize().unwrap();
        let mut bytes = cache.files[name].clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&blob, &bytes).unwrap();
        let error = cache.refusal(&["inspect", REPO, "--verify"]);
        let message = error["message"].as_str().unwrap();
        let right = digest(name, &cache.files[name]);
        for word in [name, &right, &digest(name, &bytes), "longburn fetch"] {
            assert!(message.contains(word), "{word}: {message}");
        }
        let kind = if is_large(name) { "sha256" } else { "git-sha1" };
        assert!(message.contains(kind), "{message}");
        fs::write(&blob, &cache.files[name]).unwrap();
    }
}

#[test]
fn p7_offline_a_whole_snapshot_does() {
    let cache = Cache::new();
    let error = cache.refusal(&["fetch", "org/other"]);
    if cfg!(not(feature = "hub")) {
        // Without the feature, the verb says how to get it.
        assert_eq!(error["kind"], "hub_offline");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("cargo install --path . --locked --features hub"), "{message}");
        return;
    }
    assert!(error["message"].as_str().unwrap().contains("HF_HUB_OFFLINE"), "{error}");
    let out = cache.longburn(&["fetch", REPO]).assert().success();
    let said = String::from_utf8_lossy(&out.get_output().stderr).into_owned();
    assert!(said.contains("warning") && said.contains(COMMIT), "{said}");
    let printed = String::from_utf8_lossy(&out.get_output().stdout).into_owned();
    assert_eq!(printed.trim(), cache.snapshot().display().to_string());
    let shard = cache.snapshot().join(&weights(&cache.files)[0]);
    fs::remove_file(&shard).unwrap();
    let error = cache.refusal(&["fetch", REPO]);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(&weights(&cache.files)[0]), "{message}");
    let before = below(cache.dir.path());
    cache.refusal(&["fetch", REPO, "--force"]);
    assert_eq!(below(cache.dir.path()), before);
}
