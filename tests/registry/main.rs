//! What holds for the repository as a whole: layers, papers and what each owns, sizes, generated
//! pages. `LONGBURN_BLESS=1` rewrites the generated ones.

mod layers;
mod owned;

use longburn::testing::papers::{Status, foundations, papers, papers_page, readme_table};
use longburn::training::Recipe;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines that a source file may have.
const MAX_LINES: usize = 600;
/// Bytes that all fixtures together may have.
const MAX_FIXTURES: u64 = 2 << 20;
const CODE: [&str; 13] = [
    "positional",
    "attention",
    "models",
    "datasets",
    "training",
    "testing",
    "examples",
    "tests",
    "atomic.rs",
    "error.rs",
    "paths.rs",
    "streams.rs",
    "lib.rs",
];

/// Files at the root that every layer uses, and that use none.
const SHARED_FILES: [&str; 4] = ["atomic.rs", "error.rs", "paths.rs", "streams.rs"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder` of the repository with their paths from its root.
fn files(folder: &str) -> Vec<(String, PathBuf)> {
    let walk = walkdir::WalkDir::new(root().join(folder)).sort_by_file_name();
    walk.into_iter()
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| {
            let path = entry.into_path();
            let name = path.strip_prefix(root()).expect("below the root");
            (name.to_string_lossy().replace('\\', "/"), path)
        })
        .collect()
}

fn rust_files(folder: &str) -> impl Iterator<Item = (String, String)> {
    files(folder).into_iter().filter(|(name, _)| name.ends_with(".rs")).map(|(name, path)| {
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        (name, text)
    })
}

fn none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn layers_use_what_is_below_them_only() {
    let mut seen = 0;
    let mut problems = Vec::new();
    // The lowest layer is a package of its own; Cargo keeps that edge.
    for layer in layers::LAYERS.iter().skip(1).chain(&SHARED_FILES) {
        for (name, text) in rust_files(layer) {
            if !name.starts_with("attention/kernel/") {
                seen += 1;
                problems.extend(layers::violations(&name, &text));
            }
        }
    }
    assert!(seen > 40, "only {seen} files were found");
    none(problems);
}

#[test]
fn sources_stay_readable_in_one_sitting() {
    let long = CODE.iter().flat_map(|folder| rust_files(folder)).filter_map(|(name, text)| {
        let lines = text.lines().count();
        (lines > MAX_LINES).then(|| format!("{name}: {lines} lines, at most {MAX_LINES}"))
    });
    none(long.collect());
}

#[test]
fn fixtures_stay_small() {
    let size = |(_, path): &(String, PathBuf)| fs::metadata(path).map_or(0, |m| m.len());
    let total: u64 = files("tests/fixtures").iter().map(size).sum();
    assert!(total <= MAX_FIXTURES, "{total} bytes of fixtures, at most {MAX_FIXTURES}");
}

#[test]
fn every_implemented_paper_owns_its_parts() {
    let foundations = foundations().iter().filter(|p| p.example.is_some());
    let implemented =
        || papers().iter().chain(foundations.clone()).filter(|p| p.status == Status::Implemented);
    let mut problems: Vec<String> =
        implemented().flat_map(|paper| owned::problems(root(), paper)).collect();
    for paper in papers().iter().filter(|p| p.status == Status::Planned) {
        if paper.source.is_some() || paper.example.is_some() {
            problems.push(format!("{}: planned, yet it names files", paper.name));
        }
    }
    // The other way round: an example belongs to a paper.
    for entry in fs::read_dir(root().join("examples")).expect("examples/").filter_map(|e| e.ok()) {
        let folder = format!("examples/{}", entry.file_name().to_string_lossy());
        let listed = implemented().any(|p| p.example == Some(&folder));
        if entry.path().is_dir() && !listed && folder != "examples/cli" {
            problems.push(format!("{folder}: no implemented paper in testing/papers.rs owns it"));
        }
    }
    none(problems);
}

#[test]
fn the_list_of_papers_is_sound() {
    let mut problems = Vec::new();
    for (i, paper) in papers().iter().enumerate() {
        let id: Vec<&str> = paper.arxiv.split('.').collect();
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if !(id.len() == 2 && id[0].len() == 4 && id[1].len() == 5 && id.iter().all(|s| digits(s)))
        {
            problems.push(format!("{}: `{}` is no arXiv id", paper.name, paper.arxiv));
        }
        if !layers::LAYERS.contains(&paper.layer) {
            problems.push(format!("{}: `{}` is no layer", paper.name, paper.layer));
        }
        for other in &papers()[..i] {
            if other.name == paper.name || other.arxiv == paper.arxiv {
                problems.push(format!("{} and {} share a name or id", other.name, paper.name));
            }
        }
    }
    assert_eq!(papers().len(), 55);
    none(problems);
}

/// Compares a generated text with the committed file, or writes it.
fn committed(name: &str, want: &str) {
    let path = root().join(name);
    if std::env::var_os("LONGBURN_BLESS").is_some_and(|v| v == "1") {
        fs::write(&path, want).unwrap_or_else(|e| panic!("{name}: {e}"));
        return;
    }
    let have = fs::read_to_string(&path).unwrap_or_default();
    let differs = have.lines().zip(want.lines()).position(|(a, b)| a != b);
    assert!(
        have == want,
        "{name} is not what the data gives (line {}): LONGBURN_BLESS=1 cargo test --test registry",
        differs.map_or(have.lines().count().min(want.lines().count()), |i| i) + 1
    );
}

#[test]
fn docs_papers_is_generated() {
    committed("docs/papers.md", &papers_page());
}

#[test]
fn the_readme_table_is_generated() {
    const BEGIN: &str = "<!-- papers: generated from testing/papers.rs -->\n";
    const END: &str = "<!-- end of papers -->";
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let (before, rest) = readme.split_once(BEGIN).expect("the README has the opening marker");
    let (_, after) = rest.split_once(END).expect("the README has the closing marker");
    committed("README.md", &format!("{before}{BEGIN}{}{END}{after}", readme_table()));
}

#[test]
fn the_readme_recipe_is_one() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let recipe = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let recipe = Recipe::parse(recipe.expect("the README shows a recipe"), "README.md");
    assert_eq!(recipe.unwrap_or_else(|e| panic!("{e}")).mixer.to_string(), "longlora");
}
