//! Outputs that cannot be written are found before the work begins, and named with what is there.

use super::Bench;

/// Neither model nor recipe nor data are there: whoever had begun to work would miss them.
#[test]
fn outputs_that_cannot_be_written_are_named_first() {
    let bench = Bench::new();
    bench.write("file.txt", "");
    let eval = |more: &[&str]| {
        let args = ["eval", "absent", "--data", "none", "--needle", "64"];
        bench.refusal(&[&args, more].concat())
    };
    let extend = |more: &[&str]| {
        let args = ["extend", "absent", "--method", "yarn", "--to", "64", "--text", "none"];
        bench.refusal(&[&args, more].concat())
    };
    let logits =
        |out: &str| bench.refusal(&["logits", "absent", "--ids", "none.json", "--out", out]);
    let mask = |out: &str| bench.refusal(&["mask", "show", "absent.toml", "--out", out]);
    let merge = |out: &str| bench.refusal(&["merge", "absent", "--out", out]);
    for (message, option, found) in [
        (eval(&["--svg", "texts"]), "svg", "texts (a folder has that name)"),
        (eval(&["--svg", "no/n.svg"]), "svg", "no/n.svg (there is no folder no)"),
        (eval(&["--results", "texts"]), "results", "texts (a folder has that name)"),
        (eval(&["--results", "file.txt/r"]), "results", "file.txt/r (file.txt is a file)"),
        (extend(&["--svg", "texts"]), "svg", "texts (a folder has that name)"),
        (extend(&["--out", "file.txt"]), "out", "file.txt (file.txt is a file)"),
        (extend(&["--out", "file.txt/a/b"]), "out", "file.txt/a/b (file.txt is a file)"),
        (extend(&["--out", "texts"]), "out", "texts (it holds "),
        (merge("file.txt"), "out", "file.txt (file.txt is a file)"),
        (merge("texts"), "out", "texts (it holds "),
        (logits("texts"), "out", "texts (a folder has that name)"),
        (logits("no/logits.safetensors"), "out", "(there is no folder no)"),
        (mask("texts"), "out", "texts (a folder has that name)"),
    ] {
        let place = format!("command line: field `{option}` is ");
        assert!(message.starts_with(&place) && message.contains(found), "{message}");
        let remedy = ["; expected a file in a folder that is there", "; expected a new or empty"];
        assert!(remedy.iter().any(|remedy| message.contains(remedy)), "{message}");
    }
}

#[test]
fn the_folder_of_a_run_must_be_one() {
    let bench = Bench::new();
    bench.write("file.txt", "");
    // Data that are read only when the folder has been looked at.
    let recipe = "[model]\npath = \"model\"\n[data]\ntrain = \"none\"\n[train]\nsteps = 1\n\
                  length = 16\nlr = 1e-3\n[output]\ndir = \"DIR\"\n";
    for (dir, args, place) in [
        ("run", &["--out", "file.txt"][..], "command line: field `out` is file.txt ("),
        ("run", &["--out", "file.txt/run"], "command line: field `out` is file.txt/run ("),
        ("file.txt", &[], "`output.dir` is file.txt ("),
        ("file.txt", &["--resume"], "`output.dir` is file.txt ("),
    ] {
        bench.write("run.toml", &recipe.replace("DIR", dir));
        let message = bench.refusal(&[&["train", "run.toml"], args].concat());
        assert!(message.contains(place), "{message}");
        assert!(message.contains("file.txt is a file"), "{message}");
        assert!(message.contains("; expected a new or empty folder"), "{message}");
    }
    let cached = recipe.replace("DIR", "run").replace("\"none\"", "\"none\"\ncache = \"file.txt\"");
    bench.write("run.toml", &cached);
    let message = bench.refusal(&["train", "run.toml"]);
    assert!(message.contains("`data.cache` is file.txt is a file"), "{message}");
}
