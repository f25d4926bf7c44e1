//! Each page's commands run in order, in a folder of their own with small fixtures.
//!
//! A block in `sh` runs in every test run, `sh,slow` with the feature `slow` only, `sh,cargo` (in
//! the repository) only where LONGBURN_CARGO is set: it builds the whole program. A block in
//! `toml` that begins with the comment `# NAME.toml` is written to that file.
//!
//! Where LONGBURN_REALDATA is set, pages that begin with a checkpoint run once more on a real one.

use crate::data::{write_parquet, zstd};
use crate::tiny;
use burn::tensor::Device;
use longburn::datasets::{BpeConfig, train_bpe};
use longburn::models::ModelConfig;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Pages that others write; their commands stand in their examples' documentation.
const GENERATED: [&str; 5] =
    ["reference.md", "papers.md", "results/longlora.md", "results/recall.md", "results/seer.md"];

/// Pages whose commands a test of their own runs, and looks at what they leave.
const OWN_TEST: [&str; 1] = ["walk.md"];

/// Pages that are followed with a real checkpoint, too; all but the first with the feature `slow`.
const REAL: [&str; 7] =
    ["extend.md", "data.md", "memory.md", "resume.md", "eval.md", "chat.md", "merge.md"];

const TEXT: &str = "Once upon a time there was a river that ran past the mill, and the miller \
                    counted seven sacks of flour before he walked home along the bank. ";

#[derive(Debug, PartialEq)]
enum Step {
    /// Commands, with the word behind the comma.
    Shell(String, String),
    File(String, String),
}

/// The blocks of a page that a reader would type or copy.
fn steps(page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else { continue };
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let (language, class) = language.split_once(',').unwrap_or((language, ""));
        let name = body.first().and_then(|first| first.strip_prefix("# "));
        match (language, name) {
            ("sh", _) => steps.push(Step::Shell(body.join("\n"), class.into())),
            ("toml", Some(name)) if name.ends_with(".toml") => {
                steps.push(Step::File(name.into(), body.join("\n")));
            }
            _ => {}
        }
    }
    steps
}

/// A folder in which a page's commands find what the page speaks of.
pub(super) struct Session {
    dir: tempfile::TempDir,
}

impl Session {
    /// With the repository's own pages as `docs/`, and short texts in two packed forms.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("docs")).unwrap();
        for name in ["design.md", "install.md", "first-run.md", "extend.md", "papers.md"] {
            fs::copy(super::docs().join(name), dir.path().join("docs").join(name)).unwrap();
        }
        let stories: Vec<String> = (3..12).map(|n| TEXT.repeat(n)).collect();
        let lines = stories.iter().map(|text| serde_json::json!({ "text": text }).to_string());
        let lines = lines.collect::<Vec<_>>().join("\n");
        let lines = ::zstd::encode_all(lines.as_bytes(), 3).unwrap();
        fs::write(dir.path().join("stories.jsonl.zst"), lines).unwrap();
        let rows: Vec<Option<&str>> = stories.iter().map(|text| Some(text.as_str())).collect();
        write_parquet(&dir.path().join("stories.parquet"), &[&rows], zstd());
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// With a small checkpoint of 512 positions and a few texts.
    pub fn small() -> Self {
        let session = Self::new();
        let path = |name: &str| session.path(name);
        fs::create_dir(path("books")).unwrap();
        let texts: Vec<String> = [90, 100, 110].map(|n| TEXT.repeat(n)).to_vec();
        for (i, text) in texts.iter().enumerate() {
            fs::write(path(&format!("books/{i}.txt")), text).unwrap();
        }
        let special = vec!["<|endoftext|>".to_string()];
        let tokenizer =
            train_bpe(texts.iter(), &BpeConfig::new(300).with_special(special)).unwrap();
        let config =
            ModelConfig::llama(304, 16, 2, 2).with_max_positions(512).with_tied(true).with_eos([0]);
        let model = tiny::model(&config, &Device::flex());
        model.save(&path("checkpoints/base"), &Default::default()).unwrap();
        tokenizer.save(path("checkpoints/base")).unwrap();
        session
    }

