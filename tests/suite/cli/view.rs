//! The view of a run in the terminal.

use super::Bench;

const RECIPE: &str = r#"
[model]
path = "model"
[data]
train = "texts"
[train]
steps = 60
length = 8
lr = 1e-2
[output]
dir = "run"
"#;

#[test]
fn a_view_that_cannot_be_shown_is_refused_before_anything_is_written() {
    let bench = Bench::new();
    bench.write("run.toml", RECIPE);
    let said = bench.refusal(&["train", "run.toml", "--tui"]);
    let expected = match cfg!(feature = "tui") {
        true => "standard output to be a terminal",
        false => "--features tui",
    };
    assert!(said.contains(expected), "{said}");
    assert!(!bench.path("run").exists());
}

#[cfg(all(feature = "tui", unix))]
mod shown {
    use super::{Bench, RECIPE};
    use std::io::{Read, Write};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    /// The run in a terminal of its own; nothing where the machine cannot make one.
    fn in_a_terminal(bench: &Bench) -> Option<Child> {
        let program = env!("CARGO_BIN_EXE_longburn");
        let line = format!("stty rows 40 cols 120; {program} train run.toml --tui");
        let started = Command::new("script")
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .current_dir(bench.path(""))
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        started.inspect_err(|e| eprintln!("skipped: the program `script` does not start: {e}")).ok()
    }

    fn output(child: &mut Child) -> String {
        let mut text = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    #[test]
    fn curves_are_shown_and_the_terminal_is_given_back() {
        let bench = Bench::new();
        // Long enough to be drawn several times, even where that is seldom.
        bench.write("run.toml", &RECIPE.replace("steps = 60", "steps = 2000"));
        let Some(mut child) = in_a_terminal(&bench) else { return };
        let said = output(&mut child);
        assert!(child.wait().unwrap().success(), "{said}");
        let (on, off) = (said.find("\x1b[?1049h").unwrap(), said.rfind("\x1b[?1049l").unwrap());
        assert!(on < off);
        assert!(said[on..off].contains("Loss"), "{said}");
        assert!(said[off..].contains("model"), "the summary follows: {said}");
        assert!(bench.path("run/model/config.json").exists());
    }

    #[test]
    fn the_view_stops_a_run_as_a_signal_does() {
        let bench = Bench::new();
        let recipe = RECIPE.replace("steps = 60", "steps = 1000000");
        bench.write("run.toml", &recipe);
        let Some(mut child) = in_a_terminal(&bench) else { return };
        let mut keys = child.stdin.take().unwrap();
        let typing = std::thread::spawn(move || {
            // The keys are read whenever the view is drawn; until it is, they are lost.
            for key in [b"q", b"s"].iter().cycle().take(240) {
                std::thread::sleep(Duration::from_millis(250));
                if keys.write_all(*key).is_err() {
                    break;
                }
            }
        });
        let said = output(&mut child);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
        typing.join().unwrap();
        let kept = std::fs::read_dir(bench.path("run/checkpoints")).unwrap();
        assert!(kept.count() > 0);
    }
}
