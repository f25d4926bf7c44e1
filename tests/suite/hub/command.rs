//! The command against a Hub.

use super::refusals::with_code;
use super::server::{Act, Server};
use super::{COMMIT, REPO, digest, files, weights};
use assert_cmd::Command;
use serde_json::Value;
use std::path::Path;

fn longburn(server: &Server, dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longburn"));
    command.current_dir(dir).env("NO_COLOR", "1").args(args);
    command.env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", dir.join("hf"));
    for name in
        ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH"]
    {
        command.env_remove(name);
    }
    command
}

fn json(server: &Server, dir: &Path, args: &[&str]) -> Value {
    let out = longburn(server, dir, &[args, &["--json"]].concat()).assert().success();
    serde_json::from_slice(&out.get_output().stdout).unwrap()
}

#[test]
fn fetch_prints_the_folder_and_what_came() {
    let (server, dir) = (Server::sound(files()), tempfile::tempdir().unwrap());
    let out = longburn(&server, dir.path(), &["fetch", REPO]).assert().success();
    let snapshot = dir.path().join("hf/hub/models--org--tiny/snapshots").join(COMMIT);
    let printed = String::from_utf8_lossy(&out.get_output().stdout).into_owned();
    assert_eq!(printed.trim(), snapshot.display().to_string());
    let said = String::from_utf8_lossy(&out.get_output().stderr).into_owned();
    assert!(said.contains("iB/s") && said.contains("files downloaded"), "{said}");
    let facts = json(&server, dir.path(), &["fetch", REPO, "--revision", "main"]);
    assert_eq!(facts["commit"], COMMIT);
    let all = facts["files"].as_array().unwrap();
    assert!(all.len() > 4 && all.iter().all(|file| file["downloaded"] == false), "{facts}");
    // Elsewhere, if that is wanted.
    let facts = json(&server, dir.path(), &["fetch", REPO, "--cache", "other", "--force"]);
    assert!(facts["dir"].as_str().unwrap().starts_with("other/models--org--tiny"), "{facts}");
}

#[test]
fn inspect_of_a_repository_downloads_no_weights() {
    let (server, dir) = (Server::sound(files()), tempfile::tempdir().unwrap());
    let facts = json(&server, dir.path(), &["inspect", REPO]);
    let bytes: usize = weights(&files()).iter().map(|name| files()[name].len()).sum();
    assert_eq!(facts["weights"]["downloaded"], false);
    assert_eq!(facts["weights"]["bytes"], bytes);
    assert_eq!(facts["weights"]["to_download"], format!("longburn fetch {REPO}"));
    assert_eq!(facts["model"]["architecture"], "llama");
    assert_eq!(facts["tokenizer"]["fits"], true);
    assert!(weights(&files()).iter().all(|name| server.downloads(name) == 0));
}

#[test]
fn a_named_repository_is_downloaded_when_it_is_used() {
    let (server, dir) = (Server::sound(files()), tempfile::tempdir().unwrap());
    let args = ["generate", REPO, "--prompt", "The", "--max-new-tokens", "2"];
    json(&server, dir.path(), &args);
    let asked = server.log().len();
    assert!(asked > 0);
    json(&server, dir.path(), &args);
    assert_eq!(server.log().len(), asked, "the second time, the cache is enough");

    let out = longburn(&server, dir.path(), &["inspect", "org/none", "--json"]).assert().code(1);
    let error: Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
    assert_eq!(error["error"]["kind"], "hub_missing");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("no such folder") && message.contains("repository"), "{message}");
}

#[test]
fn p7_hub_without_a_token_says_how_to_get_one() {
    for (code, says) in [
        ("RepoNotFound", &["private or gated", "check the name", "HF_TOKEN", "settings/tokens"]),
        ("GatedRepo", &["is gated", "accept the terms on http", "HF_TOKEN", "/org/tiny"]),
    ] {
        let server = Server::new(files(), move |_| Act::Status(401, with_code(code)));
        let dir = tempfile::tempdir().unwrap();
        let out = longburn(&server, dir.path(), &["fetch", REPO, "--json"]).assert().code(1);
        let said: Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
        assert_eq!(said["error"]["kind"], "hub_denied");
        let message = said["error"]["message"].as_str().unwrap();
        assert!(says.iter().all(|word| message.contains(word)), "{message}");
    }
}

/// `tests/interop/check_hub.py` reads with Python what this leaves, and the other way round.
#[test]
fn the_cache_is_exchanged_with_python() {
    let Some(dir) = std::env::var_os("LONGBURN_INTEROP_DIR") else { return };
    let dir = Path::new(&dir).join("hub");
    std::fs::create_dir_all(&dir).unwrap();
    let server = Server::sound(files());
    let facts = json(
        &server,
        &std::env::temp_dir(),
        &["fetch", REPO, "--cache", dir.join("rust").to_str().unwrap()],
    );
    let mut expected = serde_json::Map::new();
    for file in facts["files"].as_array().unwrap() {
        let name = file["name"].as_str().unwrap();
        expected.insert(name.into(), digest(name, &files()[name]).into());
    }
    let text = serde_json::json!({ "repo": REPO, "commit": COMMIT, "files": expected });
    std::fs::write(dir.join("expected.json"), text.to_string()).unwrap();
}