    /// With a real checkpoint and the beginnings of real books.
    #[cfg(unix)]
    pub fn real(root: &Path) -> Self {
        let session = Self::new();
        let path = |name: &str| session.path(name);
        fs::create_dir(path("checkpoints")).unwrap();
        let model = root.join("stories260k-hf");
        std::os::unix::fs::symlink(model, path("checkpoints/base")).unwrap();
        fs::create_dir(path("books")).unwrap();
        for entry in fs::read_dir(root.join("books/valid")).unwrap() {
            let book = entry.unwrap().path();
            let text = fs::read_to_string(&book).unwrap();
            let end = text.floor_char_boundary(30_000);
            fs::write(path("books").join(book.file_name().unwrap()), &text[..end]).unwrap();
        }
        session
    }

    /// Follow a page; what its commands print.
    pub fn run(&self, name: &str) -> String {
        let mut printed = String::new();
        for step in steps(&super::page(name)) {
            match step {
                Step::File(file, text) => fs::write(self.path(&file), text).unwrap(),
                Step::Shell(commands, class) => match class.as_str() {
                    "" => printed += &self.shell(&commands, name),
                    "slow" if cfg!(feature = "slow") => printed += &self.shell(&commands, name),
                    "slow" => {}
                    "cargo" if std::env::var_os("LONGBURN_CARGO").is_some() => {
                        shell(&commands, Path::new(env!("CARGO_MANIFEST_DIR")), name);
                    }
                    "cargo" => skipped(name, "LONGBURN_CARGO"),
                    other => panic!("{name}: no way to run a block `sh,{other}`"),
                },
            }
        }
        printed
    }

    /// Commands in the folder of the page; what they print.
    pub fn shell(&self, commands: &str, page: &str) -> String {
        shell(commands, self.dir.path(), page)
    }
}

pub(super) fn skipped(what: &str, variable: &str) {
    // Past the capturing of output: a skip shows in every run.
    let _ = writeln!(std::io::stderr(), "skipped part of {what}: {variable} is not set");
}

/// Run as a reader would, `longburn` on the path; the first command that fails ends it.
fn shell(commands: &str, dir: &Path, page: &str) -> String {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_longburn"));
    let mut path = program.parent().unwrap().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let out = Command::new("sh")
        .args(["-e", "-c", commands])
        .current_dir(dir)
        .env("PATH", path)
        .env("NO_COLOR", "1")
        // What a page installs does not end up among the programs of whoever runs the tests.
        .env("CARGO_INSTALL_ROOT", std::env::temp_dir().join("longburn-book"))
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{page}: {commands}\n{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn the_commands_of_every_page_run() {
    let mut ran = 0;
    for name in super::summary() {
        let shown = steps(&super::page(&name)).iter().any(|s| matches!(s, Step::Shell(..)));
        if shown && ![&GENERATED[..], &OWN_TEST].concat().contains(&name.as_str()) {
            Session::small().run(&name);
            ran += 1;
        }
    }
    assert!(ran >= 10, "{ran} pages with commands");
}

#[test]
#[cfg(unix)]
fn the_commands_run_on_a_real_checkpoint() {
    let Some(root) = std::env::var_os("LONGBURN_REALDATA") else {
        return skipped("the book on a real checkpoint", "LONGBURN_REALDATA");
    };
    for name in REAL {
        if name == REAL[0] || cfg!(feature = "slow") {
            Session::real(Path::new(&root)).run(name);
        }
    }
}

#[test]
fn blocks_are_found() {
    let page = "a\n```sh\nls\ncat x\n```\nb\n```toml\n# a.toml\nx = 1\n```\n```toml\ny = 2\n```\n\
                ```sh,slow\nsleep 1\n```\n```text\nno\n```\n";
    let shell = |text: &str, class: &str| Step::Shell(text.into(), class.into());
    let file = Step::File("a.toml".into(), "# a.toml\nx = 1".into());
    assert_eq!(steps(page), [shell("ls\ncat x", ""), file, shell("sleep 1", "slow")]);
}
