//! Golden runner: compares the library with tensors that other programs computed.
//!
//! It walks the folders in `LONGBURN_GOLDENS` (several, colon separated; default: the
//! repository's own fixtures) and prints one line per file, named by its folder and itself.
//! `tests/goldens.toml` says which check reads which files. A word on the command line selects
//! the files whose name holds it.
#![allow(non_snake_case)]

mod blocks;
mod eval;
mod golden;
mod lact;
mod layer;
mod longlora;
mod lora;
mod model;
mod optim;
mod rope;
mod scan;
mod seer;
mod selftest;
mod sparse;
mod state_space;
mod table;

use golden::{Golden, Outcome};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use table::{Entry, Table};

/// Reads everything of a golden and compares it with what the library computes.
pub type Check = fn(&Golden) -> Result<(), Failure>;
/// Why a check could not be carried out.
pub type Failure = Box<dyn std::error::Error>;

/// Names that `tests/goldens.toml` may use.
const CHECKS: [(&str, Check); 29] = [
    ("adamw", optim::adamw),
    ("anchor", sparse::anchor),
    ("anchor_packing", sparse::packing),
    ("block_stride", blocks::check),
    ("lact", lact::branch),
    ("lact_layer", lact::layer),
    ("learning_rates", optim::schedules),
    ("model", model::check),
    ("muon", optim::muon),
    ("newton_schulz", lact::newton_schulz),
    ("rope", rope::check),
    ("rope_partial", rope::partial),
    ("rope_state", rope::state),
    ("rope_tables", rope::tables),
    ("longgen", sparse::longgen),
    ("longlora", longlora::check),
    ("lora", lora::check),
    ("passkey", eval::passkey),
    ("perplexity", eval::perplexity),
    ("rolling", eval::rolling),
    ("scan_discrete", scan::discrete),
    ("scan_duality", scan::duality),
    ("scan_gated_norm", scan::gated_norm),
    ("scan_mamba2", scan::mixer),
    ("scan_selective", scan::selective),
    ("scan_steps", scan::steps),
    ("state_space", state_space::check),
    ("seer_decode", seer::decode),
    ("seer_gate", seer::gate),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|a| a == "--list") {
        return ExitCode::SUCCESS;
    }
    let filter = args.iter().find(|a| !a.starts_with('-'));
    match run(filter.map_or("", String::as_str)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("goldens: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(filter: &str) -> Result<bool, Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = Table::read(&root.join("tests/goldens.toml"))?;
    let fixtures = root.join("tests/fixtures/goldens");
    let folders: Vec<PathBuf> = match std::env::var("LONGBURN_GOLDENS") {
        Ok(list) => list.split(':').filter(|f| !f.is_empty()).map(Into::into).collect(),
        Err(_) => vec![fixtures.clone()],
    };
    let mut files = Vec::new();
    for folder in folders {
        let before = files.len();
        walk(&folder, &mut files).map_err(|e| format!("{}: {e}", folder.display()))?;
        if files.len() == before {
            return Err(format!("{} holds no golden files", folder.display()).into());
        }
    }
    // A check that panics is a failed check, and says so on its line.
    std::panic::set_hook(Box::new(|_| {}));
    selftest::run(&fixtures.join("positional/rope_linear_small.safetensors"), &table)?;
    let (mut passed, mut failed, mut pending, mut unknown) = (0, 0, 0, 0);
    for path in files {
        let name = name_of(&path);
        if !name.contains(filter) {
            continue;
        }
        match table.find(&name)? {
            None => {
                unknown += 1;
                println!("unknown {name}");
            }
            Some(Entry::Pending) => {
                pending += 1;
                println!("pending {name}");
            }
            Some(Entry::Check(check)) => match outcome(check, &path) {
                Outcome::Ok(ratio) => {
                    passed += 1;
                    println!("ok {name} {ratio:.3}");
                }
                Outcome::Fail(reason) => {
                    failed += 1;
                    println!("FAIL {name} {reason}");
                }
            },
        }
    }
    println!("{passed} passed, {failed} failed, {pending} pending, {unknown} unknown");
    Ok(failed + unknown == 0)
}

fn outcome(check: Check, path: &Path) -> Outcome {
    let run = || {
        let golden = Golden::read(path)?;
        check(&golden)?;
        Ok(golden.outcome())
    };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(outcome)) => outcome,
        Ok(Err::<_, Failure>(error)) => Outcome::Fail(one_line(&error.to_string())),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Outcome::Fail(one_line(&format!("panic: {}", text.unwrap_or("without a message"))))
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// All golden files under `folder`, sorted. A folder beside a file of the same name, or with a
/// model's or adapter's configuration, belongs to a golden and is none.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            let file = PathBuf::from(format!("{}.safetensors", path.display()));
            let configs = ["config.json", "adapter_config.json"];
            if !file.is_file() && !configs.iter().any(|c| path.join(c).is_file()) {
                walk(&path, found)?;
            }
        } else if path.extension().is_some_and(|e| e == "safetensors") {
            found.push(path);
        }
    }
    Ok(())
}

/// GROUP/NAME
fn name_of(path: &Path) -> String {
    let group = path.parent().and_then(Path::file_name).unwrap_or_default();
    let name = path.file_stem().unwrap_or_default();
    format!("{}/{}", group.to_string_lossy(), name.to_string_lossy())
}
