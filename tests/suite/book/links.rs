//! Links between the pages of the repository, down to the heading.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All pages, hidden folders and what is built left out.
fn pages() -> Vec<PathBuf> {
    let kept = |entry: &walkdir::DirEntry| {
        let name = entry.file_name().to_string_lossy();
        entry.depth() == 0 || !(name.starts_with('.') || name.starts_with("target"))
    };
    let entries = walkdir::WalkDir::new(root()).into_iter().filter_entry(kept);
    let paths = entries.map(|entry| entry.unwrap().into_path());
    paths.filter(|path| path.extension().is_some_and(|e| e == "md")).collect()
}

/// The lines of a page outside of its blocks of code.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    page.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// Targets of the links of a page; what stands between backticks is none.
fn targets(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(page) {
        let plain: String = line.split('`').step_by(2).collect();
        found.extend(
            plain
                .split("](")
                .skip(1)
                .filter_map(|rest| rest.split_once(')'))
                .map(|(target, _)| target.to_string()),
        );
    }
    found
}

/// What a heading is called in a link, as mdBook and GitHub have it.
fn anchor(heading: &str) -> String {
    let kept = |c: char| match c {
        c if c.is_whitespace() => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
        _ => None,
    };
    heading.to_lowercase().chars().filter_map(kept).collect()
}

fn anchors(page: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let headings = prose(page).filter_map(|line| {
        let text = line.trim_start_matches('#');
        let level = line.len() - text.len();
        (1..=6).contains(&level).then(|| text.strip_prefix(' ')).flatten()
    });
    let number = |heading: &str| {
        let name = anchor(heading.trim());
        let count = seen.entry(name.clone()).or_default();
        *count += 1;
        if *count == 1 { name } else { format!("{name}-{}", *count - 1) }
    };
    headings.map(number).collect()
}

/// `a/b/../c` as `a/c`, without asking the disk.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => _ = out.pop(),
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

#[test]
fn every_link_leads_somewhere() {
    let (mut links, mut dead) = (0, Vec::new());
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for target in targets(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            links += 1;
            let (file, heading) = target.split_once('#').unwrap_or((&target, ""));
            let to = match file {
                "" => page.clone(),
                file => plain(&page.parent().unwrap().join(file)),
            };
            let name = page.strip_prefix(root()).unwrap().display();
            if !to.exists() {
                dead.push(format!("{name}: {target}: no such file"));
            } else if page.starts_with(super::docs()) && !to.starts_with(super::docs()) {
                dead.push(format!("{name}: {target}: not in the book"));
            } else if page.starts_with(super::docs())
                && to.ends_with("README.md")
                && !page.ends_with("SUMMARY.md")
            {
                dead.push(format!("{name}: {target}: mdBook calls it index.html"));
            } else if !heading.is_empty()
                && !anchors(&fs::read_to_string(&to).unwrap()).contains(heading)
            {
                dead.push(format!("{name}: {target}: no such heading"));
            }
        }
    }
    assert!(links > 40, "{links}");
    assert!(dead.is_empty(), "\n{}\n", dead.join("\n"));
}

#[test]
fn links_and_headings_are_found() {
    let page = "# A `b` (c), d\n[x](a.md#b) and ![y](c.png) `[no](code)`\n```sh\n# no\n[no](z)\n```\n\
                ## A b c d\n### `[data.chat]`\n####### no\n#no\n## A b c d\n";
    assert_eq!(targets(page), ["a.md#b", "c.png"]);
    let wanted = ["a-b-c-d", "a-b-c-d-1", "a-b-c-d-2", "datachat"];
    assert_eq!(anchors(page).into_iter().collect::<Vec<_>>(), wanted);
}
