//! The book under `docs/`: its generated parts are what the program says, and its commands run.
//!
//! `LONGBURN_BLESS=1 cargo test --test suite book` rewrites what is generated.

mod fields;
mod links;
mod session;
mod walk;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
}

fn page(name: &str) -> String {
    let path = docs().join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Compares a generated text with the committed page, or writes it.
fn committed(name: &str, want: &str) {
    let path = docs().join(name);
    if std::env::var_os("LONGBURN_BLESS").is_some_and(|v| v == "1") {
        return fs::write(path, want).unwrap();
    }
    let have = fs::read_to_string(&path).unwrap_or_default();
    let differs = have.lines().zip(want.lines()).position(|(a, b)| a != b);
    assert!(
        have == want,
        "docs/{name} is stale (line {}): LONGBURN_BLESS=1 cargo test --test suite book",
        differs.unwrap_or_else(|| have.lines().count().min(want.lines().count())) + 1
    );
}

/// Pages in the order of the book.
fn summary() -> Vec<String> {
    let text = page("SUMMARY.md");
    text.lines()
        .filter_map(|line| line.split_once("](")?.1.split_once(')'))
        .map(|(name, _)| name.to_string())
        .collect()
}

#[test]
fn every_page_is_in_the_summary() {
    let listed: BTreeSet<String> = summary().into_iter().collect();
    let mut found = BTreeSet::new();
    for entry in walkdir::WalkDir::new(docs()) {
        let path = entry.unwrap().into_path();
        if path.extension().is_some_and(|e| e == "md") {
            let name = path.strip_prefix(docs()).unwrap().to_string_lossy().replace('\\', "/");
            found.insert(name);
        }
    }
    found.remove("SUMMARY.md");
    assert_eq!(found, listed);
    let config: toml::Table = page("book.toml").parse().unwrap();
    assert_eq!(config["book"]["src"].as_str(), Some("."));
}

fn longburn(args: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_longburn")).args(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn the_reference_is_that_of_the_command() {
    committed("reference.md", &longburn(&["reference"]));
}

/// Made from the files of results that are committed, whatever machine this is.
#[test]
fn the_page_of_performance_is_that_of_the_results() {
    let results = docs().join("results/performance");
    let image = tempfile::tempdir().unwrap();
    let drawn = image.path().join("performance.svg");
    let [from, to] = [results.to_str().unwrap(), drawn.to_str().unwrap()];
    committed("performance.md", &longburn(&["bench", "page", "--from", from, "--image", to]));
    if let Ok(svg) = fs::read_to_string(&drawn) {
        committed("images/performance.svg", &svg);
    }
}

/// As that of performance. All cells are there, made with the settings of the program.
#[test]
fn the_page_of_recall_is_that_of_the_results() {
    let results = docs().join("results/recall");
    if !results.exists() {
        return println!("skipped: there are no results");
    }
    let image = tempfile::tempdir().unwrap();
    let drawn = image.path().join("recall.svg");
    let [from, to] = [results.to_str().unwrap(), drawn.to_str().unwrap()];
    let page = longburn(&["bench", "recall-page", "--from", from, "--image", to]);
    committed("results/recall.md", &page);
    committed("images/recall.svg", &fs::read_to_string(&drawn).unwrap());
    assert!(!page.contains("Not measured:"), "{page}");
    let said = longburn(&["bench", "recall", "--json", "--out", from, "--seed", "2"]);
    assert!(said.starts_with("{\"skipped\":24,"), "{said}");
}

/// Verbs of the reference page, without `longburn`.
fn verbs() -> Vec<Vec<String>> {
    let text = longburn(&["reference"]);
    text.lines()
        .filter_map(|line| line.strip_prefix("## `longburn ")?.strip_suffix('`'))
        .map(|verb| verb.split(' ').map(Into::into).collect())
        .collect()
}

#[test]
fn every_help_text_has_examples_that_parse() {
    let verbs = verbs();
    assert!(verbs.len() > 10, "{verbs:?}");
    for verb in &verbs {
        let mut args: Vec<&str> = verb.iter().map(String::as_str).collect();
        args.push("--help");
        let help = longburn(&args);
        let (_, examples) = help.split_once("Examples:\n").unwrap_or_else(|| panic!("{verb:?}"));
        let examples: Vec<&str> =
            examples.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
        assert!(!examples.is_empty(), "{verb:?}");
        for example in examples {
            // What stands behind a mistake is not looked at, so that asking for help at the end
            // succeeds only where everything before it is understood.
            let line = example.split(" > ").next().unwrap();
            let line = line.strip_prefix("longburn ").unwrap_or_else(|| panic!("{example}"));
            let words = line.split('\'').enumerate().flat_map(|(i, part)| match i % 2 {
                0 => part.split_whitespace().collect::<Vec<_>>(),
                _ => vec![part],
            });
            longburn(&words.chain(["--help"]).collect::<Vec<_>>());
        }
    }
}

#[test]
fn the_recipe_pages_fields_are_those_of_recipes() {
    const BEGIN: &str = "<!-- fields: generated from the recipe's types -->\n";
    let text = page("recipes.md");
    let (before, _) = text.split_once(BEGIN).expect("recipes.md has the marker");
    committed("recipes.md", &format!("{before}{BEGIN}{}\n", fields::tables().trim_end()));
}
