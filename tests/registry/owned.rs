//! What an implemented paper owns: source, configuration, test, example.

use longburn::attention::MixerSchedule;
use longburn::testing::papers::Paper;
use std::fs;
use std::path::Path;

/// Everything that is missing, one line each.
pub fn problems(root: &Path, paper: &Paper) -> Vec<String> {
    let mut found = Vec::new();
    let read = |name: &str| fs::read_to_string(root.join(name)).ok();
    let mut need = |holds: bool, what: String| {
        if !holds {
            found.push(format!("{}: {what}", paper.name));
        }
    };

    let source = paper.source.unwrap_or_default();
    let text = read(source).unwrap_or_default();
    let file = format!("{}/{}.rs", paper.layer, paper.name);
    let folder = format!("{}/{}/mod.rs", paper.layer, paper.name);
    need(source == file || source == folder, format!("its source is `{source}`, not `{file}`"));
    need(!text.is_empty(), format!("`{source}` is missing or empty"));
    let head: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
    let head =
        head.iter().map(|l| l.trim_start_matches("//!").trim()).collect::<Vec<_>>().join(" ");
    need(head.starts_with(paper.title), format!("`{source}` does not begin with the title"));
    need(
        head.contains(&format!("(arXiv {})", paper.arxiv)),
        format!("`{source}` does not say (arXiv {})", paper.arxiv),
    );
    need(head.contains("*Deviations"), format!("`{source}` has no *Deviations* paragraph"));
    let config = text.lines().any(|line| {
        line.strip_prefix("pub struct ").is_some_and(|rest| {
            let name = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
            name.ends_with("Config")
        })
    });
    need(config, format!("`{source}` has no public …Config"));

    let tests = format!("tests/suite/{}.rs", paper.name);
    let pinned = read(&tests).is_some_and(|text| {
        text.split("#[test]").skip(1).any(|t| {
            let name = t.split_once("fn ").map_or("", |(_, rest)| rest);
            name.split('(').next().is_some_and(|n| n.contains("equal") || n.contains("reference"))
        })
    });
    need(pinned, format!("`{tests}` has no test named after an equivalence or a reference"));

    let example = paper.example.unwrap_or_default();
    need(example == format!("examples/{}", paper.name), format!("its example is `{example}`"));
    for part in ["main.rs", "README.md", "run.toml"] {
        let name = format!("{example}/{part}");
        need(
            read(&name).is_some_and(|t| !t.trim().is_empty()),
            format!("`{name}` is missing or empty"),
        );
    }
    let readme = read(&format!("{example}/README.md")).unwrap_or_default();
    let command = format!("cargo run --example {}", paper.name);
    need(readme.contains(&command), format!("`{example}/README.md` does not say `{command}`"));
    for block in readme.split("```toml\n").skip(1) {
        let block = block.split("```").next().unwrap_or_default();
        let mixers = block.parse::<toml::Table>().map(|table| {
            table.get("mixer").cloned().map(|mixer| mixer.try_into::<MixerSchedule>())
        });
        match mixers {
            Ok(None | Some(Ok(_))) => {}
            Err(error) | Ok(Some(Err(error))) => {
                need(false, format!("a recipe in `{example}/README.md`: {error}"));
            }
        }
    }
    let settings = read(&format!("{example}/run.toml")).map(|text| text.parse::<toml::Table>());
    if let Some(Err(error)) = settings {
        need(false, format!("`{example}/run.toml`: {error}"));
    }
    found
}

mod tests {
    use super::problems;
    use longburn::testing::papers::{Paper, papers};
    use std::fs;
    use std::path::Path;

    const GOOD: [(&str, &str); 5] = [
        (
            "attention/longlora.rs",
            "//! TITLE (arXiv ID).\n//!\n//! *Deviations.* None.\npub struct XConfig {}\n",
        ),
        ("tests/suite/longlora.rs", "#[test]\nfn groups_equal_the_reference() {}\n"),
        ("examples/longlora/main.rs", "fn main() {}\n"),
        ("examples/longlora/README.md", "cargo run --example longlora\n"),
        ("examples/longlora/run.toml", "steps = 1\n"),
    ];

    fn paper() -> &'static Paper {
        papers().iter().find(|p| p.name == "longlora").expect("LongLoRA is listed")
    }

    fn write(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = text.replace("TITLE", paper().title).replace("ID", paper().arxiv);
        fs::write(path, text).unwrap();
    }

    #[test]
    fn each_missing_part_is_one_problem() {
        let root = tempfile::tempdir().unwrap();
        GOOD.iter().for_each(|(name, text)| write(root.path(), name, text));
        assert_eq!(problems(root.path(), paper()), Vec::<String>::new());
        let faults = [
            (
                "attention/longlora.rs",
                "//! TITLE (arXiv ID).\npub struct XConfig {}\n",
                "*Deviations*",
            ),
            (
                "attention/longlora.rs",
                "//! TITLE.\n//! *Deviations.* None.\npub struct XConfig {}\n",
                "(arXiv ",
            ),
            (
                "attention/longlora.rs",
                "//! Other (arXiv ID).\n//! *Deviations.*\npub struct XConfig {}\n",
                "title",
            ),
            (
                "attention/longlora.rs",
                "//! TITLE (arXiv ID).\n//! *Deviations.* None.\nstruct XConfig {}\n",
                "Config",
            ),
            ("tests/suite/longlora.rs", "#[test]\nfn runs() {}\n", "equivalence"),
            ("examples/longlora/run.toml", "steps = \n", "run.toml"),
            ("examples/longlora/README.md", "# LongLoRA\n", "cargo run"),
            (
                "examples/longlora/README.md",
                "cargo run --example longlora\n```toml\n[mixer]\nname = \"longlore\"\n```\n",
                "longlore",
            ),
        ];
        for (name, text, word) in faults {
            write(root.path(), name, text);
            let found = problems(root.path(), paper());
            assert!(found.len() == 1 && found[0].contains(word), "{name} {word}: {found:?}");
            GOOD.iter().for_each(|(name, text)| write(root.path(), name, text));
        }
    }
}
